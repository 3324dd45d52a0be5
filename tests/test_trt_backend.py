"""The GPU backend's own code on TensorRT, driven on a simulated GPU, against the CPU backend."""

from __future__ import annotations

import ctypes
import dataclasses
import gc
import inspect
import json
import logging
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from simulated_device import (
    ICudaEngine,
    IExecutionContext,
    Operation,
    Runtime,
    SimulatedDevice,
    SimulatedTensorRT,
    SimulatedTensorRTRTX,
    Stream,
    simulated_plan,
)
from sounding_voice import sounding_voice

import notewave
from notewave.backends.device.shapes import MAX_BATCH
from notewave.backends.executor import Capture
from notewave.backends.gpu import program
from notewave.backends.gpu.backend import KEPT_DENOISERS, GpuBackend
from notewave.backends.gpu.pending import Copied
from notewave.backends.gpu.sound import DeviceSound
from notewave.backends.gpu.vocoder import VocoderLane
from notewave.backends.gpu.workspace import Slot
from notewave.backends.ort.backend import OrtBackend
from notewave.backends.trt import backend as trt
from notewave.backends.trt.backend import open_tensorrt
from notewave.backends.trt.engines import _logger
from notewave.backends.trt.plans import RECORD
from notewave.errors import BackendError
from notewave.export.plans.build import build_plans
from notewave.kernels import loader
from notewave.sampling.job import Job
from notewave.sampling.samplers import sampler_table
from notewave.song.codec import EOS, Tokens
from notewave.sound.mel import FRAMES, HOP, MELS, from_network
from notewave.sound.stream import VocoderStream
from notewave.voice.folder import FileRecord, Voice

STEPS = 3
TOLERANCE = 5e-5  # of float32 products that are summed in another order


@pytest.fixture(scope="module")
def voice(reference_voice: Path, tmp_path_factory: pytest.TempPathFactory) -> Voice:
    return sounding_voice(reference_voice, tmp_path_factory.mktemp("voices") / "sounding")


