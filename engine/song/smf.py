"""Standard MIDI Files: a file's bytes to the events of its tracks, and a clock for their ticks.

A file is taken apart here because its bytes cannot be trusted: every length is checked, and whatever makes no
sound (key signatures, texts, chunks of other programs) is passed over, however odd.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Event = tuple[int, int, int, int]  # tick, status byte, data bytes
_Tempo = tuple[int, int]  # tick, microseconds to the quarter note
_Floats = NDArray[np.float64]
Clock = Callable[[_Floats], _Floats]  # a song's own times to seconds

MESSAGES = {  # by the upper half of the status byte: mido's name
    0x8: "note_off",
    0x9: "note_on",
    0xB: "control_change",
    0xC: "program_change",
    0xE: "pitchwheel",
}
_SYSTEM_DATA_BYTES = {0xF1: 1, 0xF2: 2, 0xF3: 1}  # the others have none
_SYSEX, _ESCAPE, _META = 0xF0, 0xF7, 0xFF
_SET_TEMPO = 0x51  # a meta event's type
_SMPTE_RATES = {24: 24.0, 25: 25.0, 29: 30000 / 1001, 30: 30.0}  # frames a second


def parse(data: bytes) -> tuple[list[list[Event]], Clock]:
    """The events of a file's tracks and the clock of their ticks. Raises ValueError for what is damaged."""
    if data[:4] != b"MThd" or len(data) < 14:
        raise ValueError("it does not begin with a MIDI header")
    count, division = int.from_bytes(data[10:12], "big"), int.from_bytes(data[12:14], "big", signed=True)
    end = 8 + int.from_bytes(data[4:8], "big")
    tracks: list[list[Event]] = []
    tempos: list[_Tempo] = []
    while len(tracks) < count:
        kind, start = data[end : end + 4], end + 8
        end = start + int.from_bytes(data[end + 4 : start], "big")
        if len(data) < max(start, end):
            raise ValueError(f"it breaks off before the end of track {len(tracks) + 1} of {count}")
        if kind == b"MTrk":
            events, changes = _events(data[start:end])
            tempos = tempos if tracks else changes  # only the first track's count, as in pretty_midi
            tracks.append(events)
    return tracks, _clock(division, tempos)


def _events(track: bytes) -> tuple[list[Event], list[_Tempo]]:
    """A track's notes, programs, controllers and pitch bends, and its changes of tempo."""
    events: list[Event] = []
    tempos: list[_Tempo] = []
    at = tick = running = 0
    try:
        while at < len(track):
            delta, at = _variable_length(track, at)
            tick += delta
            status = track[at]
            at += status >= 0x80
            if status < 0xF0:  # a channel's event; one that begins with a data byte repeats the last one's status
                running = status if status >= 0x80 else running
                size = 1 if running >> 4 in (0xC, 0xD) else 2
                first, second = track[at], track[at + size - 1]
                if not running or first >= 0x80 or second >= 0x80:
                    raise ValueError(f"track byte {at} stands where no event has one")
                at += size
                if running >> 4 in MESSAGES:
                    events.append((tick, running, first, second))
            elif status in (_SYSEX, _ESCAPE, _META):
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
    return events, tempos


def _variable_length(track: bytes, at: int) -> tuple[int, int]:
    """The number that stands at a place in one to four bytes, seven bits in each, and the place after it."""
    value = 0
    for place in range(at, at + 4):
        value = value << 7 | track[place] & 0x7F
        if track[place] < 0x80:
            return value, place + 1
    raise ValueError(f"the number at track byte {at} does not end")


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
