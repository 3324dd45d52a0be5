"""MIDI ports: by the real rtmidi on a JACK server of its own, and by one of ours where no system can be had."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any

import pytest

from notewave.cli.ports import MidiIn, Port, find_port, midi_ports
from notewave.errors import ArgumentError, ToolError

PATIENCE_S = 20.0


def until(happens: Callable[[], Any]) -> Any:
    """What something gives once it gives something."""
    end = time.monotonic() + PATIENCE_S
    while not (given := happens()):
        assert time.monotonic() < end
        time.sleep(0.01)
    return given


class Keyboard(list[list[int]]):
    """What was taken of a port, and whether its loss was told."""

    losses = 0

    def take(self, message: Sequence[int]) -> None:
        self.append(list(message))

    def lost(self) -> None:
        self.losses += 1


# The real rtmidi, on JACK.


@pytest.fixture(scope="module")
def jack() -> Iterator[Any]:
    """A JACK server, and the package rtmidi."""
    if sys.platform != "linux" or shutil.which("jackd") is None:
        pytest.skip("needs jackd")
    rtmidi = pytest.importorskip("rtmidi")
    if rtmidi.API_UNIX_JACK not in rtmidi.get_compiled_api():
        pytest.skip("needs an rtmidi that was built with JACK")
    name = f"notewave-test-{os.getpid()}"
    command = ["jackd", "-n", name, "-r", "-d", "dummy", "-r", "48000", "-p", "128"]
    with pytest.MonkeyPatch.context() as patch, subprocess.Popen(command, stdout=-3, stderr=-3) as server:
        patch.setenv("JACK_DEFAULT_SERVER", name)
        patch.setenv("JACK_NO_START_SERVER", "1")
        try:
            waits = ["jack_wait", "-s", name, "-w", "-t", "20"]
            if shutil.which("jack_wait") is None or subprocess.run(waits, capture_output=True, check=False).returncode:
                pytest.skip("jackd does not start here")
            yield rtmidi
        finally:
            server.terminate()


def keys(rtmidi: Any, name: str = "keys") -> Any:
    """A keyboard on JACK, with one port."""
    keyboard = rtmidi.MidiOut(rtmidi.API_UNIX_JACK, name=name)
    keyboard.open_virtual_port("out")
    return keyboard


def connected(keyboard: Any, heard: Keyboard) -> None:
    """Wait until what the keyboard sends is heard: JACK connects ports a moment after it says so."""
    number = itertools.count()

    def arrives() -> bool:
        probe = [0xB0, 3, next(number) % 128]
        keyboard.send_message(probe)
        end = time.monotonic() + 0.5
        while time.monotonic() < end and probe not in heard:
            time.sleep(0.01)
        return probe in heard

    until(arrives)
    heard.clear()


def test_ports_are_listed_found_and_heard(jack: Any) -> None:
    keyboard, heard = keys(jack), Keyboard()
    try:
        port = find_port("KEYS")
        assert port == find_port(port.name) == find_port(port.title) == find_port(None)
        assert port == find_port(str(midi_ports().index(port)))
        assert port.title.endswith(":out, Jack")
        with MidiIn(port, heard.take, heard.lost) as opened:
            connected(keyboard, heard)
            sent = [[0x90, 60, 100], [0xB0, 64, 127], [0xC3, 5], [0x80, 60, 0], [0xE0, 0, 64], [0xFF]]
            for message in [*sent[:2], [0xF0, 1, 2, 3, 0xF7], [0xF8], [0xFE], *sent[2:]]:
                keyboard.send_message(message)
            until(lambda: len(heard) == len(sent))
            assert heard == sent
            assert opened.check() is None
    finally:
        keyboard.delete()


def test_a_port_that_goes_and_comes_back(jack: Any) -> None:
    keyboard, heard = keys(jack), Keyboard()
    with MidiIn(find_port("keys"), heard.take, heard.lost) as opened:
        keyboard.delete()
        assert "went away; its notes were ended" in until(opened.check)
        assert heard.losses == 1
        assert opened.check() is None
        keyboard = keys(jack)
        try:
            assert until(opened.check).endswith("is back.")
            assert opened.check() is None
            connected(keyboard, heard)
            keyboard.send_message([0x90, 60, 100])
            until(lambda: heard == [[0x90, 60, 100]])
        finally:
            keyboard.delete()
    assert heard.losses == 1


def test_a_port_of_our_own(jack: Any) -> None:
    heard, other = Keyboard(), jack.MidiOut(jack.API_UNIX_JACK, name="other")
    try:
        with MidiIn(find_port("virtual"), heard.take, heard.lost) as opened:
            (place,) = [place for place, name in enumerate(other.get_ports()) if name == "notewave:notewave"]
            other.open_port(place)
            connected(other, heard)
            other.send_message([0x91, 61, 1])
            until(lambda: heard == [[0x91, 61, 1]])
            assert opened.check() is None
    finally:
        other.delete()


def test_a_flood_is_ended_with_the_port(jack: Any) -> None:
    keyboard, heard = keys(jack), Keyboard()
    try:
        for _ in range(5):
            heard.clear()
            with MidiIn(find_port("keys"), heard.take, heard.lost):
                connected(keyboard, heard)
                for number in range(400):
                    keyboard.send_message([0x90, number % 128, 100])
                until(lambda: heard)
    finally:
        keyboard.delete()


def test_names_that_are_not_clear(jack: Any) -> None:
    one, two = keys(jack, "keys one"), keys(jack, "keys two")
    try:
        with pytest.raises(
            ArgumentError, match=r"there is no MIDI port 'drums'. Name one of these .*: 0 keys.*; 1 keys"
        ):
            find_port("drums")
        with pytest.raises(ArgumentError, match="'keys' is 2 MIDI ports"):
            find_port("keys")
        with pytest.raises(ToolError, match=r"not clear which MIDI port .* 0 keys .*; 1 keys.*--midi-in virtual"):
            find_port(None)
    finally:
        one.delete()
        two.delete()
    with pytest.raises(ToolError, match=r"no MIDI port to listen to. Connect a keyboard; --midi-in virtual"):
        find_port("keys")


# What JACK does not do, by an rtmidi of ours at the border.


class Error(Exception):
    """Of any kind of rtmidi's."""


