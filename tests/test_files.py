"""Outputs appear whole or not at all."""

from __future__ import annotations

import resource
from pathlib import Path

import numpy as np
import pytest
import soundfile

from notewave import Audio, OutputError
from notewave.files import atomic_file, atomic_folder


def test_file_appears_at_the_end_only(tmp_path: Path) -> None:
    target = tmp_path / "out.bin"
    with atomic_file(target) as temporary:
        temporary.write_bytes(b"new")
        assert not target.exists()
    assert target.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_interrupted_writes_leave_the_old_file(tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / "out.bin"
    target.write_bytes(b"old")
    with pytest.raises(error), atomic_file(target) as temporary:
        temporary.write_bytes(b"half")
        raise error
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_folder_replaces_folder_or_nothing(tmp_path: Path) -> None:
    target = tmp_path / "voice"
    for content in ("one", "two"):
        with atomic_folder(target) as temporary:
            (temporary / "file").write_text(content)
    with pytest.raises(RuntimeError), atomic_folder(target) as temporary:
        (temporary / "file").write_text("three")
        raise RuntimeError
    assert (target / "file").read_text() == "two"
    assert list(tmp_path.iterdir()) == [target]


def test_missing_folder_is_explained(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="was not written"):
        Audio(np.zeros(10, np.float32)).save(tmp_path / "no" / "song.wav")


@pytest.mark.parametrize("suffix", [".wav", ".flac"])
def test_audio_files_hold_the_samples(tmp_path: Path, suffix: str) -> None:
    samples = np.linspace(-1, 1, 16000, dtype=np.float32)
    audio = Audio(samples)
    assert audio.duration == 1.0
    audio.save(tmp_path / f"song{suffix}")
    read, rate = soundfile.read(tmp_path / f"song{suffix}", dtype="float32")
    assert rate == 16000
    np.testing.assert_allclose(read, samples, atol=1 / 32767)


def test_unknown_format_is_explained(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"Use \.wav"):
        Audio(np.zeros(10, np.float32)).save(tmp_path / "song.docx")


def test_full_disk_leaves_nothing(tmp_path: Path) -> None:
    """A limit on file sizes fails writes as a full disk does."""
    import signal

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        with pytest.raises(OutputError, match="was not written"):
            Audio(np.zeros(1_000_000, np.float32)).save(tmp_path / "song.wav")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert not list(tmp_path.iterdir())
