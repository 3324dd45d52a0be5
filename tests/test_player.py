"""The sound card, played by the real PortAudio into a file or a pipe by ALSA; and what is said where there is none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sound_card import CARD, Listener, real, said, start_program

PROGRAM = """
import sys
import numpy as np
from notewave.errors import NotewaveError
from notewave.sound.player import Player
def sound(seconds, rate=16000):
    return (0.5 * np.sin(np.arange(1, round(rate * seconds) + 1) / 20)).astype(np.float32)
try:
    {lines}
except NotewaveError as error:
    print(type(error).__name__, error)
"""


def run(lines: str, card: Path | None = None, kind: str = CARD, cwd: Path | None = None) -> subprocess.Popen[str]:
    """A program that plays, on a sound card that is a file, or on none."""
    return start_program(PROGRAM.format(lines=lines.replace("\n", "\n    ")), card, kind, cwd)


def tone(seconds: float, rate: int = 16000) -> np.ndarray:
    return (0.5 * np.sin(np.arange(1, round(rate * seconds) + 1) / 20)).astype(np.float32)


@real
@pytest.mark.parametrize("rate", [16000, 44100])
def test_all_is_heard_as_it_was_written(tmp_path: Path, rate: int) -> None:
    lines = f"""with Player({rate}) as player:
    for chunk in np.array_split(sound(3, {rate}), 7):
        player.write(chunk)
    player.write(sound(0))"""
    assert said(run(lines, tmp_path / "card.raw")) == ""
    np.testing.assert_array_equal(np.fromfile(tmp_path / "card.raw", np.float32)[: 3 * rate], tone(3, rate))


@real
def test_without_sound_nothing_is_heard(tmp_path: Path) -> None:
    assert said(run("with Player(16000):\n    pass", tmp_path / "card.raw")) == ""
    assert not (tmp_path / "card.raw").exists() or not np.fromfile(tmp_path / "card.raw", np.float32).any()


@real
def test_the_end_waits_until_all_is_heard_and_writing_does_not(tmp_path: Path) -> None:
    listener = Listener(tmp_path / "card.raw")
    listener.start()
    lines = """import time
start = time.monotonic()
with Player(16000) as player:
    player.write(sound(5))
    written = time.monotonic() - start
print(written, time.monotonic() - start)"""
    written, ended = map(float, said(run(lines, tmp_path / "card.raw")).split())
    listener.join(30)
    assert written < 1.0
    assert ended > 3.0  # and the pipe holds one more
    np.testing.assert_array_equal(np.frombuffer(listener.heard, np.float32)[:80000], tone(5))


@real
@pytest.mark.parametrize("error", ["ValueError", "KeyboardInterrupt"])
def test_an_exception_stops_the_sound_at_once(tmp_path: Path, error: str) -> None:
    listener = Listener(tmp_path / "card.raw")
    listener.start()
    lines = f"""import time
try:
    with Player(16000) as player:
        player.write(sound(20))
        time.sleep(0.5)
        start = time.monotonic()
        raise {error}
except {error}:
    print(time.monotonic() - start)"""
    assert float(said(run(lines, tmp_path / "card.raw"))) < 1.0
    listener.join(30)
    assert 0 < len(listener.heard) < 4 * 16000 * 4  # and the pipe holds one second


@real
def test_who_makes_sound_too_fast_waits(tmp_path: Path) -> None:
    """An hour of sound does not lie in memory: half a minute does."""
    listener = Listener(tmp_path / "card.raw")
    listener.start()
    lines = """import threading
try:
    with Player(16000) as player:
        made = []
        def make():
            for second in range(3600):
                player.write(sound(1))
                made.append(second)
        maker = threading.Thread(target=make, daemon=True)
        maker.start()
        maker.join(2)
        print(len(made))
        raise KeyboardInterrupt
except KeyboardInterrupt:
    pass"""
    assert 25 <= int(said(run(lines, tmp_path / "card.raw"))) <= 40
    listener.join(30)


@real
def test_no_sound_card(tmp_path: Path) -> None:
    """Where the system's configuration names one that is not there."""
    message = said(run("Player(16000)", tmp_path / "card.raw", "pcm.!default { type hw  card 77 }"))
    assert message.startswith("ToolError Sound cannot be played: no sound card takes mono sound of 16000 Hz (")
    assert message.count("\n") == 1


@real
def test_a_rate_that_the_card_refuses(tmp_path: Path) -> None:
    message = said(run("Player(1)", tmp_path / "card.raw"))
    assert "no sound card takes mono sound of 1 Hz (Error opening OutputStream: Invalid sample rate" in message


@real
@pytest.mark.parametrize("more", [1, 1000], ids=["told at the end", "told to the writer"])
def test_a_card_that_fails(tmp_path: Path, more: int) -> None:
    lines = f"""import time
with Player(16000) as player:
    player.write(sound(0.2))
    time.sleep(0.3)
    player._stream.close()
    for _ in range({more}):
        player.write(sound(0.1))
    print(player._failure)"""
    output = said(run(lines, tmp_path / "card.raw"))
    assert "ToolError The sound stopped: the sound card failed (" in output
    assert (output.startswith("ToolError")) == (more > 1)


def test_sounddevice_is_missing() -> None:
    message = said(run("sys.modules['sounddevice'] = None\nPlayer(16000)"))
    assert message == (
        "ToolError Sound cannot be played: the package sounddevice is not installed. Install notewave[live].\n"
    )


def test_portaudio_is_missing(tmp_path: Path) -> None:
    """As sounddevice says it, which looks for PortAudio when it is imported."""
    (tmp_path / "sounddevice.py").write_text("raise OSError('PortAudio library not found')")
    message = said(run("Player(16000)", cwd=tmp_path))
    assert message.startswith("ToolError Sound cannot be played: sounddevice needs PortAudio, which does not load")
    assert "libportaudio2" in message


def test_no_device(tmp_path: Path) -> None:
    """As sounddevice says it where there is no sound card."""
    (tmp_path / "sounddevice.py").write_text(
        "class PortAudioError(Exception): pass\n"
        "def OutputStream(*_, **__): raise PortAudioError('Error querying device -1')"
    )
    message = said(run("Player(16000)", cwd=tmp_path))
    assert message.startswith("ToolError Sound cannot be played: no sound card takes mono sound of 16000 Hz (Error")


@pytest.mark.parametrize("rate", ["0", "'16000'", "None"])
def test_what_is_no_rate(rate: str) -> None:
    assert said(run(f"Player({rate})")).startswith("ArgumentError The sound's rate cannot be")


def test_rendering_does_not_import_sounddevice() -> None:
    subprocess.run(
        [sys.executable, "-c", "import sys, notewave.sound.player; sys.exit('sounddevice' in sys.modules)"], check=True
    )