class System:
    """A MIDI system of a computer's: its ports by name."""

    def __init__(self, *names: str) -> None:
        self.names = list(names)
        self.is_broken = False
        self.open: list[MidiSource] = []


class MidiSource:
    """As rtmidi.MidiIn."""

    systems: dict[int, System]

    def __init__(self, system: int, name: str) -> None:
        assert name == "notewave"
        self.system = self.systems[system]
        self.queue: deque[tuple[Any, float]] = deque()
        if self.system.is_broken:
            raise Error("no such system")

    def ignore_types(self, sysex: bool, timing: bool, active_sense: bool) -> None:
        assert sysex
        assert timing
        assert active_sense

    def get_ports(self) -> list[str]:
        return list(self.system.names)

    def get_message(self) -> tuple[Any, float] | None:
        return self.queue.popleft() if self.queue else None

    def open_port(self, place: int, name: str) -> None:
        if self.system.names[place].startswith("busy"):
            raise Error("Device or resource busy")
        self.system.open.append(self)

    def open_virtual_port(self, name: str) -> None:
        raise NotImplementedError("Virtual ports are not supported by the Windows MultiMedia API.")

    def close_port(self) -> None:
        if self in self.system.open:
            self.system.open.remove(self)

    def delete(self) -> None:
        self.close_port()


ALSA, JACK = 2, 3


@pytest.fixture
def systems(monkeypatch: pytest.MonkeyPatch) -> dict[int, System]:
    """ALSA's and JACK's ports, as a package rtmidi has them."""
    systems = {ALSA: System(), JACK: System()}
    MidiSource.systems = systems
    module: Any = ModuleType("rtmidi")
    module.MidiIn, module.RtMidiError = MidiSource, Error
    module.API_LINUX_ALSA, module.API_UNIX_JACK, module.API_RTMIDI_DUMMY = ALSA, JACK, 9
    module.get_compiled_api = lambda: [JACK, 9, ALSA]
    module.get_api_display_name = {ALSA: "ALSA", JACK: "Jack"}.get
    monkeypatch.setitem(sys.modules, "rtmidi", module)
    monkeypatch.delenv("JACK_DEFAULT_SERVER", raising=False)
    return systems


def names() -> list[str]:
    return [port.title for port in midi_ports()]


