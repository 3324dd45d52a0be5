"""A voice's plans in TensorRT or TensorRT-RTX: engines, execution contexts, the cache of what a GPU had compiled."""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from notewave.backends.device.driver import MIB, CudaDevice
from notewave.backends.device.plans import REBUILD, Plans
from notewave.backends.executor import Capture, Scratch
from notewave.errors import BackendError, OutputError
from notewave.files import atomic_file, is_stream
from notewave.inputs import read_regular
from notewave.voice.contracts import Contract

log = logging.getLogger(__name__)

DTYPES = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16", "INT32": "int32", "INT64": "int64"}  # by its name
COMPILED_MOST = 1 << 28  # bytes kept of what was compiled for a network; a few million are usual


class Engines:
    """A voice's plans, each loaded when first needed: see ``notewave.backends.executor.Runtime``."""

    name = "tensorrt"
    warm_runs = 1  # of a shape: the first one allocates
    stream_bound = False

    def __init__(self, plans: Plans, trt: Any, device: CudaDevice, contracts: Mapping[str, Contract]) -> None:
        self.plans, self.device, self.contracts = plans, device, contracts
        self._trt = trt
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

    def leave(self, stream: Any) -> None:
        """Nothing was opened for a stream alone."""

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

    def scratch_bytes(self, networks: Sequence[str]) -> int:
        """Memory that these networks need while they run, one after another."""
        return max(int(self[network].device_memory_size_v2) for network in networks)

    def open(self, network: str, stream: Any, scratch: Scratch, capture: Capture) -> PlanExecutor:
        """A network in an execution context of its own, whose memory is ours to give."""
        with self._lock:
            context = self._context(self[network], network, capture)
        if context is None:
            raise self.failure(f"{network}.plan cannot be run; {self._free_memory()}")
        return PlanExecutor(self, network, self.contracts[network], context, stream, scratch)

    def _context(self, engine: Any, network: str, capture: Capture) -> Any:
        trt = self._trt
        strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if not hasattr(trt, "IRuntimeCache"):
            return self.ask(engine.create_execution_context, strategy)
        config = engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(strategy)
        # A graph must not capture the slow kernels that run until those for its shapes are compiled.
        config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
        strategy_name = "WHOLE_GRAPH_CAPTURE" if capture is Capture.ENGINE else "DISABLED"
        config.cuda_graph_strategy = getattr(trt.CudaGraphStrategy, strategy_name)
        if not config.set_runtime_cache(self._cache(network, config)):
            log.warning("TensorRT takes no cache of what it compiles; each start compiles again")
        return self.ask(engine.create_execution_context, config)

    def failure(self, what: str) -> BackendError:
        """An error with the last reason that TensorRT logged."""
        return BackendError(f"{what} ({self._log.last or 'TensorRT gives no reason'}). {REBUILD}")

    def keep(self) -> None:
        """Keep what TensorRT-RTX compiled for this GPU, so that the next process need not compile it again."""
        with self._lock:
            contents = {network: cache.serialize() for network, cache in self._caches.items()}
        for network, compiled in contents.items():
            content = b"" if compiled is None else bytes(compiled)
            if not content or content == self._kept(network):
                continue
            try:
                if not is_stream(path := self._cache_path(network)):
                    with atomic_file(path) as temporary:
                        temporary.write_bytes(content)
            except OutputError as error:
                log.warning("the next start compiles again: %s", error)

    def _load(self, network: str) -> Any:
        plan = self.plans.read(network)
        engine = self.ask(self._runtime.deserialize_cuda_engine, plan)
        if engine is None:
            reason = self._log.last
            if hasattr(self._runtime, "get_engine_validity"):
                _, bits = self._runtime.get_engine_validity(plan)
                causes = self._trt.EngineInvalidityDiagnostics.__members__.items()
                reason = "; ".join([name for name, cause in causes if int(bits) & int(cause)] + [reason])
            raise BackendError(
                f"{self.plans.path(network)}, {len(plan) / MIB:.0f} MiB, does not load ({reason}; driver for CUDA "
                f"{self.device.driver} on {self.device.name}; {self._free_memory()}). Update the driver, free GPU "
                "memory, or build the plans again: notewave build VOICE."
            )
        for tensor in (*self.contracts[network].inputs, *self.contracts[network].outputs):
            if (kind := DTYPES.get(engine.get_tensor_dtype(tensor.name).name)) != tensor.dtype:
                raise BackendError(
                    f"{network}.plan has {kind} for {tensor.name}, where {tensor.dtype} is due. {REBUILD}"
                )
        return engine

    def _free_memory(self) -> str:
        free, total = self.device.memory()
        return f"{free / MIB:.0f} of {total / MIB:.0f} MiB of GPU memory are free"

    def _cache(self, network: str, config: Any) -> Any:
        if network not in self._caches:
            cache = self._caches[network] = config.create_runtime_cache()
            if (kept := self._kept(network)) and not cache.deserialize(kept):
                log.info("%s is of another driver or GPU; compiling again", self._cache_path(network))
        return self._caches[network]

    def _kept(self, network: str) -> bytes:
        """What was compiled for a network by an earlier process; nothing where that cannot be read."""
        try:
            return read_regular(self._cache_path(network), COMPILED_MOST)
        except OSError:
            return b""

    def _cache_path(self, network: str) -> Path:
        return self.plans.folder / f"{network}.runtime_cache"


class PlanExecutor:
    """A plan in an execution context: see ``notewave.backends.executor.Executor``."""

    def __init__(
        self, engines: Engines, network: str, contract: Contract, context: Any, stream: Any, scratch: Scratch
    ) -> None:
        self._engines, self._network, self._contract = engines, network, contract
        self._context, self._stream = context, stream
        self._context.set_device_memory(*scratch)

    def bind(self, addresses: Mapping[str, int]) -> None:
        """Say where inputs and outputs lie."""
        for name, address in addresses.items():
            if not self._engines.ask(self._context.set_tensor_address, name, address):
                raise self._engines.failure(f"{self._network}.plan does not take {name} at {address:#x}")

    def reshape(self, sizes: Mapping[str, int]) -> None:
        """Set the shapes of all inputs, and hold the outputs' to the contract."""
        for tensor in self._contract.inputs:
            shape = tensor.shape_at(sizes)
            if not self._engines.ask(self._context.set_input_shape, tensor.name, shape):
                raise self._engines.failure(f"{self._network}.plan does not take {tensor.name} {list(shape)}")
        for tensor in self._contract.outputs:
            given = tuple(self._context.get_tensor_shape(tensor.name))
            if not tensor.takes(given, sizes):
                raise BackendError(
                    f"{self._network}.plan gives {tensor.name} {list(given)}, where {list(tensor.shape)} is due with "
                    f"{dict(sizes)}: its graph breaks its contract. Do not trust this voice, or export it again."
                )

    def is_capturable(self) -> bool:
        """TensorRT's launches can always be recorded in a graph of ours, TensorRT-RTX must be asked."""
        ask = getattr(self._context, "is_stream_capturable", None)
        return ask is None or bool(ask(self._stream.handle))

    def launch(self) -> None:
        """Enqueue it on its stream."""
        if not self._engines.ask(self._context.execute_async_v3, self._stream.handle):
            raise self._engines.failure(f"{self._network}.plan did not run")

    def free(self) -> None:
        """Let go of the execution context, and of what it refers to."""
        vars(self).clear()


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
