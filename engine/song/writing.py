"""Songs as standard MIDI files, which other programs read and we read again as they are."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from notewave.errors import MidiError
from notewave.song.channels import DRUMS
from notewave.song.codec import to_frames, to_steps
from notewave.song.notes import Notes
from notewave.song.parts import part_keys

if TYPE_CHECKING:
    from mido import Message

MOST_PER_BEAT = 1 << 14  # ticks to the beat of a file that is written: powers of two, by which no time is rounded twice
MOST_TICKS = 1 << 27  # of it: a number in a file has 28 bits
MAX_WRITTEN_SECONDS = 6e7  # with which a tick is half a second
CHANNELS = 15  # of a port, beside that of the drums
MOST_LAYERS = 16  # notes of a program that sound on one pitch at once


def to_midi(notes: Notes) -> bytes:
    """A standard MIDI file, of format 1, whose notes are these, to a tick or two of 31 us, or in long songs more.

    A track for each program, and others for notes that begin where one of its notes sounds on their pitch; drums are on
    channel 10, other programs on channels and, beyond fifteen, ports of their own. Times are written at 120 quarter
    notes a minute. Raises MidiError where there is no note, or one lies too late for a file.
    """
    from mido import Message, MetaMessage, MidiFile, MidiTrack

    if not len(notes):
        raise MidiError("The song has no notes to be written. Give some.")
    if notes.seconds > MAX_WRITTEN_SECONDS:
        raise MidiError(f"The song lasts {notes.seconds:g} s, over the {MAX_WRITTEN_SECONDS:g} of a file. Cut it.")
    ticks_per_beat = MOST_PER_BEAT
    while notes.seconds > 0.5 * MOST_TICKS / ticks_per_beat:
        ticks_per_beat //= 2
    file = MidiFile(type=1, ticks_per_beat=ticks_per_beat)
    begin, end = (_ticks(times, 0.5 / ticks_per_beat) for times in (notes.onset_s, notes.offset_s))
    end = np.maximum(end, begin + 1)  # a note of no length would not be read again
    kinds = np.stack([notes.is_drum, notes.program, _layers(notes, begin, end)])
    pitched = np.unique(notes.program[~notes.is_drum]).tolist()
    for kind in np.unique(kinds, axis=1).T:
        is_drum, program = bool(kind[0]), int(kind[1])
        port, channel = (0, DRUMS) if is_drum else divmod(pitched.index(program), CHANNELS)
        channel += not is_drum and channel >= DRUMS
        track = MidiTrack([MetaMessage("midi_port", port=port)] if port else [])
        track.append(Message("program_change", channel=channel, program=program))
        own = (kinds == kind[:, None]).all(axis=0)
        track += _messages(channel, *(column[own] for column in (begin, end, notes.pitch, notes.velocity)))
        file.tracks.append(track)
    written = io.BytesIO()
    file.save(file=written)
    return written.getvalue()


def _ticks(seconds: NDArray[np.float64], tick_s: float) -> NDArray[np.int64]:
    """Times in ticks: the nearest, or one beside it that is of the same step and frame when tokens are made."""
    nearest = np.rint(seconds / tick_s).astype(np.int64)
    choices = np.maximum(nearest + np.array([[0], [1], [-1]]), 0)
    fits = (to_steps(choices * tick_s) == to_steps(seconds)) & (to_frames(choices * tick_s) == to_frames(seconds))
    ticks: NDArray[np.int64] = choices[fits.argmax(axis=0), np.arange(len(seconds))]
    return ticks


def _layers(notes: Notes, begin: NDArray[np.int64], end: NDArray[np.int64]) -> NDArray[np.int64]:
    """The fewest layers for each program's notes [n] such that no two of one layer sound on one pitch at once.

    Of more than MOST_LAYERS at once, which nobody hears as such, the others share the last.
    """
    layer = np.zeros(len(notes), np.int64)
    open_until: dict[tuple[int, int, int], list[int]] = {}
    columns = (column.tolist() for column in (begin, end, part_keys(notes), notes.program, notes.pitch))
    begins, ends, key, program, pitch = columns
    for row in np.lexsort((end, begin)).tolist():
        until = open_until.setdefault((key[row], program[row], pitch[row]), [])
        free = next((n for n, tick in enumerate(until) if tick <= begins[row]), len(until))
        free = min(free, MOST_LAYERS - 1)
        until[free : free + 1] = [ends[row]]
        layer[row] = free
    return layer


def _messages(
    channel: int,
    begin: NDArray[np.int64],
    end: NDArray[np.int64],
    pitch: NDArray[np.int64],
    velocity: NDArray[np.int64],
) -> Iterator[Message]:
    """What strikes and ends notes [n], of which no two sound on one pitch at once, in order of time."""
    from mido import Message

    off, on = np.zeros_like(begin), np.ones_like(begin)
    moves = np.concatenate([[end, off, pitch, off], [begin, on, pitch, velocity]], axis=1)
    before = 0
    for tick, is_struck, key, force in moves[:, np.lexsort(moves[1::-1])].T.tolist():  # at one tick, ends come first
        kind = "note_on" if is_struck else "note_off"
        yield Message(kind, channel=channel, note=key, velocity=force, time=tick - before)
        before = tick
