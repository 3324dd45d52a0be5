"""What only a GPU can show: stages against the CPU, graphs against eager launches, memory given back, damage named.

Skipped without a GPU. On a machine that has one and nothing else prepared: make gpu-test, where nothing that the
target installs may be missing.
"""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from gpu_at_hand import gpu_at_hand, unusable
from sounding_voice import sounding_voice

import notewave
from notewave.backend import Job
from notewave.buffers import Layout, Slab
from notewave.codec import EOS, Tokens
from notewave.device import CudaDevice
from notewave.errors import BackendError
from notewave.export.build import build_plans, buildable_precisions
from notewave.mel import FRAMES, MELS, from_network
from notewave.ort_backend import OrtBackend
from notewave.plans import SCHEDULE_ROWS, load_tensorrt, token_buckets, voice_contracts
from notewave.samplers import sampler_table
from notewave.trt_backend import TensorRTBackend
from notewave.trt_module import Executor
from notewave.voice import Voice

pytestmark = pytest.mark.gpu

STEPS = 10
SEGMENT_RMS = {"fp32": 1e-3, "fp16": 5e-3, "bf16": 5e-2}  # of a denoised segment against the CPU; its range is [-1, 1]
STAGE_ERROR = {"fp32": 1e-3, "fp16": 1e-2, "bf16": 1e-1}  # of one network, relative to its largest output
NETWORKS = ("note_encoder", "context_encoder", "cross_attention", "time_embedding", "decoder", "unconditional_decoder")


@pytest.fixture(scope="module")
def device() -> CudaDevice:
    try:
        load_tensorrt()
    except BackendError as error:
        unusable(str(error))
    return gpu_at_hand()


@pytest.fixture(scope="module")
def voice(reference_voice: Path, tmp_path_factory: pytest.TempPathFactory) -> Voice:
    return sounding_voice(reference_voice, tmp_path_factory.mktemp("voices") / "sounding")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("plans")
        patch.setenv("NOTEWAVE_PLANS", str(folder))
        yield folder


@pytest.fixture(scope="module", params=["fp32", "fp16", "bf16"])
def precision(request: pytest.FixtureRequest, device: CudaDevice, voice: Voice, home: Path) -> str:
    """Precision of plans that were just built for this GPU."""
    trt = load_tensorrt()
    if request.param not in buildable_precisions(trt, device.capability):
        pytest.skip(f"{trt.__name__} builds no {request.param} plans for compute capability {device.capability}")
    build_plans(voice, request.param, device.capability)
    return request.param


@pytest.fixture(scope="module")
def segments(midi_folder: Path) -> list[Tokens]:
    first, second, third = notewave.tokenize(midi_folder / "ensemble.mid")[:3]
    lengths = ((first, 300), (second, 280), (third, 99))
    return [np.append(tokens[: length - 1], EOS).astype(np.int32) for tokens, length in lengths]


def job(voice: Voice, guidance: float = 1.0, seeds: tuple[int, ...] = (7,)) -> Job:
    return Job(sampler_table("ddpm", STEPS, voice.schedule, voice.prediction), guidance, seeds, None)


def sung(backend: TensorRTBackend | OrtBackend, work: Job, songs: list[list[Tokens]]) -> np.ndarray:
    with backend.start(work) as run:
        return np.stack([run.denoise(list(tokens)).copy() for tokens in zip(*songs, strict=True)])


def rms(error: np.ndarray) -> float:
    return float(np.sqrt(np.mean(error**2)))


