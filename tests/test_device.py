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

import pytest
from gpu_at_hand import REQUIRED, gpu_at_hand

from notewave.backends.device import driver as module
from notewave.backends.device.driver import CudaDevice
from notewave.errors import BackendError


class Driver(ModuleType):
    """Stands in for pycuda.driver; ``broken`` as after a fault in a kernel, which every later call reports."""

    class Error(Exception):
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

    def __getattr__(self, name: str) -> object:
        if name not in self.CALLS:
            raise AttributeError(f"the stand-in for cuda.bindings.driver has no {name}")

        def call(*arguments: object) -> tuple[Bindings.CUresult, str]:
            assert len(arguments) == self.CALLS[name], name
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


def test_a_kernel_that_a_cubin_lacks_is_named(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    class Module:
        def get_function(self, name: str) -> None:
            raise driver.Error("named symbol not found")

    monkeypatch.setattr(driver, "module_from_buffer", lambda _: Module(), raising=False)
    message = r"have no philox_normal \(named symbol not found\): .*this notewave's source\. .*notewave build"
    with pytest.raises(BackendError, match=message), CudaDevice() as device:
        device.kernels(b"a cubin")


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
