"""A take: a source that is to be sung once; and its row, whatever becomes of it."""

from __future__ import annotations

import datetime
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from notewave.checks import shown
from notewave.corpus.rows import FAILED, FIELDS, Row
from notewave.errors import NotewaveError

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Take:
    """A source that is to be sung once, by one voice with one seed."""

    source: str  # its label: a path that says where it was, as text
    sha256: str  # of data
    data: bytes  # of its file
    name: str  # of its outputs, without a suffix
    split: str
    voice: str  # as ``Voice.load`` takes it
    seed: int


def split_of(sha256: str, splits: Sequence[int]) -> str:
    """Where a source belongs, by its content alone: copies of it, and its takes, never lie in two splits."""
    place, edge = int(sha256[:8], 16) / (1 << 32) * 100, 0
    for name, part in zip(SPLITS, splits, strict=True):
        edge += part
        if place < edge:
            return name
    raise AssertionError("splits are 100 per cent")


def row_of(take: Take, voice: str, status: str, **said: Any) -> Row:
    """A take's row; what is not said is null. voice: its name."""
    row: Row = dict.fromkeys(FIELDS)
    row |= {
        "source": shown(take.source),
        "source_sha256": take.sha256,
        "name": take.name,
        "split": take.split,
        "voice": voice,
        "seed": take.seed,
        "status": status,
        "mended": [],
        "parts": [],
        "files": [],
        "worker": f"{socket.gethostname()}:{os.getpid()}",
        "made": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    return row | said


def failure(take: Take, voice: str, error: Exception) -> Row:
    """The row of a take that came to nothing."""
    text = str(error) if isinstance(error, NotewaveError) else f"{type(error).__name__}: {error}"
    return row_of(take, voice, FAILED, error=shown(text), error_kind=type(error).__name__)
