"""Whoever sings for the driver: what it sees of workers, and the smallest pool of them, which is none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from notewave.corpus.rows import Row
from notewave.corpus.singer import Singer
from notewave.corpus.takes import Take
from notewave.errors import NotewaveError


@dataclass(frozen=True)
class Outcome:
    """What became of takes that a pool was given."""

    takes: tuple[Take, ...]
    rows: Sequence[Row] = ()  # of each, where they were sung or can't be
    lost: str | None = None  # why there are none: their worker is no more
    error: NotewaveError | None = None  # or why no other can be sung either


class Pool(Protocol):
    """Workers. All calls come from one thread."""

    @property
    def workers(self) -> int:
        """How many there are now."""

    def wanted(self) -> int:
        """How many takes make a group for which there is room; 0 where there is room for none."""

    def give(self, takes: Sequence[Take]) -> None:
        """Have a group of takes sung; only where some were wanted."""

    def wait(self, seconds: float) -> list[Outcome]:
        """What is done with, as soon as anything is; nothing if nothing is after so long."""

    def close(self) -> None:
        """End the workers at once, also in the middle of a song."""


class Here:
    """No workers: takes are sung in this process, by as many threads as the machine says."""

    workers = 0

    def __init__(self, singer: Singer) -> None:
        self._singer, self._given = singer, list[Take]()

    def wanted(self) -> int:
        """See ``Pool.wanted``."""
        return 0 if self._given else 1

    def give(self, takes: Sequence[Take]) -> None:
        """See ``Pool.give``."""
        self._given = list(takes)

    def wait(self, seconds: float) -> list[Outcome]:
        """See ``Pool.wait``."""
        takes, self._given = tuple(self._given), []
        return [sung(self._singer, takes)] if takes else []

    def close(self) -> None:
        """See ``Pool.close``."""


def sung(singer: Singer, takes: tuple[Take, ...]) -> Outcome:
    """Takes, sung; or why they and others can't be."""
    try:
        return Outcome(takes, singer.sing(takes))
    except NotewaveError as error:
        return Outcome(takes, error=error)
