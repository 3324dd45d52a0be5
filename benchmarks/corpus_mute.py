"""Worker processes that sing nothing: each waits as long as a song takes, and writes small files in place of sounds.

All else is as it is where songs are sung: the pool, its processes, what they say to the driver, the rows. Started as
``python -m notewave.benchmarks.corpus_mute``.
"""

from __future__ import annotations

import hashlib
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from notewave.corpus import worker
from notewave.corpus.layouts import LAYOUTS
from notewave.corpus.messages import Work
from notewave.corpus.processes import Processes
from notewave.corpus.rows import SUNG, Row
from notewave.corpus.settings import Machine, Making
from notewave.corpus.singer import voice_name
from notewave.corpus.store import open_store
from notewave.corpus.takes import Take, row_of

PARTS = ("piano", "acoustic_bass", "string_ensemble_1", "drums")
CONTENT = b"sound" * 20
SONG_SECONDS = 180.0


def mute_row(take: Take, making: Making) -> Row:
    """A row as of a song that was sung, whose files all hold CONTENT."""
    layout = LAYOUTS[making.layout]

    def record(kind: str, part: str | None = None, index: int = 0) -> dict[str, Any]:
        suffix = {"mel": ".npy", "midi": ".mid", "stem-midi": ".mid"}.get(kind, f".{making.form}")
        path = layout.path(kind, take.name, take.split, part, index, suffix)
        digest = hashlib.sha256(CONTENT).hexdigest()
        return {"kind": kind, "part": part, "path": path, "bytes": len(CONTENT), "sha256": digest}

    kinds = ["midi"] * making.midi + ["mel"] * making.mels
    of_parts = ["stem"] * making.stems + ["stem-midi"] * (making.stems and making.midi)
    files = [record(kind) for kind in ("audio", *kinds)]
    files += [record(kind, part, index) for kind in of_parts for index, part in enumerate(PARTS)]
    said = {"sampler": "dpm_solver++", "steps": 4, "guidance": 1.5, "sample_rate": making.rate, "notes": 1000}
    said |= {"frames": round(making.rate * SONG_SECONDS), "seconds": SONG_SECONDS, "peak": 0.5, "loudness": -20.5}
    sound = {"audio": files[0]["path"], "sha256": files[0]["sha256"], "parts": list(PARTS)}
    return row_of(take, voice_name(take.voice), SUNG, **said, **sound, files=files)


class Mute:
    """In the place of ``notewave.corpus.singer.Singer``."""

    def __init__(self, making: Making, out: str, machine: Machine, opened: Mapping[str, Any] | None = None) -> None:
        self._making, self._store = making, open_store(out)
        self._seconds: Sequence[float] = machine.provider_options["seconds"]  # of songs, one of which each takes
        self._chance = random.Random(os.getpid())

    def synthesizer(self, voice: str) -> None:
        """None is needed."""

    def together(self, voice: str) -> int:
        """See ``Singer.together``."""
        return 1

    def sing(self, takes: Sequence[Take]) -> list[Row]:
        """See ``Singer.sing``."""
        return [self._sing(take) for take in takes]

    def _sing(self, take: Take) -> Row:
        taken = self._chance.choice(self._seconds)
        time.sleep(taken)
        row = mute_row(take, self._making)
        with self._store.staging() as folder:
            for file in row["files"]:
                made = folder / Path(file["path"]).name
                made.write_bytes(CONTENT)
                self._store.put(made, file["path"])
        return row | {"taken": taken}


class MutePool(Processes):
    """Workers of ``Mute``."""

    def __init__(self, making: Making, out: str, voice: str, workers: int, seconds: Sequence[float]) -> None:
        """seconds: of songs, by one of which each take takes as long. Waits until all workers are there."""
        machine = Machine("cpu", workers, 1, provider_options={"seconds": seconds})
        super().__init__(Work(making, out, machine, (voice,)), workers)
        self.until_ready()

    def _start(self) -> tuple[subprocess.Popen[bytes], socket.socket]:
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-m", "notewave.benchmarks.corpus_mute", str(theirs.fileno())]
        with theirs:
            parent = subprocess.Popen(
                command, stdout=subprocess.DEVNULL, pass_fds=[theirs.fileno()], start_new_session=True
            )
        with Connection(os.dup(ours.fileno())) as first:
            first.send(self._work)
        return parent, ours


if __name__ == "__main__":
    worker.Singer = Mute  # type: ignore[assignment, attr-defined]
    worker.main(int(sys.argv[1]))
