"""Sound cards: how they are found, and live sound on the real PortAudio, which plays into a file or a pipe by ALSA."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from sound_card import CARD, Listener, real, said, start_program

from notewave.errors import ArgumentError, ToolError, VoiceError
from notewave.sound.card import LiveCard, Output, find_output, live_rate, pick, sound_devices, takes

PROGRAM = """
import itertools, time
import numpy as np
from notewave.errors import NotewaveError, VoiceError
from notewave.sound.card import LiveCard, find_output, live_rate, sound_devices
places = itertools.count()
def read(hop):
    return (np.arange(hop, dtype=np.float32) + next(places) * hop + 1) / 2**24
try:
    {lines}
except NotewaveError as error:
    print(type(error).__name__, error)
"""


def run(lines: str, card: Path, kind: str = CARD) -> subprocess.Popen[str]:
    return start_program(PROGRAM.format(lines=lines.replace("\n", "\n    ")), card, kind)


def heard(card: Path) -> np.ndarray:
    """The numbers of the samples that were heard, on both channels of the file; PortAudio plays silence at first."""
    channels = np.fromfile(card, np.float32)
    left, right = channels[: len(channels) // 2 * 2].reshape(-1, 2).T
    np.testing.assert_array_equal(left, right)
    numbers = (left * 2**24).astype(np.int64)
    return numbers[np.flatnonzero(numbers)[0] :]


@real
@pytest.mark.parametrize("hop", [1, 320, 441, 960, 30000])
def test_what_is_heard_is_what_was_read_in_order(tmp_path: Path, hop: int) -> None:
    """Whatever the blocks are that PortAudio asks for."""
    lines = f"""output = find_output(None)
rate = live_rate(output)
print(output.name, output.channels, rate, output.is_default)
made = [0]
def count():
    made[0] += {hop}
    return read({hop})
with LiveCard(output, rate, count) as card:
    assert 0 < card.latency < 1
    while made[0] < 20000:
        card.wait(0.01)"""
    assert said(run(lines, tmp_path / "card.raw")) == "default, ALSA 2 44100 True\n"
    numbers = heard(tmp_path / "card.raw")
    assert len(numbers) >= 20000 - hop
    sound = numbers[: np.flatnonzero(numbers)[-1] + 1]
    np.testing.assert_array_equal(sound, np.arange(1, len(sound) + 1))


@real
@pytest.mark.parametrize(
    ("error", "told"),
    [
        ("ZeroDivisionError('none')", "ToolError The sound stopped: making it failed (ZeroDivisionError: none). Begin"),
        ("VoiceError('the voice broke. Mend it.')", "VoiceError the voice broke. Mend it."),
    ],
)
def test_reading_that_fails_is_told_to_who_waits(tmp_path: Path, error: str, told: str) -> None:
    lines = f"""calls = itertools.count()
def fail():
    if next(calls) == 3:
        raise {error}
    return read(100)
with LiveCard(find_output(None), 48000, fail) as card:
    start = time.monotonic()
    try:
        card.wait(30)
    finally:
        assert time.monotonic() - start < 5"""
    assert said(run(lines, tmp_path / "card.raw")).startswith(told)
    numbers = heard(tmp_path / "card.raw")
    np.testing.assert_array_equal(numbers[:300], np.arange(1, 301))
    assert not numbers[300:].any()


@real
def test_a_card_that_asks_for_no_more_sound(tmp_path: Path) -> None:
    """And cannot even be closed: it hangs for good, but not the program."""
    card = Listener(tmp_path / "card.raw", 2 * 48000)
    card.pause_s = 10.0
    card.start()
    lines = """start = time.monotonic()
with LiveCard(find_output(None), 48000, lambda: read(960)) as card:
    try:
        while True:
            card.wait(0.1)
    finally:
        print(1.5 < time.monotonic() - start < 10)"""
    started = time.monotonic()
    told = said(run(lines, tmp_path / "card.raw"))
    assert time.monotonic() - started < 9.5
    card.join(30)
    assert told.startswith(
        "True\nToolError The sound stopped: default, ALSA asked for none for 2 s. Check that it is still connected."
    )


@real
def test_a_card_that_ends_the_sound(tmp_path: Path) -> None:
    lines = """with LiveCard(find_output(None), 48000, lambda: read(960)) as card:
    card.wait(0.1)
    card._stream.abort()
    card.wait(30)"""
    assert "ToolError The sound stopped: default, ALSA ended it." in said(run(lines, tmp_path / "card.raw"))


@real
def test_cards_by_name_and_number(tmp_path: Path) -> None:
    kind = CARD + CARD.replace("!default", "second")
    lines = """for output in sound_devices():
    assert find_output(output.name) == find_output(str(output.number)) == output
    print(output.name, output.is_default)
