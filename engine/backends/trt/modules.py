"""Which of the two TensorRTs are installed."""

from __future__ import annotations

import importlib
from typing import Any

from notewave.backends.device.plans import TENSORRTS
from notewave.errors import BackendError


def tensorrt_modules(flavour: str | None = None) -> list[Any]:
    """Which of TENSORRTS, or of the one asked for, are installed; raises BackendError when none works."""
    modules, reasons = [], []
    for name in (flavour,) if flavour else TENSORRTS:
        try:
            module = importlib.import_module(name)
            module.Builder  # noqa: B018 (PyPI's placeholder imports, but is empty)
            modules.append(module)
        except (ImportError, AttributeError, OSError) as error:
            reasons.append(f"{name}: {error}")
    if modules:
        return modules
    raise BackendError(
        f"TensorRT is not installed ({'; '.join(reasons)}). Install notewave[rtx] (TensorRT-RTX, GeForce and RTX GPUs "
        "from Turing on) or notewave[gpu] (TensorRT, which data-centre GPUs need)."
    )
