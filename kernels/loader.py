"""From the CUDA source to code for one GPU: compiled ahead or when a backend opens, never while a song is denoised."""

from __future__ import annotations

import functools
import hashlib
import importlib
import json
import re
import shutil
import subprocess
import tempfile
from importlib import resources
from pathlib import Path
from typing import Any

from notewave.errors import BackendError
from notewave.inputs import HeldFiles
from notewave.kernels.layout import SIGNATURES

SOURCE = "notewave.cu"
HEADERS = ("lanes.cuh", "philox.cuh")
FLAGS = ("-std=c++17", "--fmad=false")  # without fused multiply-add the kernels equal their twins bit for bit
CUBIN = re.compile(r"kernels-[0-9a-f]{12}\.cubin")  # the file names that there are of cubins
THREADS = 128  # a block; each thread takes four elements at a time


def blocks(size: int, batch: int = 1) -> tuple[int, int, int]:
    """Grid of a launch over ``batch`` songs of ``size`` elements."""
    return (-(-size // (4 * THREADS)), batch, 1)


def source(name: str = SOURCE) -> str:
    """Text of a file of the kernels."""
    return resources.files("notewave.kernels").joinpath(name).read_text(encoding="utf-8")


def cubin_name() -> str:
    """File name of the kernels' cubin, by a digest of its source, flags and arguments: a stale one has another name."""
    made_of = [[source(name) for name in (SOURCE, *HEADERS)], FLAGS, SIGNATURES]
    return f"kernels-{hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:12]}.cubin"


def load_kernels(files: HeldFiles, capability: tuple[int, int]) -> bytes:
    """Cubin that was compiled ahead into a folder; where it is missing, or stale, one that is compiled now."""
    ahead = cubin_name()
    return files.read(ahead) if ahead in files.records else compile_kernels(capability)


@functools.cache
def compile_kernels(capability: tuple[int, int]) -> bytes:
    """Cubin of all kernels for a compute capability, by NVRTC or else nvcc.

    Raises BackendError when neither is there, or when it refuses.
    """
    target = f"sm_{capability[0]}{capability[1]}"
    nvrtc, nvcc = _nvrtc(), shutil.which("nvcc")
    if nvrtc is not None:
        try:
            return _by_nvrtc(nvrtc, target)
        except BackendError:
            if nvcc is None:
                raise
    if nvcc:
        return by_nvcc(target)[0]
    raise BackendError(
        "the CUDA kernels cannot be compiled: neither NVRTC nor nvcc is here. "
        "Install the CUDA toolkit, or nvidia-cuda-nvrtc and cuda-bindings; or build the plans where one is."
    )


def by_nvcc(target: str, *flags: str) -> tuple[bytes, str]:
    """Cubin that nvcc makes for a target such as "sm_89", and what it says meanwhile; raises BackendError."""
    with tempfile.TemporaryDirectory() as folder:
        for name in (SOURCE, *HEADERS):
            (Path(folder) / name).write_text(source(name), encoding="utf-8")
        out = Path(folder) / "kernels.cubin"
        command = ["nvcc", "-cubin", f"-arch={target}", *FLAGS, *flags, "-o", str(out), str(Path(folder) / SOURCE)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BackendError(f"nvcc cannot compile the CUDA kernels for {target}: {done.stderr.strip()}. {_CURE}")
        return out.read_bytes(), done.stderr


def _by_nvrtc(nvrtc: Any, target: str) -> bytes:
    headers = [source(name).encode() for name in HEADERS]
    error, program = nvrtc.nvrtcCreateProgram(
        source().encode(), SOURCE.encode(), len(HEADERS), headers, [name.encode() for name in HEADERS]
    )
    if error != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise BackendError(f"NVRTC does not start ({error.name}). Install it again: nvidia-cuda-nvrtc.")
    try:
        options = [flag.encode() for flag in (f"--gpu-architecture={target}", *FLAGS)]
        (error,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
        if error != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            text = bytearray(nvrtc.nvrtcGetProgramLogSize(program)[1])
            nvrtc.nvrtcGetProgramLog(program, text)
            reason = text.rstrip(b"\0").decode(errors="replace").strip() or error.name
            raise BackendError(f"NVRTC cannot compile the CUDA kernels for {target}: {reason}. {_CURE}")
        image = bytearray(nvrtc.nvrtcGetCUBINSize(program)[1])
        nvrtc.nvrtcGetCUBIN(program, image)
        return bytes(image)
    finally:
        nvrtc.nvrtcDestroyProgram(program)


_CURE = "A newer CUDA toolkit may know this GPU."


@functools.cache
def _nvrtc() -> Any | None:
    """cuda-bindings' NVRTC module, where its library is found too."""
    try:
        nvrtc = importlib.import_module("cuda.bindings.nvrtc")
        nvrtc.nvrtcVersion()
    except Exception:  # a missing library is reported by many types, by version
        return None
    return nvrtc