@pytest.mark.parametrize("network", NETWORKS)
def test_every_network_is_the_cpu_s(network: str, precision: str, device: CudaDevice, voice: Voice) -> None:
    backend, cpu = TensorRTBackend(voice, {"precision": precision}), OrtBackend(voice, "cpu", None, {})
    contract, random = voice_contracts(voice)[network], np.random.default_rng(0)
    length = token_buckets(voice)[0]
    axes = {"B": 1, "N": length, "C": FRAMES, "J": length + FRAMES, "S": min(3, SCHEDULE_ROWS)}
    shapes = {
        tensor.name: tuple(axes[axis] if isinstance(axis, str) else axis for axis in tensor.shape)
        for tensor in (*contract.inputs, *contract.outputs)
    }
    inputs = {tensor.name: random.standard_normal(shapes[tensor.name]).astype(np.float32) for tensor in contract.inputs}
    if "tokens" in inputs:
        inputs["tokens"] = random.integers(1, voice.dimensions.vocabulary, shapes["tokens"], np.int32)
    if "mask" in inputs:
        inputs["mask"] = np.where(inputs["mask"] > 1, np.finfo(np.float32).min, np.float32(0))
    if "time" in inputs:
        inputs["time"] = np.array([0.05, 0.5, 0.95], np.float32)
    expected = cpu.graphs[network].run(inputs)
    for tensor, mine, reference in zip(
        contract.outputs, on_gpu(backend, network, inputs, shapes), expected, strict=True
    ):
        error = np.abs(mine - reference).max() / np.abs(reference).max()
        assert error < STAGE_ERROR[precision], tensor.name


def on_gpu(
    backend: TensorRTBackend, network: str, inputs: dict[str, np.ndarray], shapes: dict[str, tuple[int, ...]]
) -> list[np.ndarray]:
    """Outputs of a network for host inputs, all as float32."""
    engines, device, contract = backend.engines, backend.device, voice_contracts(backend.voice)[network]
    kinds = {name: engines.dtype(network, name) for name in shapes}
    sizes = {name: int(np.prod(shape)) * engines.item_bytes(network, name) for name, shape in shapes.items()}
    with device:
        scratch = engines.scratch_bytes([network])
        slab, stream = Slab(device, Layout(sizes | {"scratch": scratch}), "a test"), device.stream()
        for name, array in inputs.items():
            device.upload(slab.address[name], encode(array, kinds[name]), stream)
        run = Executor(
            engines, network, {name: slab.address[name] for name in shapes}, (slab.address["scratch"], scratch)
        )
        for name in inputs:
            assert run.context.set_input_shape(name, shapes[name])
        run(stream)
        outputs = [np.empty(sizes[tensor.name], np.uint8) for tensor in contract.outputs]
        for tensor, output in zip(contract.outputs, outputs, strict=True):
            device.download(output, slab.address[tensor.name], stream)
        stream.synchronize()
        slab.free()
    pairs = zip(contract.outputs, outputs, strict=True)
    return [decode(output, kinds[tensor.name]).reshape(shapes[tensor.name]) for tensor, output in pairs]


def encode(values: np.ndarray, kind: str) -> np.ndarray:
    if kind == "BF16":
        return (np.ascontiguousarray(values).view(np.uint32) >> 16).astype(np.uint16)
    return values.astype(np.float16) if kind == "HALF" else np.ascontiguousarray(values)


