"""Standard MIDI Files: a file's bytes to the events of its channels, and a clock for their ticks.

A file is taken apart here because its bytes cannot be trusted: every length is checked, whatever makes no sound (key
signatures, texts, chunks of other programs) is passed over, however odd, and what players put up with is mended: a
track ends at its end, whatever its length is said to be; what is there is read, whatever the header says.

Shapes: E events, T tracks.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from notewave.checks import counted
from notewave.song.beats import Beats

NOTE_OFF, NOTE_ON, CONTROL, PROGRAM, BEND = 0x8, 0x9, 0xB, 0xC, 0xE  # kinds: the upper half of a status byte
DRUM_PART = 0xF  # a kind of ours: a system exclusive message that says whether a channel plays drums
KEPT = frozenset({NOTE_OFF, NOTE_ON, CONTROL, PROGRAM, BEND})  # those of channels that are kept

_Floats = NDArray[np.float64]
_Ints = NDArray[np.int64]
_Tempo = tuple[int, int]  # tick, microseconds to the quarter note
Clock = Callable[[_Floats], _Floats]  # ticks to seconds

_HEADER, _TRACK = b"MThd", b"MTrk"
_INDEPENDENT = 2  # the kind of file whose tracks are songs of their own
_ONE_DATA_BYTE = 0xC0 >> 5  # programs and the pressure of channels; other channel events have two
_SYSTEM_DATA_BYTES = {0xF1: 1, 0xF2: 2, 0xF3: 1}  # the others have none
_SYSEX, _ESCAPE, _META = 0xF0, 0xF7, 0xFF
_PORT, _END_OF_TRACK, _SET_TEMPO = 0x21, 0x2F, 0x51  # types of meta events
_MAX_NUMBER = (1 << 35) - 1  # of variable length: five bytes
_SMPTE_RATES = {24: 24.0, 25: 25.0, 29: 30000 / 1001, 30: 30.0}  # frames a second

# System exclusive messages: the maker, a byte for the device, then the address of what is set. The address of a part
# is GS 40 1p 15, XG 08 pp 07; the byte after it is 0 for a part that is no drum part.
_ROLAND, _GS, _GS_RHYTHM = 0x41, b"\x42\x12\x40", 0x15
_YAMAHA, _XG, _XG_PART_MODE = 0x43, b"\x4c\x08", 0x07


@dataclass(frozen=True, eq=False)
class Events:
    """The events of all tracks' channels, int64 [E] each, in order of time; at one tick, track by track."""

    tick: _Ints
    track: _Ints
    channel: _Ints  # 0..15, above that the port; of a file whose tracks are songs of their own, above that the track
    kind: _Ints  # one of KEPT, or DRUM_PART
    first: _Ints  # data byte: a note's pitch, a controller, a program; of DRUM_PART whether it plays drums
    second: _Ints  # data byte: a note's velocity, a controller's value; a program has none, its first stands again
    track_end: _Ints  # [T], the tick at which each track ends
    is_gs: bool  # written for Roland's GS, whose banks mean other things than those of Yamaha's XG


@dataclass(frozen=True)
class Mended:
    """What was odd about a file: short phrases, each a fact. Whatever is lost is no longer in the song."""

    odd: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()


def parse(data: bytes) -> tuple[Events, Clock, Beats | None, Mended]:
    """A file's events, the clock of their ticks, its beats where it has any, and what was mended.

    Raises ValueError for what is no such file, or one whose header cannot be used.
    """
    reader = _Reader(data)
    reader.read()
    return reader.events(), *_clock(reader.division, reader.tempos()), reader.mended()


@dataclass
class _Track:
    """What one track came to."""

    events: int = 0
    tick: int = 0  # of the last event, in the end that of the track's end
    tempos: list[_Tempo] = field(default_factory=list)
    is_ended: bool = False  # by an event that says so
    fault: str = ""  # why the rest of it cannot be read


