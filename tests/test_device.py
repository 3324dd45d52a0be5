"""The CUDA driver's module on stand-ins for PyCUDA and cuda-bindings: errors, and what a capture is kept from."""

from __future__ import annotations

import enum
import gc
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from gpu_at_hand import REQUIRED, gpu_at_hand

from notewave import device as module
from notewave.device import CudaDevice
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
    """Stands in for cuda.bindings.driver; ``results`` of its calls are successes where none is given."""

    class CUresult(enum.Enum):
        CUDA_SUCCESS = 0
        CUDA_ERROR_ILLEGAL_ADDRESS = 700
        CUDA_ERROR_STREAM_CAPTURE_INVALIDATED = 901

    CUstreamCaptureMode = SimpleNamespace(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL=1)

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.results: dict[str, Bindings.CUresult] = {}

    def __getattr__(self, name: str) -> object:
        result = self.results.get(name, self.CUresult.CUDA_SUCCESS)
        return (lambda handle: handle) if name == "CUstream" else (lambda *_: (result, name))


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


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_preparing_a_machine_names_what_is_missing_before_anything_is_done(tmp_path: Path) -> None:
    for name, content in {
        "nvidia-smi": "echo 580.65.06",
        "id": "echo 1000",
        "python3": 'case "$2" in *venv*) exit 1;; *version*) echo python3.11;; *Python.h*) exit 1;; *) exit 3;; esac',
    }.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{content}\n")
        (tmp_path / name).chmod(0o755)
    for name in ("bash", "dirname", "head"):
        (tmp_path / name).symlink_to(shutil.which(name) or "")
    script = Path(__file__).parent / "gpu" / "prepare.sh"
    done = subprocess.run(
        ["bash", str(script)], env={"PATH": str(tmp_path)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "python3.11-venv python3.11-dev g++ (Debian's names) must be installed" in done.stderr


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
