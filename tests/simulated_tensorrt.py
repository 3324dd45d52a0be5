"""A TensorRT for the simulated GPU: plans are run by ONNX Runtime on the addresses that were bound."""

from __future__ import annotations

import ctypes
import enum
import json

import numpy as np
import onnx
import onnxruntime
from simulated_device import Operation, SimulatedDevice
from typed_on_cpu import runnable_on_cpu


class DataType(enum.Enum):
    """As tensorrt.DataType; values are ONNX's."""

    FLOAT = onnx.TensorProto.FLOAT
    HALF = onnx.TensorProto.FLOAT16
    BF16 = onnx.TensorProto.BFLOAT16
    INT32 = onnx.TensorProto.INT32
    INT64 = onnx.TensorProto.INT64


ITEM_BYTES = {DataType.FLOAT: 4, DataType.HALF: 2, DataType.BF16: 2, DataType.INT32: 4, DataType.INT64: 8}
SCRATCH_BYTES = 1 << 16


class SimulatedTensorRT:
    """Stands in for the module tensorrt (or tensorrt_rtx): exactly the names that the backend may use."""

    class ILogger:
        class Severity(enum.Enum):
            INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

    class ExecutionContextAllocationStrategy(enum.Enum):
        STATIC, ON_PROFILE_CHANGE, USER_MANAGED = range(3)

    DataType = DataType

    def __init__(self, device: SimulatedDevice) -> None:
        self.__name__, self.__version__ = "tensorrt", "11.0.0"
        self.device = device

    def Runtime(self, logger: object) -> Runtime:
        return Runtime(self, logger)


class SimulatedTensorRTRTX(SimulatedTensorRT):
    """What TensorRT-RTX has beside it."""

    class IRuntimeCache:
        def __init__(self) -> None:
            self.content = b""

        def serialize(self) -> bytes:
            return b"compiled"

        def deserialize(self, blob: bytes) -> bool:
            self.content = bytes(blob)
            return self.content == b"compiled"

    class CudaGraphStrategy(enum.Enum):
        DISABLED, WHOLE_GRAPH_CAPTURE = range(2)

    class DynamicShapesKernelSpecializationStrategy(enum.Enum):
        LAZY, EAGER, NONE = range(3)

    class IRuntimeConfig:
        def __init__(self, trt: SimulatedTensorRTRTX) -> None:
            self._trt, self._strategy = trt, None
            self.cuda_graph_strategy = trt.CudaGraphStrategy.DISABLED
            self.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.LAZY

        def set_execution_context_allocation_strategy(self, strategy: enum.Enum) -> None:
            self._strategy = strategy

        def create_runtime_cache(self) -> object:
            return self._trt.IRuntimeCache()

        def set_runtime_cache(self, cache: object) -> bool:
            self._trt.caches.append(cache)
            return True

    class EngineInvalidityDiagnostics(enum.IntFlag):
        VERSION_MISMATCH, OLD_CUDA_DRIVER, MALFORMED_ENGINE = 1, 4, 32

    class ComputeCapability(enum.Enum):
        SM75, SM89 = range(2)

    def __init__(self, device: SimulatedDevice, capturable: bool = True) -> None:
        super().__init__(device)
        self.__name__, self.__version__ = "tensorrt_rtx", "1.7.1"
        self.capturable = capturable
        self.caches: list[object] = []
        self.configs: list[object] = []


class Runtime:
    def __init__(self, trt: SimulatedTensorRT, logger: object) -> None:
        self._trt, self._logger = trt, logger

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None:
        if not serialized_engine.startswith(b"{"):
            self._logger.log(self._trt.ILogger.Severity.ERROR, "not a plan")
            return None
        return ICudaEngine(self._trt, serialized_engine)

    def get_engine_validity(self, buffer: bytes) -> tuple[str, int]:
        return "INVALID", 32


