"""Which time is measured: the wall's, or the CPU time of this process where other work shares the machine."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

from notewave.errors import ArgumentError


class Clock:
    """Reads seconds."""

    def __init__(self) -> None:
        self.name = "wall"
        self.now: Callable[[], float] = time.perf_counter

    def count_cpu_time(self) -> None:
        """Count what the process computes, from now on: of one thread that is what an idle machine would take."""
        self.name, self.now = "CPU", time.process_time

    def seconds(self, call: Callable[[], object]) -> float:
        """How long a call takes."""
        start = self.now()
        call()
        return self.now() - start


CLOCK = Clock()  # of every benchmark of this process


def add_clock_arguments(parser: argparse.ArgumentParser, **threads: Any) -> None:
    """Options that say what computes and which time counts."""
    parser.add_argument("--threads", type=int, help="of the CPU (default: all processors)", **threads)
    parser.add_argument("--cpu-time", action="store_true", help="count CPU time: for busy machines, with --threads 1")


def set_clock(options: argparse.Namespace) -> None:
    """Count the time that the options name. Raises ArgumentError for the CPU time of several threads."""
    if options.cpu_time:
        if options.threads not in (1, [1]):
            raise ArgumentError("The CPU time of several threads is no time that anything takes. Add --threads 1.")
        CLOCK.count_cpu_time()
