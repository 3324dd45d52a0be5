"""How many processors a process may use: those it may run on, and the share of their time that its groups have."""

from __future__ import annotations

import math
import os
from pathlib import Path

GROUPS = Path("/proc/self/cgroup")  # a line each: hierarchy, controllers, path
MOUNT = Path("/sys/fs/cgroup")


def processors(groups: Path = GROUPS, mount: Path = MOUNT) -> int:
    """The processors that a process may use at once, at least 1: of a quota that is a fraction, the next whole number.

    groups, mount: Linux's list of the process's control groups, of version 1 or 2, and where their settings are.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = min(map(_quota, _folders(groups, mount)), default=math.inf)
    return max(1, affinity if quota == math.inf else min(affinity, math.ceil(quota)))


def _folders(groups: Path, mount: Path) -> set[Path]:
    """The folders of the groups that share processors out to the process, and of those they are in.

    In a container the list may tell paths of its host, where the mount shows the container's own group at its top.
    """
    folders = set()
    for line in _text(groups).splitlines():
        _, controllers, path = f"{line}::".split(":")[:3]
        if not controllers:  # version 2, alone or beside version 1
            roots = [mount, mount / "unified"]
        else:
            roots = [mount / controllers, mount / "cpu"] if "cpu" in controllers.split(",") else []
        for root in roots:
            inner = root / ("" if ".." in path else path.strip("/"))  # a group beyond what this process may see
            folders |= {root, *(folder for folder in (inner, *inner.parents) if root in folder.parents)}
    return folders


def _quota(folder: Path) -> float:
    """The processors' time that a group has for each second, infinity where it has no limit."""
    try:
        if limit := _text(folder / "cpu.max").split():  # version 2
            quota, period = limit[0], limit[1]
        else:
            quota, period = _text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us")
        share = int(quota) / int(period)
    except (IndexError, ValueError, ZeroDivisionError):  # "max", or nothing of the kind
        return math.inf
    return share if share > 0 else math.inf


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