class _Reader:
    """Reads a file's chunks one after another."""

    def __init__(self, data: bytes) -> None:
        at = data.find(_HEADER + b"\x00\x00\x00\x06")
        at = at if at >= 0 else data.find(_HEADER)
        if at < 0 or len(data) < at + 14:
            raise ValueError("there is no MIDI header in it")
        self._data, self._header = data, at
        self._kind, self._count = (int.from_bytes(data[at + x : at + x + 2], "big") for x in (8, 10))
        self.division = int.from_bytes(data[at + 12 : at + 14], "big", signed=True)
        self._ticks, self._messages = array("q"), bytearray()
        self._tracks: list[_Track] = []
        self._clipped = self._wrong_lengths = 0
        self._foreign = 0  # chunks of other programs
        self._is_gs = False

    def read(self) -> None:
        """Read all tracks that are there."""
        data = self._data
        at = self._header + 8 + int.from_bytes(data[self._header + 4 : self._header + 8], "big")
        if not self._leads_on(at):
            at = self._header + 14
        while at + 8 <= len(data):
            if data[at : at + 4] == _TRACK:
                at = self._read_chunk(at + 8, self._end(at))
            elif self._leads_on(at):
                at, self._foreign = self._end(at), self._foreign + 1
            else:
                following = data.find(_TRACK, at + 1)
                at = following if following >= 0 else len(data)

    def _read_chunk(self, start: int, said: int) -> int:
        """Read a track that begins at a byte and is said to end at another; where it ends."""
        data, track = self._data, _Track()
        is_right = said == len(data) or self._leads_on(said)
        at = self._read_track(track, start, said if is_right else len(data), frozenset() if is_right else self._marks)
        self._tracks.append(track)
        if track.fault:
            following = data.find(_TRACK, at)
            return said if is_right else following if following >= 0 else len(data)
        if at == said or (is_right and data[at : at + 4] != _TRACK):
            return said
        if said > len(data) and not track.is_ended and at == len(data):
            track.fault = "breaks off"
        else:
            self._wrong_lengths += 1
        return at

    def _end(self, at: int) -> int:
        """Where the chunk at a byte ends, by what it says."""
        return at + 8 + int.from_bytes(self._data[at + 4 : at + 8], "big")

    def _leads_on(self, at: int) -> bool:
        """Whether a track stands at a byte, or a chunk after which the file ends or goes on with another."""
        if self._data[at : at + 4] == _TRACK:
            return True
        end = self._end(at)
        return self._is_name(at) and (end == len(self._data) or self._is_name(end))

    def _is_name(self, at: int) -> bool:
        name = self._data[at : at + 4]
        return len(name) == 4 and name.isalnum() and name.isascii()

    @cached_property
    def _marks(self) -> frozenset[int]:
        """Where tracks may begin."""
        marks, at = [], self._data.find(_TRACK)
        while at >= 0:
            marks.append(at)
            at = self._data.find(_TRACK, at + 4)
        return frozenset(marks)

    def _read_track(self, track: _Track, at: int, end: int, marks: frozenset[int]) -> int:
        """Add a track's events, which end with it, at a byte, or at one of those at which another may begin.

        Of each event its tick, and its status, two data bytes and the port. Returns where the last of them ends.
        """
        data, ticks, messages = self._data, self._ticks, self._messages
        before = len(ticks)
        tick = running = port = 0
        good = at
        try:
            while (good := at) < end and at not in marks:
                delta = data[at]
                at += 1
                if delta >= 0x80:  # most take one byte, and a call for each would take as long as all the rest
                    delta, at = _variable_length(data, at - 1)
                status = data[at]
                if status < 0xF0:  # a channel's event; one that begins with a data byte repeats the last one's status
                    if status >= 0x80:
                        running, at = status, at + 1
                    last = at if running >> 5 == _ONE_DATA_BYTE else at + 1
                    if not running:
                        raise ValueError(f"has byte {at} where no event has one")
                    first, second = data[at], data[last]
                    at = last + 1
                    if at > end:
                        raise IndexError
                    tick += delta
                    if running >> 4 in KEPT:
                        if first >= 0x80 or second >= 0x80:
                            first, second, self._clipped = min(first, 0x7F), min(second, 0x7F), self._clipped + 1
                        ticks.append(tick)
                        messages += bytes((running, first, second, port))
                    continue
                at += 1
                if status not in (_SYSEX, _ESCAPE, _META):
                    at += _SYSTEM_DATA_BYTES.get(status, 0)
                    tick += delta
                    continue
                meta = data[at] if status == _META else None
                size, start = _variable_length(data, at + (status == _META))
                at = start + size
                if at > end:
                    raise IndexError
                tick += delta
                if meta == _END_OF_TRACK:
                    track.is_ended = True
                    break
                if meta == _SET_TEMPO and size >= 3:
                    track.tempos.append((tick, int.from_bytes(data[start : start + 3], "big")))
                elif meta == _PORT and size:
                    port = data[start] & 0x7F
                elif status == _SYSEX and (part := self._drum_part(data[start:at])):
                    ticks.append(tick)
                    messages += bytes((DRUM_PART << 4 | part[0], part[1], 0, port))
        except IndexError:
            at, track.fault = good, "ends in the middle of an event"
        except ValueError as error:
            at, track.fault = good, str(error)
        track.events, track.tick = len(ticks) - before, tick
        return at

    def _drum_part(self, message: bytes) -> tuple[int, bool] | None:
        """A channel and whether it plays drums, where a system exclusive message, from its maker's byte on, says so."""
        if len(message) < 7:
            return None
        maker, address = message[0], message[2:]
        if maker == _ROLAND and address.startswith(_GS):
            self._is_gs = True
            part = address[3] & 0xF  # the tenth part comes first, as 0
            if address[3] >> 4 == 1 and address[4] == _GS_RHYTHM and len(message) > 7:
                return (9 if part == 0 else part - (part < 10)), address[5] != 0
        if maker == _YAMAHA and address.startswith(_XG) and address[2] < 16 and address[3] == _XG_PART_MODE:
            return address[2], address[4] != 0
        return None

    def events(self) -> Events:
        """All events as a table in order of time."""
        tick = np.array(self._ticks, np.int64)
        track = np.repeat(np.arange(len(self._tracks)), np.array([x.events for x in self._tracks], np.int64))
        status, first, second, port = np.frombuffer(self._messages, np.uint8).astype(np.int64).reshape(-1, 4).T
        channel = port << 4 | status & 0xF
        if self._kind == _INDEPENDENT:
            channel |= track << 11
        order = np.argsort(tick, kind="stable")
        return Events(
            tick[order],
            track[order],
            channel[order],
            status[order] >> 4,
            first[order],
            second[order],
            track_end=np.array([one.tick for one in self._tracks], np.int64),
            is_gs=self._is_gs,
        )

    def tempos(self) -> list[_Tempo]:
        """The song's changes of tempo in order of time: of any track, though at one tick the first track's is last."""
        changes = [(tick, -n, tempo) for n, track in enumerate(self._tracks) for tick, tempo in track.tempos]
        return [(tick, tempo) for tick, _, tempo in sorted(changes, key=lambda change: change[:2])]

    def mended(self) -> Mended:
        """What is odd about the file, and what of it could not be read."""
        odd, lost = [], []
        before = self._data[: self._header]
        if before and not before.startswith(b"RIFF"):
            odd.append(f"{len(before)} bytes stand before its header")
        if self._wrong_lengths:
            odd.append(f"{counted(self._wrong_lengths, 'track')} of another length than said")
        if self._clipped:
            odd.append(f"data bytes above 127 in {counted(self._clipped, 'event')}")
        if (there := len(self._tracks)) > self._count:
            odd.append(f"{counted(there, 'track')} where its header says {self._count}")
        elif there + self._foreign < self._count:
            lost.append(f"only {counted(there, 'track')} where its header says {self._count}")
        lost += [f"track {n + 1} {track.fault}" for n, track in enumerate(self._tracks) if track.fault][:3]
        return Mended(tuple(odd), tuple(lost))


