"""Songs played live on the simulated GPU: window by window what NumPy says, each in one graph."""

from __future__ import annotations

import ctypes
import dataclasses
import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import gpu_songs
import host_kernels
import numpy as np
import pytest
from gpu_songs import STEPS, TOLERANCE
from simulated_device import SimulatedDevice
from simulated_onnxruntime import SimulatedOnnxRuntime
from simulated_tensorrt import SimulatedTensorRTRTX

from notewave.backends.executor import Capture, Executor
from notewave.backends.gpu.backend import GpuBackend
from notewave.backends.ort import providers
from notewave.backends.ort.backend import OrtBackend
from notewave.backends.ort.executors import make_graphs, open_cuda
from notewave.backends.ort.sessions import shared_networks
from notewave.backends.protocol import LiveRun
from notewave.backends.trt.backend import open_tensorrt
from notewave.errors import BackendError
from notewave.kernels.reference import advance, bounded, carry_nan, philox_normal
from notewave.sampling.job import Job
from notewave.sampling.loop import denoise
from notewave.sampling.samplers import SAMPLERS
from notewave.sampling.windows import Place, Windows
from notewave.song.dialect import Tokens
from notewave.sound.mel import FRAMES, HOP, MELS, from_network
from notewave.voice.contracts import keys_values
from notewave.voice.folder import Voice

HOP_FRAMES, BACK_FRAMES = 25, 225  # as many as there is room for
LATE = 3  # hops that a late one lasts
SIZE = FRAMES * MELS

Taken = tuple[np.ndarray, np.ndarray]  # a window's mel [T, M] and audio [n]
Opened = Callable[[], tuple[GpuBackend, SimulatedDevice]]


@pytest.fixture(scope="module")
def graphs(voice: Voice, plans: Path) -> Iterator[Path]:
    """The home of the plans, with the graphs for ONNX Runtime there too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NOTEWAVE_PLANS", str(plans))
        make_graphs(voice, "fp32", (8, 9))
    yield plans


@pytest.fixture(params=["tensorrt_rtx", "onnxruntime"])
def opened(request: pytest.FixtureRequest, voice: Voice, graphs: Path, monkeypatch: pytest.MonkeyPatch) -> Opened:
    """Opens a backend on a simulated GPU of its own, by one engine or the other."""
    monkeypatch.setenv("NOTEWAVE_PLANS", str(graphs))
    monkeypatch.setattr(providers, "_installed", lambda: {"onnxruntime-gpu": "1.31.1"})

    def by_onnxruntime() -> tuple[GpuBackend, SimulatedDevice]:
        device = SimulatedDevice()
        return open_cuda(voice, {"precision": "fp32"}, device=device, runtime=SimulatedOnnxRuntime(device)), device

    return by_onnxruntime if request.param == "onnxruntime" else lambda: gpu_songs.opened(voice)


def job(voice: Voice, sampler: str = "ddpm", guidance: float = 1.0, seed: int = 7, **given: object) -> Job:
    given = {"windows": Windows.of(voice.vocoder, HOP_FRAMES, BACK_FRAMES), **given}
    return gpu_songs.job(voice, sampler, guidance, (seed,), **given)


def places(work: Job, *hops: int) -> list[Place]:
    """Where windows lie that begin so many hops after the one before; the first one's sound begins with the song's."""
    first = FRAMES - work.windows.back + HOP_FRAMES * (np.cumsum(hops) - hops[0])
    return [Place(int(at), HOP_FRAMES * hop) for at, hop in zip(first, hops, strict=True)]


def played(run: LiveRun, tokens: list[Tokens], where: list[Place]) -> list[Taken]:
    taken = []
    for index, place in enumerate(where):
        run.submit(tokens[index % len(tokens)], place)
        mel, sound = run.mel(), run.sound()
        taken.append((mel.result(), sound.result()))
        run.prepare(Place(place.first + HOP_FRAMES, HOP_FRAMES))
    return taken


def sung_live(backend: GpuBackend | OrtBackend, work: Job, tokens: list[Tokens], where: list[Place]) -> list[Taken]:
    with backend.live(work) as run:
        return played(run, tokens, where)


class Plain:
    """Live play as it is defined, in NumPy, its networks in ONNX Runtime's sessions."""

    def __init__(self, voice: Voice, work: Job) -> None:
        self.voice, self.work, self.networks = voice, work, shared_networks(voice, 1)
        self.film = self.networks.film(work)
        self.context = np.full((1, FRAMES, MELS), -1.0, np.float32)
        self.x = self.context.copy()

    def window(self, tokens: Tokens, place: Place) -> Taken:
        windows, networks = self.work.windows, self.networks
        self.context, known = advance(self.context, self.x, place.moved)
        attended = self._attended(tokens)

        def predict(step: int) -> tuple[np.ndarray, np.ndarray | None]:
            seen = {"x": self.x, "film": self.film[step : step + 1]}
            unconditional = networks["unconditional_decoder"].run(seen)[0] if self.work.guided else None
            return networks["decoder"].run(seen | attended)[0], unconditional

        self.x = self._noise(place, 0)
        given = known[:, : windows.given(place.moved)]
        draw = functools.partial(self._noise, place)
        denoise(self.work.table, self.x, predict, draw, guidance=self.work.guidance, played=given)
        mel = from_network(self.x[:, windows.heard])
        frame = np.array([place.first + windows.heard.start], np.int64)
        audio = bounded(carry_nan(networks["vocoder"].run({"mel": mel, "frame": frame})[0], mel))
        return self.x[0].copy(), audio[0, HOP * windows.sounded.start : HOP * windows.sounded.stop]

    def _noise(self, place: Place, draw: int) -> np.ndarray:
        """Of the window's part of one segment, and of its part of the next."""
        segment, frame = divmod(place.first, FRAMES)
        song = np.empty((2, FRAMES, MELS), np.float32)
        for later, part in enumerate(song):
            philox_normal(self.work.seeds[0], segment + later, draw, part)
        return song.reshape(1, -1, MELS)[:, frame : frame + FRAMES].copy()

    def _attended(self, tokens: Tokens) -> dict[str, np.ndarray]:
        notes = self.networks["note_encoder"].run({"tokens": tokens[None]})[0]
        context = self.networks["context_encoder"].run({"mel": self.context})[0]
        names = [tensor.name for tensor in keys_values(self.voice.dimensions)]
        values = self.networks["cross_attention"].run({"notes": notes, "context": context})
        mask = np.zeros((1, 1, 1, len(tokens) + FRAMES), np.float32)
        return {"mask": mask, **dict(zip(names, values, strict=True))}


