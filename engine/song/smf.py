"""Standard MIDI Files: a file's bytes to the events of its channels, and a clock for their ticks.

A file is taken apart here because its bytes cannot be trusted: every length is checked, and whatever makes no
sound (key signatures, texts, chunks of other programs) is passed over, however odd.

Shapes: E events.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NOTE_OFF, NOTE_ON, CONTROL, PROGRAM, BEND = 0x8, 0x9, 0xB, 0xC, 0xE  # kinds: the upper half of a status byte
KEPT = frozenset({NOTE_OFF, NOTE_ON, CONTROL, PROGRAM, BEND})  # those that are kept

_Floats = NDArray[np.float64]
_Ints = NDArray[np.int64]
_Tempo = tuple[int, int]  # tick, microseconds to the quarter note
Clock = Callable[[_Floats], _Floats]  # ticks to seconds

_ONE_DATA_BYTE = 0xC0 >> 5  # programs and the pressure of channels; other channel events have two
_SYSTEM_DATA_BYTES = {0xF1: 1, 0xF2: 2, 0xF3: 1}  # the others have none
_SYSEX, _ESCAPE, _META = 0xF0, 0xF7, 0xFF
_SET_TEMPO = 0x51  # a meta event's type
_SMPTE_RATES = {24: 24.0, 25: 25.0, 29: 30000 / 1001, 30: 30.0}  # frames a second


@dataclass(frozen=True, eq=False)
class Events:
    """The events of all tracks' channels, int64 [E] each, in order of time; at one tick, track by track."""

    tick: _Ints
    track: _Ints
    channel: _Ints  # 0..15
    kind: _Ints  # one of KEPT
    first: _Ints  # data byte: a note's pitch, a controller, a program
    second: _Ints  # data byte: a note's velocity, a controller's value; a program has none, its first stands again


def parse(data: bytes) -> tuple[Events, Clock]:
    """A file's events and the clock of their ticks. Raises ValueError for what is no such file, or a damaged one."""
    if data[:4] != b"MThd" or len(data) < 14:
        raise ValueError("it does not begin with a MIDI header")
    count, division = int.from_bytes(data[10:12], "big"), int.from_bytes(data[12:14], "big", signed=True)
    end = 8 + int.from_bytes(data[4:8], "big")
    ticks, messages = array("q"), bytearray()
    sizes: list[int] = []  # how many events each track has
    tempos: list[_Tempo] = []
    while len(sizes) < count:
        kind, start = data[end : end + 4], end + 8
        end = start + int.from_bytes(data[end + 4 : start], "big")
        if len(data) < max(start, end):
            raise ValueError(f"it breaks off before the end of track {len(sizes) + 1} of {count}")
        if kind == b"MTrk":
            before, changes = len(ticks), _read_track(data[start:end], ticks, messages)
            tempos = tempos if sizes else changes  # only the first track's count, as in pretty_midi
            sizes.append(len(ticks) - before)
    return _events(ticks, messages, sizes), _clock(division, tempos)


def _read_track(track: bytes, ticks: array[int], messages: bytearray) -> list[_Tempo]:
    """Add a track's events: the tick of each, and its status and two data bytes. Returns its changes of tempo."""
    tempos: list[_Tempo] = []
    at = tick = running = 0
    try:
        while at < len(track):
            delta = track[at]
            at += 1
            if delta >= 0x80:  # most take one byte, and a call for each would take as long as all the rest
                delta, at = _variable_length(track, at - 1)
            tick += delta
            status = track[at]
            if status < 0xF0:  # a channel's event; one that begins with a data byte repeats the last one's status
                if status >= 0x80:
                    running, at = status, at + 1
                last = at if running >> 5 == _ONE_DATA_BYTE else at + 1
                first, second = track[at], track[last]
                if not running or first >= 0x80 or second >= 0x80:
                    raise ValueError(f"track byte {at} stands where no event has one")
                at = last + 1
                if running >> 4 in KEPT:
                    ticks.append(tick)
                    messages += bytes((running, first, second))
                continue
            at += 1
            if status in (_SYSEX, _ESCAPE, _META):
                meta = track[at] if status == _META else None
                size, start = _variable_length(track, at + (status == _META))
                at = start + size
                if meta == _SET_TEMPO and size >= 3:
                    tempos.append((tick, int.from_bytes(track[start : start + 3], "big")))
            else:
                at += _SYSTEM_DATA_BYTES.get(status, 0)
        if at > len(track):
            raise IndexError
    except IndexError:
        raise ValueError("a track ends in the middle of an event") from None
    return tempos


def _variable_length(track: bytes, at: int) -> tuple[int, int]:
    """The number that stands at a place in one to four bytes, seven bits in each, and the place after it."""
    value = 0
    for place in range(at, at + 4):
        value = value << 7 | track[place] & 0x7F
        if track[place] < 0x80:
            return value, place + 1
    raise ValueError(f"the number at track byte {at} does not end")


def _events(ticks: array[int], messages: bytearray, sizes: Sequence[int]) -> Events:
    """Events [E], read track by track, as a table in order of time."""
    tick = np.array(ticks, np.int64)
    track = np.repeat(np.arange(len(sizes)), np.array(sizes, np.int64))
    status, first, second = np.array(messages, np.int64).reshape(-1, 3).T
    order = np.argsort(tick, kind="stable")
    return Events(*(column[order] for column in (tick, track, status & 0xF, status >> 4, first, second)))


def _clock(division: int, tempos: Sequence[_Tempo]) -> Clock:
    """Ticks to seconds, in pretty_midi's arithmetic.

    division is the header's: ticks to the quarter note or, if negative, SMPTE frames and ticks to the frame.
    """
    if division < 0:
        rate, ticks_per_frame = -(division >> 8), division & 0xFF
        if rate not in _SMPTE_RATES or not ticks_per_frame:
            raise ValueError(f"its header divides time into {rate} frames of {ticks_per_frame} ticks")
        return lambda ticks: ticks / (_SMPTE_RATES[rate] * ticks_per_frame)
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

    return seconds