print(find_output("SEC").name, find_output("default").name)
find_output("third")"""
    *cards, found, refused = said(run(lines, tmp_path / "card.raw", kind)).splitlines()
    assert sorted(cards) == ["default, ALSA True", "second, ALSA False"]
    assert found == "second, ALSA default, ALSA"
    assert refused.startswith("ArgumentError there is no sound card 'third'. Name one of these by its number or name: ")
    assert "default, ALSA" in refused


# What a file is not: by a sounddevice of ours at the border.


class PortAudioError(Exception):
    """As sounddevice has it."""


class Stream:
    """As sounddevice.OutputStream."""

    latency = 0.01
    starts = True

    def __init__(self, samplerate: float, **options: Any) -> None:
        self.options, self.samplerate, self.said = options, samplerate, ["opened"]
        if samplerate not in RATES:
            raise PortAudioError("Invalid sample rate")

    def start(self) -> None:
        if not self.starts:
            raise PortAudioError("Device unavailable")
        self.said.append("started")

    def stop(self) -> None:
        self.said.append("stopped")
        self.options["finished_callback"]()

    def abort(self) -> None:
        self.said.append("aborted")
        raise PortAudioError("it has gone")

    def close(self) -> None:
        self.said.append("closed")

    def ask(self, frames: int, underflow: bool = False, delay: float = 0.0) -> np.ndarray:
        """What PortAudio is given for the next frames, which are heard after a delay."""
        clock = SimpleNamespace(currentTime=5.0, outputBufferDacTime=5.0 + delay)
        out = np.full((frames, self.options["channels"]), np.nan, np.float32)
        self.options["callback"](out, frames, clock, SimpleNamespace(output_underflow=underflow))
        return out


RATES = [48000, 44100, 22050, 16000]
DEVICES = [
    {"name": "mic", "max_output_channels": 0, "default_samplerate": 44100.0},
    {"name": "box", "max_output_channels": 1, "default_samplerate": 22050.0},
    {"name": "wide", "max_output_channels": 8, "default_samplerate": 44056.0},
]


@pytest.fixture
def devices(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    devices = [{**device, "index": number, "hostapi": 0} for number, device in enumerate(DEVICES)]
    module: Any = ModuleType("sounddevice")
    module.PortAudioError, module.OutputStream = PortAudioError, Stream
    module.query_hostapis = lambda: [{"name": "Sound"}]

    def query(kind: str | None = None) -> Any:
        if kind is None:
            return devices
        if len(devices) < 3:
            raise PortAudioError("Error querying device -1")
        return devices[2]

    def check(number: int, channels: int, kind: str, samplerate: int) -> None:
        if samplerate not in RATES:
            raise PortAudioError("Invalid sample rate")

    module.query_devices, module.check_output_settings = query, check
    monkeypatch.setitem(sys.modules, "sounddevice", module)
    monkeypatch.setattr(Stream, "starts", True)
    return devices


BOX, WIDE = Output(1, "box, Sound", 1, 22050, False), Output(2, "wide, Sound", 2, 44056, True)


def test_devices_that_play(devices: list[dict[str, Any]]) -> None:
    assert sound_devices() == [BOX, WIDE]
    assert find_output(None) == WIDE
    assert find_output("box") == BOX
    del devices[2]
    assert find_output(None) == BOX
    del devices[1]
    with pytest.raises(ToolError, match="there is no sound card"):
        find_output(None)


def test_the_rate_of_a_device(devices: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    assert live_rate(BOX) == 22050
    assert live_rate(WIDE) == 48000, "its own is no multiple of 50 Hz"
    assert takes(BOX, 16000)
    assert not takes(BOX, 8000)
    monkeypatch.setitem(globals(), "RATES", [8000])
    with pytest.raises(ToolError, match=r"box, Sound takes none of the rates 48000, 44100, 16000 Hz. Name another"):
        live_rate(BOX)


def hops(*lengths: int) -> Callable[[], np.ndarray]:
    """Reads that count on, of these lengths and then of 5."""
    place = 0
    left: Iterator[int] = iter(lengths)

    def read() -> np.ndarray:
        nonlocal place
        length = next(left, 5)
        place += length
        return np.arange(place - length, place, dtype=np.float32)

    return read


@pytest.mark.parametrize("output", [BOX, WIDE], ids=["mono", "stereo"])
def test_blocks_of_any_size_join(devices: list[dict[str, Any]], output: Output) -> None:
    with LiveCard(output, 48000, hops(7, 1, 13)) as card:
        blocks = [card._stream.ask(frames) for frames in (1, 0, 2, 3, 1, 1, 40, 5)]
        assert [len(block) for block in blocks] == [1, 0, 2, 3, 1, 1, 40, 5]
        sound = np.concatenate(blocks)
        for channel in range(output.channels):
            np.testing.assert_array_equal(sound[:, channel], np.arange(53))
        card.check()
        assert card.gaps == 0
        card._stream.ask(1, underflow=True)
        assert (card.gaps, card.latency) == (1, 0.01)
        card._stream.ask(1, delay=0.5)
        assert card.latency == 0.5, "what PortAudio says of a block, where it says less of the stream"
    assert card._stream.said == ["opened", "started", "stopped", "closed"]
    card.check()


@pytest.mark.parametrize(
    "broken", [lambda: [][0], lambda: np.empty(0, np.float32), lambda: None, lambda: np.ones((4, 3))]
)
def test_nothing_but_sound_leaves_the_callback(devices: list[dict[str, Any]], broken: Callable[[], Any]) -> None:
    reads = iter([lambda: np.ones(3, np.float32), broken])
    with (
        pytest.raises(ToolError, match="The sound stopped: making it failed"),
        LiveCard(WIDE, 48000, lambda: next(reads)()) as card,
    ):
        np.testing.assert_array_equal(card._stream.ask(5)[:, 0], [1, 1, 1, 0, 0])
        np.testing.assert_array_equal(card._stream.ask(5), 0)
        card.wait(30)
    assert card._stream.said == ["opened", "started", "aborted", "closed"], "also where the device has gone"


def test_a_voice_s_own_error_is_told_as_it_is(devices: list[dict[str, Any]]) -> None:
    def fail() -> np.ndarray:
        raise VoiceError("broken")

    with pytest.raises(VoiceError, match="broken"), LiveCard(BOX, 48000, fail) as card:
        card._stream.ask(1)
        card.check()


def test_waiting_takes_its_time(devices: list[dict[str, Any]]) -> None:
    with LiveCard(BOX, 48000, hops()) as card:
        start = time.monotonic()
        card.wait(0.1)
        assert time.monotonic() - start >= 0.09


def test_cards_that_do_not_open_or_start(devices: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        ToolError, match=r"wide, Sound does not take sound of 8000 Hz \(Invalid sample rate\). Try 44100"
    ):
        LiveCard(WIDE, 8000, hops())
    monkeypatch.setattr(Stream, "starts", False)
    with contextlib.ExitStack() as stack, pytest.raises(ToolError, match=r"box, Sound does not start \(Device unav"):
        stack.enter_context(LiveCard(BOX, 48000, hops()))


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    with pytest.raises(ToolError, match=r"the package sounddevice is not installed. Install notewave\[live\]."):
        sound_devices()


NAMES = {0: "default, ALSA", 3: "sysdefault, ALSA", 4: "Box (hw:0,0), ALSA", 5: "Box (hw:0,1), ALSA"}


@pytest.mark.parametrize(
    ("wanted", "number"),
    [
        ("3", 3),
        ("default", 0),
        ("default, ALSA", 0),
        ("SYS", 3),
        ("hw:0,1", 5),
        ("Box (hw:0,0)", 4),
        ("hw:0,1), alsa", 5),
    ],
)
def test_names_that_are_clear(wanted: str, number: int) -> None:
    assert pick(wanted, NAMES, "sound card") == number


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (
            "box",
            "'box' is 2 sound cards. Name one of these by its number or name: 4 Box (hw:0,0), ALSA; 5 Box (hw:0,1)",
        ),
        ("7", "there is no sound card '7'. Name one of these by its number or name: 0 default, ALSA; 3 sysdefault"),
        ("", "'' is 4 sound cards."),
        ("²", "there is no sound card '²'."),
        ("9" * 5000, "there is no sound card '999"),
    ],
)
def test_names_that_are_not(wanted: str, message: str) -> None:
    with pytest.raises(ArgumentError) as error:
        pick(wanted, NAMES, "sound card")
    assert str(error.value).startswith(message)
