"""Songs to notes and tokens: files, by pretty_midi's rules of which note-off ends which note, and the sustain pedal.

The rules are pretty_midi's for notes, programs and controls, and note_seq's for the pedal: the notes are those of
diffusers' MidiProcessor.

Shapes: E events of a file, of all its tracks in order of time; n notes, m pedal movements of an instrument.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypeAlias

import numpy as np
from numpy.typing import NDArray

from notewave.checks import is_number, quoted
from notewave.errors import ArgumentError, MidiError
from notewave.song.codec import encode_notes, limit_tokens
from notewave.song.dialect import PUBLISHED, Dialect, Tokens
from notewave.song.notes import Notes
from notewave.song.smf import BEND, CONTROL, NOTE_OFF, NOTE_ON, PROGRAM, Clock, Events, parse

if TYPE_CHECKING:
    import pretty_midi

MAX_BYTES = 4 << 20  # of a file: dozens of long songs; bounds time and memory
SUSTAIN, SUSTAIN_ON = 64, 64  # the pedal's controller and the lowest value that presses it
DRUMS = 9  # the channel whose notes are drums, counted from 0

MidiSource: TypeAlias = "str | os.PathLike[str] | bytes | BinaryIO | pretty_midi.PrettyMIDI | Notes"
_Floats = NDArray[np.float64]
_Ints = NDArray[np.int64]
_Instrument = tuple[_Floats, _Floats]  # notes [n, 6], columns as in Notes; pedal [m, 2]: time in s, value


def tokenize(
    song: MidiSource, *, strict: bool = False, max_seconds: float = 7200.0, dialect: Dialect = PUBLISHED
) -> list[Tokens]:
    """The tokens of a song: int32 [N] for each segment of 5.12 s, unpadded, N at most 2048, ending in EOS (1).

    song is whatever ``read`` takes; dialect is that of the voice which is to sing it, ``Voice.dialect``. A segment of
    more than 2048 tokens loses its last events with a warning, or raises with ``strict``. Songs longer than
    ``max_seconds`` are refused: one damaged time can make hours of silence. Raises MidiError for whatever cannot be
    made into tokens, ArgumentError if max_seconds is no number.

    In the published dialect the tokens are those of diffusers' MidiProcessor, save that drums after the last note of a
    pedal that never rises keep their time; there they are squeezed into the segment of that note, beyond its end.
    """
    if not is_number(max_seconds, 0, math.inf):
        raise ArgumentError(f"max_seconds is {quoted(max_seconds)}; it must be a number of seconds from 0 on.")
    if not isinstance(dialect, Dialect):
        raise ArgumentError(f"dialect is {quoted(dialect)}; it must be a notewave.Dialect, as Voice.dialect is.")
    notes = read(song)
    if not notes.seconds <= max_seconds:
        raise MidiError(
            f"The song lasts {notes.seconds:.0f} s: more than max_seconds={max_seconds:g}, by a damaged time perhaps. "
            "Mend the song or raise max_seconds."
        )
    return limit_tokens(encode_notes(notes, dialect), strict=strict)


def read(song: MidiSource) -> Notes:
    """The notes of a song, held by the sustain pedal, their programs as in the file.

    song is a MIDI file's path or bytes, a binary file, a PrettyMIDI object, or notes, which are returned as they
    are. Raises MidiError for what cannot be read and where there is no note.
    """
    if isinstance(song, (str, os.PathLike)):
        name = os.fspath(song) or "The empty path"
    else:
        name = "The note table" if isinstance(song, Notes) else "The MIDI data"
    try:
        notes = _read(song)
    except OSError as error:
        raise MidiError(f"{name} cannot be opened: {error.strerror or error}. Check the path.") from error
    except (AttributeError, LookupError, OverflowError, TypeError, ValueError) as error:
        raise MidiError(f"{name} cannot be read as MIDI: {error}. Export it anew or choose another.") from error
    if not len(notes):
        raise MidiError(f"{name} has no notes: nothing in it sounds. Check that it is the song you meant.")
    return notes


def _read(song: MidiSource) -> Notes:
    if isinstance(song, Notes):
        return song
    # Whoever has a PrettyMIDI object has imported its module, which reading a file does not need.
    if isinstance(song, getattr(sys.modules.get("pretty_midi"), "PrettyMIDI", ())):
        return _held(_of_pretty_midi(song))
    return _held(_of_file(*parse(_load(song))))


def _load(song: str | os.PathLike[str] | bytes | BinaryIO) -> bytes:
    if isinstance(song, (str, os.PathLike)):
        with Path(song).open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    else:
        data = song.read(MAX_BYTES + 1) if hasattr(song, "read") else song
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise TypeError(f"a {type(song).__name__} is no path, bytes, binary file, PrettyMIDI object or Notes")
    if len(data) > MAX_BYTES:
        raise ValueError(f"it is larger than {MAX_BYTES >> 20} MiB")
    return bytes(data)


def _of_pretty_midi(song: pretty_midi.PrettyMIDI) -> list[_Instrument]:
    """The instruments of a PrettyMIDI object."""
    pedals: dict[int, _Floats] = {}  # the instruments of a channel may share one long list of controls
    instruments = []
    for instrument in song.instruments:
        kind = instrument.program, instrument.is_drum
        notes = [(note.start, note.end, note.pitch, note.velocity, *kind) for note in instrument.notes]
        controls = instrument.control_changes
        if id(controls) not in pedals:
            moves = [(x.time, x.value) for x in controls if x.number == SUSTAIN]
            pedals[id(controls)] = np.array(moves, np.float64).reshape(-1, 2)
        instruments.append((np.array(notes, np.float64).reshape(-1, 6), pedals[id(controls)]))
    return instruments


def _of_file(events: Events, clock: Clock) -> list[_Instrument]:
    """The instruments of a file: an instrument is what one program of a part plays."""
    part = _part(events)
    program = _programs(events, part)
    instrument = part << 7 | program  # of whatever happens at an event
    struck, ended = _pairs(events, part)
    by_instrument = np.lexsort((ended, instrument[ended]))
    struck, ended = struck[by_instrument], ended[by_instrument]
    keys, starts = np.unique(instrument[ended], return_index=True)
    if not len(keys):
        return []
    moves, bounds = _pedals(events, part, instrument, keys, ended[starts])
    at_s = clock(events.tick.astype(np.float64))
    columns = at_s[struck], at_s[ended], events.first[struck], events.second[struck], program[ended]
    notes = np.column_stack([*columns, events.channel[ended] == DRUMS])
    pedal = np.column_stack([at_s[moves], events.second[moves]])
    tables = np.split(notes, starts[1:])
    return [(table, pedal[start:end]) for table, (start, end) in zip(tables, bounds.tolist(), strict=True)]


def _part(events: Events) -> _Ints:
    """The part [E] of each event: what has a program, notes that are open and controls of its own.

    A part is a channel in a track. MIDI itself gives a channel one such state, whatever the tracks; that each track
    begins with its own is pretty_midi's rule, and so that of diffusers' tokens. Only this function knows of tracks.
    """
    return events.track << 4 | events.channel


def _programs(events: Events, part: _Ints) -> _Ints:
    """The program [E] of each event's part at that event: that of its last change, 0 before any."""
    order = np.argsort(part, kind="stable")  # a part's events stay in order of time
    is_change = events.kind[order] == PROGRAM
    set_anew = is_change | (np.diff(part[order], prepend=-1) != 0)
    last = np.maximum.accumulate(np.where(set_anew, np.arange(len(order)), 0))
    program = np.empty_like(part)
    program[order] = np.where(is_change, events.first[order], 0)[last]
    return program


