"""Voices that write frame by frame, on the simulated GPU, against the CPU backend."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from gpu_songs import opened
from random_voices import random_voice
from simulated_device import SimulatedDevice
from simulated_onnxruntime import SimulatedOnnxRuntime
from simulated_tensorrt import SimulatedTensorRTRTX, simulated_plan
from sounding_voice import sounding_voice

from notewave.backends.device.contracts import gpu_contracts
from notewave.backends.device.shapes import MAX_BATCH, extents
from notewave.backends.executor import Capture
from notewave.backends.gpu.backend import GpuBackend
from notewave.backends.ort import providers
from notewave.backends.ort.backend import OrtBackend
from notewave.backends.ort.executors import open_cuda
from notewave.backends.protocol import PARTS, Backend, Run
from notewave.errors import BackendError
from notewave.export.networks import T5, port_family
from notewave.export.plans.build import build_plans
from notewave.sampling.job import Job, make_job
from notewave.song.dialect import EOS, Tokens
from notewave.sound.mel import FRAMES, HOP, MELS
from notewave.voice.folder import Voice

TOLERANCE = 1e-4
PART = FRAMES // PARTS
SONGS = [[np.append(np.full(length, 700), EOS).astype(np.int32) for length in song] for song in ((9, 280), (40, 3))]
SEGMENT_RMS = {"fp16": 2e-3, "bf16": 2e-2}  # of a written segment against float32, as of a denoised one


@pytest.fixture(scope="module")
def voices(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Voice]:
    """One of each family, the first with a sound."""
    folder = tmp_path_factory.mktemp("voices")
    random_voice(folder / "silent", T5, frames=True)
    return {
        "T5": sounding_voice(folder / "silent", folder / "sounding"),
        "port": random_voice(folder / "port", port_family(1e-5), frames=True),
    }


@pytest.fixture(scope="module")
def voice(voices: dict[str, Voice]) -> Voice:
    return voices["T5"]


@pytest.fixture(scope="module")
def plans(voices: dict[str, Voice], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home with float32 plans of the voices."""
    home = tmp_path_factory.mktemp("plans")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NOTEWAVE_PLANS", str(home))
        for each in voices.values():
            build_plans(each, "fp32", (8, 9), trt=SimulatedTensorRTRTX(SimulatedDevice()), compile_plan=simulated_plan)
    yield home


