"""What may stand where a file should: things that are waited for, that never end, or that lead nowhere."""

from __future__ import annotations

import os
from pathlib import Path

# Each is a kind of ``put``.
NO_FILES = ["FIFO", "folder", *filter(os.path.exists, ("/dev/zero", "/dev/null", "/dev/tty", "/dev/stdin"))]
EMPTY_FILES = [*filter(os.path.exists, ("/proc/kmsg",))]  # regular, by its size empty, and waited for by its readers
NOWHERE = ["itself", "nothing", "/dev/" + "x" * 256]


def put(kind: str, path: Path) -> None:
    """Put a FIFO, a folder, or a link to something else at a path, in the place of what is there."""
    path.unlink(missing_ok=True)
    if kind == "FIFO":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(path.name if kind == "itself" else kind)
