"""MIDI ports, on which keyboards are played: by python-rtmidi and mido, neither of which rendering needs."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from notewave.checks import shown
from notewave.errors import ToolError
from notewave.sound.card import pick

VIRTUAL = "virtual"  # in the place of a port: one of our own, that others connect to
CLIENT = "notewave"  # our name among those who have ports
MAX_BYTES = 256  # of what comes at once that are looked at: who sends more sends no notes
POLL_SECONDS = 0.001  # between two looks for messages
_JACK_SERVER = "JACK_DEFAULT_SERVER"  # names one, so there is one
_ADDRESS = re.compile(r" \d+:\d+$")  # ALSA's, in the end of a name: another one when a keyboard comes back
_THROUGH = "Midi Through"  # ALSA's own port, nobody's keyboard
_SYSEX = (0xF0, 0xF7)


@dataclass(frozen=True)
class Port:
    """A port that MIDI comes from."""

    name: str  # as its system has it
    system: int  # rtmidi's number of that
    system_name: str
    is_virtual: bool = False

    @property
    def title(self) -> str:
        """Its name, for whoever looks at it."""
        return f"{self.name}, {self.system_name}"


class MidiIn:
    """An open port, whose messages are given away in a thread of its own, one at a time; a context.

    A port that goes away is found out by ``check`` and opened again when it is back.

    rtmidi is asked for messages. Given a callback, it would call from a thread of the system's, for which closing a
    port waits while it holds Python's lock, or which JACK ends while it waits for that: either way all would stop.
    """

    def __init__(self, port: Port, take: Callable[[Sequence[int]], None], lost: Callable[[], None]) -> None:
        """take: is given the bytes of each message but sysex. lost: is called when the port went away.

        Neither is called while the other is. Raises ToolError where the port cannot be opened.
        """
        self.port = port
        self._take, self._lost = take, lost
        self._failure: Exception | None = None
        self._rtmidi, self._parser = _load()
        self._input: Any | None = None
        if not self._open():
            raise ToolError(f"{shown(port.title)} cannot be listened to: it has gone. Connect it and try again.")

    def __enter__(self) -> MidiIn:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def check(self) -> str | None:
        """What there is to say of the port: that it went away, or is back; to be asked once a second.

        A port that comes back between two calls is missed where its system does not reconnect it. Raises what ``take``
        raised.
        """
        if self._failure is not None:
            raise self._failure
        if self.port.is_virtual:
            return None
        if self._input is not None:
            with contextlib.suppress(self._rtmidi.RtMidiError):
                if _place(self.port, self._input.get_ports()) is not None:
                    return None
            self._close()
            self._lost()
            return f"{self.port.title} went away; its notes were ended. It is opened again when it is back."
        with contextlib.suppress(ToolError):
            self._open()
        return None if self._input is None else f"{self.port.title} is back."

    def _open(self) -> bool:
        """Listen; False where the port is not there. Raises ToolError where it cannot be opened."""
        source = self._source()
        if source is None:
            return False
        self._input, self._closing = source, threading.Event()
        self._thread = threading.Thread(target=self._listen, args=(source, self._closing), daemon=True)
        self._thread.start()
        return True

    def _source(self) -> Any | None:
        """rtmidi's object, open; None where the port is not there. Raises ToolError where it cannot be opened."""
        source = None
        try:
            with _silent():
                source = self._rtmidi.MidiIn(self.port.system, name=CLIENT)
            source.ignore_types(sysex=True, timing=True, active_sense=True)
            if self.port.is_virtual:
                source.open_virtual_port(self.port.name)
                return source
            place = _place(self.port, source.get_ports())
            if place is not None:
                source.open_port(place, name="in")
                return source
        except (self._rtmidi.RtMidiError, NotImplementedError) as error:
            if source is not None:
                source.delete()
            raise ToolError(
                f"{shown(self.port.title)} cannot be listened to: {shown(error)}. Close what else listens to it, or "
                "name another port."
            ) from error
        source.delete()
        return None

    def _close(self) -> None:
        source, self._input = self._input, None
        if source is not None:
            self._closing.set()
            self._thread.join()
            with contextlib.suppress(self._rtmidi.RtMidiError):
                source.close_port()
                source.delete()

    def _listen(self, source: Any, closing: threading.Event) -> None:
        """Give away what comes until the port is closed, or something fails, which ``check`` tells."""
        try:
            while not closing.wait(POLL_SECONDS):
                while not closing.is_set() and (event := source.get_message()) is not None:
                    for message in self._messages(event[0]):
                        self._take(message)
        except Exception as error:
            self._failure = error

    def _messages(self, data: Sequence[int]) -> list[list[int]]:
        """The bytes of each whole message in what came; of garbage none."""
        if not data or data[0] in _SYSEX:
            return []
        try:
            return [message.bytes() for message in self._parser(data[:MAX_BYTES]) if message.type != "sysex"]
        except (ValueError, TypeError, LookupError):
            return []


