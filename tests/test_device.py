"""The CUDA driver's module on stand-ins for PyCUDA and cuda-bindings: errors, and what a capture is kept from."""

from __future__ import annotations

import enum
import gc
import inspect
import operator
import re
import sys
import threading
from types import ModuleType, SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
from gpu_at_hand import REQUIRED, gpu_at_hand

from notewave.backends.device import driver as module
from notewave.backends.device.driver import CudaDevice
from notewave.errors import BackendError
from notewave.kernels.layout import SIGNATURES
from notewave.kernels.loader import THREADS


class Driver(ModuleType):
    """Stands in for pycuda.driver; ``broken`` as after a fault in a kernel, which every later call reports."""

    class Error(Exception):
        pass

    class MemoryError(Error):
        pass

    class Context:
        pop = staticmethod(lambda: None)

    class Device:
        def __init__(self, ordinal: int) -> None:
            pass

        name = staticmethod(lambda: "a GPU")
        compute_capability = staticmethod(lambda: (8, 9))
        retain_primary_context = staticmethod(lambda: sys.modules["pycuda.driver"])

    init = staticmethod(lambda: None)
    get_driver_version = staticmethod(lambda: 13000)
    broken = False

    def push(self) -> None:
        if self.broken:
            raise self.Error("cuCtxPushCurrent failed")

    def mem_get_info(self) -> tuple[int, int]:
        if self.broken:
            raise self.Error("cuMemGetInfo failed")
        return 1, 2


class Bindings(ModuleType):
    """Stands in for cuda.bindings.driver: its CALLS alone.

    Their ``results`` are successes where none is given.
    """

    CALLS: ClassVar[dict[str, int]] = {  # with how many arguments each takes
        "cuStreamBeginCapture": 2,
        "cuStreamEndCapture": 1,
        "cuGraphInstantiate": 2,
        "cuGraphGetNodes": 2,
        "cuGraphLaunch": 2,
        "cuGraphDestroy": 1,
        "cuGraphExecDestroy": 1,
        "cuMemGetInfo": 0,
    }

    class CUresult(enum.Enum):
        CUDA_SUCCESS = 0
        CUDA_ERROR_ILLEGAL_ADDRESS = 700
        CUDA_ERROR_STREAM_CAPTURE_INVALIDATED = 901

    CUstreamCaptureMode = SimpleNamespace(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL=1)
    CUstream = staticmethod(lambda handle: handle)

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.results: dict[str, Bindings.CUresult] = {}
        self.called: list[str] = []

    def __getattr__(self, name: str) -> object:
        if name not in self.CALLS:
            raise AttributeError(f"the stand-in for cuda.bindings.driver has no {name}")

        def call(*arguments: object) -> tuple[Bindings.CUresult, str]:
            assert len(arguments) == self.CALLS[name], name
            self.called.append(name)
            found = (None, 7) if name == "cuGraphGetNodes" else (name,)
            return self.results.get(name, self.CUresult.CUDA_SUCCESS), *found

        return call


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    driver = Driver("pycuda.driver")
    monkeypatch.setitem(sys.modules, "pycuda", ModuleType("pycuda"))
    monkeypatch.setitem(sys.modules, "pycuda.driver", driver)
    monkeypatch.setattr(module, "_contexts", {})
    return driver


