"""An onnxruntime with CUDA for the simulated GPU: the CPU's sessions, launched on the simulated stream of each."""

from __future__ import annotations

import ctypes
import threading

import numpy as np
import onnx
import onnxruntime
from onnxruntime.capi.onnxruntime_pybind11_state import RuntimeException
from simulated_device import Operation, SimulatedDevice
from typed_on_cpu import runnable_on_cpu

from notewave.backends.device.shapes import ITEM_BYTES
from notewave.backends.graphs.typed import ELEMENTS
from notewave.backends.ort.weights import Managed

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
NAMES = {element: name for name, element in ELEMENTS.items()}


class SimulatedOnnxRuntime:
    """Stands in for the module onnxruntime of the package onnxruntime-gpu: exactly the names that the backend may use.

    A session refuses what the real one would: memory that must grow while a graph is recorded, as it does in the first
    two runs of a shape.
    """

    __version__ = onnxruntime.__version__
    cuda_version = "13.0"

    def __init__(self, device: SimulatedDevice, providers: tuple[str, ...] = (CUDA, CPU)) -> None:
        self.__name__ = "onnxruntime"
        self.device, self.providers = device, providers
        self.sessions: list[tuple[str, int]] = []  # that were opened: first output and stream's handle
        self.taken = {CUDA, CPU}  # what a session takes of the providers it is given
        self.preloaded = 0

    def get_available_providers(self) -> list[str]:
        return list(self.providers)

    def preload_dlls(self) -> None:
        self.preloaded += 1

    def SessionOptions(self) -> SessionOptions:
        return SessionOptions()

    def RunOptions(self) -> RunOptions:
        return RunOptions()

    @property
    def OrtValue(self) -> type[OrtValue]:
        return OrtValue

    def InferenceSession(self, path_or_bytes: bytes, sess_options: SessionOptions, providers: list) -> InferenceSession:
        return InferenceSession(self, path_or_bytes, sess_options, providers)


class SessionOptions:
    def __init__(self) -> None:
        self.intra_op_num_threads, self.log_severity_level = 0, 2
        self.shared: dict[str, OrtValue] = {}

    def add_initializer(self, name: str, ort_value: OrtValue) -> None:
        self.shared[name] = ort_value


class RunOptions:
    def __init__(self) -> None:
        self.entries: dict[str, str] = {}

    def add_run_config_entry(self, key: str, value: str) -> None:
        self.entries[key] = value


class OrtValue:
    """A weight in memory that is another's."""

    def __init__(self, address: int, shape: tuple[int, ...], size: int) -> None:
        self.address, self.shape, self.size = address, shape, size

    @classmethod
    def from_dlpack(cls, data: object) -> OrtValue:
        pointer = ctypes.pythonapi.PyCapsule_GetPointer
        pointer.restype, pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
        held = Managed.from_address(pointer(data, b"dltensor"))
        assert (held.device_type, held.lanes, held.byte_offset) == (2, 1, 0) and not held.strides
        shape = tuple(held.shape[: held.ndim])
        return cls(held.data, shape, int(np.prod(shape)) * held.bits // 8)


class InferenceSession:
    def __init__(
        self, runtime: SimulatedOnnxRuntime, model: bytes, options: SessionOptions, providers: list[object]
    ) -> None:
        (name, given), fallback = providers
        assert (name, fallback) == (CUDA, CPU)
        self.device, self.shared, self._taken = runtime.device, options.shared, runtime.taken
        self.stream = self.device.streams[int(given["user_compute_stream"])]
        self._model_bytes = model  # as the real one
        graph = onnx.load_from_string(model)
        runtime.sessions.append((graph.graph.output[0].name, self.stream.handle))
        self._weights = {tensor.name: tensor.raw_data for tensor in graph.graph.initializer}
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            runnable_on_cpu(graph).SerializeToString(), settings, providers=[CPU]
        )
        self.runs: dict[tuple[object, ...], int] = {}  # of each shape
        self.lock = threading.Lock()

    def disable_fallback(self) -> None:
        pass

    def get_providers(self) -> list[str]:
        return [name for name in (CUDA, CPU) if name in self._taken]

    def get_inputs(self) -> list[object]:
        return self._session.get_inputs()

    def get_outputs(self) -> list[object]:
        return self._session.get_outputs()

    def run(self, output_names: None, input_feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        return self._session.run(output_names, input_feed)

    def io_binding(self) -> IOBinding:
        return IOBinding(self)

    def run_with_iobinding(self, iobinding: IOBinding, run_options: RunOptions) -> None:
        assert iobinding.session is self
        assert run_options.entries == {"disable_synchronize_execution_providers": "1"}, "it would wait for the GPU"
        placed = dict(iobinding.placed)
        shape = tuple(bound[:3] for bound in placed.values())
        with self.lock:
            done = self.runs[shape] = self.runs.get(shape, 0) + 1
        if done <= 2 and self.device.recording is not None:
            raise RuntimeException("CUDA failure 900: operation not permitted when stream is capturing")
        reads, writes = (
            [placed[value.name][3:] for value in values] for values in (self.get_inputs(), self.get_outputs())
        )
        weights = [(value.address, value.size) for value in self.shared.values()]

        def run() -> None:
            for name, value in self.shared.items():
                assert ctypes.string_at(value.address, value.size) == self._weights[name], f"{name} is not there"
            binding = self._session.io_binding()
            for values, bind in ((self.get_inputs(), binding.bind_input), (self.get_outputs(), binding.bind_output)):
                for value in values:
                    name, element, dims, address, _ = placed[value.name]
                    bind(name, "cpu", 0, element, dims, address)
            self._session.run_with_iobinding(binding)

        self.device.submit(self.stream, Operation("network", lambda: ([*reads, *weights], writes), run))


class IOBinding:
    def __init__(self, session: InferenceSession) -> None:
        self.session = session
        self.placed: dict[str, tuple[str, int, tuple[int, ...], int, int]] = {}

    def bind_input(
        self, name: str, device_type: str, device_id: int, element_type: int, shape: tuple[int, ...], buffer_ptr: int
    ) -> None:
        assert device_type == "cuda"
        size = ITEM_BYTES[NAMES[element_type]] * int(np.prod(shape))
        self.placed[name] = (name, element_type, tuple(shape), buffer_ptr, size)

    def bind_output(
        self, name: str, device_type: str, device_id: int, element_type: int, shape: tuple[int, ...], buffer_ptr: int
    ) -> None:
        self.bind_input(name, device_type, device_id, element_type, shape, buffer_ptr)