def test_systems_that_are_listed(systems: dict[int, System], monkeypatch: pytest.MonkeyPatch) -> None:
    systems[ALSA].names, systems[JACK].names = ["keys 20:0"], ["a2j:keys"]
    assert names() == ["keys 20:0, ALSA"]
    systems[ALSA].is_broken = True
    assert names() == ["a2j:keys, Jack"]
    systems[ALSA].is_broken = False
    monkeypatch.setenv("JACK_DEFAULT_SERVER", "default")
    assert names() == ["keys 20:0, ALSA", "a2j:keys, Jack"]
    systems[ALSA].is_broken = systems[JACK].is_broken = True
    with pytest.raises(ToolError, match=r"no MIDI system starts \(no such system\). On Linux load ALSA's sequencer"):
        names()


def test_alsa_s_own_port_is_no_keyboard(systems: dict[int, System]) -> None:
    systems[ALSA].names = ["Midi Through:Midi Through Port-0 14:0", "keys:keys MIDI 1 20:0"]
    assert find_port(None).name == "keys:keys MIDI 1 20:0"
    assert find_port("through").name.startswith("Midi Through")


def test_a_keyboard_that_comes_back_at_another_address(systems: dict[int, System]) -> None:
    system, heard = systems[ALSA], Keyboard()
    system.names = ["keys:keys MIDI 1 20:0"]
    with MidiIn(find_port(None), heard.take, heard.lost) as opened:
        system.names = ["pads:pads MIDI 1 20:0"]
        news = "keys:keys MIDI 1 20:0, ALSA went away; its notes were ended. It is opened again when it is back."
        assert opened.check() == news
        assert not system.open
        system.is_broken = True
        assert opened.check() is None
        system.is_broken = False
        system.names.append("keys:keys MIDI 1 24:0")
        assert opened.check() == "keys:keys MIDI 1 20:0, ALSA is back."
        assert len(system.open) == 1
        assert opened.check() is None
    assert heard.losses == 1
    assert not system.open


def test_ports_that_cannot_be_opened(systems: dict[int, System]) -> None:
    heard = Keyboard()
    systems[ALSA].names = ["busy"]
    with pytest.raises(ToolError, match=r"busy, ALSA cannot be listened to: Device or resource busy. Close what else"):
        MidiIn(find_port(None), heard.take, heard.lost)
    with pytest.raises(ToolError, match="cannot be listened to: Virtual ports are not supported"):
        MidiIn(find_port("virtual"), heard.take, heard.lost)
    with pytest.raises(ToolError, match="keys, ALSA cannot be listened to: it has gone"):
        MidiIn(Port("keys", ALSA, "ALSA"), heard.take, heard.lost)


def test_garbage_is_dropped(systems: dict[int, System]) -> None:
    """Whatever comes, later notes are heard."""
    heard = Keyboard()
    systems[ALSA].names = ["keys"]
    with MidiIn(find_port(None), heard.take, heard.lost) as opened:
        (source,) = systems[ALSA].open
        garbage: list[Any] = [[], [0x90], [0x90, 60], [60, 100], [0xF0, *range(100)], [0xF7], [0xF0] * 100_000]
        garbage += [[300, 1, 2], [-1], ["x"], [0x90, 0xF4, 100], [0xF4, 0xF5, 0xFD], [0xF0, 0x90, 1, 1], [1] * 100_000]
        for data in [*garbage, [0x90, 60, 100, 0x80, 60, 0]]:
            source.queue.append((data, 0.0))
        until(lambda: len(heard) >= 2)
        assert heard == [[0x90, 60, 100], [0x80, 60, 0]]
        assert opened.check() is None


def test_what_fails_behind_the_port_is_told(systems: dict[int, System]) -> None:
    def fail(message: Sequence[int]) -> None:
        raise ToolError("the voice ended")

    systems[ALSA].names = ["keys"]
    with MidiIn(find_port(None), fail, Keyboard().lost) as opened:
        systems[ALSA].open[0].queue.append(([0x90, 60, 100], 0.0))
        with pytest.raises(ToolError, match="the voice ended"):
            until(opened.check)


@pytest.mark.parametrize(("module", "package"), [("rtmidi", "python-rtmidi"), ("mido", "mido")])
def test_packages_that_are_missing(
    systems: dict[int, System], module: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ToolError, match=rf"the package {package} is not installed. Install notewave\[live\]."):
        midi_ports()


def test_the_command_s_live_play_imports_no_package_of_its_own() -> None:
    program = (
        "import sys, notewave.cli.live; sys.exit(' '.join({'rtmidi', 'mido', 'sounddevice'} & set(sys.modules)) or 0)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
