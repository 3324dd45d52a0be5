"""Notes as they are played: events in from any thread, and out the tokens of what is known of them by now.

Times are the codec's steps of 10 ms, from the song's beginning. A note that nobody has ended yet sounds on.
"""

from __future__ import annotations

import enum
import heapq
import itertools
import logging
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from notewave.song.codec import SEGMENT_STEPS, STEPS_PER_SECOND, encode_window
from notewave.song.dialect import PUBLISHED, Dialect, Tokens
from notewave.song.notes import Notes

log = logging.getLogger(__name__)

KEPT = 200  # steps that notes are told of after their end: what lies before was played, and more of it changes nothing
SHORTEST = 1  # steps that a note sounds at least
THINNED = 8  # notes that are left out for so many tokens too many, and at least one


class Key(NamedTuple):
    """What is struck: one key of one program, or of the drums."""

    program: int
    pitch: int
    is_drum: bool = False


NO_KEY = Key(0, 0)  # of what is done to no key


class Deed(enum.Enum):
    """What may be done to keys and pedals."""

    ON = enum.auto()
    OFF = enum.auto()
    PEDAL_DOWN = enum.auto()
    PEDAL_UP = enum.auto()
    ALL_OFF = enum.auto()


class Event(NamedTuple):
    """Something that is done at a step; the last three say to what."""

    step: int
    deed: Deed
    key: Key = NO_KEY
    velocity: int = 0
    program: int | None = None  # of a pedal; None for all


@dataclass(eq=False)
class _Note:
    key: Key
    velocity: int
    onset: int
    offset: int | None = None  # None while it sounds


class Playing:
    """What is played, up to a step that moves on.

    ``put`` is for any thread, the rest for one.
    """

    def __init__(self, dialect: Dialect = PUBLISHED, most_tokens: int = SEGMENT_STEPS) -> None:
        """most_tokens: of a window; notes that would need more are thinned out, those that ended first."""
        self.most_tokens = most_tokens
        self.thinned = 0  # notes so far that sounded
        self._dialect = dialect
        self._coming: list[tuple[int, int, Event]] = []  # a heap: by step, then in the order in which they came
        self._order, self._lock = itertools.count(), threading.Lock()
        self._known = 0  # the step up to which events were taken in
        self._notes: list[_Note] = []  # in order of their onsets
        self._sounding: dict[Key, _Note] = {}
        self._let_go: set[Key] = set()  # but held by a pedal
        self._pedals: set[int] = set()  # programs whose pedal is down

    def put(self, event: Event) -> None:
        """Let something be done at its step, or at once where that is over; at one step in the order of coming."""
        with self._lock:
            heapq.heappush(self._coming, (event.step, next(self._order), event))

    @property
    def next_step(self) -> int | None:
        """When something is done next, of what is known; None where nothing is."""
        with self._lock:
            return self._coming[0][0] if self._coming else None

    @property
    def held(self) -> int:
        """How many notes sound, those that a pedal holds too."""
        return len(self._sounding)

    def advance(self, begin: int, end: int) -> bool:
        """Take in what is done before a step, what is late at ``begin``. Returns whether there was anything."""
        with self._lock:
            coming = []
            while self._coming and self._coming[0][0] < end:
                coming.append(heapq.heappop(self._coming)[-1])
        for event in coming:
            self._do(event, max(event.step, begin))
        self._known = end
        return bool(coming)

    def tokens(self, first: int) -> Tokens:
        """The tokens of the window that begins at a step; what ended before, or long ago, is forgotten."""
        since = max(first, self._known - KEPT)
        self._notes = [note for note in self._notes if (note.onset if note.key.is_drum else _end(note)) >= since]
        while True:
            tokens = encode_window(self._table(first), first, self._dialect)
            if len(tokens) <= self.most_tokens or not self._notes:
                return tokens
            self._thin(max(1, (len(tokens) - self.most_tokens) // THINNED))

    def forget(self) -> None:
        """Let what has ended never have been."""
        self._notes = list(self._sounding.values())

    def _do(self, event: Event, step: int) -> None:
        key = event.key
        if event.deed is Deed.ON:
            self._end([key], step)
            note = _Note(key, event.velocity, step, step if key.is_drum else None)
            self._notes.append(note)
            if not key.is_drum:
                self._sounding[key] = note
        elif event.deed is Deed.OFF:
            if key.program in self._pedals and key in self._sounding:
                self._let_go.add(key)
            else:
                self._end([key], step)
        elif event.deed is Deed.PEDAL_DOWN:
            self._pedals |= _programs(event.program)
        elif event.deed is Deed.PEDAL_UP:
            self._pedals -= _programs(event.program)
            self._end([held for held in self._let_go if held.program not in self._pedals], step)
        else:
            self._pedals.clear()
            self._end(list(self._sounding), step)

    def _end(self, keys: Iterable[Key], step: int) -> None:
        for key in keys:
            self._let_go.discard(key)
            if (note := self._sounding.pop(key, None)) is not None:
                note.offset = max(step, note.onset + SHORTEST)

    def _table(self, first: int) -> Notes:
        later = max(first + 2 * SEGMENT_STEPS, self._known)  # when what still sounds may end
        rows = [(note.onset, later if note.offset is None else note.offset, note) for note in self._notes]
        onset, offset = (np.array([row[place] for row in rows], np.float64) / STEPS_PER_SECOND for place in (0, 1))
        keys = np.array([(*note.key, note.velocity) for *_, note in rows], np.int64).reshape(-1, 4)
        return Notes(onset, offset, keys[:, 1], keys[:, 3], keys[:, 0], keys[:, 2].astype(bool))

    def _thin(self, count: int) -> None:
        """Forget some notes: those that ended longest ago, then those that have sounded longest."""
        oldest = sorted(self._notes, key=lambda note: (note.offset is None, _end(note), note.onset))[:count]
        lost = [note for note in oldest if note.offset is None]
        if lost and not self.thinned:
            log.warning(
                "more notes are held at once than can be sung in time: the oldest are left out, which is said only "
                "once. Hold fewer, or take a longer hop."
            )
        self.thinned += len(lost)
        for note in lost:
            self._end([note.key], note.onset)
        gone = set(map(id, oldest))
        self._notes = [note for note in self._notes if id(note) not in gone]


def _end(note: _Note) -> float:
    return np.inf if note.offset is None else note.offset


def _programs(program: int | None) -> set[int]:
    return set(range(128)) if program is None else {program}
