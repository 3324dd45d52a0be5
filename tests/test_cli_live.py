"""``notewave live`` and ``notewave play``: from keys to a file, by the real PortAudio, and how they end."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import soundfile
from command import STOPPED, command, start
from sound_card import CARD, Listener, card_environment, real

import notewave
from notewave.cli import main

RATE = 44100  # of a card that is a file, by default
RTMIDI = '''
"""As rtmidi: a keyboard on which somebody plays on and on."""
import time
MESSAGES = [[0x90, 60, 100], [0xF0, 1, 0xF7], [0x80, 60, 0], [0x99, 36, 90]]
API_LINUX_ALSA, API_UNIX_JACK, API_RTMIDI_DUMMY = 2, 3, 9
class RtMidiError(Exception): pass
def get_compiled_api(): return [API_LINUX_ALSA]
def get_api_display_name(system): return "ALSA"
class MidiIn:
    def __init__(self, system, name): pass
    def ignore_types(self, **types): pass
    def get_ports(self): return ["Midi Through:Port-0 14:0", "keys:keys 20:0"]
    def open_port(self, place, name): self.start, self.count = time.monotonic(), 0
    def get_message(self):
        if time.monotonic() < self.start + 0.1 * self.count:
            return None
        self.count += 1
        return MESSAGES[(self.count - 1) % 4], 0.0
    def close_port(self): pass
    def delete(self): pass
'''


@pytest.fixture
def keys(tmp_path: Path) -> dict[str, str]:
    """The environment of a machine with a keyboard."""
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "rtmidi.py").write_text(RTMIDI)
    paths = [str(tmp_path / "packages"), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(paths)}


@contextlib.contextmanager
def listening(folder: Path) -> Iterator[Listener]:
    """A sound card in real time, in stereo, that may be opened several times: what it takes is asked first."""
    listener = Listener(folder / "card.raw", 2 * RATE)
    listener.start()
    held = os.open(listener.pipe, os.O_RDWR)
    try:
        yield listener
    finally:
        os.close(held)
        listener.join(30)


def live_words(voice: Path, *words: object) -> list[object]:
    return ["live", "--voice", voice, "--hop", "8", "--steps", "1", "--guidance", "1", "--backend", "cpu", *words]


def first_line(process: subprocess.Popen[bytes]) -> bytes:
    assert process.stdout is not None
    return process.stdout.readline()


BEGUN = rb"listening to keys:keys 20:0, ALSA, playing on default, ALSA at 44100 Hz, latency \d+ ms; Ctrl-C ends it\n"
ENDED = (
    rb"played [\d.]+ s: \d+ hops, \d+ late, load \d+ % \(worst \d+ %\), \d+ gaps? on the sound card(, \d+ notes? left "
    rb"out)?\n"
)


@real
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_is_the_end_that_is_meant_and_the_recording_is_kept(
    vocoded_voice: Path, tmp_path: Path, keys: dict[str, str], number: signal.Signals
) -> None:
    """It is what was heard, from the first hop to the last that the card played."""
    out = tmp_path / "heard.wav"
    words = live_words(vocoded_voice, "--record", out, "--program", "5")
    with listening(tmp_path) as listener, start(*words, env=keys | card_environment(listener.pipe)) as process:
        assert re.fullmatch(BEGUN, first_line(process))
        time.sleep(2.0)
        process.send_signal(number)
        rest, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, b"")
    assert re.fullmatch(ENDED, rest)
    recorded, rate = soundfile.read(out, dtype="float32")
    assert rate == RATE
    assert len(recorded) > RATE
    left, right = np.frombuffer(listener.heard, np.float32).reshape(-1, 2).T
    np.testing.assert_array_equal(left, right)
    assert np.abs(recorded).max() > 0
    (first,), (heard,) = (np.flatnonzero(np.abs(sound) > 1e-3)[:1] for sound in (recorded, left))
    count = min(len(recorded) - first, len(left) - heard)
    assert count > RATE // 2
    np.testing.assert_allclose(left[heard : heard + count], recorded[first : first + count], atol=1e-4)  # 16 bits
    assert sorted(path.name for path in tmp_path.iterdir()) == ["card.conf", "card.raw", "heard.wav", "packages"]


@real
def test_the_time_that_was_given_ends_it_and_the_line_on_a_terminal_is_taken_away(
    vocoded_voice: Path, tmp_path: Path, keys: dict[str, str]
) -> None:
    pty = pytest.importorskip("pty")
    terminal, child = pty.openpty()
    words = live_words(vocoded_voice, "--seconds", "1.5")
    with (
        listening(tmp_path) as listener,
        start(*words, env=keys | card_environment(listener.pipe), stderr=child) as process,
    ):
        os.close(child)
        shown = b""
        with contextlib.suppress(OSError):  # how a terminal's end reads
            while block := os.read(terminal, 1000):
                shown += block
        out, _ = process.communicate(timeout=60)
    os.close(terminal)
    assert process.returncode == 0
    assert re.fullmatch(BEGUN + ENDED, out)
    *lines, last = shown.removeprefix(b"\r").split(b"\r")
    assert len(lines) >= 3
    for line in lines:
        assert re.fullmatch(rb"\d+ ms \| load +\d+ % \| \d+ late \| \d+ notes? \| +-?\d+ dB\x1b\[K", line)
    assert last == b"\x1b[K"


@real
def test_a_second_signal_breaks_off(vocoded_voice: Path, tmp_path: Path, keys: dict[str, str]) -> None:
    """Here the end waits for whoever reads the recording, who does not."""
    os.mkfifo(tmp_path / "out.wav")
    reader = os.open(tmp_path / "out.wav", os.O_RDONLY | os.O_NONBLOCK)
    words = live_words(vocoded_voice, "--record", tmp_path / "out.wav")
    with listening(tmp_path) as listener, start(*words, env=keys | card_environment(listener.pipe)) as process:
        first_line(process)
        time.sleep(2.0)  # more than a pipe holds
        process.send_signal(signal.SIGINT)
        assert process.stdout is not None
        assert re.fullmatch(ENDED, process.stdout.readline())
        time.sleep(1.5)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    os.close(reader)
    assert (process.returncode, errors) == (130, STOPPED)


@real
def test_while_the_voice_is_opened_a_signal_ends_it_as_any_command(
    vocoded_voice: Path, tmp_path: Path, keys: dict[str, str]
) -> None:
    (tmp_path / "packages" / "onnxruntime.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    words = live_words(vocoded_voice, "--record", tmp_path / "heard.wav")
    assert command(*words, env=keys | card_environment(tmp_path / "card.raw")) == (130, b"", STOPPED)
    assert not (tmp_path / "heard.wav").exists()


@real
def test_a_card_that_hangs_ends_it_and_what_was_recorded_is_kept(
    vocoded_voice: Path, tmp_path: Path, keys: dict[str, str]
) -> None:
    out = tmp_path / "heard.wav"
    words = live_words(vocoded_voice, "--record", out)
    with (
        listening(tmp_path) as listener,
        start(*words, env=keys | card_environment(listener.pipe)) as process,
    ):
        assert re.fullmatch(BEGUN, first_line(process))
        time.sleep(1.5)
        listener.pause_s = 10.0
        rest, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert re.fullmatch(ENDED, rest)
    assert errors.startswith(b"notewave: The sound stopped: default, ALSA asked for none for 2 s. Check that it is")
    assert soundfile.info(out).frames > RATE // 2


@real
def test_all_is_refused_before_the_voice_is_opened(tmp_path: Path, keys: dict[str, str]) -> None:
    environment = keys | card_environment(tmp_path / "card.raw")
    for words, message in (
        (
            ["--midi-in", "pads"],
            "there is no MIDI port 'pads'. Name one of these by its number or name: 0 Midi Through",
        ),
        (["--out", "box"], "there is no sound card 'box'. Name one of these by its number or name: "),
        (
            ["--map", "17=0"],
            "the map '17=0' cannot be followed: '17' is no channel from 1 to 16. Write CHANNEL=PROGRAM",
        ),
        (["--program", "128"], "the program is 128; it must be a whole number from 0 to 127."),
        (["--seconds", "0"], "--seconds is 0.0; it must be a time above 0"),
        (["--seconds", "nan"], "--seconds is nan; it must be"),
        (["--record", "no/such.wav"], "no/such.wav was not written: "),
        (["--record", "heard.xyz"], "heard.xyz was not written: .xyz is no known sound format."),
        ([], "there is no voice 'nobody'"),
    ):
        code, out, errors = command("live", "--voice", "nobody", *words, env=environment, cwd=tmp_path)
        assert (code, out) == (1, b""), errors
        assert errors.decode().startswith(f"notewave: {message}") or not words
        assert errors.count(b"\n") == 1


@real
def test_what_there_is_is_listed(tmp_path: Path, keys: dict[str, str]) -> None:
    code, out, errors = command("live", "--list", env=keys | card_environment(tmp_path / "card.raw"))
    assert (code, errors) == (0, b"")
    assert out.decode() == (
        "MIDI ports, for --midi-in:\n   0 Midi Through:Port-0 14:0, ALSA\n   1 keys:keys 20:0, ALSA\n"
        "     virtual: a port of its own, that other programs connect to\n"
        "sound cards, for --out:\n   0 default, ALSA (default)\n"
    )


def test_what_is_missing_is_listed_too(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("rtmidi", "sounddevice"):
        monkeypatch.setitem(sys.modules, name, None)
    assert main(["live", "--list"]) == 0
    listed = capsys.readouterr().out
    assert "the package python-rtmidi is not installed. Install notewave[live]." in listed
    assert "the package sounddevice is not installed. Install notewave[live]." in listed
    assert main(["live"]) == 1
    assert "python-rtmidi is not installed" in capsys.readouterr().err
    assert main(["play", "song.mid"]) == 1
    assert "sounddevice is not installed" in capsys.readouterr().err


def test_a_machine_without_anything(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    cards: Any = ModuleType("sounddevice")
    cards.PortAudioError = OSError
    cards.query_hostapis, cards.query_devices = list, lambda kind=None: [] if kind is None else {"index": -1}
    monkeypatch.setitem(sys.modules, "sounddevice", cards)
    monkeypatch.setitem(sys.modules, "rtmidi", None)
    assert main(["live", "--list"]) == 0
    assert capsys.readouterr().out.endswith("sound cards, for --out:\n     none\n")
    assert main(["play", "song.mid"]) == 1
    assert "there is no sound card. Connect one" in capsys.readouterr().err


def played(card: Path) -> np.ndarray:
    return np.fromfile(card, np.float32)


@real
def test_a_song_is_played_as_it_is_rendered(vocoded_voice: Path, midi_folder: Path, tmp_path: Path) -> None:
    song, card = midi_folder / "piano_scale.mid", tmp_path / "card.raw"
    words = ["play", song, "--voice", vocoded_voice, "--steps", "1", "--seed", "3", "--backend", "cpu"]
    code, out, errors = command(*words, env=card_environment(card), cwd=tmp_path)
    assert (code, errors) == (0, b"")
    assert out.startswith(b"sound card: ")
    expected = notewave.Synthesizer(vocoded_voice, backend="cpu").render(song, steps=1, seed=3).samples
    np.testing.assert_array_equal(played(card)[: len(expected)], expected)
    assert not played(card)[len(expected) :].any()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["card.conf", "card.raw"], "and no file is written"


@real
def test_a_part_of_a_song_is_played_on_a_card_that_is_named(
    vocoded_voice: Path, midi_folder: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.raw"
    kind = CARD + CARD.replace("!default", "second").replace("PATH", str(other))
    words = ["play", midi_folder / "piano_scale.mid", "--voice", vocoded_voice, "--steps", "1", "--start", "0.5"]
    environment = card_environment(tmp_path / "card.raw", kind)
    code, _, errors = command(*words, "--end", "1.5", "--rate", "48000", "--out", "second", env=environment)
    assert (code, errors) == (0, b"")
    last = np.flatnonzero(played(other))[-1]
    assert 0.8 * 48000 < last < 48000
    code, _, errors = command(*words, "--out", "third", env=environment)
    assert code == 1
    assert errors.startswith(b"notewave: there is no sound card 'third'. Name one of these by its number or name: ")


@real
def test_render_plays_as_before(vocoded_voice: Path, midi_folder: Path, tmp_path: Path) -> None:
    song, card, out = midi_folder / "piano_scale.mid", tmp_path / "card.raw", tmp_path / "song.wav"
    words = ["render", song, "--voice", vocoded_voice, "--steps", "1", "--play", "-o", out]
    assert command(*words, env=card_environment(card))[0] == 0
    samples, _ = soundfile.read(out, dtype="float32")
    np.testing.assert_allclose(played(card)[: len(samples)], samples, atol=1e-4)
