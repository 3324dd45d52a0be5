"""ONNX Runtime's execution providers: which of them work here, and the options that each network is opened with."""

from __future__ import annotations

import ctypes.util
import importlib
from typing import Any

from notewave.backends.device.cache import HOME_VARIABLE, graphs_digest, plans_home
from notewave.backends.device.shapes import extents
from notewave.errors import BackendError
from notewave.voice.contracts import Contract
from notewave.voice.folder import Voice

try:
    import onnxruntime
except ImportError as error:
    raise BackendError(
        "ONNX Runtime is not installed, and every backend but TensorRT needs it. "
        "Install notewave[cpu], or notewave[gpu] on a machine with an NVIDIA GPU."
    ) from error

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
TENSORRT = "TensorrtExecutionProvider"
CUDA_DEFAULTS = {"use_tf32": "0"}  # float32 products as the CPU's, which TF32 would round to 10 bits


def usable_devices() -> list[str]:
    """Which of PROVIDERS this machine can run."""
    has_driver = ctypes.util.find_library("cuda") is not None
    available = onnxruntime.get_available_providers()
    return [device for device, name in PROVIDERS.items() if name in available and (device == "cpu" or has_driver)]


def execution_providers(device: str, options: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """ONNX Runtime's providers for a device, the first asked first, each with its options."""
    if device == "cpu":
        return [(PROVIDERS["cpu"], options)]
    tensorrt = {name: value for name, value in options.items() if name.startswith("trt_")}
    cuda = CUDA_DEFAULTS | {name: value for name, value in options.items() if name not in tensorrt}
    if tensorrt:
        tensorrt |= {"device_id": cuda["device_id"]} if "device_id" in cuda else {}
    return [*([(TENSORRT, tensorrt)] if tensorrt else []), (PROVIDERS["cuda"], cuda), (PROVIDERS["cpu"], {})]


def tensorrt_options(voice: Voice, contract: Contract, options: dict[str, Any]) -> dict[str, Any]:
    """Options for one network: with any trt_... among them, also the shapes that TensorRT is to build it for at once,
    not again for each that it meets, and a folder to keep engines in; unless these are given too.
    """
    if not any(name.startswith("trt_") for name in options):
        return options
    folder = plans_home() / f"onnxruntime-{onnxruntime.__version__}-{_tensorrt_version()}-{graphs_digest(voice)[:12]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BackendError(f"{folder} cannot be made ({error}). Set {HOME_VARIABLE} to where plans can go.") from error
    defaults: dict[str, Any] = {}
    for kind in ("engine", "timing"):
        defaults |= {f"trt_{kind}_cache_enable": True, f"trt_{kind}_cache_path": str(folder)}
    if not any(name.startswith("trt_profile_") for name in options):
        dynamic = tuple(tensor for tensor in contract.inputs if any(isinstance(axis, str) for axis in tensor.shape))
        shapes = extents(voice, dynamic, padded=False).items()
        for which in ("min", "opt", "max"):
            sizes = (f"{name}:{'x'.join(map(str, getattr(extent, which)))}" for name, extent in shapes)
            defaults[f"trt_profile_{which}_shapes"] = ",".join(sizes)
    return defaults | options


def _tensorrt_version() -> str:
    """Version of pip's tensorrt, whose libraries ONNX Runtime finds once it is imported; of the system's, unknown."""
    try:
        version: str = importlib.import_module("tensorrt").__version__
    except (ImportError, AttributeError, OSError):
        return "unknown"
    return version