@pytest.fixture
def bindings(monkeypatch: pytest.MonkeyPatch) -> Bindings:
    bindings = Bindings("cuda.bindings.driver")
    for name in ("cuda", "cuda.bindings"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", bindings)
    return bindings


def test_without_a_gpu_a_test_is_skipped_unless_one_is_required(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycuda", None)
    monkeypatch.delenv(REQUIRED, raising=False)
    with pytest.raises(pytest.skip.Exception, match="PyCUDA does not import"):
        gpu_at_hand()
    monkeypatch.setenv(REQUIRED, "1")
    with pytest.raises(pytest.fail.Exception, match="PyCUDA does not import"):
        gpu_at_hand()


def test_the_stand_in_has_what_cuda_bindings_have_and_the_module_calls() -> None:
    real = pytest.importorskip("cuda.bindings.driver")
    stand_in = Bindings("cuda.bindings.driver")
    used = set(re.findall(r"driver\.((?:cu|CU)[\w.]*\w)", inspect.getsource(module)))
    assert used >= set(Bindings.CALLS)
    for name in sorted(used):
        operator.attrgetter(name)(real)
        operator.attrgetter(name)(stand_in)
    for name, count in Bindings.CALLS.items():
        assert len(inspect.signature(getattr(real, name)).parameters) == count, name
    with pytest.raises(AttributeError, match="has no cuGraphUpload"):
        stand_in.cuGraphUpload  # noqa: B018


@pytest.mark.parametrize("ordinal", [-1, 1.0, "0", None])
def test_gpus_are_numbered_from_0(ordinal: object, driver: Driver) -> None:
    with pytest.raises(BackendError, match=r"there is no GPU .*nvidia-smi -L"):
        CudaDevice(ordinal)  # type: ignore[arg-type]


def test_a_driver_that_does_not_start_is_explained(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> None:
        raise driver.Error("no CUDA-capable device is detected")

    monkeypatch.setattr(driver, "init", fails)
    with pytest.raises(BackendError, match=r"GPU 2 cannot be used \(no CUDA-capable device.*\)\. Check nvidia-smi"):
        CudaDevice(2)


def test_memory_that_is_not_there_is_told_by_sizes(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise driver.MemoryError("out of memory")

    monkeypatch.setattr(driver, "pagelocked_empty", np.empty, raising=False)
    with CudaDevice() as device:
        assert device.pinned(7).nbytes == 7
    monkeypatch.setattr(driver, "mem_get_info", lambda: (3 << 20, 4 << 20))
    for name in ("mem_alloc", "pagelocked_empty"):
        monkeypatch.setattr(driver, name, fails, raising=False)
    with CudaDevice() as device:
        message = r"GPU memory: the sound needs 7 MiB in one piece, and 3 of 4 MiB are free on a GPU\. Close"
        with pytest.raises(BackendError, match=message):
            device.allocate(7 << 20, "the sound")
        with pytest.raises(BackendError, match=r"page-locked host memory: 7 MiB are needed .*Close other programs"):
            device.pinned(7 << 20)


def test_kernels_that_the_driver_refuses_are_explained(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(image: bytes) -> None:
        raise driver.Error("device kernel image is invalid")

    monkeypatch.setattr(driver, "module_from_buffer", fails, raising=False)
    message = r"do not load \(device kernel image is invalid; driver for CUDA 13\.0 on a GPU\)\. Update the driver"
    with pytest.raises(BackendError, match=message), CudaDevice() as device:
        device.kernels(b"a cubin")


def test_a_kernel_that_a_cubin_lacks_is_named(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    class Module:
        def get_function(self, name: str) -> None:
            raise driver.Error("named symbol not found")

    monkeypatch.setattr(driver, "module_from_buffer", lambda _: Module(), raising=False)
    message = r"have no philox_normal \(named symbol not found\): .*this notewave's source\. .*notewave build"
    with pytest.raises(BackendError, match=message), CudaDevice() as device:
        device.kernels(b"a cubin")


def test_a_kernel_is_launched_in_blocks_of_its_threads(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    class Function:
        def __init__(self, name: str) -> None:
            self.name = name

        def prepare(self, signature: str) -> Function:
            assert signature == SIGNATURES[self.name]
            return self

        def prepared_async_call(self, *arguments: object) -> None:
            launched.append((self.name, *arguments))

    launched: list[tuple[object, ...]] = []
    monkeypatch.setattr(driver, "module_from_buffer", lambda _: SimpleNamespace(get_function=Function), raising=False)
    with CudaDevice() as device:
        kernels = device.kernels(b"a cubin")
    assert kernels.keys() == SIGNATURES.keys()
    kernels["philox_normal"]((5, 2, 1), "a stream", 3, 4)
    assert launched == [("philox_normal", (5, 2, 1), (THREADS, 1, 1), "a stream", 3, 4)]


def test_a_failed_call_says_whether_the_process_can_go_on(driver: Driver) -> None:
    device = CudaDevice()
    with pytest.raises(BackendError, match=r"a GPU.* failed: out of resources\. Run it again"), device:
        raise driver.Error("out of resources")
    with pytest.raises(BackendError, match=r"a GPU.* failed: an illegal address\. .* restart the process"), device:
        driver.broken = True
        raise driver.Error("an illegal address")


def test_a_context_that_cannot_be_entered_is_a_backend_error(driver: Driver) -> None:
    device = CudaDevice()
    driver.broken = True
    with pytest.raises(BackendError, match=r"cuCtxPushCurrent failed\. .* restart the process"), device:
        pass


def test_a_refused_graph_says_whether_the_process_can_go_on(driver: Driver, bindings: Bindings) -> None:
    stream, result = SimpleNamespace(handle=1), bindings.CUresult
    graph = CudaDevice().capture(stream, lambda: None)
    bindings.results["cuGraphLaunch"] = result.CUDA_ERROR_ILLEGAL_ADDRESS
    with pytest.raises(BackendError, match=r"ILLEGAL_ADDRESS\)\. Update the driver, or pass graphs=False"):
        graph.launch(stream)
    bindings.results["cuMemGetInfo"] = result.CUDA_ERROR_ILLEGAL_ADDRESS
    with pytest.raises(BackendError, match=r"ILLEGAL_ADDRESS\)\. .* restart the process"):
        graph.launch(stream)


def test_a_graph_is_given_back_once(driver: Driver, bindings: Bindings) -> None:
    graphs = [CudaDevice().capture(SimpleNamespace(handle=1), lambda: None) for _ in range(2)]
    assert "cuGraphExecDestroy" not in bindings.called
    graphs[0].free()
    graphs[0].free()
    del graphs[0]
    assert bindings.called.count("cuGraphExecDestroy") == 1
    module._contexts.clear()  # as at the process's end, when there is nothing to give back to
    graphs.clear()
    assert bindings.called.count("cuGraphExecDestroy") == 1


def test_a_capture_needs_cuda_bindings(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", None)
    with pytest.raises(BackendError, match=r"cuda-bindings does not import .* pip install cuda-bindings"):
        CudaDevice().capture(SimpleNamespace(handle=1), lambda: None)


def test_a_launch_that_cannot_be_recorded_is_explained(driver: Driver, bindings: Bindings) -> None:
    def fails() -> None:
        raise driver.Error("operation not permitted when stream is capturing")

    with pytest.raises(BackendError, match=r"cannot be recorded in a graph \(operation not permitted .* Update"):
        CudaDevice().capture(SimpleNamespace(handle=1), fails)
    bindings.results["cuStreamEndCapture"] = bindings.CUresult.CUDA_ERROR_STREAM_CAPTURE_INVALIDATED
    with pytest.raises(BackendError, match="cannot be recorded"):
        CudaDevice().capture(SimpleNamespace(handle=1), fails)


def test_nothing_is_collected_during_a_capture(driver: Driver, bindings: Bindings) -> None:
    stream, collecting = SimpleNamespace(handle=1), []
    CudaDevice().capture(stream, lambda: collecting.append(gc.isenabled()))
    assert collecting == [False] and gc.isenabled()

    def beside_another() -> None:
        thread = threading.Thread(target=lambda: CudaDevice().capture(stream, lambda: None))
        thread.start()
        thread.join()
        collecting.append(gc.isenabled())

    CudaDevice().capture(stream, beside_another)
    assert collecting == [False, False] and gc.isenabled()

    def fails() -> None:
        raise ValueError

    with pytest.raises(ValueError):
        CudaDevice().capture(stream, fails)
    assert gc.isenabled()
