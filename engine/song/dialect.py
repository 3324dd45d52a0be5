"""The vocabulary of tokens: MT3's events and their ids (Gardner et al. 2022), in the dialect of a voice.

The published voices have one loudness for all notes and a program for each of Slakh's classes of instruments. Others
may have several velocities, in bins as MT3's codec has them, and every program of General MIDI. Voices of the PyTorch
port (yoyolicoris/music-spectrogram-diffusion-pytorch) read the same events by other ids and rules; velocity says no
more to them than whether a note begins or ends.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from notewave.checks import is_integer, quoted
from notewave.errors import ArgumentError, MidiError

PAD = 0  # fills up shorter segments, whatever the codec
EOS, UNK = 1, 2  # of codec "mt3" alone
SPECIAL = 3  # the lowest id of an event there
VOCABULARY = 1536  # rows of the published embedding table
MAX_VELOCITY = 127
PITCHES, PROGRAMS, DRUMS = 128, 128, 128  # events of each kind

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
class Rules:
    """How a codec writes events as ids, where codecs differ."""

    shift: int  # id of shift 0; shifts come first, and the special ids lie below
    shifts: int  # steps of 10 ms that can be told, from 0
    ends: tuple[int, ...]  # ids at the end of every segment
    max_tokens: int  # of a segment, what ends it included
    by_step: bool  # events are sorted, and segments counted, by steps (a note lasts one at least); else by seconds
    says_anew: bool  # program and velocity are said anew after each shift and tie, velocity also after each program


CODECS = {
    "mt3": Rules(shift=SPECIAL, shifts=1001, ends=(EOS,), max_tokens=2048, by_step=False, says_anew=False),
    # preprocessor/event_codec.py and preprocessor.py there, as infer.py calls them. Shift 0, never written, is PAD.
    "pytorch": Rules(shift=PAD, shifts=514, ends=(), max_tokens=3000, by_step=True, says_anew=True),
}


@dataclass(frozen=True)
class Dialect:
    """What a voice's tokens tell of a note beside its pitch and times, and how; the default is the published dialect.

    Raises ArgumentError for a dialect that there is not.
    """

    velocities: int = 1  # loudnesses of a note, 1 to 127: bins of MIDI's velocities
    programs: str = "slakh"  # "slakh": the class of the instrument; "gm": each of General MIDI's 128 programs
    codec: str = "mt3"  # "mt3": as published; "pytorch": as music-spectrogram-diffusion-pytorch writes notes

    def __post_init__(self) -> None:
        """Refuse dialects whose ids would not fit, or with unknown programs or codecs."""
        if not is_integer(self.velocities, 1, MAX_VELOCITY):
            raise ArgumentError(f"velocities is {quoted(self.velocities)}; it must be from 1 to {MAX_VELOCITY}.")
        if not isinstance(self.programs, str) or self.programs not in _SUNG:
            raise ArgumentError(f"programs is {quoted(self.programs)}; it must be one of {', '.join(_SUNG)}.")
        if not isinstance(self.codec, str) or self.codec not in CODECS:
            raise ArgumentError(f"codec is {quoted(self.codec)}; it must be one of {', '.join(CODECS)}.")
        if self.codec == "pytorch" and self.velocities != 1:
            raise ArgumentError(f"velocities is {self.velocities}; codec 'pytorch' says one, the same for all notes.")

    def __str__(self) -> str:
        """As messages name it."""
        codec = "" if self.codec == PUBLISHED.codec else f", codec={self.codec!r}"
        return f"velocities={self.velocities}, programs={self.programs!r}{codec}"

    @property
    def rules(self) -> Rules:
        """Those of its codec."""
        return CODECS[self.codec]

    @cached_property
    def kinds(self) -> dict[str, int]:
        """Kinds of events and how many values each has, from 0; ids count on from one kind to the next."""
        velocities = 1 + self.velocities  # 0 is a note's end
        return {
            "shift": self.rules.shifts,
            "pitch": PITCHES,
            "velocity": velocities,
            "tie": 1,
            "program": PROGRAMS,
            "drum": DRUMS,
        }

    @property
    def max_tokens(self) -> int:
        """The most tokens of a segment, what ends it included."""
        return self.rules.max_tokens

    @property
    def shift(self) -> int:
        """Id of shift 0."""
        return self.rules.shift

    @property
    def pitch(self) -> int:
        """Id of pitch 0."""
        return self.shift + self.rules.shifts

    @property
    def velocity(self) -> int:
        """Id of velocity 0, which is a note's end."""
        return self.pitch + PITCHES

    @property
    def tie(self) -> int:
        """Id of the tie token."""
        return self.velocity + 1 + self.velocities

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
        first = self.shift
        for known, count in self.kinds.items():
            if kind == known and 0 <= value < count:
                return first + value
            first += count
        raise MidiError(f"There is no event {kind} {value}: the vocabulary counts, from 0, {self.kinds}. Use these.")

    def decode_event(self, token: int) -> tuple[str, int]:
        """The event of an id, the inverse of ``encode_event``. Raises MidiError for an id that is no event."""
        value = token - self.shift
        for kind, count in self.kinds.items():
            if 0 <= value < count:
                return kind, value
            value -= count
        raise MidiError(f"Token {token} is no event: they have the ids {self.shift} to {self.end - 1}.")

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

    def segment(self, ids: Iterable[int]) -> Tokens:
        """The tokens [N] of a segment that says this: ids of events, and what ends it."""
        return self.tokens([*ids, *self.rules.ends])

    def is_segment(self, tokens: NDArray[np.integer]) -> bool:
        """Whether integers [N], at least one, are ids that a segment can have, and it ends as it must."""
        ends = self.rules.ends
        said, last = tokens[: len(tokens) - len(ends)], tokens[len(tokens) - len(ends) :]
        is_known = tokens.min() > PAD and tokens.max() < self.end
        return bool(is_known and (last == ends).all() and not np.isin(said, ends).any())

    @property
    def silence(self) -> Tokens:
        """The tokens of a segment without notes."""
        return self.segment([self.tie])


PUBLISHED = Dialect()
SHIFT, PITCH, VELOCITY = PUBLISHED.shift, PUBLISHED.pitch, PUBLISHED.velocity  # first ids in all dialects of "mt3"


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
