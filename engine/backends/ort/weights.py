"""A graph's weights in one piece of GPU memory, for all sessions of it: each session would bring its own otherwise.

ONNX Runtime takes memory that is not its own by DLPack (its header dlpack.h says what lies where).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import TensorProto

from notewave.backends.device.buffers import Layout, Slab
from notewave.backends.device.driver import CudaDevice
from notewave.backends.device.plans import REBUILD
from notewave.errors import BackendError

SHARED = {
    TensorProto.FLOAT: (2, 32),
    TensorProto.FLOAT16: (2, 16),
    TensorProto.BFLOAT16: (4, 16),
}  # DLPack's code, bits
SMALLEST = 1024  # bytes; constants that kernels are told on the host are smaller
CUDA = 2  # DLPack's kDLCUDA
# DLPack wants a function to call when memory is no longer used. This one does nothing, and can be called from any
# thread at any time, also when Python's own functions are gone.
NOTHING = ctypes.cast(ctypes.pythonapi.Py_IsInitialized, ctypes.c_void_p)


class GpuWeights:
    """Weights of a graph on a GPU, as values that sessions take in the place of the graph's own, by name."""

    def __init__(
        self, device: CudaDevice, ordinal: int, graph: bytes, path: Path, from_dlpack: Callable[[Any], Any]
    ) -> None:
        """graph: its weights inside. path: where it was read, to be named. from_dlpack: makes a value of such memory.

        Raises BackendError for what is no graph, and, with sizes, when there is not enough memory.
        """
        try:
            initializers = onnx.load_from_string(graph).graph.initializer
        except DecodeError as error:
            raise BackendError(f"{path} is no ONNX graph ({error}). {REBUILD}") from error
        weights = {
            tensor.name: tensor
            for tensor in initializers
            if tensor.data_type in SHARED and len(tensor.raw_data) >= SMALLEST
        }
        layout = Layout({name: len(tensor.raw_data) for name, tensor in weights.items()} or {"none": 1})
        self._slab = Slab(device, layout, f"the weights of {path}")
        stream = device.stream()
        for name, tensor in weights.items():
            device.upload(self._slab.address[name], np.frombuffer(tensor.raw_data, np.uint8), stream)
        stream.synchronize()
        self._held = [
            _Tensor(self._slab.address[name], list(tensor.dims), *SHARED[tensor.data_type], ordinal)
            for name, tensor in weights.items()
        ]
        self.values = {name: from_dlpack(held.capsule()) for name, held in zip(weights, self._held, strict=True)}

    def free(self) -> None:
        """Give the memory back; no session may use it any more."""
        self.values.clear()
        self._slab.free()


class Managed(ctypes.Structure):
    """DLManagedTensor."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
        ("manager", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
    )


class _Tensor:
    """Memory that is described to others, and stays ours."""

    def __init__(self, address: int, shape: list[int], code: int, bits: int, ordinal: int) -> None:
        self._shape = (ctypes.c_int64 * len(shape))(*shape)
        self._managed = Managed(address, CUDA, ordinal, len(shape), code, bits, 1, self._shape, None, 0, None, NOTHING)

    def capsule(self) -> Any:
        """What ``from_dlpack`` takes, once; this object must outlive what comes of it."""
        make = ctypes.pythonapi.PyCapsule_New
        make.restype, make.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
        return make(ctypes.addressof(self._managed), b"dltensor", None)
