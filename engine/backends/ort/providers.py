"""ONNX Runtime's execution providers: whether CUDA's works here, as far as can be said before it is asked."""

from __future__ import annotations

import importlib.metadata
import re
from typing import Any

import onnxruntime

from notewave.backends.device.driver import CudaDevice
from notewave.errors import BackendError

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
REINSTALL = "pip uninstall onnxruntime onnxruntime-gpu; pip install 'onnxruntime-gpu[cuda,cudnn]'"


def check_provider(runtime: Any = None) -> None:
    """Refuse an onnxruntime module without CUDA, or one that two packages were installed over each other as."""
    runtime = runtime or onnxruntime
    versions = _installed()
    if len(set(versions.values())) > 1:
        raise BackendError(
            f"{' and '.join(f'{name} {version}' for name, version in versions.items())} are installed over each other, "
            f"in one folder. Remove both, then install one: {REINSTALL}."
        )
    if CUDA not in runtime.get_available_providers():
        which = "of the two packages installed in one folder, the one" if len(versions) > 1 else "the onnxruntime here"
        raise BackendError(f"{which} ({runtime.__version__}) has no CUDA provider. Install the other: {REINSTALL}.")


def check_driver(runtime: Any, device: CudaDevice) -> None:
    """Refuse a driver that is older than the CUDA which an onnxruntime module was made for."""
    made_for = re.match(r"\d+", str(getattr(runtime, "cuda_version", "")))
    if made_for and int(made_for[0]) > int(device.driver.partition(".")[0]):
        raise BackendError(
            f"onnxruntime-gpu {runtime.__version__} is made for CUDA {runtime.cuda_version}, and the driver of "
            f"{device.name} is for CUDA {device.driver}. Update the driver (580 or newer for CUDA 13)."
        )


def _installed() -> dict[str, str]:
    """Versions of the packages that bring a module of this name, by theirs."""
    versions = {}
    for name in ("onnxruntime", "onnxruntime-gpu"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