@pytest.fixture(autouse=True)
def home(plans: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTEWAVE_PLANS", str(plans))


def job(voice: Voice, songs: int = 1, **given: object) -> Job:
    return dataclasses.replace(make_job({}, voice, seeds=range(songs)), **given)


def part_by_part(run: Run, tokens: list[Tokens]) -> Iterator[None]:
    """Each part of a segment, begun."""
    run.submit(tokens)
    yield
    for _ in range(1, run.parts):
        run.go_on()
        yield


def sung(backend: Backend, work: Job, songs: list[list[Tokens]]) -> np.ndarray:
    """Mels [segments, B, T, M] of songs side by side."""
    with backend.start(work) as run:
        return np.stack([run.denoise(list(tokens)) for tokens in zip(*songs, strict=True)])


@pytest.mark.parametrize("family", ["T5", "port"])
def test_songs_side_by_side_are_written_as_on_the_cpu(family: str, voices: dict[str, Voice]) -> None:
    """Of unequal tokens, two segments each, in two buckets."""
    backend, device = opened(voices[family])
    mine, cpu = (sung(each, job(voices[family], 2), SONGS) for each in (backend, OrtBackend(voices[family], 1)))
    assert mine.shape == (2, 2, FRAMES, MELS) and np.ptp(cpu) > 1
    np.testing.assert_allclose(mine, cpu, rtol=0, atol=TOLERANCE)
    backend.close()
    assert not device.memories and not device.pinned_bytes and not device.streams
    assert not device.leaked and not device.freed_early and all(graph.freed for graph in device.graphs)


@pytest.mark.parametrize("precision", SEGMENT_RMS)
def test_low_precision_stays_near_float32_to_a_segment_s_end(
    precision: str, voice: Voice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though each frame stands on those before it."""
    monkeypatch.setenv("NOTEWAVE_PLANS", str(tmp_path))
    build_plans(voice, precision, (8, 9), trt=SimulatedTensorRTRTX(SimulatedDevice()), compile_plan=simulated_plan)
    song = [SONGS[0][:1]]
    mine, cpu = (sung(each, job(voice), song) for each in (opened(voice)[0], OrtBackend(voice, 1)))
    early, late = (np.sqrt(np.mean(half**2)) for half in np.split(mine - cpu, 2, axis=2))
    assert 1e-5 < max(early, late) < SEGMENT_RMS[precision] and late < 2 * early


def test_the_sound_comes_part_by_part_as_on_the_cpu(voice: Voice) -> None:
    """Graphs sound as eager launches do, to the last bit."""
    sounds = []
    for backend in (opened(voice)[0], opened(voice, graphs=False)[0], OrtBackend(voice, 1)):
        chunks = []
        with backend.start(job(voice, 2)) as run:
            for segment, tokens in enumerate(zip(*SONGS, strict=True)):
                for part, _ in enumerate(part_by_part(run, list(tokens))):
                    chunks.append(run.sound(last=(segment, part) == (1, PARTS - 1)).result())
        assert [chunk.shape[1] // HOP for chunk in chunks] == [PART - 1, *[PART] * (2 * PARTS - 2), PART + 1]
        sounds.append(np.concatenate(chunks, axis=1))
    np.testing.assert_array_equal(sounds[0], sounds[1])
    np.testing.assert_allclose(sounds[0], sounds[2], rtol=0, atol=TOLERANCE)


def test_two_segments_are_under_way_and_a_part_waits_for_none_behind_it(voice: Voice) -> None:
    backend, device = opened(voice)
    expected = sung(backend, job(voice), SONGS[:1])
    frames: list[int] = []
    with backend.start(job(voice, on_step=lambda: frames.append(1))) as run:
        for stream in device.streams.values():
            stream.synchronize()
        del device.launches[:]
        asked = [(run.mel(), run.sound(last=False)) for tokens in SONGS[0] for _ in part_by_part(run, [tokens])]
        assert not device.launches, "all of it was only queued"
        mels = []
        for count, (mel, sound) in enumerate(asked, 1):
            mels.append(mel.result()[0])
            assert device.launches.count("keep_frame") == PART * count
            assert np.isfinite(sound.result()).all() and len(frames) == PART * count
        assert run.rest().result().shape == (1, HOP)
    np.testing.assert_array_equal(np.concatenate(mels).reshape(expected[:, 0].shape), expected[:, 0])


def test_a_frame_is_the_decoder_and_one_kernel_and_graphs_serve_all_parts(voice: Voice) -> None:
    backend, device = opened(voice)
    sung(backend, job(voice), [SONGS[0][:1] * 2])
    held = (list(device.memories), list(device.pinned_bytes), list(device.graphs))
    launched = [graph.launches for graph in device.graphs]
    del device.launches[:]
    sung(backend, job(voice), [SONGS[1][:1]])
    assert (device.memories, device.pinned_bytes, device.graphs) == held
    assert sorted(graph.launches - before for graph, before in zip(device.graphs, launched, strict=True)) == [1, PARTS]
    launches = [label for label in device.launches if label not in ("upload", "download")]
    first = launches.index("keep_frame") - 1
    written = launches[first:]
    assert launches[:first].count("clear") == 1 + 2, "the cache of the run; the segment's first frame and its number"
    assert [written.count(label) for label in ("network", "keep_frame", "copy")] == [FRAMES, FRAMES, PARTS - 1]
    assert len(written) == 2 * FRAMES + PARTS - 1
    encoders, numbers = 2, PARTS
    assert backend.device_facts().launches == {0: encoders + 2 + numbers + 2 * FRAMES}


def test_what_another_run_left_is_no_song_s(voice: Voice) -> None:
    """Numbers that are none, in the cache of a run that was left midway."""
    backend, device = opened(voice)
    expected = sung(backend, job(voice), [SONGS[0][:1]])
    with backend.start(job(voice)) as run:
        run.submit(SONGS[1][:1])
    (memory,) = device.memories
    memory.bytes[:] = 0xFF
    np.testing.assert_array_equal(sung(backend, job(voice), [SONGS[0][:1]]), expected)


def test_onnx_runtime_s_graphs_write_it_too(voice: Voice, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its sessions need two runs of a shape before one can be recorded: of an encoder two segments."""
    monkeypatch.setattr(providers, "_installed", lambda: {"onnxruntime-gpu": "1.31.1"})
    device = SimulatedDevice()
    backend = open_cuda(voice, {"precision": "fp32"}, device=device, runtime=SimulatedOnnxRuntime(device))
    song = [SONGS[0][:1] * 3]
    np.testing.assert_allclose(
        sung(backend, job(voice), song), sung(OrtBackend(voice, 1), job(voice), song), rtol=0, atol=TOLERANCE
    )
    assert backend.shared.recorder.capture is Capture.OURS
    assert sorted(graph.launches for graph in device.graphs) == [1, 3 * PARTS - 2]


def test_parts_are_asked_for_in_their_order(voice: Voice) -> None:
    backend: GpuBackend = opened(voice)[0]
    with backend.start(job(voice)) as run, pytest.raises(BackendError, match="nothing was submitted"):
        run.go_on()
    with pytest.raises(BackendError, match="is over"):
        run.go_on()


def test_a_frame_decoder_s_plan_takes_the_songs_that_are_sung_and_all_frames_kept(voice: Voice) -> None:
    size = voice.dimensions
    shapes = extents(voice, "decoder", gpu_contracts(voice, "fp16")["decoder"])
    assert (shapes["x"].max, shapes["frame"].max) == ((MAX_BATCH, 1, MELS), (1,))
    assert shapes["own_keys_0"].max == (MAX_BATCH, size.heads, FRAMES - 1, size.head_width)
    assert shapes["keys_0"].max == (MAX_BATCH, size.heads, size.max_tokens, size.head_width)