def midi_ports() -> list[Port]:
    """All ports that MIDI comes from. Raises ToolError where a package is missing, or no MIDI system starts."""
    rtmidi, _ = _load()
    return [
        Port(name, system, _system_name(rtmidi, system))
        for system, source in _systems(rtmidi)
        for name in source.get_ports()
    ]


def find_port(wanted: str | None) -> Port:
    """The port of a name, a part of one, a number in ``midi_ports``, or VIRTUAL; None is the only keyboard.

    Raises ArgumentError where there is none such, ToolError where there is none at all or, for None, several.
    """
    if wanted == VIRTUAL:
        rtmidi, _ = _load()
        system = next(system for system, _ in _systems(rtmidi))
        return Port(CLIENT, system, _system_name(rtmidi, system), is_virtual=True)
    ports = midi_ports()
    instead = f"--midi-in {VIRTUAL} opens one that other programs connect to."
    if not ports:
        raise ToolError(f"There is no MIDI port to listen to. Connect a keyboard; {instead}")
    if wanted is not None:
        return ports[pick(wanted, {number: port.title for number, port in enumerate(ports)}, "MIDI port")]
    keyboards = [port for port in ports if not port.name.startswith(_THROUGH)]
    if len(keyboards) == 1:
        return keyboards[0]
    listed = "; ".join(f"{number} {shown(port.title)}" for number, port in enumerate(ports))
    raise ToolError(f"It is not clear which MIDI port to listen to: {listed}. Name one by --midi-in; {instead}")


def _systems(rtmidi: Any) -> Iterator[tuple[int, Any]]:
    """Each MIDI system that starts, with an input on it that is closed afterwards: the computer's own, then JACK.

    JACK is tried where its server is named by the environment, or there is nothing else.
    Raises ToolError where none starts.
    """
    started, reason = 0, "there is none"
    for system in sorted(rtmidi.get_compiled_api(), key=lambda system: system == rtmidi.API_UNIX_JACK):
        is_wanted = system != rtmidi.API_UNIX_JACK or not started or _JACK_SERVER in os.environ
        if system == rtmidi.API_RTMIDI_DUMMY or not is_wanted:
            continue
        try:
            with _silent():
                source = rtmidi.MidiIn(system, name=CLIENT)
        except rtmidi.RtMidiError as error:
            reason = str(error)
            continue
        started += 1
        try:
            yield system, source
        finally:
            source.delete()
    if not started:
        raise ToolError(
            f"MIDI cannot be heard: no MIDI system starts ({shown(reason)}). On Linux load ALSA's sequencer (modprobe "
            "snd-seq), or start a JACK server."
        )


def _system_name(rtmidi: Any, system: int) -> str:
    return str(rtmidi.get_api_display_name(system))


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Let nothing be written to standard error: the libraries of ALSA and JACK do, at length, where neither runs."""
    sys.stderr.flush()
    before = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:  # noqa: PTH123
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)


def _place(port: Port, names: Sequence[str]) -> int | None:
    """Where a port stands among the names that there are; one that came back may have another address."""
    if port.name in names:
        return names.index(port.name)
    stem = _ADDRESS.sub("", port.name)
    return next((place for place, name in enumerate(names) if _ADDRESS.sub("", name) == stem), None)


def _load() -> tuple[Any, Any]:
    """The package rtmidi, and mido's parser. Raises ToolError where one of them is missing."""
    try:
        import rtmidi
        from mido import Parser
    except ImportError as error:
        package = "mido" if "mido" in (error.name or "") else "python-rtmidi"
        raise ToolError(
            f"MIDI cannot be heard: the package {package} is not installed. Install notewave[live]."
        ) from error
    return rtmidi, Parser
