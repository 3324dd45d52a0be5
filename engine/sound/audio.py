"""Sound as a value: samples with their rate, and the files they go to."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from notewave.checks import is_integer, quoted
from notewave.errors import OutputError
from notewave.files import atomic_file
from notewave.sound.mel import SAMPLE_RATE

BLOCK = 1 << 16  # samples written at once: libsndfile's Vorbis puts them all on its stack
PCM16_SCALE = 32768.0  # levels of 16-bit sound in [0, 1], as readers of it divide by
PCM16_RANGE = (-32768.0, 32767.0)
MAX_SAMPLE_RATE = 192_000  # Hz: from 200 kHz on, libsndfile's Vorbis crashes
FORMATS = {  # libsndfile's, by suffix
    ".wav": "WAV",
    ".flac": "FLAC",
    ".ogg": "OGG",
    ".mp3": "MP3",
    ".aiff": "AIFF",
    ".aif": "AIFF",
}


@dataclass(frozen=True, eq=False)
class Audio:
    """Mono sound."""

    samples: NDArray[np.float32]  # [n], in [-1, 1]
    sample_rate: int = SAMPLE_RATE  # Hz

    @property
    def duration(self) -> float:
        """Length in seconds."""
        return len(self.samples) / self.sample_rate

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a file whose format follows the suffix, one of FORMATS, whole or not at all; 16 bits where it has bits.

        Raises OutputError when the suffix is unknown, the samples are no mono sound or the file cannot be written.
        """
        with audio_file(path, self.sample_rate) as file:
            file.write(self.samples)


class AudioWriter:
    """A mono sound file under way."""

    def __init__(self, path: str | os.PathLike[str], file: soundfile.SoundFile) -> None:
        self._path, self._file = path, file
        self.frames = 0  # samples written

    def write(self, samples: NDArray[np.float32]) -> None:
        """Add samples [n]. Raises OutputError when they are no mono sound or the disk does not take them."""
        _check_samples(self._path, samples)
        with _no_room(self._path):
            for start in range(0, len(samples), BLOCK):
                block = samples[start : start + BLOCK].astype(np.float32, copy=False)
                self._file.write(pcm16(block) if self._file.subtype == "PCM_16" else block)
        self.frames += len(samples)


@contextlib.contextmanager
def audio_file(path: str | os.PathLike[str], sample_rate: int = SAMPLE_RATE) -> Iterator[AudioWriter]:
    """Yield a mono sound file to write float32 chunks to, in bounded memory; it appears at ``path`` at the end.

    Raises OutputError when the suffix is unknown, nothing is written to it or the file cannot be written.
    """
    with atomic_file(path) as temporary:
        file = _open(path, temporary, sample_rate)
        writer = AudioWriter(path, file)
        try:
            yield writer
        except BaseException:
            with contextlib.suppress(soundfile.LibsndfileError):  # the first failure is the one to tell
                file.close()
            raise
        with _no_room(path):
            file.close()
        if not writer.frames:
            raise OutputError(f"{path} was not written: the sound has no samples. Give some.")
        with _no_room(path):
            if soundfile.info(temporary).frames < writer.frames:
                raise AssertionError


def pcm16(samples: NDArray[np.float32]) -> NDArray[np.int16]:
    """Audio in [-1, 1] [n] to 16-bit PCM [n], rounded to nearest even, clipped: 1 gives the highest level."""
    level = np.clip(samples, -1.0, 1.0) * np.float32(PCM16_SCALE)
    return np.rint(np.clip(level, *PCM16_RANGE)).astype(np.int16)


def _format(path: str | os.PathLike[str]) -> str:
    """libsndfile's name of the format that a path's suffix means."""
    suffix = Path(path).suffix
    known = {ours: theirs for ours, theirs in FORMATS.items() if theirs in soundfile.available_formats()}
    if suffix.lower() not in known:
        raise OutputError(
            f"{path} was not written: {suffix or 'no suffix'} is no known sound format. Use {', '.join(known)}."
        )
    return known[suffix.lower()]


def _open(path: str | os.PathLike[str], temporary: Path, sample_rate: int) -> soundfile.SoundFile:
    kind = _format(path)
    try:
        if not is_integer(sample_rate, 1, MAX_SAMPLE_RATE):
            raise ValueError(f"its rate is {quoted(sample_rate)} Hz, which is none from 1 to {MAX_SAMPLE_RATE}")
        return soundfile.SoundFile(temporary, "w", int(sample_rate), 1, format=kind)
    except (soundfile.LibsndfileError, ValueError) as error:
        raise OutputError(f"{path} was not written: {error}. Choose another rate or format.") from error


def _check_samples(path: str | os.PathLike[str], samples: NDArray[np.float32]) -> None:
    """Refuse what is no mono sound."""
    if not isinstance(samples, np.ndarray) or samples.ndim != 1 or samples.dtype.kind != "f":
        raise OutputError(f"{path} was not written: the samples are {quoted(samples)}. Give floats [n] in [-1, 1].")
    if not np.isfinite(samples).all():
        raise OutputError(f"{path} was not written: a sample is no finite number. Give floats [n] in [-1, 1].")


@contextlib.contextmanager
def _no_room(path: str | os.PathLike[str]) -> Iterator[None]:
    """Tell a short write, which libsndfile calls a system error and soundfile asserts against, as what it is."""
    try:
        yield
    except (soundfile.LibsndfileError, AssertionError) as error:
        raise OutputError(
            f"{path} was not written: the disk took only a part of the sound. Make room there, or lift the limit on "
            "the size of files, and try again."
        ) from error