def _pairs(events: Events, part: _Ints) -> tuple[_Ints, _Ints]:
    """The events that strike and end each note; notes that nothing ends are dropped.

    A note-off ends every open note of its part and pitch, save those struck at its own tick: these it leaves open
    if it ended another, and drops if it did not.
    """
    row = np.flatnonzero((events.kind == NOTE_ON) | (events.kind == NOTE_OFF))
    key = part[row] << 7 | events.first[row]
    order = np.argsort(key, kind="stable")  # a key's events stay in order of time
    row, key = row[order], np.append(key[order], -1)  # the last one stands for a note-off that is nobody's
    tick = np.append(events.tick[row], -1)
    is_on = (events.kind[row] == NOTE_ON) & (events.second[row] > 0)
    on, off = np.flatnonzero(is_on), np.flatnonzero(np.append(~is_on, True))

    following = off.searchsorted(on)  # of each note-on: which note-off comes next
    has_off = key[off[following]] == key[on]
    on, following = on[has_off], following[has_off]
    same_tick = tick[off[following]] == tick[on]

    # Of each note-off: whether notes were struck since the last one, before its tick and at it.
    before, at_it = np.zeros((2, len(off)), np.bool_)
    before[following[~same_tick]] = True
    at_it[following[same_tick]] = True
    later = (np.diff(key[off], prepend=-1) == 0) & (np.diff(tick[off], prepend=-1) > 0)  # than its key's last note-off
    # One leaves notes open if some were struck at it, and it ends others: from before, or that the last one left open.
    depends = at_it & ~before & later
    decided = np.maximum.accumulate(np.where(depends, 0, np.arange(len(off))))
    leaves = (at_it & before)[decided]

    left = same_tick & leaves[following]
    following = following + left
    is_ended = ~same_tick | left & later[following]
    return row[on[is_ended]], row[off[following[is_ended]]]