@pytest.fixture(scope="module")
def plans(voice: Voice, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home with float32 plans for the simulated GPU and both simulated TensorRTs."""
    home = tmp_path_factory.mktemp("plans")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NOTEWAVE_PLANS", str(home))
        patch.setattr("notewave.export.plans.build._local_capability", lambda: (8, 9))
        for kind in (SimulatedTensorRT, SimulatedTensorRTRTX):
            build_plans(voice, "fp32", (8, 9), trt=kind(SimulatedDevice()), compile_plan=simulated_plan)
    yield home


@pytest.fixture
def home(plans: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NOTEWAVE_PLANS", str(plans))
    return plans


@pytest.fixture
def spoilable(plans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the TensorRT-RTX plans, to be damaged."""
    home = tmp_path / "home"
    shutil.copytree(plans, home)
    monkeypatch.setenv("NOTEWAVE_PLANS", str(home))
    (folder,) = home.glob("*-tensorrt_rtx-*")
    return folder


@pytest.fixture(scope="module")
def segments(midi_folder: Path) -> list[Tokens]:
    """Two that share a bucket of token lengths, and one of another."""
    first, second, third = notewave.tokenize(midi_folder / "ensemble.mid")[:3]
    return [
        np.append(tokens[: length - 1], EOS).astype(np.int32)
        for tokens, length in ((first, 300), (second, 280), (third, 99))
    ]


def opened(
    voice: Voice, device: SimulatedDevice | None = None, **options: object
) -> tuple[GpuBackend, SimulatedDevice]:
    device = device or SimulatedDevice()
    return open_tensorrt(voice, options, device=device, trt=SimulatedTensorRTRTX(device)), device


def job(
    voice: Voice, sampler: str = "ddpm", guidance: float = 1.0, seeds: tuple[int, ...] = (7,), **given: object
) -> Job:
    given = {"noise": None, **given}
    return Job(sampler_table(sampler, STEPS, voice.schedule, voice.prediction), guidance, seeds, **given)


def sung(backend: GpuBackend | OrtBackend, work: Job, songs: list[list[Tokens]]) -> np.ndarray:
    """Mels [segments, B, T, M] of songs side by side."""
    with backend.start(work) as run:
        return np.stack([run.denoise(list(tokens)).copy() for tokens in zip(*songs, strict=True)])


@pytest.mark.parametrize("kind", ["tensorrt", "rtx", "rtx that cannot be captured", "no graphs"])
def test_the_samples_are_the_cpu_s(kind: str, voice: Voice, home: Path, segments: list[Tokens]) -> None:
    device = SimulatedDevice()
    trt = SimulatedTensorRT(device) if kind == "tensorrt" else SimulatedTensorRTRTX(device, "cannot" not in kind)
    backend = open_tensorrt(voice, {"graphs": kind != "no graphs"}, device=device, trt=trt)
    work = job(voice)
    np.testing.assert_allclose(
        sung(backend, work, [segments]), sung(OrtBackend(voice, "cpu", 1, {}), work, [segments]), rtol=0, atol=TOLERANCE
    )
    assert [graph.launches for graph in device.graphs] == ([1] if kind in ("tensorrt", "rtx") else [])
    if kind == "rtx that cannot be captured":  # then TensorRT-RTX captures graphs itself
        assert trt.configs[-1].cuda_graph_strategy is trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
    if isinstance(trt, SimulatedTensorRTRTX):
        eager = trt.DynamicShapesKernelSpecializationStrategy.EAGER
        assert all(config.dynamic_shapes_kernel_specialization_strategy is eager for config in trt.configs)


@pytest.mark.parametrize(("sampler", "guidance"), [("ddpm", 2.0), ("dpmpp-2m", 1.0), ("ddim", 1.0)])
def test_every_sampler_and_guidance(
    sampler: str, guidance: float, voice: Voice, home: Path, segments: list[Tokens]
) -> None:
    work = job(voice, sampler, guidance)
    mine, cpu = (sung(b, work, [segments[:1]]) for b in (opened(voice)[0], OrtBackend(voice, "cpu", 1, {})))
    np.testing.assert_allclose(mine, cpu, rtol=0, atol=20 * TOLERANCE)  # untrained weights magnify rounding under DDIM


def test_given_noise(voice: Voice, home: Path, segments: list[Tokens]) -> None:
    noise = np.random.default_rng(0).standard_normal((3 * STEPS, FRAMES, MELS)).astype(np.float32)
    work = job(voice, noise=noise)
    mine, cpu = (sung(b, work, [segments]) for b in (opened(voice)[0], OrtBackend(voice, "cpu", 1, {})))
    np.testing.assert_allclose(mine, cpu, rtol=0, atol=TOLERANCE)


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


def test_the_vocoder_sounds_a_segment_while_the_next_is_denoised(
    voice: Voice, home: Path, segments: list[Tokens]
) -> None:
    backend, device = opened(voice)
    cpu = OrtBackend(voice, "cpu", 1, {})
    with backend.start(job(voice)) as run:
        mel = from_network(run.denoise(segments[:1]))
        run.submit(segments[1:2])
        later = run.mel()
        del device.launches[:]
        audio = backend.vocode(mel, 5)
        launches = device.launches  # the segment submitted before still waits
        assert len(launches) == 3 and launches.index("upload") < launches.index("network") < launches.index("download")
        assert np.isfinite(later.result()).all()
    assert audio.shape == (1, FRAMES * HOP)
    np.testing.assert_allclose(audio, cpu.vocode(mel, 5), rtol=0, atol=1e-5)
    short = mel[:, :17]
    np.testing.assert_allclose(backend.vocode(short, 0), cpu.vocode(short, 0), rtol=0, atol=1e-5)


def test_the_vocoder_is_sent_what_it_is_given_and_no_more(
    voice: Voice, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend, device = opened(voice)
    sent, upload = [], device.upload
    monkeypatch.setattr(device, "upload", lambda to, source, on: (sent.append(source.nbytes), upload(to, source, on)))
    mels = np.random.default_rng(0).standard_normal((2, 20, MELS)).astype(np.float32)
    expected = OrtBackend(voice, "cpu", 1, {}).vocode(mels, 7)
    np.testing.assert_allclose(backend.vocode(mels, 7), expected, rtol=0, atol=1e-5)
    assert sent == [256 + mels.nbytes]  # the number of the first frame, padded, and the mel


def test_a_song_sounds_as_on_the_cpu(
    voice: Voice, home: Path, segments: list[Tokens], monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu = notewave.Synthesizer(voice.folder, backend="cpu", threads=1)
    monkeypatch.setattr("notewave.synthesizer.open_backend", lambda *_: opened(voice)[0])
    gpu = notewave.Synthesizer(voice.folder)
    assert gpu.backend == "tensorrt"
    mine, expected = (one.render(segments, sampler="ddpm", steps=STEPS, seed=5).samples for one in (gpu, cpu))
    assert len(mine) == len(segments) * FRAMES * HOP
    np.testing.assert_allclose(mine, expected, rtol=0, atol=1e-3)


def test_a_segment_is_denoised_while_the_one_before_is_vocoded(
    voice: Voice, home: Path, segments: list[Tokens], monkeypatch: pytest.MonkeyPatch
) -> None:
    backend, device = opened(voice)
    monkeypatch.setattr("notewave.synthesizer.open_backend", lambda *_: backend)
    synthesizer, under_way, result = notewave.Synthesizer(voice.folder), [], Copied.result

    def watched(self: Copied) -> np.ndarray:
        audio = result(self)
        queued = [entry for stream in device.streams.values() for _, _, entry in stream.queue]
        under_way.append(sum(isinstance(entry, Operation) for entry in queued))
        return audio

    monkeypatch.setattr(Copied, "result", watched)
    list(synthesizer.stream(segments, sampler="ddpm", steps=STEPS))
    assert len(under_way) == 3 and min(under_way[:2]) > 3 * STEPS and under_way[2] == 0


def sounded(backend: GpuBackend, work: Job, song: list[Tokens]) -> np.ndarray:
    """Audio of a song, its segments vocoded where they were denoised."""
    chunks = []
    with backend.start(work) as run:
        for index, tokens in enumerate(song):
            run.submit([tokens])
            chunks.append(run.sound(last=index == len(song) - 1).result()[0])
    return np.concatenate(chunks)


def test_only_audio_comes_back_once_a_chunk(voice: Voice, home: Path, segments: list[Tokens]) -> None:
    backend, device = opened(voice)
    sounded(backend, job(voice), segments)
    del device.launches[:]
    held = (list(device.memories), list(device.pinned_bytes), list(device.streams))
    sounded(backend, job(voice), segments)
    assert device.launches.count("download") == len(segments)
    vocoded = [index for index, label in enumerate(device.launches) if label == "from_network"]
    downloads = [index for index, label in enumerate(device.launches) if label == "download"]
    assert len(vocoded) == len(segments)
    for handed_over, audio in zip(vocoded, downloads, strict=True):
        assert device.launches[handed_over:audio].count("network") == 1, "the vocoder, on a mel that stays there"
    assert (device.memories, device.pinned_bytes, list(device.streams)) == held


@pytest.mark.parametrize(("left", "right"), [(0, 0), (3, 1), (40, 60), (5, 300)])
def test_chunks_join_whatever_the_vocoder_sees(
    left: int, right: int, voice: Voice, home: Path, segments: list[Tokens], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The windows on the device move as the host's do."""
    backend, _ = opened(voice)
    traits = dataclasses.replace(voice.vocoder, left_frames=left, right_frames=right)
    seen: list[tuple[np.ndarray, int]] = []

    def vocode(mel: np.ndarray, frame: int) -> np.ndarray:
        seen.append((mel.copy(), frame))
        return np.repeat(mel.mean(axis=2), HOP, axis=1)

    def enqueue(
        self: VocoderLane, mels: list[int], frames: int, frame: int, slot: Slot, skipped: int, audio: np.ndarray
    ) -> None:
        self.stream.synchronize()
        (mel,) = mels
        window = np.ctypeslib.as_array((ctypes.c_float * (frames * MELS)).from_address(mel)).reshape(1, frames, MELS)
        audio[:] = vocode(window, frame)[:, HOP * skipped :][:, : audio.shape[1]]

    monkeypatch.setattr(VocoderLane, "enqueue", enqueue)
    backend.voice = dataclasses.replace(voice, vocoder=traits)
    mine, windows = sounded(backend, job(voice), segments), list(seen)
    seen.clear()
    host = VocoderStream(vocode, traits)
    mels = from_network(sung(backend, job(voice), [segments])[:, 0])
    theirs = [host.push(mel, index == len(mels) - 1) for index, mel in enumerate(mels)]
    np.testing.assert_array_equal(mine, np.concatenate(theirs))
    for (window, frame), (expected, first) in zip(windows, seen, strict=True):
        np.testing.assert_array_equal(window, expected)
        assert frame == first


def test_songs_sound_side_by_side_and_after_one_that_was_left(voice: Voice, home: Path, segments: list[Tokens]) -> None:
    backend, device = opened(voice)
    expected = [sounded(backend, job(voice, seeds=seeds), segments) for seeds in ((3,), (8,))]
    mel = np.zeros((1, 4, MELS), np.float32)
    alone = backend.vocode(mel, 0)
    with backend.start(job(voice, seeds=(3,))) as one, backend.start(job(voice, seeds=(8,))) as two:
        runs, sounds, chunks = (one, two), [None, None], ([], [])
        for turn in range(4):  # the second song is a segment behind the first
            under_way = [song for song in (0, 1) if 0 <= turn - song < 3]
            for song in under_way:
                runs[song].submit(segments[turn - song : turn - song + 1])
                sounds[song] = runs[song].sound(last=turn - song == 2)
            np.testing.assert_array_equal(backend.vocode(mel, 0), alone)
            for song in under_way:
                chunks[song].append(sounds[song].result()[0])
        for song in (0, 1):
            np.testing.assert_array_equal(np.concatenate(chunks[song]), expected[song])
    with backend.start(job(voice)) as run:
        run.submit(segments[1:2])
        run.sound(last=False)
    np.testing.assert_array_equal(sounded(backend, job(voice, seeds=(8,)), segments), expected[1])
    with backend.start(job(voice)) as run:
        run.submit(segments[:1])
        run.sound(last=False)
    backend.close()  # frees what the chunk under way was using
    assert not device.memories and not device.freed_early


def test_a_batch_sounds_as_its_songs_alone(voice: Voice, home: Path, segments: list[Tokens]) -> None:
    backend, seeds, songs = opened(voice)[0], (1, 2), [segments, segments[::-1]]
    chunks = []
    with backend.start(job(voice, seeds=seeds)) as pair:
        for index, tokens in enumerate(zip(*songs, strict=True)):
            pair.submit(list(tokens))
            chunks.append(pair.sound(last=index == 2).result())
    together = np.concatenate(chunks, axis=1)
    for seed, song, audio in zip(seeds, songs, together, strict=True):
        np.testing.assert_allclose(audio, sounded(backend, job(voice, seeds=(seed,)), song), rtol=0, atol=1e-3)


def test_a_segment_gives_both_its_mel_and_its_sound(voice: Voice, home: Path, segments: list[Tokens]) -> None:
    backend, _ = opened(voice)
    mels, sound = sung(backend, job(voice), [segments])[:, 0], sounded(backend, job(voice), segments)
    chunks = []
    with backend.start(job(voice)) as run:
        for index, tokens in enumerate(segments):
            run.submit([tokens])
            mel, audio = run.mel(), run.sound(last=False)
            np.testing.assert_array_equal(mel.result()[0], mels[index])
            chunks.append(audio.result()[0])
        chunks.append(run.rest().result()[0])
    assert [len(chunk) // HOP for chunk in chunks] == [FRAMES - 1, FRAMES, FRAMES, 1], "a frame waits for the next"
    np.testing.assert_allclose(np.concatenate(chunks), sound, rtol=0, atol=1e-3)


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


def test_what_a_run_gives_is_taken_before_it_ends(voice: Voice, home: Path, segments: list[Tokens]) -> None:
    backend, device = opened(voice)
    with backend.start(job(voice)) as run:
        with pytest.raises(BackendError, match="no segment was submitted"):
            run.mel()
        run.submit(segments[:1])
        taken, late = run.mel(), run.sound(last=True)
        mel = taken.result()
    np.testing.assert_array_equal(taken.result(), mel)
    with pytest.raises(BackendError, match="is over"):
        late.result()
    del taken, late
    backend.close()
    assert not device.leaked and not device.pinned_bytes


@pytest.mark.parametrize("missing", ["denoised", "handed_over"])
def test_streams_that_do_not_wait_for_each_other_are_noticed(
    missing: str, voice: Voice, home: Path, segments: list[Tokens], monkeypatch: pytest.MonkeyPatch
) -> None:
    backend, _ = opened(voice)
    hand_over, wait = DeviceSound._hand_over, Stream.wait_for_event
    forgotten: list[object] = []

    def forgetful(self: DeviceSound, frame: int, lane: VocoderLane) -> None:
        forgotten[:] = [getattr(self._space, missing)]
        hand_over(self, frame, lane)

    monkeypatch.setattr(DeviceSound, "_hand_over", forgetful)
    monkeypatch.setattr(Stream, "wait_for_event", lambda self, on: None if on in forgotten else wait(self, on))
    with pytest.raises(AssertionError, match=r"never written|is not ordered before"), backend.start(job(voice)) as run:
        for index in range(2):
            run.submit(segments[index : index + 1])
            sound = run.sound(last=False)
        sound.result()


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
    monkeypatch.setattr(program, "GRAPH_STEPS", 2)
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
    assert "without CUDA graphs" in caplog.text and backend.recorder.capture is Capture.ENGINE


def test_limits_of_the_plans_are_named(voice: Voice, home: Path) -> None:
    backend, _ = opened(voice)
    with backend.start(job(voice)) as run, pytest.raises(BackendError, match=r"2049 tokens; the plans take 2048"):
        run.denoise([np.ones(2049, np.int32)])
    with pytest.raises(BackendError, match=r"5 songs .* the plans take 4"), backend.start(job(voice, seeds=(0,) * 5)):
        pass
    with pytest.raises(BackendError, match=rf"its plan takes {MAX_BATCH} of {FRAMES + 2}"):
        backend.vocode(np.zeros((1, FRAMES + 3, MELS), np.float32), 0)
    with pytest.raises(BackendError, match=r"no option speed\. Known: precision, device_id, graphs"):
        opened(voice, speed=9)


def test_missing_plans_say_what_is_there_instead(
    voice: Voice, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        BackendError, match=r"no fp16 plans .* for precision fp32, not fp16.*notewave build .*--precision fp16"
    ):
        opened(voice, precision="fp16")
    with pytest.raises(BackendError, match=r"compute capability 12\.0 .*for capability 8\.9, not 12\.0"):
        opened(voice, SimulatedDevice(capability=(12, 0)))
    device = SimulatedDevice()
    newer = SimulatedTensorRTRTX(device)
    newer.__version__ = "1.8.0"
    with pytest.raises(BackendError, match=r"for version 1\.7\.1, not 1\.8\.0"):
        open_tensorrt(voice, {}, device=device, trt=newer)
    monkeypatch.setenv("NOTEWAVE_PLANS", str(tmp_path))
    with pytest.raises(BackendError, match="found: none at all"):
        opened(voice)


def spoil_header(folder: Path, change: Callable[[dict[str, object]], None]) -> None:
    content = json.loads((folder / RECORD).read_text())
    change(content)
    (folder / RECORD).write_text(json.dumps(content))


def spoil_plan(plan: Path) -> None:
    """Make a plan one that only TensorRT can tell from a good one."""
    plan.write_bytes(b"garbage")
    record = FileRecord.of(plan)
    spoil_header(plan.parent, lambda content: content["files"].update({plan.name: vars(record)}))


def test_damaged_stale_and_foreign_plans_are_refused_by_name(voice: Voice, spoilable: Path) -> None:
    plan = spoilable / "decoder.plan"
    whole = plan.read_bytes()
    plan.write_bytes(whole[:-100])
    with pytest.raises(BackendError, match=r"decoder\.plan has \d+ bytes of \d+: it was cut short"):
        opened(voice)
    plan.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(BackendError, match=r"decoder\.plan does not match its SHA-256"):
        opened(voice)
    plan.write_bytes(whole)
    opened(voice)
    spoil_header(spoilable, lambda content: content["target"].update(graphs="0" * 64))
    with pytest.raises(BackendError, match="stale: built from other graphs"):
        opened(voice)
    spoil_header(spoilable, lambda content: content["target"].update(capability="7.5"))
    with pytest.raises(BackendError, match=r"for capability 7\.5, not 8\.9"):
        opened(voice)
    (spoilable / RECORD).write_text("{")
    with pytest.raises(BackendError, match=r"plans\.json cannot be read"):
        opened(voice)


def test_a_plan_that_tensorrt_refuses_gives_its_reason(voice: Voice, spoilable: Path) -> None:
    spoil_plan(spoilable / "note_encoder.plan")
    with pytest.raises(BackendError, match=r"note_encoder\.plan.* does not load .*MALFORMED_ENGINE.*not a plan"):
        opened(voice)


def test_kernels_that_are_missing_or_of_another_source_are_compiled_again(
    voice: Voice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[bytes] = []
    monkeypatch.setenv("NOTEWAVE_PLANS", str(tmp_path))
    monkeypatch.setattr(SimulatedDevice, "kernels", lambda _, image: loaded.append(image) or {})
    monkeypatch.setattr("notewave.export.plans.build.compile_kernels", lambda _: b"ahead")
    monkeypatch.setattr(loader, "compile_kernels", lambda _: b"now")
    build_plans(voice, "fp32", (8, 9), trt=SimulatedTensorRTRTX(SimulatedDevice()), compile_plan=simulated_plan)
    opened(voice)
    source = loader.source
    monkeypatch.setattr(loader, "source", lambda name: source(name) + "// changed")
    opened(voice)
    assert loaded == [b"ahead", b"now"]


def test_auto_falls_back_from_plans_that_do_not_load(
    voice: Voice, spoilable: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    device = SimulatedDevice()
    monkeypatch.setattr(trt, "CudaDevice", lambda _: device)
    monkeypatch.setattr(trt, "tensorrt_modules", lambda: [SimulatedTensorRTRTX(device)])
    assert notewave.Synthesizer(voice.folder).backend == "tensorrt"
    spoil_plan(spoilable / "vocoder.plan")
    with caplog.at_level(logging.INFO):
        assert notewave.Synthesizer(voice.folder).backend == "cpu"
    assert "not tensorrt, since" in caplog.text and "vocoder.plan" in caplog.text


def test_every_tensorrt_that_is_installed_is_asked_for_plans(
    voice: Voice, home: Path, spoilable: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = SimulatedDevice()
    modules = [SimulatedTensorRT(device), SimulatedTensorRTRTX(device)]
    monkeypatch.setattr(trt, "tensorrt_modules", lambda: modules)
    for folder in spoilable.parent.glob("*-tensorrt-*"):
        shutil.rmtree(folder)
    assert open_tensorrt(voice, {}, device=device).runtime.folder == spoilable
    shutil.rmtree(spoilable)
    with pytest.raises(BackendError, match=r"for tensorrt 11.* other TensorRT here: .* for tensorrt_rtx 1\.7"):
        open_tensorrt(voice, {}, device=device)


def test_a_reason_is_the_failed_call_s_own(voice: Voice, home: Path) -> None:
    backend, other = opened(voice)[0], opened(voice)[0]
    assert backend.runtime._log is other.runtime._log, "TensorRT keeps the first logger it is given"
    backend.runtime._log.log(SimulatedTensorRT.ILogger.Severity.ERROR, "of long ago")
    with pytest.raises(BackendError, match=r"does not take mel \[1, 0, 128\] \(TensorRT gives no reason\)"):
        other.vocode(np.zeros((1, 0, MELS), np.float32), 0)


def test_what_tensorrt_rtx_compiles_is_kept_for_the_next_start(
    voice: Voice, spoilable: Path, segments: list[Tokens]
) -> None:
    sung(opened(voice)[0], job(voice), [segments[:1]])
    assert (spoilable / "decoder.runtime_cache").read_bytes() == b"compiled"
    backend, _ = opened(voice)
    sung(backend, job(voice), [segments[:1]])
    assert backend.runtime._caches["decoder"].content == b"compiled"


def test_what_the_vocoder_had_compiled_is_kept_too(voice: Voice, spoilable: Path) -> None:
    backend, _ = opened(voice)
    backend.vocode(np.zeros((1, 20, MELS), np.float32), 0)
    kept = spoilable / "vocoder.runtime_cache"
    assert kept.read_bytes() == b"compiled"
    kept.unlink()
    backend.vocode(np.zeros((1, 20, MELS), np.float32), 0)
    assert not kept.exists()  # a shape that ran before is not written again
    backend.vocode(np.zeros((1, 21, MELS), np.float32), 0)
    assert kept.exists()


@pytest.mark.parametrize("network", ["decoder", "vocoder"])
def test_a_plan_that_cannot_be_run_is_named_and_leaks_nothing(
    network: str, voice: Voice, home: Path, segments: list[Tokens], monkeypatch: pytest.MonkeyPatch
) -> None:
    backend, device = opened(voice)
    engine = backend.runtime[network]
    monkeypatch.setattr(engine, "create_execution_context", lambda _: None)
    with pytest.raises(BackendError, match=rf"{network}\.plan cannot be run; \d+ of \d+ MiB of GPU memory are free"):
        if network == "vocoder":
            backend.vocode(np.zeros((1, 20, MELS), np.float32), 0)
        else:
            sung(backend, job(voice), [segments[:1]])
    assert len(device.memories) == (0 if network == "vocoder" else 1), "the run's slab is kept for the next run"


def test_tensorrt_that_does_not_start_is_explained(voice: Voice, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(self: object, logger: object) -> None:
        logger.log(SimulatedTensorRT.ILogger.Severity.ERROR, "CUDA initialization failure with error: 35")
        raise TypeError("factory function returned nullptr")

    monkeypatch.setattr(SimulatedTensorRTRTX, "Runtime", refuses)
    with pytest.raises(
        BackendError, match=r"does not start \(CUDA init.* error: 35; driver for CUDA .*Update the driver"
    ):
        opened(voice)


def test_a_gpu_that_fails_in_a_run_leaks_nothing(
    voice: Voice, home: Path, segments: list[Tokens], monkeypatch: pytest.MonkeyPatch
) -> None:
    backend, device = opened(voice)

    def fails(*_: object) -> None:
        raise BackendError("the GPU failed")

    with pytest.raises(BackendError, match="the GPU failed"), backend.start(job(voice)) as run:
        run.submit(segments[:1])
        monkeypatch.setattr(device, "perform", fails)
        run.mel().result()
    assert not device.memories


def test_voices_of_8_bit_weights_are_refused(voice: Voice, home: Path) -> None:
    integers = dataclasses.replace(voice, precision="int8")
    with pytest.raises(BackendError, match=r"holds 8-bit weights, .* Export it with --precision fp32 or fp16"):
        opened(integers)


def test_the_simulation_notices_reads_that_come_too_early() -> None:
    with SimulatedDevice() as device:
        memory, one, other = device.allocate(1024, "a test"), device.stream(), device.stream()
        device.copy(int(memory) + 512, int(memory), 256, one)
        with pytest.raises(AssertionError, match="never written"):
            one.synchronize()
        del one.queue[:]
        device.clear(int(memory), 1024, one)
        device.copy(int(memory) + 512, int(memory), 256, other)
        one.queue, waiting = [], one.queue
        device.perform(one, *waiting[0])
        with pytest.raises(AssertionError, match="whose write by another stream is not ordered"):
            other.synchronize()
        one.synchronize()
        other.queue.clear()
        device.copy(int(memory) + 512, int(memory), 256, one)
        one.synchronize()
        device.copy(int(memory) + 512, int(memory), 256, other)  # after what one did, which the host has waited for
        other.synchronize()
        device.copy(int(memory) + 512, int(memory), 256, one)
        device.clear(int(memory), 256, other)
        one.synchronize()
        with pytest.raises(AssertionError, match="whose reading by another stream is not ordered"):
            other.synchronize()
        with pytest.raises(AssertionError, match="device memory that is held"):
            device.perform(other, 99, {}, device_operation(int(memory) + 1024))


def device_operation(address: int) -> object:
    from simulated_device import Operation

    return Operation("test", lambda: ([(address, 4)], []), lambda: None)


def test_every_name_of_the_simulated_tensorrt_is_in_the_real_one() -> None:
    """The backend runs on these names and arguments alone, so all that it uses exists."""
    real = pytest.importorskip("tensorrt_rtx")
    simulated = SimulatedTensorRTRTX(SimulatedDevice())
    names = [name for name in dir(SimulatedTensorRTRTX) if not name.startswith("_")]
    assert {"Runtime", "ILogger", "DataType", "IRuntimeCache", "CudaGraphStrategy"} <= set(names)
    for name in names:
        kind = getattr(simulated, name)
        for member in getattr(kind, "__members__", None) or dir(kind):
            assert member.startswith("_") or hasattr(getattr(real, name), member), f"{name}.{member}"
    checked = set()
    for kind in (
        Runtime,
        ICudaEngine,
        IExecutionContext,
        SimulatedTensorRTRTX.IRuntimeConfig,
        SimulatedTensorRTRTX.IRuntimeCache,
    ):
        for member, value in vars(kind).items():
            if member.startswith("_"):
                continue
            theirs = getattr(getattr(real, kind.__name__), member)
            if callable(value):
                for argument in list(inspect.signature(value).parameters)[1:]:
                    assert f"{argument}: " in theirs.__doc__, f"{kind.__name__}.{member}({argument})"
                    checked.add(argument)
    assert {"memory", "size", "stream_handle", "stream", "cache", "blob", "buffer", "serialized_engine"} <= checked
    config = real.IRuntimeConfig
    assert hasattr(config, "cuda_graph_strategy") and hasattr(config, "dynamic_shapes_kernel_specialization_strategy")


def test_the_simulated_tensorrt_gives_what_the_real_one_gives_for_damage() -> None:
    """No driver is needed to refuse a plan; with an old one, loading fails the same way."""
    trt = pytest.importorskip("tensorrt_rtx")
    damaged = b"garbage" * 100
    logger = _logger(trt.ILogger)
    runtime = trt.Runtime(logger)
    _, found = runtime.get_engine_validity(damaged)
    assert int(found) & int(trt.EngineInvalidityDiagnostics.MALFORMED_ENGINE)
    assert runtime.deserialize_cuda_engine(damaged) is None
    assert logger.last


def test_a_plan_that_gives_more_than_its_contract_is_refused(
    voice: Voice, home: Path, segments: list[Tokens], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would write past its region of the slab."""
    shape = IExecutionContext.get_tensor_shape

    def longer(self: IExecutionContext, name: str) -> tuple[int, ...]:
        batch, *rest = shape(self, name)
        return (batch, 2 * rest[0], *rest[1:]) if name == "notes" else (batch, *rest)

    monkeypatch.setattr(IExecutionContext, "get_tensor_shape", longer)
    backend, _ = opened(voice)
    with pytest.raises(BackendError, match=r"note_encoder\.plan gives notes"):
        sung(backend, job(voice), [segments])
