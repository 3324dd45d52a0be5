"""What only a GPU can show: stages and songs against the CPU, graphs against eager launches, memory given back.

Skipped without a GPU. On a machine that has one and nothing else prepared: make gpu-test, where nothing that the
target installs may be missing. Whatever a simulated GPU can run is run on it as well, in the suite that needs no GPU,
so that these tests are known to be sound before a GPU is at hand.
"""

from __future__ import annotations

import dataclasses
import gc
import os
import shutil
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from gpu_at_hand import REQUIRED, gpu_at_hand, unusable
from simulated_device import SimulatedDevice
from simulated_onnxruntime import SimulatedOnnxRuntime
from simulated_tensorrt import SimulatedTensorRTRTX, simulated_plan
from sounding_voice import sounding_voice

import notewave
from notewave.backends import choose
from notewave.backends.device.buffers import Layout, Slab
from notewave.backends.device.contracts import gpu_contracts
from notewave.backends.device.driver import CudaDevice
from notewave.backends.device.shapes import ITEM_BYTES, MAX_BATCH, SCHEDULE_ROWS, VOCODER_BATCH, token_buckets
from notewave.backends.executor import Capture, Scratch
from notewave.backends.gpu import denoising
from notewave.backends.gpu.backend import GpuBackend
from notewave.backends.graphs.make import gpu_graph
from notewave.backends.ort import executors, providers
from notewave.backends.ort.backend import OrtBackend
from notewave.backends.ort.executors import open_cuda
from notewave.backends.protocol import PARTS, Backend
from notewave.backends.trt import backend as trt_backend
from notewave.backends.trt.backend import open_tensorrt
from notewave.backends.trt.modules import tensorrt_modules
from notewave.corpus.settings import Machine as Workers
from notewave.corpus.settings import Making
from notewave.corpus.singer import Singer
from notewave.corpus.takes import Take
from notewave.errors import BackendError
from notewave.export.plans.build import TURING, build_plans, buildable_precisions
from notewave.sampling.job import Job, make_job
from notewave.sampling.samplers import sampler_table
from notewave.sampling.windows import Place, Windows
from notewave.song.dialect import EOS, Tokens
from notewave.sound.mel import FRAMES, HOP, LOG_SCALE, MELS, from_network
from notewave.sound.stream import VocoderStream
from notewave.voice.folder import Voice

STEPS = 10 if REQUIRED in os.environ else 4  # fewer where GPUs are only simulated, which takes the CPU long
ENGINES = ("tensorrt", "tensorrt_rtx", "onnxruntime")
SEGMENT_RMS = {"fp32": 1e-3, "fp16": 2e-3, "bf16": 5e-2}  # of a denoised segment against the CPU; its range is [-1, 1]
STAGE_ERROR = {"fp32": 1e-3, "fp16": 1e-2, "bf16": 1e-1}  # of one network, relative to its largest output
# An error of 1 in the networks' range sounds as loud as this at most, before samples are clipped: the sounding voice's
# vocoder sums 3 frames of 128 bins with weights of 0.01 RMS, so it makes 0.01 sqrt(384) of any error in log-mel.
HEARD = 0.01 * (3 * MELS) ** 0.5 * LOG_SCALE
NETWORKS = ("note_encoder", "context_encoder", "cross_attention", "time_embedding", "decoder")


@pytest.fixture(scope="module")
def device() -> CudaDevice:
    return gpu_at_hand()


@pytest.fixture(scope="module")
def voice(reference_voice: Path, tmp_path_factory: pytest.TempPathFactory) -> Voice:
    return sounding_voice(reference_voice, tmp_path_factory.mktemp("voices") / "sounding")


