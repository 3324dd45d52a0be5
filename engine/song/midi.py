"""MIDI to tokens: pretty_midi's notes of a file's events, the sustain pedal, the song's tokens.

Which note-off ends which note and which instrument a pedal belongs to is left to pretty_midi, and the pedal follows
note_seq's rules: the notes are those of diffusers' MidiProcessor.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import BinaryIO, TypeAlias

import mido
import numpy as np
import pretty_midi
from numpy.typing import NDArray

from notewave.checks import is_number, quoted
from notewave.errors import MidiError
from notewave.song.codec import Tokens, encode_notes, limit_tokens
from notewave.song.notes import Notes
from notewave.song.smf import MESSAGES, Clock, Event, parse

MAX_BYTES = 4 << 20  # of a file: dozens of long songs; bounds time and memory
SUSTAIN, SUSTAIN_ON = 64, 64  # the pedal's controller and the lowest value that presses it

MidiSource: TypeAlias = "str | os.PathLike[str] | bytes | BinaryIO | pretty_midi.PrettyMIDI"
_Floats = NDArray[np.float64]


def tokenize(midi: MidiSource, *, strict: bool = False, max_seconds: float = 7200.0) -> list[Tokens]:
    """The tokens of a song: int32 [N] for each segment of 5.12 s, unpadded, N at most 2048, ending in EOS (1).

    midi is a path, a file's bytes, a binary file or a PrettyMIDI object. A segment of more than 2048 tokens
    loses its last events with a warning, or raises with ``strict``. Songs longer than ``max_seconds`` are
    refused: one damaged time can make hours of silence. Raises MidiError for whatever cannot be made into tokens.

    The tokens are those of diffusers' MidiProcessor, save that drums after the last note of a pedal that never
    rises keep their time; there they are squeezed into the segment of that note, beyond its end.
    """
    if not is_number(max_seconds, 0, math.inf):
        raise MidiError(f"max_seconds is {quoted(max_seconds)}; it must be a number of seconds from 0 on.")
    notes = read(midi)
    if not notes.seconds <= max_seconds:
        raise MidiError(
            f"The song lasts {notes.seconds:.0f} s: more than max_seconds={max_seconds:g}, by a damaged time perhaps. "
            "Mend the song or raise max_seconds."
        )
    return limit_tokens(encode_notes(notes), strict=strict)


def read(midi: MidiSource) -> Notes:
    """The notes of a song, held by the sustain pedal, their programs as in the file. Raises MidiError if none."""
    name = os.fspath(midi) or "The empty path" if isinstance(midi, (str, os.PathLike)) else "The MIDI data"
    try:
        is_read = isinstance(midi, pretty_midi.PrettyMIDI)
        notes = _notes(midi, np.asarray) if is_read else _notes(*_song(*parse(_load(midi))))
    except OSError as error:
        raise MidiError(f"{name} cannot be opened: {error.strerror or error}. Check the path.") from error
    except (AttributeError, LookupError, OverflowError, TypeError, ValueError) as error:
        raise MidiError(f"{name} cannot be read as MIDI: {error}. Export it anew or choose another.") from error
    if not len(notes):
        raise MidiError(f"{name} has no notes: nothing in it sounds. Check that it is the file you meant.")
    return notes


def _load(midi: str | os.PathLike[str] | bytes | BinaryIO) -> bytes:
    if isinstance(midi, (str, os.PathLike)):
        with Path(midi).open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    else:
        data = midi.read(MAX_BYTES + 1) if hasattr(midi, "read") else midi
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise TypeError(f"a {type(midi).__name__} is no path, bytes, binary file or PrettyMIDI object")
    if len(data) > MAX_BYTES:
        raise ValueError(f"it is larger than {MAX_BYTES >> 20} MiB")
    return bytes(data)


def _song(tracks: Sequence[Sequence[Event]], clock: Clock) -> tuple[pretty_midi.PrettyMIDI, Clock]:
    """What pretty_midi makes of the events, on a clock that ticks only when something happens, and that clock.

    pretty_midi keeps a table of all ticks: on this clock no song is too long for it.
    """
    ticks = np.unique(np.array([event[0] for track in tracks for event in track], np.float64))
    places = {tick: place for place, tick in enumerate(ticks.tolist())}
    file = mido.MidiFile(ticks_per_beat=1)
    file.add_track().append(mido.MetaMessage("set_tempo", tempo=1_000_000))  # a tick a second
    for events in filter(None, tracks):  # pretty_midi takes no empty track
        track, last = file.add_track(), 0
        for tick, status, first, second in events:
            values = {"note": first, "velocity": second, "control": first, "value": second, "program": first}
            name, delta = MESSAGES[status >> 4], places[tick] - last
            track.append(SimpleNamespace(type=name, time=delta, channel=status & 0xF, pitch=first, **values))
            last = places[tick]
    at_s = clock(ticks)
    return pretty_midi.PrettyMIDI(mido_object=file), lambda times: at_s[times.astype(np.int64)]


def _notes(song: pretty_midi.PrettyMIDI, clock: Clock) -> Notes:
    """The notes of a song; those of pitched instruments held by their pedal."""
    tables, pedals, ends = [np.empty((0, 6))], [np.empty((0, 2))], [0.0]
    read: dict[int, _Floats] = {}  # the instruments of a channel may share one long list of controls
    for instrument in song.instruments:
        kind = instrument.program, instrument.is_drum
        notes = [(note.start, note.end, note.pitch, note.velocity, *kind) for note in instrument.notes]
        table = np.array(notes, np.float64).reshape(-1, 6)
        table[:, :2] = clock(table[:, :2])
        controls = instrument.control_changes
        if id(controls) not in read:
            changes = [(x.time, x.value) for x in controls if x.number == SUSTAIN]
            read[id(controls)] = np.array(changes, np.float64).reshape(-1, 2)
            read[id(controls)][:, 0] = clock(read[id(controls)][:, 0])
        pedal = read[id(controls)]
        ends += [pedal[:, 0].max(initial=0.0), 0.0 if instrument.is_drum else table[:, 1].max(initial=0.0)]
        tables.append(table)
        pedals.append(pedal[:0] if instrument.is_drum else pedal)
    end_s = max(ends)
    held = np.concatenate([_hold(*one, end_s) for one in zip(tables, pedals, strict=True)])
    if not np.isfinite(held).all():
        raise ValueError("a note's time, pitch, velocity or program is no number")
    return Notes(*held.T)


def _hold(table: _Floats, pedal: _Floats, end_s: float) -> _Floats:
    """An instrument's notes [n, 6] (onset and offset in s, pitch, ...) as its pedal [m, 2] (s, value) holds them.

    note_seq's rules: a note released under the pedal sounds until the pedal rises, its pitch is struck anew under
    the pedal or the song ends (end_s); of equal pitches struck at one time under the pedal, only the last is kept.
    The pedal moves before notes of the same time, down before up.
    """
    if not len(pedal):
        return table
    table = table[np.lexsort((table[:, 0], table[:, 2]))]  # by pitch, then onset
    onset_s, offset_s, pitch = table[:, :3].T
    down = pedal[:, 1] >= SUSTAIN_ON
    order = np.lexsort((~down, pedal[:, 0]))
    time_s, down = pedal[order, 0], down[order]

    def is_down(at_s: _Floats) -> NDArray[np.bool_]:
        return np.append(down, False)[time_s.searchsorted(at_s, "right") - 1]

    rises_s = np.append(time_s[~down], end_s)
    end = np.where(is_down(offset_s), rises_s[time_s[~down].searchsorted(offset_s, "right")], offset_s)
    under = np.append(np.where(is_down(onset_s), np.arange(len(table)), len(table)), len(table))
    again = np.minimum.accumulate(under[::-1])[::-1][1:]  # the next strike under the pedal, of whatever pitch
    same = np.append(pitch, -1.0)[again] == pitch
    again_s = np.where(same, np.append(onset_s, np.inf)[again], np.inf)
    kept = again_s > onset_s
    return np.column_stack([onset_s, np.minimum(end, again_s), table[:, 2:]])[kept]
