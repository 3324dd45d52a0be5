"""The GPU backend's own code, driven on a simulated GPU, against the CPU backend."""

from __future__ import annotations

import dataclasses
import gc
import threading
from pathlib import Path

import numpy as np
import pytest
from gpu_songs import STEPS, TOLERANCE, job, opened, sounded, sung
from simulated_device import SimulatedDevice

from notewave.backends.executor import Capture
from notewave.backends.gpu import denoising
from notewave.backends.gpu.backend import KEPT_DENOISERS
from notewave.backends.ort.backend import OrtBackend
from notewave.errors import BackendError
from notewave.song.dialect import Tokens
from notewave.sound.mel import FRAMES, MELS
from notewave.voice.folder import Voice


@pytest.mark.parametrize(("sampler", "guidance"), [("ddpm", 2.0), ("dpmpp-2m", 1.0), ("ddim", 1.0)])
def test_every_sampler_and_guidance(
    sampler: str, guidance: float, voice: Voice, home: Path, segments: list[Tokens]
) -> None:
    work = job(voice, sampler, guidance)
    mine, cpu = (sung(b, work, [segments[:1]]) for b in (opened(voice)[0], OrtBackend(voice, 1)))
    np.testing.assert_allclose(mine, cpu, rtol=0, atol=20 * TOLERANCE)  # untrained weights magnify rounding under DDIM


def test_given_noise(voice: Voice, home: Path, segments: list[Tokens]) -> None:
    noise = np.random.default_rng(0).standard_normal((3 * STEPS, FRAMES, MELS)).astype(np.float32)
    work = job(voice, noise=noise)
    mine, cpu = (sung(b, work, [segments]) for b in (opened(voice)[0], OrtBackend(voice, 1)))
    np.testing.assert_allclose(mine, cpu, rtol=0, atol=TOLERANCE)


def test_songs_go_on_from_what_was_given(voice: Voice, home: Path, segments: list[Tokens]) -> None:
    """Each of them, by every run that is given something, and none by those after it."""
    context = np.random.default_rng(0).uniform(-1, 1, (FRAMES, MELS)).astype(np.float32)
    given = dataclasses.replace(job(voice, seeds=(3, 4)), context=context)
    songs, (backend, _) = [segments[:2], segments[1:]], opened(voice)
    for work in (given, job(voice, seeds=(3, 4)), given):
        mine, cpu = (sung(b, work, songs) for b in (backend, OrtBackend(voice, 1)))
        np.testing.assert_allclose(mine, cpu, rtol=0, atol=TOLERANCE)
    assert not np.allclose(mine, sung(backend, job(voice, seeds=(3, 4)), songs), atol=0.01)


def test_songs_side_by_side_are_the_songs_alone(voice: Voice, home: Path, segments: list[Tokens]) -> None:
    songs, seeds = [segments[:2], segments[1:]], (3, 2**64 - 1)
    backend, _ = opened(voice)
    together = sung(backend, job(voice, seeds=seeds), songs)
    for index, (song, seed) in enumerate(zip(songs, seeds, strict=True)):
        alone = sung(backend, job(voice, seeds=(seed,)), [song])
        np.testing.assert_allclose(together[:, index], alone[:, 0], rtol=0, atol=TOLERANCE)


def test_nothing_is_allocated_or_captured_once_warm_and_graphs_keep_their_addresses(
    voice: Voice, home: Path, segments: list[Tokens]
) -> None:
    backend, device = opened(voice)
    first = sung(backend, job(voice), [segments])
    sung(backend, job(voice), [segments])  # a bucket's first segment runs eagerly, its second is captured
    held = (list(device.memories), list(device.pinned_bytes), list(device.streams), list(device.graphs))
    assert len(held[0]) == 1, "one slab for all buffers"
    launched = [graph.launches for graph in device.graphs]
    again = sung(backend, job(voice), [segments])
    other = sung(backend, job(voice, "ddim", seeds=(8,)), [segments])  # the same launches serve any sampler and seed
    assert (device.memories, device.pinned_bytes, list(device.streams), device.graphs) == held
    assert [graph.launches for graph in device.graphs] == [launched[0] + 4, launched[1] + 2]
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(other, first)


