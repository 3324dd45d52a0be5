"""What a machine has for workers."""

from __future__ import annotations

import os
from pathlib import Path

_DEVICES = Path("/dev")


def visible_gpus() -> int:
    """How many NVIDIA GPUs this process sees, told by their device files: no driver is loaded for it."""
    said = os.environ.get("CUDA_VISIBLE_DEVICES")
    there = (
        sum(path.name[len("nvidia") :].isdigit() for path in _DEVICES.glob("nvidia*")) or (_DEVICES / "dxg").exists()
    )
    if said is None:
        return int(there)
    return min(int(there), len([name for name in said.split(",") if name.strip() not in ("", "-1")]))


def free_memory() -> int:
    """Bytes that this machine has free for new processes; 0 where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(text.split()[1]) << 10 for text in lines if text.startswith("MemAvailable:")), 0)
