"""The CUDA driver as the TensorRT backend sees it: memory, streams, kernels and graphs of one GPU.

PyCUDA holds the context, memory and streams; cuda-bindings adds graphs, on the same stream handles. This is the only
module that calls either; tests put a simulated device in its place.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from notewave.errors import BackendError
from notewave.kernels.layout import SIGNATURES
from notewave.kernels.loader import THREADS

Kernel = Callable[..., None]  # (grid, stream, *arguments), as in loader.SIGNATURES
MIB = 1 << 20
NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: not ordered with other libraries' work on the default stream
LOST = "The GPU takes no more work of this process: restart the process."

_contexts: dict[int, Any] = {}  # each GPU's primary context, which a process holds to its end


class CudaDevice:
    """One GPU. Use it as a context manager around every call, so that its context is the thread's current one.

    PyCUDA gives back memory, streams and kernels that nothing refers to any more, but on other threads than its own
    only within the context: let go of them there.
    """

    def __init__(self, ordinal: int = 0) -> None:
        """Raises BackendError when PyCUDA, the driver or the GPU is missing."""
        if not isinstance(ordinal, int) or ordinal < 0:
            raise BackendError(f"there is no GPU {ordinal!r}: GPUs are numbered from 0. `nvidia-smi -L` lists them.")
        try:
            self._cuda = importlib.import_module("pycuda.driver")
        except ImportError as error:
            raise BackendError(
                f"PyCUDA does not import ({error}). It needs NVIDIA's driver, and the CUDA toolkit to be installed: "
                "pip install pycuda, or notewave[cuda]."
            ) from error
        try:
            self._cuda.init()
            device = self._cuda.Device(ordinal)
            if ordinal not in _contexts:
                _contexts[ordinal] = device.retain_primary_context()
            self._context = _contexts[ordinal]
        except self._cuda.Error as error:
            raise BackendError(
                f"GPU {ordinal} cannot be used ({error}). Check nvidia-smi: the driver must be running and see it."
            ) from error
        self.name: str = device.name()
        self.capability: tuple[int, int] = tuple(device.compute_capability())
        version = self._cuda.get_driver_version()
        self.driver = f"{version // 1000}.{version % 1000 // 10}"  # CUDA version that the driver supports

    def __enter__(self) -> CudaDevice:
        """Make the GPU's context current."""
        try:
            self._context.push()
        except self._cuda.Error as error:
            raise self._failure(error) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Restore the context that was current before; a failed call becomes a BackendError."""
        failure = self._failure(error) if isinstance(error, self._cuda.Error) else None
        self._cuda.Context.pop()
        if failure is not None:
            raise failure from error

    def _failure(self, error: Exception) -> BackendError:
        """What a failed call comes to. After a fault in a kernel every later call of the process fails too."""
        try:
            self.memory()
            cure = "Run it again; if it fails again, update the driver."
        except self._cuda.Error:
            cure = LOST
        return BackendError(f"the GPU ({self.name}) failed: {error}. {cure}")

    def allocate(self, size: int, purpose: str) -> Any:
        """Device memory: an object whose int() is its address, 256-byte aligned, and which has free().

        Raises BackendError with sizes when there is not enough.
        """
        try:
            return self._cuda.mem_alloc(size)
        except self._cuda.MemoryError as error:
            free, total = self.memory()
            raise BackendError(
                f"out of GPU memory: {purpose} needs {size / MIB:.0f} MiB in one piece, and {free / MIB:.0f} of "
                f"{total / MIB:.0f} MiB are free on {self.name}. "
                "Close other programs on the GPU, or take fewer songs or steps."
            ) from error

    def memory(self) -> tuple[int, int]:
        """Bytes of device memory that are free, and all there are."""
        free, total = self._cuda.mem_get_info()
        return int(free), int(total)

    def pinned(self, size: int) -> NDArray[np.uint8]:
        """Page-locked host memory, which copies run from and to while the host goes on.

        Raises BackendError with the size when there is not enough.
        """
        try:
            memory: NDArray[np.uint8] = self._cuda.pagelocked_empty(size, np.uint8)
        except self._cuda.MemoryError as error:
            raise BackendError(
                f"out of page-locked host memory: {size / MIB:.0f} MiB are needed in one piece. "
                "Close other programs, or take fewer songs or steps."
            ) from error
        return memory

    def stream(self) -> Any:  # only on a GPU
        """A new stream: an object with handle and synchronize()."""
        return self._cuda.Stream(NON_BLOCKING)

    def event(self) -> Any:  # only on a GPU
        """A new event: ``record(stream)`` marks what the stream was given so far.

        Another stream's ``wait_for_event(event)`` lets what it is given from then on wait for that.
        """
        return self._cuda.Event(self._cuda.event_flags.DISABLE_TIMING)

    def upload(self, target: int, source: NDArray[Any], stream: Any) -> None:  # only on a GPU
        """Copy host memory to a device address."""
        self._cuda.memcpy_htod_async(target, source, stream)

    def download(self, target: NDArray[Any], source: int, stream: Any) -> None:  # only on a GPU
        """Copy from a device address to host memory."""
        self._cuda.memcpy_dtoh_async(target, source, stream)

    def copy(self, target: int, source: int, size: int, stream: Any) -> None:  # only on a GPU
        """Copy bytes between device addresses."""
        self._cuda.memcpy_dtod_async(target, source, size, stream)

    def clear(self, target: int, size: int, stream: Any) -> None:  # only on a GPU
        """Fill bytes at a device address with zeros."""
        self._cuda.memset_d8_async(target, 0, size, stream)

    def kernels(self, image: bytes) -> dict[str, Kernel]:
        """Load the project's kernels from a cubin, by name.

        Raises BackendError when the driver refuses it, or when it lacks one.
        """
        try:
            module = self._cuda.module_from_buffer(image)
        except self._cuda.Error as error:
            raise BackendError(
                f"the CUDA kernels do not load ({error}; driver for CUDA {self.driver} on {self.name}). "
                "Update the driver, or build on this machine: notewave build VOICE."
            ) from error
        return {name: self._kernel(module, name, signature) for name, signature in SIGNATURES.items()}

    def _kernel(self, module: Any, name: str, signature: str) -> Kernel:
        try:
            function = module.get_function(name).prepare(signature)
        except self._cuda.Error as error:
            raise BackendError(
                f"the CUDA kernels have no {name} ({error}): they were not compiled from this notewave's source. "
                "Install notewave again, then build the plans again: notewave build VOICE."
            ) from error
        block = (THREADS, 1, 1)

        def launch(grid: tuple[int, int, int], stream: Any, *arguments: float) -> None:
            function.prepared_async_call(grid, block, stream, *arguments)

        return launch

    def capture(self, stream: Any, issue: Callable[[], None]) -> Graph:
        """Record what ``issue`` launches on a stream into a graph, without running it."""
        try:
            driver = importlib.import_module("cuda.bindings.driver")
        except ImportError as error:
            raise BackendError(f"cuda-bindings does not import ({error}): pip install cuda-bindings.") from error
        handle = driver.CUstream(stream.handle)
        _checked(
            driver, driver.cuStreamBeginCapture(handle, driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
        )
        try:
            with _no_collection:
                issue()
        except BaseException as error:
            ended, abandoned = driver.cuStreamEndCapture(handle)
            if ended == driver.CUresult.CUDA_SUCCESS:
                driver.cuGraphDestroy(abandoned)
            if isinstance(error, self._cuda.Error):
                raise BackendError(f"a launch cannot be recorded in a graph ({error}). Update the driver.") from error
            raise
        recorded = _checked(driver, driver.cuStreamEndCapture(handle))
        try:
            outcome, _, nodes = driver.cuGraphGetNodes(recorded, 0)
            _checked(driver, (outcome,))
            return Graph(driver, _checked(driver, driver.cuGraphInstantiate(recorded, 0)), nodes)
        finally:
            driver.cuGraphDestroy(recorded)


class Graph:
    """A recorded sequence of launches, at the addresses it was recorded with."""

    def __init__(self, driver: Any, executable: Any, nodes: int) -> None:
        self.nodes = nodes  # launches and copies
        self._driver, self._executable = driver, executable

    def launch(self, stream: Any) -> None:
        """Run it on a stream."""
        _checked(self._driver, self._driver.cuGraphLaunch(self._executable, self._driver.CUstream(stream.handle)))

    def free(self) -> None:
        """Give its memory back; it must have finished."""
        if self._executable is not None:
            self._driver.cuGraphExecDestroy(self._executable)
            self._executable = None

    def __del__(self) -> None:
        if _contexts:
            self.free()


def _checked(driver: Any, result: tuple[Any, ...]) -> Any:
    """Value of a driver call; raises BackendError when it failed."""
    error, *values = result
    if error != driver.CUresult.CUDA_SUCCESS:
        usable = driver.cuMemGetInfo()[0] == driver.CUresult.CUDA_SUCCESS
        cure = "Update the driver, or pass graphs=False." if usable else LOST
        raise BackendError(f"the CUDA driver refused a graph ({error.name}). {cure}")
    return values[0] if values else None


class _NoCollection:
    """Keeps the garbage collector from freeing device memory, which would spoil a capture, in any thread's."""

    def __init__(self) -> None:
        self._lock, self._inside, self._enabled = threading.Lock(), 0, False

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._enabled = gc.isenabled()
                gc.disable()
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside and self._enabled:
                gc.enable()


_no_collection = _NoCollection()


@atexit.register
def _release_contexts() -> None:  # only on a GPU
    """Give the contexts back by name: PyCUDA's destructor takes a primary context for one of its own, and complains."""
    for context in _contexts.values():
        context.detach()
    _contexts.clear()