def check_alike(mine: list[Taken], theirs: list[Taken], tolerance: float) -> None:
    """But for so much RMS, and a few numbers: untrained weights and clips magnify rounding."""
    for one, other in zip(mine, theirs, strict=True):
        assert one[0].shape == (FRAMES, MELS)
        for ours, expected in zip(one, other, strict=True):
            assert ours.shape == expected.shape and ours.dtype == np.float32
            error = np.abs(ours - expected)
            assert np.sqrt(np.mean(error**2)) <= tolerance and error.max() <= 100 * tolerance


@pytest.mark.parametrize(("sampler", "guidance"), [*((sampler, 1.0) for sampler in SAMPLERS), ("ddpm", 2.0)])
def test_windows_are_those_of_numpy_and_of_the_cpu(
    sampler: str, guidance: float, opened: Opened, voice: Voice, segments: list[Tokens]
) -> None:
    """The first after silence, some that follow, of two lengths of tokens, and one that comes late."""
    work = job(voice, sampler, guidance)
    where = places(work, 1, 1, 1, LATE, 1)
    tokens = [segments[0], segments[1], segments[2], segments[0], segments[1]]
    plain, mine = Plain(voice, work), sung_live(opened()[0], work, tokens, where)
    for index, taken in enumerate(mine):
        check_alike([taken], [plain.window(tokens[index], where[index])], TOLERANCE)
        plain.x[0] = taken[0]  # or rounding would be magnified from window to window
    check_alike(mine, sung_live(OrtBackend(voice, 1), work, tokens, where), 20 * TOLERANCE)
    for before, after, place in zip(mine[:-1], mine[1:], where[1:], strict=True):
        given = work.windows.given(place.moved)
        kept, made = before[0][place.moved :][:given], after[0][:given]
        np.testing.assert_allclose(made, kept, rtol=0, atol=1e-5)
        assert np.abs(after[0][given : FRAMES - place.moved] - before[0][place.moved + given :]).max() > 1e-3


