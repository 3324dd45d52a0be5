"""The kernels compiled for real GPUs."""

import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from notewave.errors import BackendError
from notewave.inputs import FileRecord, HeldFiles
from notewave.kernels import loader
from notewave.kernels.layout import SIGNATURES

TARGETS = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_120")
REGISTERS = 64  # a thread: 1024 threads fit a multiprocessor's 65536 registers


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc to compile the kernels for a GPU")
@pytest.mark.parametrize("target", TARGETS)
def test_kernels_compile_without_spills(target: str) -> None:
    report = loader.by_nvcc(target, "-Xptxas", "-v")[1]
    assert set(re.findall(r"Compiling entry function '(\w+)'", report)) == set(SIGNATURES)
    stacks = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", report)
    assert stacks == [("0", "0", "0")] * len(SIGNATURES)
    assert max(map(int, re.findall(r"Used (\d+) registers", report))) <= REGISTERS


@pytest.mark.skipif(loader._nvrtc() is None, reason="no NVRTC (nvidia-cuda-nvrtc) to compile the kernels for a GPU")
def test_nvrtc_compiles_them_too_and_names_a_gpu_it_does_not_know() -> None:
    image = loader.compile_kernels((8, 9))
    assert image.startswith(b"\x7fELF")
    assert all(name.encode() in image for name in SIGNATURES)
    with pytest.raises(BackendError, match="sm_34"):
        loader.compile_kernels((3, 4))


def test_a_cubin_of_another_source_flags_or_arguments_is_compiled_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "compile_kernels", lambda _: b"now")
    none = HeldFiles(tmp_path, {}, "plans.json", BackendError, "")
    assert loader.load_kernels(none, (8, 9)) == b"now"
    path = tmp_path / loader.cubin_name()
    assert loader.CUBIN.fullmatch(path.name)
    path.write_bytes(b"ahead")
    files = HeldFiles(tmp_path, {path.name: FileRecord.of(path)}, "plans.json", BackendError, "")
    assert loader.load_kernels(files, (8, 9)) == b"ahead"
    source = loader.source
    changes = [("FLAGS", (*loader.FLAGS, "-G")), ("SIGNATURES", {**SIGNATURES, "philox_normal": "PPI"})]
    for changed in (loader.SOURCE, *loader.HEADERS):
        changes.append(("source", lambda name, changed=changed: source(name) + "\n" * (name == changed)))
    for what, change in changes:
        with monkeypatch.context() as patch:
            patch.setattr(loader, what, change)
            assert loader.load_kernels(files, (8, 9)) == b"now", what
    assert loader.load_kernels(files, (8, 9)) == b"ahead"


class Nvrtc:
    """Stands in for cuda.bindings.nvrtc: a library that does not start."""

    nvrtcResult = SimpleNamespace(NVRTC_SUCCESS=0)

    @staticmethod
    def nvrtcCreateProgram(*_: object) -> tuple[object, None]:
        return SimpleNamespace(name="NVRTC_ERROR_OUT_OF_MEMORY"), None


def test_what_nvrtc_does_not_compile_nvcc_may(monkeypatch: pytest.MonkeyPatch) -> None:
    compile_kernels = loader.compile_kernels.__wrapped__  # which keeps what it compiled
    monkeypatch.setattr(loader, "_nvrtc", Nvrtc)
    monkeypatch.setattr(loader, "by_nvcc", lambda target: (f"by nvcc for {target}".encode(), ""))
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    assert compile_kernels((9, 0)) == b"by nvcc for sm_90"
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(BackendError, match=r"NVRTC does not start \(NVRTC_ERROR_OUT_OF_MEMORY\)\. Install it again"):
        compile_kernels((9, 0))


def test_without_cuda_bindings_there_is_no_nvrtc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.nvrtc", None)
    assert loader._nvrtc.__wrapped__() is None


def test_missing_compilers_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "_nvrtc", lambda: None)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(BackendError, match=r"neither NVRTC nor nvcc .* CUDA toolkit.* build the plans where one is"):
        loader.compile_kernels((1, 0))
