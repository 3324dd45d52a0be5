"""A keyboard's messages to notes that sound: which channel sings which programs, what pedals hold, what resets end.

Pure: no clock, no port, no thread; whoever has several threads lets one in at a time.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

from notewave.checks import is_integer, quoted
from notewave.errors import ArgumentError

CHANNELS = 16
DRUM_CHANNEL = 9  # from 0 on: the tenth
KEYS = 128
PROGRAMS = 128
PEDAL_DOWN = 64  # a pedal's value from which on it is down
_NOTE_OFF, _NOTE_ON, _CONTROL, _PROGRAM, _RESET = 0x80, 0x90, 0xB0, 0xC0, 0xFF
_PEDAL, _ALL_SOUND_OFF, _RESET_CONTROLLERS, _ALL_NOTES_OFF = 64, 120, 121, 123  # controllers; the last and all above
_LENGTHS = {_NOTE_OFF: 3, _NOTE_ON: 3, _CONTROL: 3, _PROGRAM: 2}  # bytes of the messages that are heeded

_EVERY, _DRUMS = "*", "drums"
_PART = re.compile(r"(?P<programs>\w+(?:\+\w+)*)(?::(?P<low>\d*)(?P<dots>\.\.)?(?P<high>\d*))?", re.ASCII)
_FORM = (
    "Write CHANNEL=PROGRAM, as 1=0; 1=0+48 sings both at once, 1=32:..59,0:60.. the first up to key 59 and the other "
    "from 60 on. Channels are 1 to 16 or *, programs 0 to 127 or drums, keys 0 to 127."
)


class Live(Protocol):
    """What notes sound on: the part of ``notewave.Live`` that is played here."""

    def note_on(self, pitch: int, velocity: int = ..., program: int = ..., drum: bool = ...) -> None:
        """Begin a note: key and velocity as MIDI has them."""

    def note_off(self, pitch: int, program: int = ..., drum: bool = ...) -> None:
        """End it."""

    def all_off(self) -> None:
        """End all notes."""


class Instrument(NamedTuple):
    """What sings a note."""

    program: int  # General MIDI's, from 0 on; of drums 0
    is_drum: bool = False


DRUMS = Instrument(0, True)


class Part(NamedTuple):
    """Instruments that sing together, and the keys on which they do."""

    instruments: tuple[Instrument, ...]
    low: int = 0
    high: int = KEYS - 1


class Router:
    """Turns messages of 16 channels into notes on a Live.

    Channel 10 is the drums; a program change is followed, and a key that goes up ends the note of the program on which
    it began. A pedal holds the notes of its own channel alone. Channels that share a program do not end each other's
    notes: the last that holds a key ends it. A note that sounds ends before the same key begins it anew.
    """

    def __init__(self, live: Live, program: int = 0, maps: Mapping[int, Sequence[Part]] | None = None) -> None:
        """program: that of the channels at first. maps: as ``parse_maps`` gives them; those channels keep theirs.

        Raises ArgumentError for what is no program.
        """
        if not is_integer(program, 0, PROGRAMS - 1):
            raise ArgumentError(
                f"the program is {quoted(program)}; it must be a whole number from 0 to {PROGRAMS - 1}."
            )
        self._live, self._program, self._maps = live, program, dict(maps or {})
        self._held: dict[tuple[Instrument, int], set[int]] = {}  # note that sounds -> the channels that hold it
        self._channels = [_Channel(self._first(channel)) for channel in range(CHANNELS)]

    def take(self, message: Sequence[int]) -> None:
        """Heed the bytes of one message; those of no message, or of one that says nothing here, do nothing."""
        if not message:
            return
        if message[0] == _RESET:
            self.reset()
            return
        kind, channel = message[0] & 0xF0, message[0] & 0x0F
        if len(message) != _LENGTHS.get(kind) or not all(0 <= value < 128 for value in message[1:]):
            return
        if kind == _PROGRAM:
            if channel not in self._maps and channel != DRUM_CHANNEL:
                self._channels[channel].parts = (Part((Instrument(message[1]),)),)
        elif kind == _CONTROL:
            self._control(channel, message[1], message[2])
        elif kind == _NOTE_ON and message[2] > 0:
            self._press(channel, message[1], message[2])
        else:
            self._let_go(channel, message[1])

    def all_off(self) -> None:
        """End all notes and let all pedals go, as when the keyboard is gone."""
        self._held.clear()
        for channel in self._channels:
            channel.forget()
        self._live.all_off()

    def reset(self) -> None:
        """``all_off``, and each channel's program as at first."""
        self.all_off()
        for number, channel in enumerate(self._channels):
            channel.parts = self._first(number)

    def _first(self, channel: int) -> tuple[Part, ...]:
        instrument = DRUMS if channel == DRUM_CHANNEL else Instrument(self._program)
        return tuple(self._maps.get(channel, [Part((instrument,))]))

    def _press(self, channel: int, key: int, velocity: int) -> None:
        state = self._channels[channel]
        self._end(channel, [key])  # under the pedal, or where its end was lost
        instruments = {one: None for part in state.parts if part.low <= key <= part.high for one in part.instruments}
        for instrument in instruments:
            holders = self._held.setdefault((instrument, key), set())
            if holders:
                self._live.note_off(key, program=instrument.program, drum=instrument.is_drum)
            holders.add(channel)
            self._live.note_on(key, velocity, program=instrument.program, drum=instrument.is_drum)
        if instruments:
            state.sounding[key] = tuple(instruments)

    def _let_go(self, channel: int, key: int) -> None:
        state = self._channels[channel]
        if state.has_pedal and key in state.sounding:
            state.under_pedal.add(key)
        else:
            self._end(channel, [key])

    def _end(self, channel: int, keys: Iterable[int]) -> None:
        """End a channel's notes, but those that other channels hold."""
        state = self._channels[channel]
        for key in keys:
            state.under_pedal.discard(key)
            for instrument in state.sounding.pop(key, ()):
                holders = self._held[instrument, key]
                holders.remove(channel)
                if not holders:
                    del self._held[instrument, key]
                    self._live.note_off(key, program=instrument.program, drum=instrument.is_drum)

    def _control(self, channel: int, controller: int, value: int) -> None:
        state = self._channels[channel]
        if controller == _PEDAL:
            self._move_pedal(channel, value >= PEDAL_DOWN)
        elif controller == _ALL_SOUND_OFF:
            self._end(channel, list(state.sounding))
        elif controller == _RESET_CONTROLLERS:
            self._move_pedal(channel, False)
        elif controller >= _ALL_NOTES_OFF:  # as if all keys went up: the pedal holds on
            for key in list(state.sounding):
                self._let_go(channel, key)

    def _move_pedal(self, channel: int, is_down: bool) -> None:
        state = self._channels[channel]
        state.has_pedal = is_down
        if not is_down:
            self._end(channel, list(state.under_pedal))


