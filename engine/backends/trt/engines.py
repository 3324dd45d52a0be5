"""A voice's plans in TensorRT or TensorRT-RTX: engines, execution contexts, the cache of what a GPU had compiled."""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from notewave.backends.device.driver import MIB, CudaDevice
from notewave.backends.trt.plans import REBUILD
from notewave.errors import BackendError, OutputError
from notewave.files import atomic_file
from notewave.voice.contracts import Contract, Tensor

log = logging.getLogger(__name__)

ITEM_BYTES = {"FLOAT": 4, "HALF": 2, "BF16": 2, "INT32": 4, "INT64": 8}  # by the name of TensorRT's data type

Axes = Mapping[str, int]  # sizes of dynamic axes, by letter


class Engines:
    """A folder's plans, each loaded when first needed, and execution contexts for them."""

    def __init__(self, folder: Path, trt: Any, device: CudaDevice, graphs: bool) -> None:
        self.folder, self.device = folder, device
        self.capture = graphs  # whether launches are captured in graphs of our own
        self._trt, self._graphs = trt, graphs
        self._log = _logger(trt.ILogger)
        try:
            self._runtime = self.ask(trt.Runtime, self._log)
        except (RuntimeError, TypeError) as error:  # what its bindings make of a null pointer
            reason = self._log.last or error
            raise BackendError(
                f"{trt.__name__} {trt.__version__} does not start ({reason}; driver for CUDA {device.driver}). "
                "Update the driver."
            ) from error
        self._open: dict[str, Any] = {}
        self._caches: dict[str, Any] = {}
        self._lock = threading.RLock()

    def __getitem__(self, network: str) -> Any:
        """Engine of a network."""
        with self._lock:
            if network not in self._open:
                self._open[network] = self._load(network)
            return self._open[network]

    def drop(self, network: str) -> None:
        """Give a network's memory back."""
        with self._lock:
            self._open.pop(network, None)

    def free(self) -> None:
        """Give the memory of all networks back, within the GPU's context."""
        with self._lock:
            self._open.clear()
            self._caches.clear()

    def ask(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """What a call into TensorRT returns; should it fail, what is logged last is its reason, not an older one's."""
        self._log.last = ""
        return call(*arguments)

    def item_bytes(self, network: str, tensor: str) -> int:
        """Bytes of one element of a network's input or output."""
        return ITEM_BYTES[self.dtype(network, tensor)]

    def dtype(self, network: str, tensor: str) -> str:
        """TensorRT's name for the type of a network's input or output."""
        name: str = self[network].get_tensor_dtype(tensor).name
        return name

    def scratch_bytes(self, networks: Sequence[str]) -> int:
        """Memory that these networks need while they run, one after another."""
        return max(self[network].device_memory_size_v2 for network in networks)

    def context(self, network: str) -> Any:
        """A new execution context, whose memory is ours to give. Raises BackendError when there can be none."""
        with self._lock:
            context = self._context(self[network], network)
        if context is None:
            raise self.failure(f"{network}.plan cannot be run; {self._free_memory()}")
        return context

    def _context(self, engine: Any, network: str) -> Any:
        trt = self._trt
        strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if not hasattr(trt, "IRuntimeCache"):
            return self.ask(engine.create_execution_context, strategy)
        config = engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(strategy)
        # A graph must not capture the slow kernels that run until those for its shapes are compiled.
        config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
        own = self._graphs and not self.capture
        config.cuda_graph_strategy = getattr(trt.CudaGraphStrategy, "WHOLE_GRAPH_CAPTURE" if own else "DISABLED")
        if not config.set_runtime_cache(self._cache(network, config)):
            log.warning("TensorRT takes no cache of what it compiles; each start compiles again")
        return self.ask(engine.create_execution_context, config)

    def failure(self, what: str) -> BackendError:
        """An error with the last reason that TensorRT logged."""
        return BackendError(f"{what} ({self._log.last or 'TensorRT gives no reason'}). {REBUILD}")

    def save_caches(self) -> None:
        """Keep what TensorRT-RTX compiled for this GPU, so that the next process need not compile it again."""
        with self._lock:
            contents = {self._cache_path(network): cache.serialize() for network, cache in self._caches.items()}
        for path, compiled in contents.items():
            content = b"" if compiled is None else bytes(compiled)
            if not content or (path.is_file() and path.read_bytes() == content):
                continue
            try:
                with atomic_file(path) as temporary:
                    temporary.write_bytes(content)
            except OutputError as error:
                log.warning("the next start compiles again: %s", error)

    def _load(self, network: str) -> Any:
        plan = (self.folder / f"{network}.plan").read_bytes()
        engine = self.ask(self._runtime.deserialize_cuda_engine, plan)
        if engine is None:
            reason = self._log.last
            if hasattr(self._runtime, "get_engine_validity"):
                _, bits = self._runtime.get_engine_validity(plan)
                causes = self._trt.EngineInvalidityDiagnostics.__members__.items()
                reason = "; ".join([name for name, cause in causes if int(bits) & int(cause)] + [reason])
            raise BackendError(
                f"{self.folder / network}.plan, {len(plan) / MIB:.0f} MiB, does not load ({reason}; driver for CUDA "
                f"{self.device.driver} on {self.device.name}; {self._free_memory()}). Update the driver, free GPU "
                "memory, or build the plans again: notewave build VOICE."
            )
        return engine

    def _free_memory(self) -> str:
        free, total = self.device.memory()
        return f"{free / MIB:.0f} of {total / MIB:.0f} MiB of GPU memory are free"

    def _cache(self, network: str, config: Any) -> Any:
        if network not in self._caches:
            cache = self._caches[network] = config.create_runtime_cache()
            path = self._cache_path(network)
            if path.is_file() and not cache.deserialize(path.read_bytes()):
                log.info("%s is of another driver or GPU; compiling again", path)
        return self._caches[network]

    def _cache_path(self, network: str) -> Path:
        return self.folder / f"{network}.runtime_cache"


class Executor:
    """A network in an execution context, its addresses bound once."""

    def __init__(self, engines: Engines, network: str, addresses: Mapping[str, int], scratch: tuple[int, int]) -> None:
        """scratch: address and size of memory to run in."""
        self.engines, self.network = engines, network
        self.context = engines.context(network)
        self.context.set_device_memory(*scratch)
        self.bind(addresses)

    def bind(self, addresses: Mapping[str, int]) -> None:
        """Say where inputs and outputs lie."""
        for name, address in addresses.items():
            if not self.engines.ask(self.context.set_tensor_address, name, address):
                raise self.engines.failure(f"{self.network}.plan does not take {name} at {address:#x}")

    def reshape(self, contract: Contract, axes: Axes) -> None:
        """Set the shapes of all inputs.

        Raises BackendError when the plan does not take them, or would write outputs of other sizes than have room.
        """
        for tensor in contract.inputs:
            shape = shape_of(tensor, axes)
            if not self.engines.ask(self.context.set_input_shape, tensor.name, shape):
                raise self.engines.failure(f"{self.network}.plan does not take {tensor.name} {list(shape)}")
        for tensor in contract.outputs:
            given = tuple(self.context.get_tensor_shape(tensor.name))
            if not tensor.takes(given, axes):
                raise BackendError(
                    f"{self.network}.plan gives {tensor.name} {list(given)}, where {list(tensor.shape)} is due with "
                    f"{dict(axes)}: its graph breaks its contract. Do not trust this voice, or export it again."
                )

    def is_capturable(self, stream: Any) -> bool:
        """Whether its launches can be recorded in a graph: TensorRT's always can, TensorRT-RTX must be asked."""
        ask = getattr(self.context, "is_stream_capturable", None)
        return ask is None or bool(ask(stream.handle))

    def __call__(self, stream: Any) -> None:
        """Launch on a stream."""
        if not self.engines.ask(self.context.execute_async_v3, stream.handle):
            raise self.engines.failure(f"{self.network}.plan did not run")


def shape_of(tensor: Tensor, axes: Axes) -> tuple[int, ...]:
    """Shape of a tensor at these sizes of its dynamic axes."""
    return tuple(axes[axis] if isinstance(axis, str) else axis for axis in tensor.shape)


@functools.cache
def _logger(kind: Any) -> Any:
    """TensorRT's messages in Python's log; ``last`` is the last error.

    kind: a TensorRT module's ILogger. There is one logger for each, for ever: TensorRT keeps the first it is given for
    all the process, and writes to it after the backend that brought it is gone.
    """
    levels = {"INTERNAL_ERROR": logging.ERROR, "ERROR": logging.ERROR, "WARNING": logging.WARNING}

    class Logger(kind):  # type: ignore[misc]
        def __init__(self) -> None:
            kind.__init__(self)
            self.last = ""

        def log(self, severity: Any, message: str) -> None:
            level = levels.get(severity.name, logging.DEBUG)
            if level == logging.ERROR:
                self.last = message
            log.log(level, "%s", message)

    return Logger()
