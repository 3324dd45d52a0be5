"""What ONNX Runtime raises, as errors of ours: the voice's fault, or the GPU's."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterator

from notewave.backends.device.driver import MIB, CudaDevice
from notewave.errors import BackendError, VoiceError


@contextlib.contextmanager
def on_cpu() -> Iterator[None]:
    """On the CPU, what fails is the voice's graphs."""
    try:
        yield
    except Exception as error:
        if not _is_onnx_runtimes(error):
            raise
        raise VoiceError(
            f"ONNX Runtime cannot run the voice's graphs ({error}). Export the voice again, or free memory if it "
            "asks for that."
        ) from error


@contextlib.contextmanager
def on_gpu(device: CudaDevice, doing: str) -> Iterator[None]:
    """On a GPU, what fails is the GPU, or what is installed for it. doing: such as "running decoder.onnx"."""
    try:
        yield
    except Exception as error:
        if not _is_onnx_runtimes(error):
            raise
        raise BackendError(f"ONNX Runtime failed on {device.name} {doing} ({error}). {_cure(device, error)}") from error


def _cure(device: CudaDevice, error: Exception) -> str:
    text = str(error)
    if "no kernel image" in text:
        capability = "{}.{}".format(*device.capability)
        return (
            f"This onnxruntime-gpu holds no machine code for compute capability {capability}. Install a release that "
            "does, or TensorRT: --backend tensorrt."
        )
    if "out of memory" in text or "Failed to allocate" in text:
        free, total = device.memory()
        return (
            f"{free / MIB:.0f} of {total / MIB:.0f} MiB of its memory are free: close other programs on it, or take "
            "fewer songs or steps."
        )
    if "cuDNN" in text or "cudnn" in text:
        return "Install cuDNN: pip install 'onnxruntime-gpu[cuda,cudnn]'."
    return "Update the driver, and install onnxruntime-gpu again: pip install --force-reinstall onnxruntime-gpu."


def _is_onnx_runtimes(error: Exception) -> bool:
    """Whether an exception is ONNX Runtime's, or was raised in it: of many types, plain RuntimeError among them."""
    *_, (innermost, _) = traceback.walk_tb(error.__traceback__)
    return any(
        str(name).startswith("onnxruntime") for name in (type(error).__module__, innermost.f_globals.get("__name__"))
    )
