"""Songs made of songs: what takes a table of notes and gives another."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np

from notewave.checks import is_number, quoted
from notewave.errors import ArgumentError, MidiError
from notewave.song.notes import Notes


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