def test_one_copy_each_way_for_a_segment(voice: Voice, home: Path, segments: list[Tokens]) -> None:
    backend, device = opened(voice)
    work = job(voice)
    with backend.start(work) as run:
        run.denoise(segments[:1])
        del device.launches[:]
        run.denoise(segments[1:2])
    launches = device.launches
    assert launches[0] == "upload" and launches[-1] == "download"
    assert [launches.count(label) for label in ("upload", "download", "clear")] == [1, 1, 0]
    assert launches.count("sampler_step_fp32") == STEPS and launches.count("network") == 3 + STEPS
    first, last = launches.index("sampler_step_fp32"), len(launches) - launches[::-1].index("sampler_step_fp32")
    assert launches.index("philox_normal") < first and "philox_normal" not in launches[first:], "noise comes first"
    assert launches[:first].count("network") == 4, "encoders, keys and values, and the first step's decoder"
    assert launches.index("mel_to_context") >= last, "the finished mel becomes the context"


def test_submitting_a_segment_waits_for_nothing(
    voice: Voice, home: Path, segments: list[Tokens], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two segments are under way at once: nothing of them has been done when both were submitted and asked for."""
    backend, device = opened(voice)
    expected = sung(backend, job(voice), [segments[:2]])
    audio = sounded(backend, job(voice), segments[:2])
    with backend.start(job(voice)) as run:
        for stream in device.streams.values():
            stream.synchronize()
        del device.launches[:]
        asked = []
        for index in range(2):
            run.submit(segments[index : index + 1])
            asked.append((run.mel(), run.sound(last=index == 1)))
        assert device.launches == [], "all of it was only queued"
        order = []
        for mel, sound in asked:
            order.append(mel.result()[0])
            done = device.launches.count("sampler_step_fp32")
            assert done == STEPS * len(order), "waiting for a segment does not wait for the one behind it"
            order[-1] = (order[-1], sound.result()[0])
        assert device.launches.count("upload") == 2 + 2, "each segment's inputs, and the number of its first frame"
    for (mel, _), reference in zip(order, expected, strict=True):
        np.testing.assert_array_equal(mel, reference[0])
    np.testing.assert_array_equal(np.concatenate([chunk for _, chunk in order]), audio)


def test_a_third_segment_waits_for_the_first_and_keeps_it(voice: Voice, home: Path, segments: list[Tokens]) -> None:
    backend, device = opened(voice)
    song = [segments[0], segments[1], segments[0], segments[1]]
    expected = sung(backend, job(voice), [song])
    with backend.start(job(voice)) as run:
        asked = []
        for count, tokens in enumerate(song, 1):
            del device.launches[:]
            run.submit([tokens])
            asked.append(run.mel())
            assert device.launches.count("sampler_step_fp32") == (STEPS if count > 2 else 0)
        for mel, reference in zip(asked, expected, strict=True):
            np.testing.assert_array_equal(mel.result(), reference)


def test_segments_that_nothing_is_asked_of_are_sung_all_the_same(
    voice: Voice, home: Path, segments: list[Tokens]
) -> None:
    """What is staged of the first is not overwritten by the third's before it was read."""
    backend, _ = opened(voice)
    expected = sung(backend, job(voice), [segments])
    with backend.start(job(voice)) as run:
        for tokens in segments:
            run.submit([tokens])
        np.testing.assert_array_equal(run.mel().result(), expected[-1])


def test_what_a_run_gives_is_taken_before_it_ends(voice: Voice, home: Path, segments: list[Tokens]) -> None:
    backend, device = opened(voice)
    with backend.start(job(voice)) as run:
        with pytest.raises(BackendError, match="nothing was submitted"):
            run.mel()
        run.submit(segments[:1])
        taken, late = run.mel(), run.sound(last=True)
        mel = taken.result()
    np.testing.assert_array_equal(taken.result(), mel)
    for call in (late.result, run.mel, lambda: run.submit(segments[:1])):
        with pytest.raises(BackendError, match="is over"):
            call()
    del taken, late
    backend.close()
    assert not device.leaked and not device.pinned_bytes


def test_a_run_left_early_harms_no_other(voice: Voice, home: Path, segments: list[Tokens]) -> None:
    backend, _device = opened(voice)
    expected = sung(backend, job(voice), [segments[:1]])
    with backend.start(job(voice)) as run:
        run.submit(segments[1:2])
    np.testing.assert_array_equal(sung(backend, job(voice), [segments[:1]]), expected)


def test_runs_side_by_side_have_their_own_buffers(voice: Voice, home: Path, segments: list[Tokens]) -> None:
    backend, device = opened(voice)
    expected = sung(backend, job(voice), [segments[:2]])
    with backend.start(job(voice)) as one, backend.start(job(voice, seeds=(8,))) as two:
        one.submit(segments[:1])
        two.submit(segments[2:3])
        two.mel().result()
        np.testing.assert_array_equal(one.mel().result(), expected[0])
        assert len(device.memories) == 2
        np.testing.assert_array_equal(one.denoise(segments[1:2]), expected[1])


def test_steps_are_reported(voice: Voice, home: Path, segments: list[Tokens]) -> None:
    calls: list[int] = []
    sung(opened(voice)[0], job(voice, on_step=lambda: calls.append(1)), [segments[:2]])
    assert len(calls) == 2 * STEPS


def test_idle_buffers_are_few_and_make_room(voice: Voice, home: Path, segments: list[Tokens]) -> None:
    backend, device = opened(voice)
    for seeds in ((1,), (1, 2), (1, 2, 3)):
        sung(backend, job(voice, seeds=seeds), [segments[:1]] * len(seeds))
    assert len(device.memories) == KEPT_DENOISERS
    device.total = sum(memory.bytes.size for memory in device.memories)
    sung(backend, job(voice, guidance=2.0), [segments[:1]])  # needs more than is free: an idle one gives way


def test_out_of_memory_names_sizes_and_leaks_nothing(voice: Voice, home: Path) -> None:
    backend, device = opened(voice, SimulatedDevice(total=1 << 20))
    with (
        pytest.raises(BackendError, match=r"a run of 1 songs at 3 steps needs \d+ bytes, 1048576 are free"),
        backend.start(job(voice)),
    ):
        pass
    assert not device.memories


def test_a_closed_backend_holds_nothing_and_says_so(voice: Voice, home: Path, segments: list[Tokens]) -> None:
    backend, device = opened(voice)
    sung(backend, job(voice), [segments])
    backend.vocode(np.zeros((1, 20, MELS), np.float32), 0)
    backend.close()
    backend.close()
    assert not device.memories and not device.pinned_bytes and not device.streams and not device.leaked
    assert all(graph.freed for graph in device.graphs)
    for call in (lambda: sung(backend, job(voice), [segments]), lambda: backend.vocode(np.zeros((1, 20, MELS)), 0)):
        with pytest.raises(BackendError, match="was closed"):
            call()


def test_a_backend_that_nothing_refers_to_gives_all_back_from_any_thread(
    voice: Voice, home: Path, segments: list[Tokens]
) -> None:
    device = SimulatedDevice()

    def sing() -> None:
        backend, _ = opened(voice, device)
        sung(backend, job(voice), [segments])
        sung(backend, job(voice, seeds=(1, 2)), [segments[:1]] * 2)
        sung(backend, job(voice, guidance=2.0), [segments[:1]])  # one workspace more than is kept
        backend.vocode(np.zeros((1, 20, MELS), np.float32), 0)
        assert len(device.streams) == KEPT_DENOISERS + 1

    thread = threading.Thread(target=sing)
    thread.start()
    thread.join()
    gc.collect()
    assert not device.memories and not device.pinned_bytes and not device.streams and not device.leaked


@pytest.mark.parametrize("call", ["stream", "pinned"])
def test_a_workspace_that_cannot_be_made_leaves_nothing(
    call: str, voice: Voice, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend, device = opened(voice)

    def fails(*_: object) -> None:
        raise BackendError("out of page-locked host memory")

    monkeypatch.setattr(device, call, fails)
    for use in (lambda: sung(backend, job(voice), [[]]), lambda: backend.vocode(np.zeros((1, 20, MELS)), 0)):
        with pytest.raises(BackendError, match="page-locked"):
            use()
    gc.collect()
    assert not device.memories and not device.pinned_bytes and not device.streams and not device.leaked


def test_many_steps_go_into_several_graphs(
    voice: Voice, home: Path, segments: list[Tokens], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = sung(opened(voice)[0], job(voice), [segments[:2]])
    monkeypatch.setattr(denoising, "GRAPH_STEPS", 2)
    backend, device = opened(voice)
    np.testing.assert_array_equal(sung(backend, job(voice), [segments[:2]]), expected)
    labels = [[operation.label for operation in graph.operations] for graph in device.graphs]
    assert [graph.count("sampler_step_fp32") for graph in labels] == [2, 1]
    assert labels[0].index("philox_normal") < labels[0].index("sampler_step_fp32") and "philox_normal" not in labels[1]
    assert labels[1][-1] == "mel_to_context" and "mel_to_context" not in labels[0]


def test_a_spoilt_capture_is_tried_once_more(
    voice: Voice,
    home: Path,
    segments: list[Tokens],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    backend, device = opened(voice)
    capture, failures = device.capture, 1

    def spoilt(*arguments: object) -> object:
        nonlocal failures
        failures -= 1
        if failures >= 0:
            raise BackendError("the capture was invalidated")
        return capture(*arguments)

    monkeypatch.setattr(device, "capture", spoilt)
    sung(backend, job(voice), [segments[:2]])
    assert [graph.launches for graph in device.graphs] == [1] and not caplog.records
    failures = 2
    sung(backend, job(voice, seeds=(1, 2)), [segments[:2]] * 2)
    assert "without CUDA graphs" in caplog.text and backend.shared.recorder.capture is Capture.ENGINE


def test_a_gpu_that_fails_as_a_run_begins_leaks_nothing(
    voice: Voice, home: Path, segments: list[Tokens], monkeypatch: pytest.MonkeyPatch
) -> None:
    backend, device = opened(voice)
    sung(backend, job(voice), [segments[:1]])
    with monkeypatch.context() as patch:

        def fails(*_: object) -> None:
            raise BackendError("the GPU failed")

        patch.setattr(device, "upload", fails)
        with pytest.raises(BackendError, match="the GPU failed"), backend.start(job(voice)):
            pass
    assert not device.memories, "buffers in a state that nobody knows are no other run's"
    sung(backend, job(voice), [segments[:1]])


def test_a_gpu_that_fails_in_a_run_leaks_nothing(
    voice: Voice, home: Path, segments: list[Tokens], monkeypatch: pytest.MonkeyPatch
) -> None:
    backend, device = opened(voice)

    def fails(*_: object) -> None:
        raise BackendError("the GPU failed")

    with pytest.raises(BackendError, match="the GPU failed"), backend.start(job(voice)) as run:
        run.submit(segments[:1])
        monkeypatch.setattr(device, "perform", fails)
        held = run.mel()
        held.result()
    assert not device.memories
    with pytest.raises(BackendError, match="is over"):
        held.result()
    assert held._held is None, "what the caller still has let go of the device's memory"
