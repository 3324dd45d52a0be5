"""The peer in an environment and a process of its own, and how it is asked through a pipe.

The environment is made here if need be, with the last versions that work together.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from notewave.backends.processors import processors
from notewave.benchmarks.clock import CLOCK
from notewave.errors import ToolError
from notewave.song.dialect import Tokens

log = logging.getLogger(__name__)

PINS = {"diffusers": "0.26.3", "transformers": "4.37.2", "huggingface_hub": "0.23.5"}  # the last that work together
READER = {"pretty_midi": "0.2.11.post0", "protobuf": "7.36.2", "absl-py": "2.5.1"}  # what note_seq reads MIDI with
NOTE_SEQ = {"note_seq": "0.0.5"}  # without what else it asks for: librosa, bokeh, IPython and more
INSTALL = (
    (*(f"{name}=={number}" for name, number in (PINS | READER).items()), "torch==2.13.0", "numpy<2"),
    ("--no-deps", *(f"{name}=={number}" for name, number in NOTE_SEQ.items())),
)
PEER = f"diffusers {PINS['diffusers']}"


@dataclass(frozen=True)
class Timing:
    """What one segment with a context took."""

    encoders_s: float
    steps_s: list[float]


class Peer:
    """The pipeline in its own process."""

    name = PEER

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.versions: dict[str, str] = self._answer()

    def segment(self, tokens: Tokens, steps: int) -> Timing:
        """See ``Side``."""
        return Timing(**self.ask(do="segment", tokens=tokens.tolist(), steps=steps))

    def ask(self, **request: Any) -> Any:
        """A request of ``notewave.benchmarks.peer_worker`` and its answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise ToolError(
                "The peer's process ended early. Its error is above; --venv NEW makes its environment anew."
            )
        return json.loads(line)


def cache_folder() -> Path:
    """Where the peer's environment and the random checkpoint are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "notewave" / "peer"


def peer_python(venv: Path) -> Path:
    """The interpreter of an environment with the peer, which is made if need be. Raises ToolError if it can't be."""
    python = venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    pins = PINS | READER | NOTE_SEQ
    versions = f"from importlib.metadata import version; print(*map(version, {list(pins)}))"
    if python.exists():
        found = subprocess.run([python, "-c", versions], capture_output=True, text=True, check=False)
        if found.stdout.split() == list(pins.values()):
            return python
    log.warning("making the peer's environment in %s", venv)
    for command in (
        [sys.executable, "-m", "venv", str(venv)],
        *([str(python), "-m", "pip", "install", "--quiet", *arguments] for arguments in INSTALL),
    ):
        if subprocess.run(command, check=False).returncode:
            raise ToolError(
                f"The peer's environment in {venv} was not made: pip's error is above. It needs Python 3.10 to 3.12, "
                "the package index and 3 GB; name one that stands with --venv."
            )
    return python


@contextlib.contextmanager
def open_peer(venv: Path, checkpoint: Path | None, threads: int | None) -> Iterator[Peer]:
    """Start the pipeline on a checkpoint in the diffusers layout; random weights are made where there is none.

    None: only the pipeline's tokeniser is started.
    """
    worker = Path(__file__).with_name("peer_worker.py")
    command = [str(peer_python(venv)), str(worker), str(threads or processors()), CLOCK.name]
    command += [str(checkpoint)] if checkpoint else []
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Peer(process)
        finally:
            assert process.stdin is not None
            process.stdin.close()
