"""What the driver and its worker processes say to each other."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from notewave.corpus.rows import Row
from notewave.corpus.settings import Machine, Making
from notewave.corpus.takes import Take
from notewave.errors import NotewaveError

ASKED = struct.Struct("<i")  # to the parent, with a descriptor: another worker, of this number
ENDED = struct.Struct("<ii")  # from it: a worker's process, and how it ended, as os.waitpid says it


@dataclass(frozen=True)
class Work:
    """What all workers of a pool are told first."""

    making: Making
    out: str
    machine: Machine
    voices: tuple[str, ...]


@dataclass(frozen=True)
class Ready:
    """A worker has opened its voices."""

    process: int
    together: int  # takes that it sings side by side
    hands: int  # groups that it works at, at once
    own_bytes: int  # of memory that it shares with nobody


@dataclass(frozen=True)
class Group:
    """Takes that are to be sung."""

    number: int
    takes: tuple[Take, ...]


@dataclass(frozen=True)
class Sung:
    """What became of a group: rows; or why neither it nor others can be sung; or why its worker ends."""

    number: int
    rows: Sequence[Row] = ()
    error: NotewaveError | None = None
    lost: str | None = None


@dataclass(frozen=True)
class Trial:
    """Sing nothing in particular for so long, to see how fast that goes."""

    seconds: float


@dataclass(frozen=True)
class Tried:
    """How fast it went."""

    speed: float  # segments a second
    own_bytes: int  # as in Ready, after it
