"""ONNX Runtime on the CPU, and its provider for GPUs as far as it can be looked at without one."""

from __future__ import annotations

import ctypes.util
import inspect
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import simulated_onnxruntime
from simulated_device import SimulatedDevice
from simulated_onnxruntime import CPU, CUDA, SimulatedOnnxRuntime

import notewave
from notewave.backends.device.contracts import gpu_contracts
from notewave.backends.device.plans import find_plans
from notewave.backends.graphs.typed import NARROWING_NORM
from notewave.backends.ort import executors, providers
from notewave.backends.ort.backend import OrtBackend
from notewave.backends.ort.executors import DEFAULTS, TAKEN, Sessions, make_graphs
from notewave.backends.ort.providers import check_provider
from notewave.errors import BackendError, VoiceError
from notewave.sound.mel import MELS
from notewave.voice.folder import Voice


@pytest.fixture(scope="module")
def voice(vocoded_voice: Path) -> Voice:
    return Voice.load(vocoded_voice)


def test_what_onnx_runtime_raises_on_the_cpu_is_the_voice_s_fault(voice: Voice) -> None:
    wrong = np.zeros((1, 20, MELS + 1), np.float32)
    with pytest.raises(VoiceError, match=r"(?s)cannot run the voice's graphs \(.*Got: 129 Expected: 128"):
        OrtBackend(voice, 1).vocode(wrong, 0)


def test_this_machine_s_package_is_what_it_is() -> None:
    """The module that is here, whichever package brought it."""
    if CUDA in onnxruntime.get_available_providers():
        check_provider(onnxruntime)
    else:
        with pytest.raises(BackendError, match=rf"{re.escape(onnxruntime.__version__)}\) has no CUDA provider"):
            check_provider(onnxruntime)
    assert providers._installed()


def test_auto_goes_on_to_the_cpu(voice: Voice, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where onnxruntime-gpu finds no driver, or one too old."""
    device = SimulatedDevice()
    device.driver = "12.2"
    monkeypatch.setattr(executors, "CudaDevice", lambda _: device)
    for module in (executors, providers):
        monkeypatch.setattr(module, "onnxruntime", SimulatedOnnxRuntime(device))
    monkeypatch.setattr(providers, "_installed", lambda: {"onnxruntime-gpu": "1.31.1"})
    assert notewave.Synthesizer(voice.folder).backend == "cpu"
    with pytest.raises(BackendError, match=r"for CUDA 12\.2\. Update the driver"):
        notewave.Synthesizer(voice.folder, backend="cuda")


def test_a_package_that_only_a_gpu_needs_leaves_the_cpu_to_auto(vocoded_voice: Path) -> None:
    program = (
        "import sys; sys.modules['onnx'] = None\n"
        "import notewave; from notewave.backends.ort import providers\n"
        "providers.check_provider = lambda: None\n"
        f"print(notewave.Synthesizer({str(vocoded_voice)!r}).backend, flush=True)\n"
        f"notewave.Synthesizer({str(vocoded_voice)!r}, backend='cuda')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout == "cpu\n"
    assert "BackendError: backend 'cuda' makes its graphs with onnx, which is not installed. Install" in done.stderr


def test_every_name_of_the_simulated_onnxruntime_is_in_the_real_one() -> None:
    """The engine runs on these names and arguments alone, so all that it uses exists."""
    checked = set()
    for name in ("SessionOptions", "RunOptions", "OrtValue", "InferenceSession", "IOBinding"):
        kind, real = getattr(simulated_onnxruntime, name), getattr(onnxruntime, name)
        for member in vars(kind):
            if member.startswith("_") or not callable(getattr(kind, member)):
                continue
            theirs, mine = getattr(real, member), _arguments(getattr(kind, member))
            checked.add(f"{name}.{member}")
            try:
                assert mine == _arguments(theirs)[: len(mine)], f"{name}.{member}"
            except ValueError:  # of C++, which says what it takes in its docstring, by numbers
                assert len(re.findall(r"arg\d+: ", theirs.__doc__)) == len(mine), f"{name}.{member}"
    assert {"SessionOptions.add_initializer", "OrtValue.from_dlpack", "IOBinding.bind_input"} <= checked
    for name in ("get_available_providers", "preload_dlls", "__version__"):
        assert hasattr(onnxruntime, name) and hasattr(SimulatedOnnxRuntime, name)


def _arguments(function: object) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name != "self"]


gpu_package = pytest.mark.skipif(
    CUDA not in onnxruntime.get_available_providers(), reason="onnxruntime-gpu is not installed"
)


@gpu_package
def test_the_real_provider_knows_every_option() -> None:
    """By name, as text in its library: without a GPU it is not loaded, and asks nothing."""
    library = Path(onnxruntime.__file__).parent / "capi" / "libonnxruntime_providers_cuda.so"
    core = next(library.parent.glob("onnxruntime_pybind11_state*.so"))
    known = library.read_bytes() + core.read_bytes()
    for name, value in {**DEFAULTS, "user_compute_stream": "", "device_id": ""}.items():
        assert name.encode() in known and value.encode() in known, name
    for name in (*TAKEN, "disable_synchronize_execution_providers", NARROWING_NORM):
        assert name.encode() in known, name


@gpu_package
@pytest.mark.skipif(ctypes.util.find_library("cuda") is not None, reason="a driver is here: tests/gpu shows more")
def test_the_real_package_without_a_driver_leaves_no_session_on_the_cpu_in_silence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTEWAVE_PLANS", str(tmp_path))
    voice, device = Voice.load("band"), SimulatedDevice()
    make_graphs(voice, "fp16", device.capability)
    graphs = find_plans(voice, onnxruntime, device.capability, "fp16")
    sessions = Sessions(graphs, onnxruntime, device, 0, gpu_contracts(voice, "fp16"), DEFAULTS)
    with device, pytest.raises(BackendError, match=rf"cannot load its {CUDA} and took {CPU}|failed on simulated GPU"):
        sessions.open_ahead(["context_encoder"])
    with device:
        sessions.free()
    assert not device.memories