def decode(content: np.ndarray, kind: str) -> np.ndarray:
    if kind == "BF16":
        return (content.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return content.view(np.float16 if kind == "HALF" else np.float32).astype(np.float32)


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_denoised_segments_are_the_cpu_s(guidance: float, precision: str, voice: Voice, segments: list[Tokens]) -> None:
    work = job(voice, guidance)
    mine = sung(TensorRTBackend(voice, {"precision": precision}), work, [segments])
    cpu = sung(OrtBackend(voice, "cpu", None, {}), work, [segments])
    assert max(rms(a - b) for a, b in zip(mine, cpu, strict=True)) < SEGMENT_RMS[precision]


def test_graphs_give_what_eager_launches_give(precision: str, voice: Voice, segments: list[Tokens]) -> None:
    captured, eager = (
        sung(TensorRTBackend(voice, {"precision": precision, "graphs": graphs}), job(voice), [segments * 2])
        for graphs in (True, False)
    )
    np.testing.assert_array_equal(captured, eager)


def test_songs_side_by_side_are_the_songs_alone(precision: str, voice: Voice, segments: list[Tokens]) -> None:
    backend, songs, seeds = TensorRTBackend(voice, {"precision": precision}), [segments[:2], segments[1:]], (3, 4)
    together = sung(backend, job(voice, seeds=seeds), songs)
    for index, (song, seed) in enumerate(zip(songs, seeds, strict=True)):
        alone = sung(backend, job(voice, seeds=(seed,)), [song])
        assert rms(together[:, index] - alone[:, 0]) < SEGMENT_RMS[precision]


def test_the_vocoder_runs_beside_the_next_segment(precision: str, voice: Voice, segments: list[Tokens]) -> None:
    backend, cpu = TensorRTBackend(voice, {"precision": precision}), OrtBackend(voice, "cpu", None, {})
    alone = sung(backend, job(voice), [segments])
    with backend.start(job(voice)) as run:
        run.submit(segments[:1])
        mel = run.result()
        run.submit(segments[1:2])
        audio = backend.vocode(from_network(mel), 3)
        np.testing.assert_array_equal(run.result(), alone[1])
    expected = cpu.vocode(from_network(mel), 3)
    assert np.abs(audio - expected).max() < STAGE_ERROR[precision] * np.abs(expected).max()


def test_auto_takes_tensorrt(precision: str, voice: Voice) -> None:
    assert notewave.Synthesizer(voice.folder).backend == "tensorrt"


@pytest.mark.parametrize("options", [{}, {"trt_fp16_enable": "0"}], ids=["cuda", "tensorrt"])
def test_onnx_runtime_s_providers_give_what_the_cpu_gives(
    options: dict[str, str], voice: Voice, segments: list[Tokens]
) -> None:
    try:
        backend = OrtBackend(voice, "cuda", None, options)
    except BackendError as error:
        if not options:
            unusable(str(error))
        pytest.skip(f"ONNX Runtime may have been made for another TensorRT: {error}")
    mine, cpu = (sung(one, job(voice, 2.0), [segments]) for one in (backend, OrtBackend(voice, "cpu", None, {})))
    assert max(rms(a - b) for a, b in zip(mine, cpu, strict=True)) < SEGMENT_RMS["fp32"]
    mel = from_network(cpu[0])
    np.testing.assert_allclose(
        backend.vocode(mel, 3), OrtBackend(voice, "cpu", None, {}).vocode(mel, 3), rtol=0, atol=1e-3
    )


def test_memory_is_given_back(precision: str, device: CudaDevice, voice: Voice, segments: list[Tokens]) -> None:
    import pycuda.driver as cuda

    def held() -> int:
        gc.collect()
        with device:
            free, total = cuda.mem_get_info()
        return int(total - free)

    def once() -> None:
        backend = TensorRTBackend(voice, {"precision": precision})
        sung(backend, job(voice), [segments])
        backend.vocode(np.zeros((1, 20, MELS), np.float32), 0)

    once()
    before = held()
    for _ in range(3):
        thread = threading.Thread(target=once)  # not PyCUDA's own, where it frees more by itself
        thread.start()
        thread.join()
    assert held() - before < 16 << 20


def test_too_much_memory_is_refused_with_sizes(device: CudaDevice) -> None:
    with device, pytest.raises(BackendError, match=r"out of GPU memory: a test needs 1073741824 MiB .* are free on"):
        device.allocate(1 << 50, "a test")


def test_a_damaged_plan_is_named(precision: str, voice: Voice, home: Path, tmp_path: Path) -> None:
    (folder,) = home.glob(f"*-{precision}")
    copy = tmp_path / folder.name
    shutil.copytree(folder, copy)
    plan = copy / "decoder.plan"
    plan.write_bytes(plan.read_bytes()[:-1])
    with pytest.MonkeyPatch.context() as patch, pytest.raises(BackendError, match=r"decoder\.plan .* cut short"):
        patch.setenv("NOTEWAVE_PLANS", str(tmp_path))
        TensorRTBackend(voice, {"precision": precision})


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
