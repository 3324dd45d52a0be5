"""The command in a process of its own, as a shell starts it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

STOPPED = b"notewave: stopped; nothing was left half-written.\n"


def start(*words: object, env: dict[str, str] | None = None, **options: Any) -> subprocess.Popen[bytes]:
    """Start ``notewave`` with signals heeded that the children of a background job, or of nohup, would ignore."""
    defaults: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "preexec_fn": _heed}
    return subprocess.Popen(
        [sys.executable, "-m", "notewave", *map(os.fspath, map(_word, words))],
        env=os.environ | (env or {}),
        **defaults | options,
    )


def command(*words: object, data: bytes | None = None, **options: Any) -> tuple[int, bytes, bytes]:
    """Exit code, standard output and standard error of ``notewave``, which is sent ``data``."""
    if data is not None:
        options["stdin"] = subprocess.PIPE
    with start(*words, **options) as process:
        out, errors = process.communicate(data, timeout=120)
    return process.returncode, out, errors


def shell(line: str, folder: Path) -> tuple[int, bytes, bytes]:
    """The same of a line of a shell that begins with "$notewave", the command, whose exit code it is."""
    environment = os.environ | {"notewave": f"{sys.executable} -m notewave"}
    whole = ["bash", "-c", f"{line}; exit ${{PIPESTATUS[0]}}"]
    done = subprocess.run(whole, cwd=folder, env=environment, capture_output=True, timeout=120, check=False)
    return done.returncode, done.stdout, done.stderr


def wait_until(process: subprocess.Popen[bytes], happens: Any) -> None:
    """Wait while a process runs until something is so."""
    end = time.monotonic() + 60
    while not happens():
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.02)


def _heed() -> None:
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def _word(word: object) -> Any:
    return word if isinstance(word, (str, bytes, os.PathLike)) else str(word)