def _pedals(events: Events, part: _Ints, instrument: _Ints, keys: _Ints, born: _Ints) -> tuple[_Ints, _Ints]:
    """The sustain pedal of each instrument: moves, which are events, and between which of them [., 2] its own lie.

    keys are the instruments' in rising order, born the events of their first notes' ends. A control or bend is its
    instrument's; before that is born it is its part's, and whatever is born later in a part that has such strays
    shares them, and those to come, in the place of controls of its own.
    """
    control = np.flatnonzero((events.kind == CONTROL) | (events.kind == BEND))
    place = np.minimum(keys.searchsorted(instrument[control]), len(keys) - 1)
    is_born = (keys[place] == instrument[control]) & (born[place] < control)
    stray = control[~is_born]
    first_stray = np.full(part.max() + 1, len(part))
    np.minimum.at(first_stray, part[stray], stray)

    of_part = keys >> 7
    owner = np.where(born > first_stray[of_part], -1 - of_part, np.arange(len(keys)))  # parts count down from -1
    owner_of_control = np.where(is_born, owner[place], -1 - part[control])
    is_pedal = (events.kind[control] == CONTROL) & (events.first[control] == SUSTAIN)
    moves, owner_of_move = control[is_pedal], owner_of_control[is_pedal]
    order = np.argsort(owner_of_move, kind="stable")
    bounds = [owner_of_move[order].searchsorted(owner, side) for side in ("left", "right")]
    return moves[order], np.stack(bounds, axis=1)


def _held(instruments: Iterable[_Instrument]) -> Notes:
    """A song of all instruments; the notes of the pitched ones held by their pedal."""
    tables, pedals, ends = [np.empty((0, 6))], [np.empty((0, 2))], [0.0]
    for table, pedal in instruments:
        is_drum = bool(table[:, 5].any())
        ends += [pedal[:, 0].max(initial=0.0), 0.0 if is_drum else table[:, 1].max(initial=0.0)]
        tables.append(table)
        pedals.append(pedal[:0] if is_drum else pedal)
    end_s = max(ends)
    held = np.concatenate([_hold(*one, end_s) for one in zip(tables, pedals, strict=True)])
    if not np.isfinite(held).all():
        raise ValueError("a note's time, pitch, velocity or program is no number")
    # A PrettyMIDI object may have fractions in the place of whole numbers: they are cut, as a file could not hold them.
    columns = *held[:, :2].T, *np.trunc(held[:, 2:5]).T, held[:, 5] != 0
    return Notes(*columns)


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
