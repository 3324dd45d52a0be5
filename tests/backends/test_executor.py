"""The executor seam: the GPU's backend on a runtime of its own kind gives the CPU's samples, and asks what it must."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from plain_runtime import PlainRuntime
from simulated_device import SimulatedDevice

import notewave
from notewave.backends.executor import Capture
from notewave.backends.gpu.backend import KEPT_DENOISERS, GpuBackend
from notewave.sampling.job import Job
from notewave.sampling.samplers import sampler_table
from notewave.song.dialect import EOS, Tokens
from notewave.sound.mel import MELS
from notewave.voice.folder import Voice

STEPS = 3


@pytest.fixture(scope="module")
def song(midi_folder: Path) -> list[Tokens]:
    """Four segments of one bucket of token lengths."""
    first, second = notewave.tokenize(midi_folder / "ensemble.mid")[:2]
    return [np.append(tokens[:200], EOS).astype(np.int32) for tokens in (first, second)] * 2


def opened(voice: Voice, graphs: bool = True, capturable: bool = True) -> tuple[GpuBackend, PlainRuntime]:
    device = SimulatedDevice()
    runtime = PlainRuntime(voice, device, capturable)
    return GpuBackend(voice, device, runtime, device.kernels(b"simulated"), graphs), runtime


def job(voice: Voice, guidance: float = 1.0, seeds: tuple[int, ...] = (7,)) -> Job:
    return Job(sampler_table("ddpm", STEPS, voice.schedule, voice.prediction), guidance, seeds, None)


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_any_runtime_gives_the_cpu_s_samples(
    guidance: float, voice: Voice, song: list[Tokens], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"sampler": "ddpm", "steps": STEPS, "guidance": guidance, "seed": 3}
    expected = notewave.Synthesizer(voice.folder, backend="cpu", threads=1).render(song, **options).samples
    backend, runtime = opened(voice)
    monkeypatch.setattr("notewave.synthesizer.open_backend", lambda *_: backend)
    singer = notewave.Synthesizer(voice.folder)
    assert singer.backend == "plain"
    np.testing.assert_allclose(singer.render(song, **options).samples, expected, rtol=0, atol=1e-3)
    assert runtime.kept, "what ran for the first time is kept"


def test_a_shape_is_captured_after_as_many_runs_as_the_runtime_asks_for(voice: Voice, song: list[Tokens]) -> None:
    backend, runtime = opened(voice)
    device = backend.shared.device
    with backend.start(job(voice)) as run:
        launched = []
        for tokens in song:
            run.denoise([tokens])
            launched.append(sum(graph.launches for graph in device.graphs))
    assert launched == [0, 0, 1, 2] and runtime.warm_runs == 2
    assert set(runtime.asked) == {Capture.NOBODY, Capture.OURS}, "the time embedding runs once, the others are captured"


@pytest.mark.parametrize(("graphs", "capturable", "asked"), [(False, True, "NOBODY"), (True, False, "ENGINE")])
def test_who_captures_is_told_to_the_engine(
    graphs: bool, capturable: bool, asked: str, voice: Voice, song: list[Tokens]
) -> None:
    backend, runtime = opened(voice, graphs, capturable)
    with backend.start(job(voice)) as run:
        for tokens in song:
            run.denoise([tokens])
    assert not backend.shared.device.graphs and backend.shared.recorder.capture is Capture[asked]
    assert runtime.asked[-1] is Capture[asked]


def test_networks_that_belong_to_a_stream_are_found_open_by_the_next_run(voice: Voice, song: list[Tokens]) -> None:
    backend, runtime = opened(voice)
    shapes = [(seeds, guidance) for seeds in ((1,), (1, 2), (1, 2, 3)) for guidance in (1.0, 2.0)]
    for seeds, guidance in shapes:
        with backend.start(job(voice, guidance, seeds)) as run:
            run.denoise([song[0]] * len(seeds))
    assert len(shapes) > KEPT_DENOISERS + 1
    assert runtime.opened["decoder"] == KEPT_DENOISERS + 1, "a stream for each run that is kept, and one to go on with"
    backend.vocode(np.zeros((1, 4, MELS), np.float32), 0)
    backend.close()
    assert runtime.executors == 0, "each was freed"
    assert runtime.freed == 1 and not backend.shared.device.memories and not backend.shared.device.leaked
    assert not backend.shared.device.streams