def _variable_length(data: bytes, at: int) -> tuple[int, int]:
    """The number that stands at a place, seven bits in each byte, and the place after it."""
    value, place = 0, at
    while True:
        byte = data[place]
        value, place = value << 7 | byte & 0x7F, place + 1
        if value > _MAX_NUMBER:
            raise ValueError(f"has a number at byte {at} that does not end")
        if byte < 0x80:
            return value, place


def _clock(division: int, tempos: Sequence[_Tempo]) -> tuple[Clock, Beats | None]:
    """Ticks to seconds, in pretty_midi's arithmetic, and where the beats are, if time is divided by them.

    division is the header's: ticks to the quarter note or, if negative, SMPTE frames and ticks to the frame.
    """
    if division < 0:
        rate, ticks_per_frame = -(division >> 8), division & 0xFF
        if rate not in _SMPTE_RATES or not ticks_per_frame:
            raise ValueError(f"its header divides time into {rate} frames of {ticks_per_frame} ticks")
        return lambda ticks: ticks / (_SMPTE_RATES[rate] * ticks_per_frame), None
    if not division or not all(tempo for _, tempo in tempos):
        raise ValueError("it has a quarter note of 0 ticks or 0 microseconds")
    ticks, seconds_per_tick = [0], [60.0 / (120.0 * division)]
    for tick, tempo in tempos:
        scale = 60.0 / ((6e7 / tempo) * division)
        if tick == 0:
            seconds_per_tick = [scale]
        elif scale != seconds_per_tick[-1]:
            ticks.append(tick)
            seconds_per_tick.append(scale)
    start, scales = np.array(ticks), np.array(seconds_per_tick)
    start_s = np.concatenate([[0.0], np.cumsum(scales[:-1] * np.diff(start))])

    def seconds(times: _Floats) -> _Floats:
        tempo = start.searchsorted(times, "right") - 1
        result: _Floats = start_s[tempo] + scales[tempo] * (times - start[tempo])
        return result

    return seconds, Beats(start_s, scales * division)