class ICudaEngine:
    device_memory_size_v2 = SCRATCH_BYTES

    def __init__(self, trt: SimulatedTensorRT, plan: bytes) -> None:
        header, graph = plan.split(b"\0", 1)
        self._trt, self._profile = trt, json.loads(header)
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(graph, settings, providers=["CPUExecutionProvider"])
        model = onnx.load_from_string(graph)
        values = (*model.graph.input, *model.graph.output)
        self._types = {value.name: DataType(value.type.tensor_type.elem_type) for value in values}
        self._outputs = {value.name: value.type.tensor_type.shape.dim for value in model.graph.output}

    def get_tensor_dtype(self, name: str) -> DataType:
        return self._types[name]

    def create_runtime_config(self) -> object:
        return self._trt.IRuntimeConfig(self._trt)

    def create_execution_context(self, strategy: object) -> IExecutionContext | None:
        """Takes a strategy, or TensorRT-RTX's runtime_config."""
        if isinstance(self._trt, SimulatedTensorRTRTX):
            self._trt.configs.append(strategy)
            strategy = strategy._strategy
        assert strategy is self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        return IExecutionContext(self)


class IExecutionContext:
    def __init__(self, engine: ICudaEngine) -> None:
        self._engine, self._trt = engine, engine._trt
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        if not isinstance(self._trt, SimulatedTensorRTRTX):
            self.is_stream_capturable = None  # TensorRT has no such method

    def set_device_memory(self, memory: int, size: int) -> None:
        assert memory % 256 == 0 and size >= self._engine.device_memory_size_v2
        self._scratch = (memory, size)

    def set_tensor_address(self, name: str, memory: int) -> bool:
        assert memory % 4 == 0 and name in self._engine._types
        self._addresses[name] = memory
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        smallest, _, largest = self._engine._profile[name]
        if not all(low <= size <= high for low, size, high in zip(smallest, shape, largest, strict=True)):
            return False
        self._shapes[name] = tuple(shape)
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (self._shapes | self._output_shapes(self._shapes))[name]

    def is_stream_capturable(self, stream: int) -> bool:
        assert stream in self._trt.device.streams
        return self._trt.capturable

    def execute_async_v3(self, stream_handle: int) -> bool:
        device, engine = self._trt.device, self._engine
        shapes, addresses, scratch = dict(self._shapes), dict(self._addresses), self._scratch
        assert shapes.keys() | engine._outputs.keys() == addresses.keys() == engine._types.keys()
        shapes |= self._output_shapes(shapes)
        size = {name: ITEM_BYTES[engine._types[name]] * int(np.prod(shape)) for name, shape in shapes.items()}
        outputs = [(addresses[name], size[name]) for name in engine._outputs]
        reads = [(addresses[name], size[name]) for name in self._shapes]

        def run() -> None:
            ctypes.memset(*scratch[:1], 0xFF, scratch[1])
            binding = engine._session.io_binding()
            for name, shape in shapes.items():
                bind = binding.bind_output if name in engine._outputs else binding.bind_input
                bind(name, "cpu", 0, engine._types[name].value, shape, addresses[name])
            engine._session.run_with_iobinding(binding)

        device.submit(device.streams[stream_handle], Operation("network", lambda: (reads, [*outputs, scratch]), run))
        return True

    def _output_shapes(self, shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        """Shapes of the outputs, from the letters of the contract's axes."""
        letters = self._letters(shapes)
        return {
            name: tuple(dim.dim_value or eval(dim.dim_param, {}, letters) for dim in dims)
            for name, dims in self._engine._outputs.items()
        }

    def _letters(self, shapes: dict[str, tuple[int, ...]]) -> dict[str, int]:
        letters = {}
        for value in self._engine._session.get_inputs():
            for axis, size in zip(value.shape, shapes[value.name], strict=True):
                if isinstance(axis, str):
                    assert letters.setdefault(axis, size) == size, f"{value.name} does not agree on {axis}"
        if "N" in letters:
            letters["J"] = letters["N"] + letters.get("C", 0)
        return letters


def simulated_plan(graph: bytes, shapes: dict[str, object], precision: str) -> bytes:
    """Stands in for TensorRT's builder: the typed graph, as the CPU can run it, behind its profile."""
    del precision
    profile = {name: [extent.min, extent.opt, extent.max] for name, extent in shapes.items()}
    model = runnable_on_cpu(onnx.load_from_string(graph))
    return json.dumps(profile).encode() + b"\0" + model.SerializeToString()