@dataclasses.dataclass(frozen=True)
class Machine:
    """A GPU, or a simulated one, an engine on it, and what was made for both in the folder ``home``."""

    voice: Voice
    engine: str
    precision: str
    home: Path
    simulated: SimulatedDevice | None = None

    @property
    def backend_name(self) -> str:
        return "cuda" if self.engine == "onnxruntime" else "tensorrt"

    @contextmanager
    def used(self) -> Iterator[None]:
        """Backends that are opened within find this machine, and of the TensorRTs this one."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("NOTEWAVE_PLANS", str(self.home))
            patch.setattr(trt_backend, "tensorrt_modules", lambda: [module_of(self.engine, self.simulated)])
            if self.simulated:
                for module in (trt_backend, executors):
                    patch.setattr(module, "CudaDevice", lambda _: self.simulated)
                for module in (executors, providers):
                    patch.setattr(module, "onnxruntime", SimulatedOnnxRuntime(self.simulated))
                patch.setattr(providers, "_installed", lambda: {"onnxruntime-gpu": "1.31.1"})
            yield

    def built(self) -> Machine:
        """The same, once plans were built for it."""
        device, stand_in = self.simulated or CudaDevice(0), {}
        if self.simulated:
            stand_in = {"trt": module_of(self.engine, self.simulated), "compile_plan": simulated_plan}
        with self.used():
            build_plans(self.voice, self.precision, device.capability, flavour=self.engine, **stand_in)
        return self

    def backend(self, **options: object) -> GpuBackend:
        opened = open_cuda if self.engine == "onnxruntime" else open_tensorrt
        with self.used():
            return opened(self.voice, {"precision": self.precision, **options})

    def synthesizer(self, name: str = "") -> notewave.Synthesizer:
        options = {} if name else {"precision": self.precision}
        with self.used():
            return notewave.Synthesizer(self.voice.folder, backend=name or self.backend_name, provider_options=options)


def module_of(engine: str, simulated: SimulatedDevice | None) -> Any:
    """An engine's module, or what stands in for it."""
    if simulated:
        return (SimulatedOnnxRuntime if engine == "onnxruntime" else SimulatedTensorRTRTX)(simulated)
    if engine == "onnxruntime":
        return executors.onnxruntime
    return tensorrt_modules(engine)[0]


GPU = [
    pytest.param((engine, precision), marks=pytest.mark.gpu, id=f"{engine}-{precision}")
    for engine in ENGINES
    for precision in SEGMENT_RMS
]
SIMULATED = [pytest.param((engine, "simulated"), id=f"simulated-{engine}") for engine in ENGINES[1:]]
only_on_a_gpu = pytest.mark.parametrize("machine", GPU, indirect=True)


@pytest.fixture(scope="module", params=[*GPU, *SIMULATED])
def machine(request: pytest.FixtureRequest, voice: Voice, tmp_path_factory: pytest.TempPathFactory) -> Machine:
    """A machine with plans that were just built for it."""
    home = tmp_path_factory.mktemp("plans")
    engine, precision = request.param
    if precision == "simulated":
        return Machine(voice, engine, "fp16", home, SimulatedDevice()).built()
    check_usable(engine, precision, request.getfixturevalue("device"))
    return Machine(voice, engine, precision, home).built()


def check_usable(engine: str, precision: str, device: CudaDevice) -> None:
    """Skip an engine that is not installed, but fail where none is; skip what it does not build for the GPU."""
    usable = {}
    for name in ENGINES:
        try:
            usable[name] = module_of(name, None)
            if name == "onnxruntime":
                providers.check_provider(usable[name])
        except BackendError as error:
            usable.pop(name, None)
            reason = error
    if not usable:
        unusable(str(reason))
    if engine not in usable:
        pytest.skip(f"{engine} is not installed")
    if engine == "onnxruntime":
        if precision == "bf16" and device.capability < executors.AMPERE:
            pytest.skip("no bfloat16 here")
    elif precision not in buildable_precisions(usable[engine], device.capability):
        pytest.skip(f"{engine} builds no {precision} plans for compute capability {device.capability}")


@pytest.fixture(scope="module")
def cpu(voice: Voice) -> OrtBackend:
    return OrtBackend(voice, None)


@pytest.fixture(scope="module")
def segments(midi_folder: Path) -> list[Tokens]:
    first, second, third = notewave.tokenize(midi_folder / "ensemble.mid")[:3]
    lengths = ((first, 300), (second, 280), (third, 99))
    return [np.append(tokens[: length - 1], EOS).astype(np.int32) for tokens, length in lengths]


