"""The parts of a song: what each program plays, and the drums. How they are named, and how a caller names them."""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from notewave.checks import is_integer, quoted
from notewave.errors import ArgumentError
from notewave.song.notes import Notes

DRUMS = "drums"
KEYS = PROGRAMS = 128
_STRING_ENSEMBLES = range(48, 52)  # General MIDI's family of strings has soloists only

Who = int | str  # a program from 0 on, or a name: drums, General MIDI's of a program or of a family


@functools.cache
def titles() -> tuple[str, ...]:
    """General MIDI's name of each program, from 0 on."""
    from pretty_midi.constants import INSTRUMENT_MAP

    return tuple(INSTRUMENT_MAP)


def part_name(program: int, is_drum: bool) -> str:
    """What a part is called: ``drums``, or General MIDI's name of its program as ``electric-bass-finger``."""
    return DRUMS if is_drum else _names()[program]


def part_keys(notes: Notes) -> NDArray[np.int64]:
    """The part of each note [len(notes)]: its program, and PROGRAMS for drums, whatever their program is."""
    keys: NDArray[np.int64] = np.where(notes.is_drum, PROGRAMS, notes.program)
    return keys


def parts(notes: Notes) -> dict[str, Notes]:
    """The parts of a song by their names: programs in their order, drums last."""
    keys = part_keys(notes)
    return {part_name(key % PROGRAMS, key == PROGRAMS): notes.rows(keys == key) for key in np.unique(keys).tolist()}


def find_parts(who: Who | Iterable[Who]) -> frozenset[int]:
    """The parts, as ``part_keys`` counts them, that someone names; of a family all its programs.

    Raises ArgumentError for what names none.
    """
    several = who if isinstance(who, Iterable) and not isinstance(who, (str, bytes)) else (who,)
    return frozenset(key for one in several for key in _find(one))


def find_program(who: Who) -> int:
    """The one program that someone names. Raises ArgumentError for what names none, or several."""
    found = sorted(_find(who))
    if len(found) > 1:
        choices = ", ".join(f"{key} ({_names()[key]})" for key in found)
        raise ArgumentError(f"{quoted(who)} is {len(found)} programs: {choices}. Say which.")
    if found[0] == PROGRAMS:
        raise ArgumentError(f"{quoted(who)} is no program: drums have none. Say one from 0 to {PROGRAMS - 1}.")
    return found[0]


def _find(who: Any) -> Iterable[int]:
    if is_integer(who, 0, PROGRAMS - 1):
        return [int(who)]
    said = who.strip() if isinstance(who, str) else ""
    if re.fullmatch(r"\d{1,3}", said, re.ASCII) and int(said) < PROGRAMS:
        return [int(said)]
    name = _plain(said)
    if found := _known().get(name):
        return found
    near = difflib.get_close_matches(name, _known(), n=3)
    hint = f" Near it: {', '.join(near)}." if near else ""
    raise ArgumentError(
        f"there is no part {quoted(who)}. Say {DRUMS}, a program of General MIDI from 0 to {PROGRAMS - 1}, or its name "
        f"or family, as {part_name(40, False)} or strings.{hint}"
    )


@functools.cache
def _names() -> tuple[str, ...]:
    return tuple(map(_plain, titles()))


@functools.cache
def _known() -> dict[str, tuple[int, ...]]:
    """Parts by all names that there are."""
    from pretty_midi.constants import INSTRUMENT_CLASSES

    size = PROGRAMS // len(INSTRUMENT_CLASSES)
    known = {_plain(family): tuple(range(n * size, n * size + size)) for n, family in enumerate(INSTRUMENT_CLASSES)}
    known["strings"] += tuple(_STRING_ENSEMBLES)
    known |= {name: (program,) for program, name in enumerate(_names())}
    return known | {DRUMS: (PROGRAMS,)}


def _plain(name: str) -> str:
    """A name in small letters, its words joined by hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", name.casefold()).strip("-")
