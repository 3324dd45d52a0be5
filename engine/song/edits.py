"""Songs made of songs: what takes a table of notes and gives another."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from notewave.checks import counted, is_integer, is_number, quoted
from notewave.errors import ArgumentError, MidiError
from notewave.song.beats import Beats
from notewave.song.notes import Notes
from notewave.song.parts import KEYS, PROGRAMS, Who, find_parts, find_program, part_keys, parts

log = logging.getLogger(__name__)

MAX_SECONDS = 1e6  # of a song that is shifted or stretched: eleven days
SLOWEST, FASTEST = 0.01, 100.0  # tempos
LOUDEST = 127.0  # times as loud
FINEST_GRID = 1e-4  # seconds or quarter notes


def cut(notes: Notes, start_s: float = 0.0, end_s: float | None = None) -> Notes:
    """The part of a song from one time in seconds to another, or to its end; the part's own times begin at 0.

    Notes that reach into the part are clipped to it, those that only touch its border are not in it. A drum stroke is
    where its onset is, and so is a note of no length. Raises ArgumentError when a time is none or the end is not after
    the start, MidiError when no note is in the part.
    """
    for name, time in (("start", start_s), ("end", start_s if end_s is None else end_s)):
        if not is_number(time, 0.0, sys.float_info.max):
            raise ArgumentError(f"The part's {name} is {quoted(time)}, which is no time. Give seconds from 0 on.")
    start, end = float(start_s), np.inf if end_s is None else float(end_s)
    if end <= start:
        raise ArgumentError(f"The part ends at {end:g} s, but begins at {start:g} s. Give an end after its start.")
    is_stroke = notes.is_drum | (notes.onset_s == notes.offset_s)
    inside = np.where(is_stroke, notes.onset_s >= start, notes.offset_s > start) & (notes.onset_s < end)
    if not inside.any():
        where = f"from {start:g} s on" if end_s is None else f"from {start:g} s to {end:g} s"
        raise MidiError(f"No note is in the part {where}: the song is {notes.seconds:.2f} s long. Choose another part.")
    part = notes.rows(inside)
    onset_s, offset_s = np.maximum(part.onset_s, start), np.minimum(part.offset_s, end)
    return replace(part, onset_s=onset_s - start, offset_s=offset_s - start)


def mute(notes: Notes, who: Who | Iterable[Who]) -> Notes:
    """A song without some of its parts: programs from 0 on, or names, as ``find_parts`` knows them.

    Raises ArgumentError for a part that there cannot be, MidiError where no other plays.
    """
    return _kept(notes, ~_is_of(notes, who), "without")


def solo(notes: Notes, who: Who | Iterable[Who]) -> Notes:
    """Some parts of a song alone. Arguments and errors as in ``mute``."""
    return _kept(notes, _is_of(notes, who), "of")


def remap(notes: Notes, programs: Mapping[Who, Who] | None = None, drums: Mapping[int, int] | None = None) -> Notes:
    """A song whose parts are played by other programs, and whose drum strokes are struck on other keys.

    programs: from programs, names or families to programs or names; drums: from keys to keys, 0 to 127. All are changed
    at once, so that two may change places. Raises ArgumentError for what there cannot be.
    """
    program, pitch = check_maps(programs or {}, drums or {})
    return replace(
        notes,
        program=np.where(notes.is_drum, notes.program, program[notes.program]),
        pitch=np.where(notes.is_drum, pitch[notes.pitch], notes.pitch),
    )


def check_maps(programs: Mapping[Who, Who], drums: Mapping[int, int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """What each program [PROGRAMS] and each drum key [KEYS] becomes, as ``remap`` takes it. Raises ArgumentError."""
    program, pitch = np.arange(PROGRAMS), np.arange(KEYS)
    for source, target in programs.items():
        found = find_parts(source)
        if PROGRAMS in found:
            raise ArgumentError(f"{quoted(source)} has no program to be remapped. Remap its keys, as drums:38=40.")
        program[sorted(found)] = find_program(target)
    for keys in drums.items():
        if not all(is_integer(key, 0, KEYS - 1) for key in keys):
            raise ArgumentError(f"drum key {keys[0]} is remapped to {keys[1]}; keys are from 0 to {KEYS - 1}.")
        pitch[keys[0]] = keys[1]
    return program, pitch


def transpose(notes: Notes, semitones: int) -> Notes:
    """A song so many semitones higher, or lower; its drums stay as they are.

    Notes that MIDI has no key for are left out, with a warning. Raises ArgumentError for what is no whole number,
    MidiError where no note is left.
    """
    if not is_integer(semitones, -KEYS, KEYS):
        raise ArgumentError(
            f"transpose is {quoted(semitones)}; it must be a whole number of semitones from {-KEYS} to {KEYS}."
        )
    pitch = np.where(notes.is_drum, notes.pitch, notes.pitch + int(semitones))
    inside = (pitch >= 0) & (pitch < KEYS)
    if not inside.any():
        raise MidiError(f"No note is left {semitones} semitones away: MIDI has keys 0 to {KEYS - 1}. Transpose less.")
    if not inside.all():
        left_out = counted(int((~inside).sum()), "note")
        log.warning("%s left out, which %+d semitones away MIDI has no keys for.", left_out, semitones)
    return replace(notes.rows(inside), pitch=pitch[inside])


def velocity(notes: Notes, scale: float) -> Notes:
    """A song whose notes are struck so many times as hard, from 1 to 127; those of velocity 0 stay silent.

    Voices of a single velocity (``Dialect.velocities``) sing it as they sang it before. Raises ArgumentError for what
    is no number from 0 on.
    """
    if not is_number(scale, 0.0, LOUDEST):
        raise ArgumentError(f"velocity is {quoted(scale)}; it must be a factor from 0 to {LOUDEST:g}, 1 for none.")
    scaled = np.clip(np.rint(notes.velocity * float(scale)), 1, 127)
    return replace(notes, velocity=np.where(notes.velocity, scaled, 0))


def quantise(notes: Notes, step: float, beats: Beats | None = None) -> Notes:
    """A song whose notes begin on the nearest of a grid's lines, and are as long as they were.

    step: from line to line, in seconds; where the song's beats are given (``notewave.examine(song).beats``), in quarter
    notes. Of two lines equally near the earlier counts. Raises ArgumentError for what is no such step.
    """
    if not is_number(step, FINEST_GRID, MAX_SECONDS):
        raise ArgumentError(f"the grid's step is {quoted(step)}; it must be from {FINEST_GRID:g} to {MAX_SECONDS:g}.")
    place = notes.onset_s if beats is None else beats.quarters(notes.onset_s)
    line = np.ceil(np.round(place / float(step), 9) - 0.5) * float(step)
    onset_s = line if beats is None else beats.seconds(line)
    return replace(notes, onset_s=onset_s, offset_s=onset_s + (notes.offset_s - notes.onset_s))


def tempo(notes: Notes, factor: float) -> Notes:
    """A song so many times as fast. Raises ArgumentError for a factor out of range, or a song that gets too long."""
    if not is_number(factor, SLOWEST, FASTEST):
        raise ArgumentError(f"tempo is {quoted(factor)}; it must be a factor from {SLOWEST:g} to {FASTEST:g}.")
    _check_length(notes.seconds / float(factor))
    return replace(notes, onset_s=notes.onset_s / float(factor), offset_s=notes.offset_s / float(factor))


def shift(notes: Notes, seconds: float) -> Notes:
    """A song that begins so much later, or earlier: what would be before 0 is cut off, as by ``cut``.

    Raises ArgumentError for what is no time, MidiError where no note is left.
    """
    if not is_number(seconds, -MAX_SECONDS, MAX_SECONDS):
        raise ArgumentError(f"shift is {quoted(seconds)}; it must be seconds from {-MAX_SECONDS:g} to {MAX_SECONDS:g}.")
    if seconds < 0:
        return cut(notes, -float(seconds))
    _check_length(notes.seconds + float(seconds))
    return replace(notes, onset_s=notes.onset_s + float(seconds), offset_s=notes.offset_s + float(seconds))


def merge(*songs: Notes) -> Notes:
    """Songs side by side as one, each from its own beginning on. Raises ArgumentError where there are none."""
    if not songs:
        raise ArgumentError("there are no songs to merge. Give at least one.")
    return Notes(*(np.concatenate(columns) for columns in zip(*(vars(song).values() for song in songs), strict=True)))


def _is_of(notes: Notes, who: Who | Iterable[Who]) -> NDArray[np.bool_]:
    """Which notes those parts play."""
    return np.isin(part_keys(notes), sorted(find_parts(who)))


def _kept(notes: Notes, chosen: NDArray[np.bool_], what: str) -> Notes:
    if not chosen.any():
        there = ", ".join(parts(notes)) or "no note"
        raise MidiError(f"Nothing is left {what} the parts that were named: the song has {there}. Choose others.")
    return notes.rows(chosen)


def _check_length(seconds: float) -> None:
    if not seconds <= MAX_SECONDS:
        raise ArgumentError(f"the song would last {seconds:g} s, over {MAX_SECONDS:g}. Choose a lesser change.")