def job(voice: Voice, guidance: float = 1.0, seeds: tuple[int, ...] = (7,), steps: int = STEPS) -> Job:
    return Job(sampler_table("ddpm", steps, voice.schedule, voice.prediction), guidance, seeds, None)


def sung(backend: Backend, work: Job, songs: list[list[Tokens]]) -> np.ndarray:
    """Mels [segments, B, T, M] of songs side by side."""
    with backend.start(work) as run:
        return np.stack([run.denoise(list(tokens)).copy() for tokens in zip(*songs, strict=True)])


def rms(error: np.ndarray) -> float:
    return float(np.sqrt(np.mean(error**2)))


def guided(guidance: float) -> float:
    """How much guidance magnifies errors: it weighs the decoders' predictions by guidance and by 1 - guidance."""
    return abs(guidance) + abs(1.0 - guidance)


def worst(mine: np.ndarray, theirs: np.ndarray) -> float:
    """RMS difference of the segments that differ most."""
    return max(rms(a - b) for a, b in zip(mine, theirs, strict=True))


@pytest.mark.parametrize("network", NETWORKS)
def test_every_network_is_the_cpu_s(network: str, machine: Machine, voice: Voice) -> None:
    """Against the same graph in float32 on the CPU, which other tests hold to the voice's own."""
    contract, random = gpu_contracts(voice, machine.precision)[network], np.random.default_rng(0)
    length = token_buckets(voice)[0]
    axes = {"B": 1, "N": length, "C": FRAMES, "J": length + FRAMES, "S": min(3, SCHEDULE_ROWS)}
    shapes = {tensor.name: tensor.shape_at(axes) for tensor in (*contract.inputs, *contract.outputs)}
    inputs = {tensor.name: random.standard_normal(shapes[tensor.name]).astype(np.float32) for tensor in contract.inputs}
    if "tokens" in inputs:
        inputs["tokens"] = random.integers(1, voice.dimensions.vocabulary, shapes["tokens"], np.int32)
    for mask in inputs.keys() & {"mask", "bias"}:
        inputs[mask] = np.where(inputs[mask] > 1, np.float32(-3e4), np.float32(0))
    if "time" in inputs:
        inputs["time"] = np.array([0.05, 0.5, 0.95], np.float32)
    graph = gpu_graph(voice, network, "fp32").SerializeToString()
    expected = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"]).run(None, inputs)
    for tensor, mine, reference in zip(
        contract.outputs, on_gpu(machine.backend(), network, inputs, axes), expected, strict=True
    ):
        error = np.abs(mine - reference).max() / np.abs(reference).max()
        assert error < STAGE_ERROR[machine.precision], tensor.name


def on_gpu(backend: GpuBackend, network: str, inputs: dict[str, np.ndarray], axes: dict[str, int]) -> list[np.ndarray]:
    """Outputs of a network for host inputs, all as float32, by whatever runs it."""
    runtime, device = backend.shared.runtime, backend.shared.device
    contract = runtime.contracts[network]
    shapes = {tensor.name: tensor.shape_at(axes) for tensor in (*contract.inputs, *contract.outputs)}
    kinds = {tensor.name: tensor.dtype for tensor in (*contract.inputs, *contract.outputs)}
    sizes = {name: int(np.prod(shape)) * ITEM_BYTES[kinds[name]] for name, shape in shapes.items()}
    with device:
        scratch = runtime.scratch_bytes([network])
        slab, stream = Slab(device, Layout(sizes | {"scratch": scratch}), "a test"), device.stream()
        for name, array in inputs.items():
            device.upload(slab.address[name], encode(array, kinds[name]), stream)
        executor = runtime.open(network, stream, Scratch(slab.address["scratch"], scratch), Capture.NOBODY)
        executor.bind({name: slab.address[name] for name in shapes})
        executor.reshape(axes)
        executor.launch()
        outputs = [np.empty(sizes[tensor.name], np.uint8) for tensor in contract.outputs]
        for tensor, output in zip(contract.outputs, outputs, strict=True):
            device.download(output, slab.address[tensor.name], stream)
        stream.synchronize()
        executor.free()
        slab.free()
    pairs = zip(contract.outputs, outputs, strict=True)
    return [decode(output, kinds[tensor.name]).reshape(shapes[tensor.name]) for tensor, output in pairs]


