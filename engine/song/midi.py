"""Songs to notes and tokens: files, which players' rules read and mend, by pretty_midi's arithmetic.

The notes of a file that says all of itself are those of diffusers' MidiProcessor: pretty_midi's rules for notes,
programs and controls, and note_seq's for the pedal.
"""

from __future__ import annotations

import errno
import logging
import math
import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, TypeAlias

import numpy as np

from notewave.checks import counted, is_integer, is_number, quoted, shown
from notewave.errors import ArgumentError, MidiError
from notewave.inputs import BLOCK, read_regular
from notewave.song.beats import Beats
from notewave.song.channels import instruments
from notewave.song.codec import encode_notes, limit_tokens
from notewave.song.dialect import PUBLISHED, Dialect, Tokens
from notewave.song.notes import Notes
from notewave.song.pedal import SUSTAIN, Instrument, Pedal, held
from notewave.song.smf import parse

if TYPE_CHECKING:
    import pretty_midi

log = logging.getLogger(__name__)

MAX_BYTES = 4 << 20  # of a file: dozens of long songs; bounds time and memory
MAX_SECONDS = 7200.0  # of a song: one damaged time can make hours of silence

_DATA = "The MIDI data"  # in messages, where nothing else names a song
_OPEN = "Give the path of a MIDI file, or a stream that is open (to the command as -)."

MidiSource: TypeAlias = "str | os.PathLike[str] | bytes | BinaryIO | pretty_midi.PrettyMIDI | Notes"


def tokenize(
    song: MidiSource,
    *,
    strict: bool = False,
    max_seconds: float = MAX_SECONDS,
    max_bytes: int = MAX_BYTES,
    dialect: Dialect = PUBLISHED,
) -> list[Tokens]:
    """The tokens of a song: int32 [N] for each segment of 5.12 s, unpadded, N at most 2048, ending in EOS (1).

    song, strict and max_bytes are as in ``read``; dialect is that of the voice which is to sing it, ``Voice.dialect``.
    By its codec "pytorch", N is at most 3000 and there is no EOS. A segment of more tokens loses its last events with a
    warning, or raises with ``strict``. Songs longer than ``max_seconds`` are refused. Raises MidiError for whatever
    cannot be made into tokens, ArgumentError for a limit that is no number.

    In the published dialect the tokens are those of diffusers' MidiProcessor, save that drums after the last note of a
    pedal that never rises keep their time; there they are squeezed into the segment of that note, beyond its end.
    """
    if not is_number(max_seconds, 0, math.inf):
        raise ArgumentError(f"max_seconds is {quoted(max_seconds)}; it must be a number of seconds from 0 on.")
    if not isinstance(dialect, Dialect):
        raise ArgumentError(f"dialect is {quoted(dialect)}; it must be a notewave.Dialect, as Voice.dialect is.")
    notes = read(song, strict=strict, max_bytes=max_bytes)
    check_length(notes, max_seconds)
    return limit_tokens(encode_notes(notes, dialect, most_ties=dialect.max_tokens), strict=strict)


def check_length(notes: Notes, max_seconds: float) -> None:
    """Raise MidiError for a song that is longer than a limit."""
    if not notes.seconds <= max_seconds:
        raise MidiError(
            f"The song lasts {notes.seconds:.0f} s: more than max_seconds={max_seconds:g}, by a damaged time perhaps. "
            "Mend the song or raise max_seconds (--max-seconds)."
        )


def read(song: MidiSource, *, strict: bool = False, max_bytes: int = MAX_BYTES) -> Notes:
    """The notes of a song, held by the sustain pedal, their programs as in the file.

    song is a MIDI file's path or bytes, a binary file that is open, a PrettyMIDI object, or notes, which are returned
    as they are. A path must be a regular file's: FIFOs and devices may never end, unless someone opened them to be
    read. What is odd in a file is mended as players do, with one warning that names it; ``strict`` refuses a file of
    which something is lost, such as one that breaks off. Raises MidiError for what cannot be read, is larger than
    max_bytes, or has no note; ArgumentError where max_bytes is no number.
    """
    return heed(examine(song, max_bytes=max_bytes), strict)


def heed(reading: Reading, strict: bool) -> Notes:
    """A reading's notes, with a warning of what was mended. Raises MidiError where something is lost and strict."""
    if reading.lost and strict:
        raise MidiError(
            f"{reading.name} is incomplete: {'; '.join(reading.lost)}. Export it anew, or pass strict=False to have "
            "what is there."
        )
    if reading.mended:
        log.warning("%s was mended: %s.", reading.name, "; ".join(reading.mended))
    return reading.notes


@dataclass(frozen=True, eq=False)
class Reading:
    """A song's notes, and what is to be said of it."""

    notes: Notes
    name: str  # as messages call it
    mended: tuple[str, ...] = ()  # what was mended: short phrases
    lost: tuple[str, ...] = ()  # those of them that tell of a loss
    beats: Beats | None = None  # where they are, if the song says it


