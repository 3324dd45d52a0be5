"""The vocabulary of tokens: MT3's events and their ids (Gardner et al. 2022), in the dialect of a voice.

The published voices have one loudness for all notes and a program for each of Slakh's classes of instruments. Others
may have several velocities, in bins as MT3's codec has them, and every program of General MIDI.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from notewave.checks import is_integer, quoted
from notewave.errors import ArgumentError, MidiError

PAD, EOS, UNK = 0, 1, 2
SPECIAL = 3  # the lowest id of an event
VOCABULARY = 1536  # rows of the embedding table
MAX_VELOCITY = 127
SHIFTS, PITCHES, PROGRAMS, DRUMS = 1001, 128, 128, 128  # events of each kind
SHIFT, PITCH, VELOCITY = SPECIAL, SPECIAL + SHIFTS, SPECIAL + SHIFTS + PITCHES  # first ids, the same in all dialects

# Each class of instruments in Slakh by its first General MIDI program; it sings all programs up to the next.
# fmt: off
_CLASSES = (
    0, 4, 8, 16, 24, 26, 29, 32, 33, 40, 41, 42, 43, 46, 47, 48, 50,
    52, 55, 56, 57, 58, 60, 61, 64, 66, 67, 68, 69, 70, 71, 73, 80, 88,
)
# fmt: on
SLAKH_PROGRAM = np.array([max(c for c in _CLASSES if c <= program) for program in range(PROGRAMS)])
_SUNG = {"slakh": SLAKH_PROGRAM, "gm": np.arange(PROGRAMS)}  # which program a voice is told for each

Tokens = NDArray[np.int32]


@dataclass(frozen=True)
class Dialect:
    """What a voice's tokens tell of a note beside its pitch and times; the default is the published dialect.

    Raises ArgumentError for a dialect that there is not.
    """

    velocities: int = 1  # loudnesses of a note, 1 to 127: bins of MIDI's velocities
    programs: str = "slakh"  # "slakh": the class of the instrument; "gm": each of General MIDI's 128 programs

    def __post_init__(self) -> None:
        """Refuse dialects whose ids would not fit, or with unknown programs."""
        if not is_integer(self.velocities, 1, MAX_VELOCITY):
            raise ArgumentError(f"velocities is {quoted(self.velocities)}; it must be from 1 to {MAX_VELOCITY}.")
        if not isinstance(self.programs, str) or self.programs not in _SUNG:
            raise ArgumentError(f"programs is {quoted(self.programs)}; it must be one of {', '.join(_SUNG)}.")

    def __str__(self) -> str:
        """As messages name it."""
        return f"velocities={self.velocities}, programs={self.programs!r}"

    @cached_property
    def kinds(self) -> dict[str, int]:
        """Kinds of events and how many values each has, from 0; ids count on from one kind to the next."""
        velocities = 1 + self.velocities  # 0 is a note's end
        return {
            "shift": SHIFTS,
            "pitch": PITCHES,
            "velocity": velocities,
            "tie": 1,
            "program": PROGRAMS,
            "drum": DRUMS,
        }

    @property
    def tie(self) -> int:
        """Id of the tie token."""
        return VELOCITY + 1 + self.velocities

    @property
    def program(self) -> int:
        """Id of program 0."""
        return self.tie + 1

    @property
    def drum(self) -> int:
        """Id of drum 0."""
        return self.program + PROGRAMS

    @property
    def end(self) -> int:
        """One past the highest id of an event."""
        return self.drum + DRUMS

    def encode_event(self, kind: str, value: int = 0) -> int:
        """The id of an event, as ("shift", 25) for 250 ms. Raises MidiError if the vocabulary has no such event."""
        first = SPECIAL
        for known, count in self.kinds.items():
            if kind == known and 0 <= value < count:
                return first + value
            first += count
        raise MidiError(f"There is no event {kind} {value}: the vocabulary counts, from 0, {self.kinds}. Use these.")

    def decode_event(self, token: int) -> tuple[str, int]:
        """The event of an id, the inverse of ``encode_event``. Raises MidiError for an id that is no event."""
        value = token - SPECIAL
        for kind, count in self.kinds.items():
            if 0 <= value < count:
                return kind, value
            value -= count
        raise MidiError(f"Token {token} is no event: they have the ids {SPECIAL} to {self.end - 1}.")

    def velocity_bin(self, velocity: NDArray[np.int64]) -> NDArray[np.int64]:
        """The bin, 0 to ``velocities``, of each MIDI velocity; 0 is that of 0 alone."""
        return -(-velocity * self.velocities // MAX_VELOCITY)

    def bin_velocity(self, number: int) -> int:
        """The highest MIDI velocity of a bin."""
        return MAX_VELOCITY * number // self.velocities

    def sung_program(self, program: NDArray[np.int64]) -> NDArray[np.int64]:
        """The program that tokens say for each of General MIDI's."""
        return _SUNG[self.programs][program]

    def tokens(self, ids: Any) -> Tokens:
        """Ids as tokens of this dialect: an int32 array [N] that says so where it is not the published one."""
        plain = np.asarray(ids, np.int32).view(np.ndarray)
        if self == PUBLISHED:
            return plain
        spoken = plain.view(_Spoken)
        spoken.dialect = self
        return spoken


PUBLISHED = Dialect()


def dialect_of(tokens: Any) -> Dialect:
    """The dialect of tokens, as ``Dialect.tokens`` made them; whatever does not say it is in the published one."""
    dialect: Dialect = getattr(tokens, "dialect", PUBLISHED)
    return dialect


class _Spoken(np.ndarray[Any, np.dtype[np.int32]]):
    """An array that says its dialect, and whose parts and copies do."""

    dialect: Dialect

    def __array_finalize__(self, origin: Any) -> None:
        self.dialect = dialect_of(origin)

    def __reduce__(self) -> tuple[Any, ...]:
        return Dialect.tokens, (self.dialect, np.asarray(self))
