"""ONNX Runtime: the backend on the CPU, and sessions on a GPU as an engine of the GPU's backend."""

from notewave.errors import BackendError

try:
    import onnxruntime  # noqa: F401 (the first to ask for it says what is missing)
except ImportError as error:
    raise BackendError(
        "ONNX Runtime is not installed, and every backend but TensorRT needs it. "
        "Install notewave[cpu], or notewave[cuda] on a machine with an NVIDIA GPU."
    ) from error
