"""A driver of a corpus in a process of its own, whose time and memory are measured while others sing, or do not.

Started as ``python -m notewave.benchmarks.corpus_driver``: reads a request as JSON from stdin, prints what it measured.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

from notewave.benchmarks.corpus_mute import MutePool
from notewave.benchmarks.process import peak_memory_mib
from notewave.corpus.corpus import make_corpus
from notewave.corpus.rows import Row
from notewave.corpus.settings import Making
from notewave.errors import ToolError

LOOKS = 1000  # at memory, over all takes
TENTHS = 10


def drive(songs: Path, out: Path, voice: str, workers: int, seconds: list[float], verify: bool = False) -> Any:
    """Make a corpus by workers that sing nothing, in another process -> what ``main`` says. Raises ToolError."""
    request = {"songs": str(songs), "out": str(out), "voice": voice, "workers": workers, "seconds": seconds}
    command = [sys.executable, "-m", "notewave.benchmarks.corpus_driver"]
    text = json.dumps(request | {"verify": verify})
    done = subprocess.run(command, input=text, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise ToolError(f"a driver of a corpus failed (exit code {done.returncode}). Its error is above.")
    return json.loads(done.stdout)


class _Watch:
    """What the driver takes, from when it has workers to its last take."""

    def __init__(self) -> None:
        self.total, self.settled = 0, 0
        self.began = self.ended = (0.0, 0.0)  # wall and CPU time, s
        self.taken = 0.0  # by workers, s
        self.memory: list[float] = []  # MiB

    def plan(self, total: int) -> None:
        self.total = total

    def pool(self, request: dict[str, Any]) -> MutePool:
        names = ("out", "voice", "workers", "seconds")
        pool = MutePool(Making(), *(request[name] for name in names))
        self.began = time.perf_counter(), time.process_time()
        return pool

    def take(self, row: Row | None) -> None:
        if row is not None:
            self.taken += row["taken"]
        self.settled += 1
        if not self.settled % max(1, self.total // LOOKS):
            self.memory.append(_resident_mib())
        if self.settled == self.total:
            self.ended = time.perf_counter(), time.process_time()

    def told(self, start: float) -> dict[str, float]:
        end, tenth = time.perf_counter(), max(1, len(self.memory) // TENTHS)
        wall_s, cpu_s = (ended - began for began, ended in zip(self.began, self.ended, strict=True))
        return {
            "takes": self.total,
            "call_s": end - start,
            "planning_s": self.began[0] - start,  # the start of workers, too
            "takes_s": wall_s,
            "takes_cpu_s": cpu_s,
            "taken_s": self.taken,
            "finishing_s": end - self.ended[0],
            "memory_first_tenth_mib": median(self.memory[:tenth]),
            "memory_last_tenth_mib": median(self.memory[-tenth:]),
            "memory_peak_mib": peak_memory_mib(),
        }


def main() -> None:
    """Drive once.

    The request: ``songs``, ``out`` and ``voice``; of how many ``workers``, which take one of ``seconds`` for each song;
    ``verify``.
    """
    request, watch = json.load(sys.stdin), _Watch()
    start = time.perf_counter()
    make_corpus(
        [request["songs"]],
        request["out"],
        voices=[request["voice"]],
        verify=request["verify"],
        on_plan=watch.plan,
        on_take=watch.take,
        pool=lambda _: watch.pool(request),
    )
    print(json.dumps(watch.told(start)))


def _resident_mib() -> float:
    """This process's memory, where the system says it; 0 elsewhere."""
    status = Path("/proc/self/status")
    if not status.exists():
        return 0.0
    line = next(line for line in status.read_text(encoding="ascii").splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    main()