def examine(song: MidiSource, *, max_bytes: int = MAX_BYTES) -> Reading:
    """``read``, without a warning: what was mended is in the result. Errors as there."""
    if not is_integer(max_bytes, 0, sys.maxsize - 1):
        raise ArgumentError(f"max_bytes is {quoted(max_bytes)}; it must be a whole number of bytes from 0 on.")
    name = "The note table" if isinstance(song, Notes) else _DATA
    try:
        if isinstance(song, (str, os.PathLike)):
            name = shown(os.fspath(song)) or "The empty path"
        reading = _examine(song, name, max_bytes)
    except OSError as error:
        cure = _OPEN if error.errno == errno.EINVAL else "Check the path."
        raise MidiError(f"{name} cannot be opened: {error.strerror or error}. {cure}") from error
    except (AttributeError, LookupError, OverflowError, TypeError, ValueError) as error:
        raise MidiError(f"{name} cannot be read as MIDI: {error}. Export it anew or choose another.") from error
    if not len(reading.notes):
        found = f" that can be read: {'; '.join(reading.mended)}" if reading.mended else ": nothing in it sounds"
        raise MidiError(f"{name} has no notes{found}. Check that it is the song you meant.")
    return reading


def _examine(song: MidiSource, name: str, max_bytes: int) -> Reading:
    if isinstance(song, Notes):
        return Reading(song, name)
    # Whoever has a PrettyMIDI object has imported its module, which reading a file does not need.
    if isinstance(song, getattr(sys.modules.get("pretty_midi"), "PrettyMIDI", ())):
        return Reading(held(_of_pretty_midi(song)), name, beats=_beats_of_pretty_midi(song))
    events, clock, beats, mended = parse(_load(song, max_bytes))
    played, unended = instruments(events, clock)
    endless = f"{counted(unended, 'note')} without an end, ended by the end of the track"
    return Reading(held(played), name, (*mended.odd, *mended.lost, *[endless] * bool(unended)), mended.lost, beats)


def _load(song: str | os.PathLike[str] | bytes | BinaryIO, max_bytes: int) -> bytes:
    if isinstance(song, (str, os.PathLike)):
        try:
            return read_regular(song, max_bytes)
        except OSError as error:
            if error.errno == errno.EFBIG:
                raise _too_large(max_bytes) from error
            raise
    data = song if isinstance(song, bytes) or not hasattr(song, "read") else _read_stream(song, max_bytes)
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise TypeError(f"a {type(song).__name__} is no path, bytes, binary file, PrettyMIDI object or Notes")
    if memoryview(data).nbytes > max_bytes:
        raise _too_large(max_bytes)
    return bytes(data)


def _read_stream(song: BinaryIO, max_bytes: int) -> bytearray:
    """What a binary file gives until it ends, or more bytes than there may be."""
    data = bytearray()
    while len(data) <= max_bytes:
        try:
            part: object = song.read(min(BLOCK, max_bytes + 1 - len(data)))
        except Exception as error:  # those of compressed files and of sockets have no base in common
            raise MidiError(f"{_DATA} cannot be read: {quoted(error)}. Open it anew, or give another song.") from error
        if not isinstance(part, (bytes, bytearray, memoryview)):
            raise TypeError(f"its read gave {quoted(part)}, not bytes")
        if not part:
            break
        data += bytes(part)
    return data


def _too_large(max_bytes: int) -> ValueError:
    size = f"{max_bytes >> 20} MiB" if max_bytes and not max_bytes % (1 << 20) else f"{max_bytes} bytes"
    return ValueError(f"it is larger than {size}; if it is meant to be, raise max_bytes (--max-bytes)")


def _beats_of_pretty_midi(song: pretty_midi.PrettyMIDI) -> Beats | None:
    """Where a PrettyMIDI object's beats are; nowhere if its tempos are none."""
    start_s, per_minute = (np.asarray(column, np.float64) for column in song.get_tempo_changes())
    if not len(start_s) or start_s[0] != 0 or not (np.diff(start_s) >= 0).all() or not (per_minute > 0).all():
        return None
    return Beats(start_s, 60.0 / per_minute)


def _of_pretty_midi(song: pretty_midi.PrettyMIDI) -> list[Instrument]:
    """The instruments of a PrettyMIDI object."""
    pedals: dict[int, Pedal] = {}  # the instruments of a channel may share one long list of controls
    played = []
    for instrument in song.instruments:
        kind = instrument.program, instrument.is_drum
        notes = [(note.start, note.end, note.pitch, note.velocity, *kind) for note in instrument.notes]
        controls = instrument.control_changes
        if id(controls) not in pedals:
            moves = [(x.time, x.value) for x in controls if x.number == SUSTAIN]
            pedals[id(controls)] = Pedal(*np.array(moves, np.float64).reshape(-1, 2).T)
        played.append(Instrument(np.array(notes, np.float64).reshape(-1, 6), pedals[id(controls)]))
    return played
