"""What is heard, written beside it."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from notewave.errors import OutputError
from notewave.files import not_written
from notewave.sound import recording as module
from notewave.sound.audio import AudioWriter
from notewave.sound.recording import recording


def blocks(count: int) -> list[np.ndarray]:
    return [np.full(10, number / 1024, np.float32) for number in range(count)]


def test_all_is_written_in_order(tmp_path: Path) -> None:
    with recording(tmp_path / "a.wav", 48000) as file:
        buffer = np.empty(10, np.float32)
        for block in blocks(500):
            buffer[:] = block  # a buffer that is used again is copied
            file.put(buffer)
        assert not (tmp_path / "a.wav").exists()
    samples, rate = soundfile.read(tmp_path / "a.wav", dtype="float32")
    assert rate == 48000
    np.testing.assert_array_equal(samples, np.concatenate(blocks(500)))


def test_an_exception_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), recording(tmp_path / "a.wav", 48000) as file:
        file.put(blocks(2)[1])
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_nothing_heard_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="the sound has no samples"), recording(tmp_path / "a.wav", 48000):
        pass
    assert not list(tmp_path.iterdir())


def test_a_disk_that_is_too_slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever plays does not wait for it: the recording is given up, which is told in the end."""
    goes_on = threading.Event()
    monkeypatch.setattr(module, "BLOCKS_AHEAD", 5)
    monkeypatch.setattr(AudioWriter, "write", lambda self, samples: goes_on.wait(30))
    told = r"a\.wav was not written: the disk took sound slower than it was made"
    with pytest.raises(OutputError, match=told), recording(tmp_path / "a.wav", 48000) as file:
        start = time.monotonic()
        for block in blocks(8):
            file.put(block)
        assert time.monotonic() - start < 1
        assert file.failure is not None
        goes_on.set()
    assert not list(tmp_path.iterdir())


def test_a_disk_that_hangs_when_all_is_broken_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    goes_on = threading.Event()
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 0.2)
    monkeypatch.setattr(AudioWriter, "write", lambda self, samples: goes_on.wait(30))
    try:
        with pytest.raises(KeyboardInterrupt), recording(tmp_path / "a.wav", 48000) as file:
            file.put(blocks(1)[0])
            raise KeyboardInterrupt
    finally:
        goes_on.set()
    assert not list(tmp_path.iterdir())


def test_a_disk_that_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: AudioWriter, samples: np.ndarray) -> None:
        raise not_written("a.wav", "the disk is full.")

    monkeypatch.setattr(AudioWriter, "write", fail)
    with pytest.raises(OutputError, match=r"the disk is full"), recording(tmp_path / "a.wav", 48000) as file:
        for block in blocks(3):
            file.put(block)
    assert not list(tmp_path.iterdir())