class _Channel:
    """A channel's state."""

    def __init__(self, parts: tuple[Part, ...]) -> None:
        self.parts = parts
        self.sounding: dict[int, tuple[Instrument, ...]] = {}  # key -> what it began on
        self.under_pedal: set[int] = set()  # keys of those that are up already
        self.has_pedal = False

    def forget(self) -> None:
        """No key and no pedal is down."""
        self.sounding.clear()
        self.under_pedal.clear()
        self.has_pedal = False


def check_program(program: int) -> None:
    """Raise ArgumentError for what is none of General MIDI's programs, from 0 on."""
    if not is_integer(program, 0, PROGRAMS - 1):
        raise ArgumentError(f"the program is {quoted(program)}; it must be a whole number from 0 to {PROGRAMS - 1}.")


def parse_maps(texts: Iterable[str]) -> dict[int, tuple[Part, ...]]:
    """Texts such as "1=0+48" or "1=32:..59,0:60.." to the parts of each channel that they name, channels from 0 on.

    "*" is each channel that no other text names, but the drums'. Raises ArgumentError for what has not that form, and
    for a channel that is named twice.
    """
    maps: dict[int, tuple[Part, ...]] = {}
    every: tuple[Part, ...] | None = None
    for text in texts:
        name, equals, parts = text.partition("=")
        if not equals:
            raise _refused(text, "it has no =")
        parsed = tuple(_parse_part(text, part) for part in parts.split(","))
        channel = None if name == _EVERY else _number(text, name, 1, CHANNELS, "channel") - 1
        if (channel in maps) or (channel is None and every is not None):
            raise _refused(text, f"channel {name} is mapped twice")
        if channel is None:
            every = parsed
        else:
            maps[channel] = parsed
    if every is not None:
        maps = {channel: every for channel in range(CHANNELS) if channel != DRUM_CHANNEL} | maps
    return maps


def _parse_part(text: str, part: str) -> Part:
    found = _PART.fullmatch(part)
    if found is None:
        raise _refused(text, f"{quoted(part)} is no programs with their keys")
    instruments = tuple(
        DRUMS if name == _DRUMS else Instrument(_number(text, name, 0, PROGRAMS - 1, "program"))
        for name in found["programs"].split("+")
    )
    if found["low"] is None:
        return Part(instruments)
    if not found["dots"]:  # the pattern lets digits stand in either place
        low = high = _number(text, found["low"] + found["high"], 0, KEYS - 1, "key")
    else:
        low = _number(text, found["low"] or "0", 0, KEYS - 1, "key")
        high = _number(text, found["high"] or str(KEYS - 1), 0, KEYS - 1, "key")
    if low > high:
        raise _refused(text, f"its keys {low}..{high} are none")
    return Part(instruments, low, high)


def _number(text: str, digits: str, low: int, high: int, what: str) -> int:
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 3 and low <= int(digits) <= high):
        raise _refused(text, f"{quoted(digits)} is no {what} from {low} to {high}")
    return int(digits)


def _refused(text: str, reason: str) -> ArgumentError:
    return ArgumentError(f"the map {quoted(text)} cannot be followed: {reason}. {_FORM}")