def encode(values: np.ndarray, kind: str) -> np.ndarray:
    if kind == "bfloat16":
        return (np.ascontiguousarray(values).view(np.uint32) >> 16).astype(np.uint16)
    return values.astype(np.float16) if kind == "float16" else np.ascontiguousarray(values)


def decode(content: np.ndarray, kind: str) -> np.ndarray:
    if kind == "bfloat16":
        return (content.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return content.view(np.float16 if kind == "float16" else np.float32).astype(np.float32)


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_denoised_segments_are_the_cpu_s(
    guidance: float, machine: Machine, voice: Voice, cpu: OrtBackend, segments: list[Tokens]
) -> None:
    work = job(voice, guidance)
    mine, theirs = (sung(backend, work, [segments]) for backend in (machine.backend(), cpu))
    assert worst(mine, theirs) < guided(guidance) * SEGMENT_RMS[machine.precision]


def test_given_noise_is_denoised_as_on_the_cpu(
    machine: Machine, voice: Voice, cpu: OrtBackend, segments: list[Tokens]
) -> None:
    drawn = job(voice)
    size = (len(segments) * drawn.table.draws, FRAMES, MELS)
    work = dataclasses.replace(drawn, noise=np.random.default_rng(0).standard_normal(size, np.float32))
    mine, theirs = (sung(backend, work, [segments]) for backend in (machine.backend(), cpu))
    assert worst(mine, theirs) < SEGMENT_RMS[machine.precision]


def test_songs_go_on_from_a_mel_as_on_the_cpu(
    machine: Machine, voice: Voice, cpu: OrtBackend, segments: list[Tokens]
) -> None:
    context = np.random.default_rng(0).uniform(-1, 1, (FRAMES, MELS)).astype(np.float32)
    work = dataclasses.replace(job(voice), context=context)
    mine, theirs = (sung(backend, work, [segments[:1]]) for backend in (machine.backend(), cpu))
    assert worst(mine, theirs) < SEGMENT_RMS[machine.precision]


def test_graphs_give_what_eager_launches_give(
    machine: Machine, voice: Voice, segments: list[Tokens], caplog: pytest.LogCaptureFixture
) -> None:
    captured, eager = (sung(machine.backend(graphs=graphs), job(voice), [segments * 2]) for graphs in (True, False))
    np.testing.assert_array_equal(captured, eager)
    assert "without CUDA graphs" not in caplog.text


def test_many_steps_go_into_several_graphs(
    machine: Machine,
    voice: Voice,
    cpu: OrtBackend,
    segments: list[Tokens],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    if machine.simulated:
        monkeypatch.setattr(denoising, "GRAPH_STEPS", 4)  # 130 steps take it long
    work = job(voice, steps=denoising.GRAPH_STEPS + 2)
    same_bucket = segments[:2] * 2  # the last is captured, on every engine
    backend, eager = machine.backend(), machine.backend(graphs=False)
    mine = sung(backend, work, [same_bucket])
    np.testing.assert_array_equal(mine, sung(eager, work, [same_bucket]))
    assert worst(mine, sung(cpu, work, [same_bucket])) < SEGMENT_RMS[machine.precision]
    assert "without CUDA graphs" not in caplog.text
    if backend.shared.recorder.capture is Capture.OURS:  # else TensorRT-RTX captures by itself
        (launched,) = backend._idle[0]._programs.values()
        assert len(launched._segment._graphs) == 2


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_songs_side_by_side_are_the_songs_alone(
    guidance: float, machine: Machine, voice: Voice, segments: list[Tokens]
) -> None:
    count = VOCODER_BATCH + 1 if machine.simulated else MAX_BATCH
    songs = [[segments[index % 3], segments[(index + 1) % 3]] for index in range(count)]
    seeds, steps = (2**64 - 1, *range(1, count)), 3 if machine.simulated else STEPS
    backend = machine.backend()
    together = sung(backend, job(voice, guidance, seeds, steps), songs)
    for index in range(0, count, 1 if count < MAX_BATCH else 5):
        alone = sung(backend, job(voice, guidance, seeds[index : index + 1], steps), [songs[index]])
        assert worst(together[:, index], alone[:, 0]) < guided(guidance) * SEGMENT_RMS[machine.precision]


def test_the_vocoder_runs_beside_the_next_segment(
    machine: Machine, voice: Voice, cpu: OrtBackend, segments: list[Tokens]
) -> None:
    backend = machine.backend()
    alone = sung(backend, job(voice), [segments])
    with backend.start(job(voice)) as run:
        run.submit(segments[:1])
        mel = run.mel().result()
        run.submit(segments[1:2])
        audio = backend.vocode(from_network(mel), 3)
        np.testing.assert_array_equal(run.mel().result(), alone[1])
    expected = cpu.vocode(from_network(mel), 3)
    assert np.abs(audio - expected).max() < STAGE_ERROR[machine.precision] * np.abs(expected).max()


def sounded(backend: GpuBackend, work: Job, song: list[Tokens]) -> np.ndarray:
    """Audio of a song, each segment vocoded where it was denoised while the next is."""
    with backend.start(work) as run:
        chunks, before = [], None
        for index, tokens in enumerate(song):
            run.submit([tokens])
            pending = run.sound(last=index == len(song) - 1)
            chunks += [before.result()[0]] if before else []
            before = pending
        return np.concatenate([*chunks, before.result()[0]])


def test_a_run_s_sound_is_its_mels_vocoded(machine: Machine, voice: Voice, segments: list[Tokens]) -> None:
    """One plan vocodes the same windows both ways: only the rounding of from_network differs.

    It is float32's, but for what the vocoder makes of it on Turing, where it may have to run in float16.
    """
    backend, song = machine.backend(), segments * 2
    audio = sounded(backend, job(voice), song)
    mels = from_network(sung(backend, job(voice), [song])[:, 0])
    vocoder = VocoderStream(backend.vocode, voice.vocoder)
    expected = np.concatenate([vocoder.push(mel, index == len(mels) - 1) for index, mel in enumerate(mels)])
    assert audio.shape == expected.shape == (len(song) * FRAMES * HOP,)
    tolerance = 1e-4 if backend.shared.device.capability > TURING else STAGE_ERROR["fp16"]
    np.testing.assert_allclose(audio, expected, rtol=0, atol=tolerance)


def test_a_song_sounds_as_on_the_cpu(machine: Machine, segments: list[Tokens]) -> None:
    song, choices = segments * 2, {"sampler": "ddpm", "steps": STEPS, "guidance": 1.0, "seed": 5}
    mine, theirs = (machine.synthesizer(name).render(song, **choices).samples for name in ("", "cpu"))
    assert len(mine) == len(theirs) == len(song) * FRAMES * HOP
    assert worst(*(audio.reshape(len(song), -1) for audio in (mine, theirs))) < HEARD * SEGMENT_RMS[machine.precision]


def test_songs_streamed_by_turns_are_the_songs_rendered(machine: Machine, segments: list[Tokens]) -> None:
    synthesizer, songs = machine.synthesizer(), (segments, segments[::-1])
    rendered = [synthesizer.render(song, sampler="ddpm", steps=STEPS).samples for song in songs]
    streams = [synthesizer.stream(song, sampler="ddpm", steps=STEPS) for song in songs]
    chunks = list(zip(*streams, strict=True))
    assert len(chunks) == len(segments)
    for index, audio in enumerate(rendered):
        np.testing.assert_array_equal(np.concatenate([chunk[index].samples for chunk in chunks]), audio)


def test_frames_are_written_as_on_the_cpu_and_sound_part_by_part(
    machine: Machine, frames_voice: Path, segments: list[Tokens], caplog: pytest.LogCaptureFixture
) -> None:
    """By graphs, and by eager launches to the last bit; each frame stands on those before it."""
    writer = dataclasses.replace(machine, voice=Voice.load(frames_voice)).built()
    work, songs = make_job({}, writer.voice, seeds=(1, 2)), [segments[:1], segments[2:]]
    mine, eager = (sung(writer.backend(graphs=graphs), work, songs) for graphs in (True, False))
    np.testing.assert_array_equal(mine, eager)
    assert "without CUDA graphs" not in caplog.text
    theirs = sung(OrtBackend(writer.voice, None), work, songs)
    scale = float(np.abs(theirs).max())  # a random voice does not keep to the networks' range
    assert worst(mine, theirs) < scale * SEGMENT_RMS[machine.precision]
    song, backend = segments[:2], writer.backend()
    alone = np.concatenate(sung(backend, make_job({}, writer.voice), [song])[:, 0])
    vocoder, parts = VocoderStream(backend.vocode, writer.voice.vocoder), np.split(from_network(alone), 2 * PARTS)
    expected = [vocoder.push(part, index == len(parts) - 1) for index, part in enumerate(parts)]
    chunks = [chunk.samples for chunk in writer.synthesizer().stream(song)]
    assert len(chunks) > PARTS and sum(map(len, chunks)) == len(song) * FRAMES * HOP
    tolerance = 1e-4 if backend.shared.device.capability > TURING else STAGE_ERROR["fp16"]
    np.testing.assert_allclose(np.concatenate(chunks), np.concatenate(expected), rtol=0, atol=tolerance)


def played(backend: Backend, work: Job, tokens: list[Tokens]) -> tuple[np.ndarray, np.ndarray]:
    """Mels [windows, T, M] and audio [windows, n] of live play: hop after hop, and the last one is late."""
    assert work.windows is not None
    mels, audio, first, hop = [], [], FRAMES - work.windows.back, work.windows.hop
    with backend.live(work) as run:
        for index, each in enumerate(tokens):
            moved = hop * (3 if index == len(tokens) - 1 else 1)
            first += moved
            run.submit(each, Place(first, moved))
            mel, sound = run.mel(), run.sound()
            mels.append(mel.result())
            audio.append(sound.result())
    return np.stack(mels), np.stack(audio)


def test_songs_of_a_corpus_are_sung_side_by_side(machine: Machine, tmp_path: Path) -> None:
    pytest.importorskip("pyloudnorm")
    soundfile = pytest.importorskip("soundfile")
    songs = [notewave.Notes([0.0], [7.0 * count], [60 + count], [90], [0], [False]) for count in (1, 3, 2)]
    data = [notewave.to_midi(song) for song in songs]
    synthesizer, making = (
        machine.synthesizer(),
        Making(form="wav", sampler="ddpm", steps=STEPS, guidance=1.0, mels=True),
    )
    singer = Singer(making, str(tmp_path), Workers(), {"voice": synthesizer})
    assert singer.together("voice") == MAX_BATCH
    takes = [Take(str(seed), "0" * 64, song, str(seed), "train", "voice", seed) for seed, song in enumerate(data)]
    for take, row in zip(takes, singer.sing(takes), strict=True):
        choices: Any = {"sampler": "ddpm", "steps": STEPS, "guidance": 1.0, "seed": take.seed}
        heard = soundfile.read(tmp_path / row["audio"], dtype="float32")[0]
        alone, mel = synthesizer.render(take.data, **choices).samples, synthesizer.spectrogram(take.data, **choices)
        assert worst(heard[None], alone[None]) < HEARD * SEGMENT_RMS[machine.precision]
        made = np.load(tmp_path / "mels" / f"{take.seed}.npy")
        assert worst(made[None], mel[None]) < LOG_SCALE * SEGMENT_RMS[machine.precision]


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_live_play_is_the_cpu_s_and_graphs_play_what_eager_launches_do(
    guidance: float,
    machine: Machine,
    voice: Voice,
    cpu: OrtBackend,
    segments: list[Tokens],
    caplog: pytest.LogCaptureFixture,
) -> None:
    windows = Windows.of(voice.vocoder, 25)
    windows = dataclasses.replace(windows, back=FRAMES - windows.hop - windows.right)  # all frames that a GPU makes
    work = dataclasses.replace(job(voice, guidance), windows=windows)
    tokens = segments[:2] * 2 + segments[2:]
    (mels, audio), eager = (played(machine.backend(graphs=graphs), work, tokens) for graphs in (True, False))
    np.testing.assert_array_equal(mels, eager[0])
    np.testing.assert_array_equal(audio, eager[1])
    assert "without CUDA graphs" not in caplog.text
    mels_there, audio_there = played(cpu, work, tokens)
    bound = guided(guidance) * SEGMENT_RMS[machine.precision]
    assert worst(mels, mels_there) < bound and worst(audio, audio_there) < HEARD * bound


@only_on_a_gpu
def test_auto_takes_what_is_there(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    if machine.engine == "onnxruntime":
        monkeypatch.setattr(choose, "AUTO", ("cuda", "cpu"))  # as where no plans of TensorRT are
    with machine.used():
        taken = notewave.Synthesizer(machine.voice.folder, provider_options={"precision": machine.precision})
    assert taken.backend == machine.backend_name


@only_on_a_gpu
def test_memory_is_given_back(machine: Machine, device: CudaDevice, voice: Voice, segments: list[Tokens]) -> None:
    import pycuda.driver as cuda

    def held() -> int:
        gc.collect()
        with device:
            free, total = cuda.mem_get_info()
        return int(total - free)

    def once() -> None:
        backend = machine.backend()
        sung(backend, job(voice), [segments])
        sounded(backend, job(voice), segments)
        backend.vocode(np.zeros((1, 20, MELS), np.float32), 0)

    once()
    before = held()
    for _ in range(3):
        thread = threading.Thread(target=once)  # not PyCUDA's own, where it frees more by itself
        thread.start()
        thread.join()
    assert held() - before < 16 << 20


@pytest.mark.gpu
def test_too_much_memory_is_refused_with_sizes(device: CudaDevice) -> None:
    with device, pytest.raises(BackendError, match=r"out of GPU memory: a test needs 1073741824 MiB .* are free on"):
        device.allocate(1 << 50, "a test")


def test_a_damaged_plan_is_named_or_made_again(
    machine: Machine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder,) = machine.home.glob(f"{machine.voice.name}-*-{machine.precision}")
    copy = tmp_path / folder.name
    shutil.copytree(folder, copy)
    (plan,) = (path for path in copy.glob("decoder.*") if path.suffix in (".plan", ".onnx"))
    plan.write_bytes(plan.read_bytes()[:-1])
    damaged = dataclasses.replace(machine, home=tmp_path)
    if machine.engine == "onnxruntime":  # which takes a second
        damaged.backend()
        assert "decoder.onnx has" in caplog.text and plan.read_bytes() == (folder / plan.name).read_bytes()
        return
    with pytest.raises(BackendError, match=r"decoder\.plan .* cut short"):
        damaged.backend()


@pytest.mark.gpu
def test_the_kernels_are_clean_under_compute_sanitizer(device: CudaDevice) -> None:
    folders = [sysconfig.get_path("purelib") + "/nvidia/cu13/bin", os.environ["PATH"]]  # pip's, or the toolkit's
    sanitizer = shutil.which("compute-sanitizer", path=os.pathsep.join(folders))
    if sanitizer is None:
        unusable("no compute-sanitizer here: pip install nvidia-cuda-sanitizer-api")
    tests = Path(__file__).parent.parent / "test_kernels.py"
    for tool in ("memcheck", "initcheck"):
        command = [
            sanitizer,
            "--tool",
            tool,
            "--error-exitcode",
            "9",
            sys.executable,
            "-m",
            "pytest",
            "-m",
            "gpu",
            str(tests),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{tool}: {done.stdout[-2000:]}"