def test_a_frame_s_noise_is_the_same_in_every_window(
    opened: Opened, voice: Voice, segments: list[Tokens], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where one segment's ends and the next one's begins; and it is the noise of the segments offline."""
    work, launch, drawn = job(voice), host_kernels.launch, []

    def watched(name: str, *arguments: object) -> None:
        launch(name, *arguments)
        if name == "philox_normal":
            drawn.append(np.array((ctypes.c_float * SIZE).from_address(arguments[2])).reshape(FRAMES, MELS))

    monkeypatch.setattr(host_kernels, "launch", watched)
    where = places(work, 1, 1, LATE, 1)
    backend, _ = opened()
    sung_live(backend, work, segments[:1], where)
    live = drawn[:]
    drawn.clear()
    gpu_songs.sung(backend, dataclasses.replace(work, windows=None), [segments[:2]])
    song = np.concatenate(drawn)
    for place, noise in zip(where, live, strict=True):
        np.testing.assert_array_equal(noise, song[place.first : place.first + FRAMES])
    assert where[-1].first % FRAMES, "it ends in the next segment"


def test_nothing_is_allocated_or_captured_once_warm_and_a_hop_is_one_graph(
    opened: Opened, voice: Voice, segments: list[Tokens]
) -> None:
    backend, device = opened()
    work = job(voice)
    warm_runs = backend.shared.runtime.warm_runs
    where = places(work, *[1] * (warm_runs + 4))
    with backend.live(work) as run:
        played(run, segments[:2], where[: warm_runs + 1])
        (graph,) = device.graphs
        held = (list(device.memories), list(device.pinned_bytes), list(device.streams), [graph])
        assert graph.launches == 1
        for count, place in enumerate(where[warm_runs + 1 :], 2):
            del device.launches[:]
            run.submit(segments[1], place)
            run.sound().result()
            assert graph.launches == count
            assert device.launches == ["upload", *(operation.label for operation in graph.operations), "download"]
    assert (device.memories, device.pinned_bytes, list(device.streams), device.graphs) == held
    labels = [operation.label for operation in graph.operations]
    assert labels[:3] == ["advance", "copy", "network"], "what was moves on before the context is encoded"
    assert labels[-3:] == ["from_network", "network", "carry_nan"], "it ends in sound"
    assert labels.count("network") == 3 + STEPS + 1 and labels.count("sampler_step_fp32") == STEPS
    assert backend.device_facts().launches == {}, "which are told of segments"


def test_a_vocoder_that_cannot_be_recorded_is_launched_behind_the_graph(
    opened: Opened, voice: Voice, segments: list[Tokens], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And takes no other song its graphs."""
    work = job(voice)
    where = places(work, *[1] * 5)
    expected = sung_live(opened()[0], work, segments[:1], where)
    backend, device = opened()
    open_network = backend.shared.runtime.open

    def opened_network(network: str, *arguments: object) -> Executor:
        executor = open_network(network, *arguments)
        launch = executor.launch

        def launched() -> None:
            if device.recording is not None:
                raise BackendError("operation not permitted when stream is capturing")
            launch()

        if network == "vocoder":
            executor.launch = launched
        return executor

    monkeypatch.setattr(backend.shared.runtime, "open", opened_network)
    check_alike(sung_live(backend, work, segments[:1], where), expected, 0.0)
    (graph,) = device.graphs
    labels = [operation.label for operation in graph.operations]
    assert graph.launches == 5 - backend.shared.runtime.warm_runs and labels[-1] == "sampler_step_fp32"
    assert device.launches[-5:-2] == ["from_network", "network", "carry_nan"], "before mel and audio are copied"
    assert backend.shared.recorder.capture is Capture.OURS


@pytest.mark.parametrize(("capturable", "wanted"), [(False, True), (True, False)])
def test_live_play_needs_no_graphs_of_ours(
    capturable: bool, wanted: bool, voice: Voice, graphs: Path, segments: list[Tokens], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTEWAVE_PLANS", str(graphs))
    work, device = job(voice), SimulatedDevice()
    where = places(work, 1, 1, 1)
    expected = sung_live(gpu_songs.opened(voice)[0], work, segments[:1], where)
    trt = SimulatedTensorRTRTX(device, capturable)
    backend = open_tensorrt(voice, {"graphs": wanted}, device=device, trt=trt)
    check_alike(sung_live(backend, work, segments[:1], where), expected, 0.0)
    assert not device.graphs


def test_a_run_of_the_same_shape_begins_in_silence_again_and_records_nothing(
    opened: Opened, voice: Voice, segments: list[Tokens]
) -> None:
    backend, device = opened()
    work = job(voice)
    where = places(work, 1, 1, 1, 1)
    first = sung_live(backend, work, segments[:2], where)
    held = (list(device.memories), list(device.pinned_bytes), list(device.streams), list(device.graphs))
    again = sung_live(backend, work, segments[:2], where)
    other = sung_live(backend, job(voice, "ancestral", seed=8), segments[:2], where)
    assert (device.memories, device.pinned_bytes, list(device.streams), device.graphs) == held
    check_alike(again, first, 0.0)
    assert not np.allclose(other[0][0], first[0][0])
    narrower = Windows.of(voice.vocoder, HOP_FRAMES, 60)
    (moved,) = sung_live(backend, job(voice, windows=narrower), segments[:1], where[:1])
    assert len(device.memories) == 2 + (len(held[0]) - 1), "other windows are another shape"
    assert moved[1].shape == first[0][1].shape and not np.allclose(moved[1], first[0][1])


def test_the_mel_is_copied_only_if_asked_for(opened: Opened, voice: Voice, segments: list[Tokens]) -> None:
    backend, device = opened()
    work = job(voice)
    first, second = places(work, 1, 1)
    with backend.live(work) as run:
        del device.launches[:]
        run.submit(segments[0], first)
        sound = run.sound().result()
        assert device.launches.count("download") == 1
        mel = run.mel().result()
        assert device.launches.count("download") == 2
        np.testing.assert_array_equal(run.sound().result(), sound)
        pending = run.mel()
        run.submit(segments[0], second)  # which waits for what was not taken, and keeps it
        np.testing.assert_array_equal(pending.result(), mel)
        assert not np.allclose(run.mel().result(), mel)


def test_submitting_a_window_waits_for_nothing(opened: Opened, voice: Voice, segments: list[Tokens]) -> None:
    backend, device = opened()
    work = job(voice)
    where = places(work, *[1] * 5)
    with backend.live(work) as run:
        played(run, segments[:1], where[:4])
        del device.launches[:]
        run.submit(segments[0], where[4])
        asked = run.sound()
        assert device.launches == [], "all of it was only queued"
        asked.result()


def test_what_a_run_gives_is_taken_before_it_ends(opened: Opened, voice: Voice, segments: list[Tokens]) -> None:
    backend, device = opened()
    work = job(voice)
    (place,) = places(work, 1)
    with backend.live(work) as run:
        for ask in (run.mel, run.sound):
            with pytest.raises(BackendError, match="nothing was submitted"):
                ask()
        run.submit(segments[0], place)
        taken, late = run.mel(), run.sound()
        mel = taken.result()
    np.testing.assert_array_equal(taken.result(), mel)
    for call in (late.result, run.mel, run.sound, lambda: run.submit(segments[0], place)):
        with pytest.raises(BackendError, match="is over"):
            call()
    del taken, late
    backend.close()
    assert not device.leaked and not device.pinned_bytes and not device.memories and not device.freed_early


def test_live_play_goes_on_beside_other_songs(opened: Opened, voice: Voice, segments: list[Tokens]) -> None:
    backend, device = opened()
    work, offline = job(voice), gpu_songs.job(voice)
    where = places(work, 1, 1, 1)
    expected = sung_live(backend, work, segments[:1], where)
    mels, audio = gpu_songs.sung(backend, offline, [segments]), gpu_songs.sounded(backend, offline, segments)
    taken, chunks = [], []
    with backend.live(work) as live, backend.start(offline) as run:
        for index, place in enumerate(where):
            run.submit(segments[index : index + 1])
            mel, chunk = run.mel(), run.sound(last=index == 2)
            taken += played(live, segments[:1], [place])
            np.testing.assert_array_equal(mel.result(), mels[index])
            chunks.append(chunk.result()[0])
    check_alike(taken, expected, 0.0)
    np.testing.assert_array_equal(np.concatenate(chunks), audio)
    backend.close()
    assert not device.memories and not device.streams and not device.leaked and not device.freed_early


def test_steps_are_reported(opened: Opened, voice: Voice, segments: list[Tokens]) -> None:
    calls: list[int] = []
    work = job(voice, on_step=lambda: calls.append(1))
    sung_live(opened()[0], work, segments[:1], places(work, 1, LATE))
    assert len(calls) == 2 * STEPS


def test_more_tokens_than_the_plans_take_are_refused(opened: Opened, voice: Voice) -> None:
    work = job(voice)
    (place,) = places(work, 1)
    with (
        opened()[0].live(work) as run,
        pytest.raises(BackendError, match=r"the window at frame 31 has 2049 tokens; the plans take 2048\. Thin out"),
    ):
        run.submit(np.ones(2049, np.int32), place)


def test_a_network_that_fails_is_heard_to(
    opened: Opened, voice: Voice, segments: list[Tokens], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is no finite number in frames that the vocoder sees is NaN in the sound, and in all that stands on it."""
    work, launch = job(voice), host_kernels.launch
    lost = work.windows.back + 3

    def failing(name: str, *arguments: object) -> None:
        if name == "sampler_step_fp32":
            prediction = (ctypes.c_float * SIZE).from_address(arguments[2 + 2])
            prediction[MELS * lost] = np.inf
        launch(name, *arguments)

    monkeypatch.setattr(host_kernels, "launch", failing)
    (mel, audio), (after, _) = sung_live(opened()[0], work, segments[:1], places(work, 1, 1))
    assert np.isnan(mel[lost]).any() and not np.isnan(mel[: work.windows.given(HOP_FRAMES)]).any()
    silent = np.isnan(audio).reshape(-1, HOP).all(axis=1).nonzero()[0]
    assert lost - work.windows.heard.start - work.windows.sounded.start in silent
    assert np.isnan(after).any()
