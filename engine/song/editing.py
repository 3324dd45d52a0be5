"""A whole set of edits, as a command line or a request has them in words, and what becomes of a song by them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from notewave.checks import quoted
from notewave.errors import ArgumentError
from notewave.song import edits
from notewave.song.beats import Beats
from notewave.song.midi import MAX_BYTES, MidiSource, examine, heed
from notewave.song.notes import Notes
from notewave.song.parts import Who, find_parts

_WHOLE = 4  # quarter notes
_NUMBER = r"\d+(?:\.\d*)?|\.\d+"
_FRACTION, _SECONDS = re.compile(r"(\d{1,4})/(\d{1,4})(t?)"), re.compile(rf"({_NUMBER})\s*s")
_TRIPLET = 2 / 3
_DRUM_KEY = "drums:"


@dataclass(frozen=True)
class Edits:
    """What is to be changed in a song, in this order: its grid and its part, who plays and what, its time.

    mute, solo and remap name the song's parts as it is read: programs from 0 on, or names, as ``parts.find_parts``
    knows them.
    """

    quantise: str | None = None  # a step of the grid: 1/16, 1/8t for triplets, or 0.1s
    start: float = 0.0  # s, where the part begins
    end: float | None = None  # s, where it ends
    solo: tuple[str, ...] = ()
    mute: tuple[str, ...] = ()
    remap: tuple[tuple[str, str], ...] = ()  # from and to; drum keys as drums:38
    transpose: int = 0  # semitones
    velocity: float = 1.0  # times as hard
    tempo: float = 1.0  # times as fast
    shift: float = 0.0  # s later

    @classmethod
    def parse(cls, words: Mapping[str, Sequence[str]]) -> Edits:
        """Edits by their names, each with the words that were said to it: mute, solo and remap may have several.

        Raises ArgumentError for words that say no edit.
        """
        said: dict[str, Any] = {}
        for name, given in words.items():
            if name not in _READ:
                raise ArgumentError(f"there is no edit {quoted(name)}. Known: {', '.join(EDITS)}.")
            if name in SEVERAL:
                parts = [part.strip() for text in given for part in text.split(",")]
                said[name] = tuple(_READ[name](part, name) for part in parts if part)
            elif given:
                said[name] = _READ[name](given[-1], name)
        return cls(**said)

    def __bool__(self) -> bool:
        """Whether anything is changed."""
        return self != Edits()

    @property
    def seconds(self) -> float | None:
        """How long the song is to sound, silence included, where its end is said."""
        return None if self.end is None else max((self.end - self.start) / self.tempo + self.shift, 0.0)

    def is_filled(self, whole: Notes) -> bool:
        """Whether silence follows up to ``seconds`` where the sound is shorter: its end lies within the whole song."""
        return self.end is not None and self.end <= whole.seconds

    def apply(self, song: MidiSource, *, strict: bool = False, max_bytes: int = MAX_BYTES) -> Notes:
        """The notes of a song, changed; arguments and errors as ``notewave.read``.

        Raises ArgumentError where an edit cannot be, MidiError also where no note is left.
        """
        reading = examine(song, max_bytes=max_bytes)
        return self.change(heed(reading, strict), reading.beats)

    def change(self, notes: Notes, beats: Beats | None = None) -> Notes:
        """The notes of a song, changed. beats: where the song's are, if it says it. Errors as ``apply``."""
        if self.quantise is not None:
            step, is_beats = _step(self.quantise)
            if is_beats and beats is None:
                raise ArgumentError(f"{self.quantise} of what? The song has no beats. Say seconds, as 0.1s.")
            notes = edits.quantise(notes, step, beats if is_beats else None)
        if self.start or self.end is not None:
            notes = edits.cut(notes, self.start, self.end)
        if self.solo:
            notes = edits.solo(notes, self.solo)
        if self.mute:
            notes = edits.mute(notes, self.mute)
        if self.remap:
            notes = edits.remap(notes, *_maps(self.remap))
        if self.transpose:
            notes = edits.transpose(notes, self.transpose)
        if self.velocity != 1:
            notes = edits.velocity(notes, self.velocity)
        if self.tempo != 1:
            notes = edits.tempo(notes, self.tempo)
        return edits.shift(notes, self.shift) if self.shift else notes


def _number(text: str, name: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ArgumentError(f"{name} is {quoted(text)}; it must be a number.") from None


def _whole(text: str, name: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ArgumentError(f"{name} is {quoted(text)}; it must be a whole number.") from None


def _part(text: str, name: str) -> str:
    find_parts(text)
    return text


def _pair(text: str, name: str) -> tuple[str, str]:
    source, found, target = (part.strip() for part in text.partition("="))
    if not found:
        raise ArgumentError(
            f"{name} is {quoted(text)}; it must be a part and the program that is to play it, as 0=48 or piano=violin; "
            f"of drum keys {_DRUM_KEY}38=40."
        )
    _maps([(source, target)])
    return source, target


def _grid(text: str, name: str) -> str:
    _step(text)
    return text


def _maps(pairs: Sequence[tuple[str, str]]) -> tuple[dict[Who, Who], dict[int, int]]:
    """Programs to programs and drum keys to drum keys. Raises ArgumentError for what there cannot be."""
    programs: dict[Who, Who] = {}
    keys: dict[int, int] = {}
    for source, target in pairs:
        if source.startswith(_DRUM_KEY):
            key, to = (_whole(text.removeprefix(_DRUM_KEY), "a drum key") for text in (source, target))
            keys[key] = to
        else:
            programs[source] = target
    edits.check_maps(programs, keys)
    return programs, keys


def _step(text: str) -> tuple[float, bool]:
    """A grid's step, and whether it is in quarter notes, not in seconds."""
    if found := _FRACTION.fullmatch(text):
        over, under, triplet = int(found[1]), int(found[2]), bool(found[3])
        if over and under:
            return _WHOLE * over / under * (_TRIPLET if triplet else 1.0), True
    if found := _SECONDS.fullmatch(text):
        return float(found[1]), False
    raise ArgumentError(
        f"quantise is {quoted(text)}; it must be a note's length, as 1/16 or, for triplets, 1/8t; or seconds, as 0.1s."
    )


SEVERAL = {  # edits that may be said several times
    "mute": _part,
    "solo": _part,
    "remap": _pair,
}
_READ: dict[str, Callable[[str, str], Any]] = {
    **SEVERAL,
    **dict.fromkeys(("start", "end", "velocity", "tempo", "shift"), _number),
    "transpose": _whole,
    "quantise": _grid,
}
EDITS = {  # by name, in the order in which they are made: what is said to each, and what it does
    "quantise": ("STEP", "begin notes on the nearest 1/16 of the song's own beats, 1/8t for triplets, or of 0.1s"),
    "start": ("S", "begin there in the song, in seconds"),
    "end": ("S", "end there in the song, in seconds"),
    "solo": ("PART", "only these parts: programs, names or families of General MIDI, or drums"),
    "mute": ("PART", "leave these parts out"),
    "remap": ("PART=PROGRAM", "play a part by another program, as 0=48; or drum keys by others, as drums:38=40"),
    "transpose": ("N", "semitones higher, or lower; drums stay"),
    "velocity": ("X", "strike all notes so many times as hard, for voices with dynamics"),
    "tempo": ("X", "times as fast"),
    "shift": ("S", "seconds later; or earlier, and what is before 0 is cut off"),
}
