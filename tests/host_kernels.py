"""The kernels' own CUDA source, compiled for the host through ``host_cuda.h`` and launched as the driver would."""

from __future__ import annotations

import ctypes
import functools
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from notewave.kernels import loader
from notewave.kernels.layout import SIGNATURES

HERE = Path(__file__).parent
TYPES = {"P": ctypes.c_void_p, "I": ctypes.c_uint32, "f": ctypes.c_float}


@functools.cache
def library() -> ctypes.CDLL:
    """Compile once per session; skips the test where there is no C++ compiler."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler (g++ or clang++) to build the kernels for the host")
    launchers = "".join(
        f'extern "C" void launch_{name}(const unsigned* grid, unsigned threads, void** arguments) '
        f"{{ launch({name}, grid, threads, arguments); }}\n"
        for name in SIGNATURES
    )
    with tempfile.TemporaryDirectory() as folder:
        for name in (loader.SOURCE, *loader.HEADERS):
            (Path(folder) / name).write_text(loader.source(name))
        unit = Path(folder) / "host.cpp"
        unit.write_text(f'#include "{HERE / "host_cuda.h"}"\n#include "{loader.SOURCE}"\n{launchers}')
        flags = "-std=c++17 -O2 -shared -fPIC -ffp-contract=off -fno-strict-aliasing -Wall -Wno-unknown-pragmas -Werror"
        subprocess.run([compiler, *flags.split(), "-o", f"{folder}/host.so", str(unit)], check=True)
        return ctypes.CDLL(f"{folder}/host.so")


def launch(name: str, grid: tuple[int, int, int], threads: int, *arguments: float) -> None:
    """Run a kernel over a grid on host addresses; each argument as the kernel's signature says."""
    values = [TYPES[letter](value) for letter, value in zip(SIGNATURES[name], arguments, strict=True)]
    pointers = (ctypes.c_void_p * len(values))(*(ctypes.cast(ctypes.byref(v), ctypes.c_void_p) for v in values))
    getattr(library(), f"launch_{name}")((ctypes.c_uint32 * 3)(*grid), ctypes.c_uint32(threads), pointers)
