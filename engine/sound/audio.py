"""Sound as a value: samples with their rate, and the files they go to."""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from notewave.checks import is_integer, quoted, shown
from notewave.files import atomic_file, check_writable, is_stream, not_written, open_stream, write_stream
from notewave.sound.mel import SAMPLE_RATE

BLOCK = 1 << 16  # samples written at once: libsndfile's Vorbis puts them all on its stack
PCM16_SCALE = 32768.0  # levels of 16-bit sound in [0, 1], as readers of it divide by
PCM16_RANGE = (-32768.0, 32767.0)
MAX_SAMPLE_RATE = 192_000  # Hz: from 200 kHz on, libsndfile's Vorbis crashes
_ANOTHER_RATE = "Choose another rate or format."
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

    def __init__(self, path: str | os.PathLike[str], put: Callable[[NDArray[np.float32]], None]) -> None:
        """put: what takes at most BLOCK samples, as they come."""
        self._path, self._put = path, put
        self.frames = 0  # samples written

    def write(self, samples: NDArray[np.float32]) -> None:
        """Add samples [n], cut to [-1, 1]. Raises OutputError when they are no mono sound or not all are taken."""
        _check_samples(self._path, samples)
        with _no_room(self._path):
            for start in range(0, len(samples), BLOCK):
                # No format has more, and LAME, given much more, ends the process.
                block = np.clip(samples[start : start + BLOCK], -1.0, 1.0)
                self._put(block.astype(np.float32, copy=False))
        self.frames += len(samples)


@contextlib.contextmanager
def audio_file(path: str | os.PathLike[str], sample_rate: int = SAMPLE_RATE) -> Iterator[AudioWriter]:
    """Yield a mono sound file to write float32 chunks to, in bounded memory; it appears at ``path`` at the end.

    A FIFO, a device or an open descriptor, such as files.STANDARD_OUTPUT, is sent WAV as it is made, unless its suffix
    says another format, which it is sent at the end. Raises OutputError when the suffix is unknown, nothing is written
    to it or the file cannot be written; files.ReaderGone where nobody reads any more.
    """
    kind = _format(path)
    _check_rate(path, sample_rate)
    opened = _wav_stream if kind == "WAV" and is_stream(path) else _sound_file
    with opened(path, kind, int(sample_rate)) as writer:
        yield writer
        if not writer.frames:
            raise not_written(path, "the sound has no samples. Give some.")


def check_sound(path: str | os.PathLike[str], sample_rate: int = SAMPLE_RATE) -> None:
    """Raise the OutputError now that ``audio_file`` would raise later; whatever stands there is not touched."""
    _format(path)
    _check_rate(path, sample_rate)
    check_writable(path)


@contextlib.contextmanager
def _wav_stream(path: str | os.PathLike[str], kind: str, sample_rate: int) -> Iterator[AudioWriter]:
    """A WAV file of 16 bits whose length nobody knows yet."""
    sizes = (0xFFFFFFFF,) * 2
    with open_stream(path) as stream:
        layout = (16, 1, 1, sample_rate, 2 * sample_rate, 2, 16)  # PCM, a channel; bytes a second and a sample, bits
        head = struct.pack("<4sI8sIHHIIHH4sI", b"RIFF", sizes[0], b"WAVEfmt ", *layout, b"data", sizes[1])
        write_stream(stream, head, path)
        yield AudioWriter(path, lambda block: write_stream(stream, pcm16(block).astype("<i2").tobytes(), path))


@contextlib.contextmanager
def _sound_file(path: str | os.PathLike[str], kind: str, sample_rate: int) -> Iterator[AudioWriter]:
    """A file of libsndfile's, whole or not at all."""
    with atomic_file(path) as temporary:
        name = os.fsencode(temporary) if os.name == "posix" else str(temporary)  # soundfile encodes less
        try:
            file = soundfile.SoundFile(name, "w", sample_rate, 1, format=kind)
        except soundfile.LibsndfileError as error:
            raise not_written(path, f"{error.error_string} {_ANOTHER_RATE}") from error
        writer = AudioWriter(path, lambda block: file.write(pcm16(block) if file.subtype == "PCM_16" else block))
        try:
            yield writer
        except BaseException:
            with contextlib.suppress(soundfile.LibsndfileError):  # the first failure is the one to tell
                file.close()
            raise
        with _no_room(path):
            file.close()
            if soundfile.info(name).frames < writer.frames:
                raise AssertionError


def pcm16(samples: NDArray[np.float32]) -> NDArray[np.int16]:
    """Audio in [-1, 1] [n] to 16-bit PCM [n], rounded to nearest even, clipped: 1 gives the highest level."""
    level = np.clip(samples, -1.0, 1.0) * np.float32(PCM16_SCALE)
    return np.rint(np.clip(level, *PCM16_RANGE)).astype(np.int16)


def _format(path: str | os.PathLike[str]) -> str:
    """libsndfile's name of the format that a path's suffix means; of a stream that has none, WAV."""
    streamed = is_stream(path)
    suffix = Path(path).suffix
    known = {ours: theirs for ours, theirs in FORMATS.items() if theirs in soundfile.available_formats()}
    if suffix.lower() not in known and not streamed:
        what = shown(suffix) or "no suffix"
        raise not_written(path, f"{what} is no known sound format. Use {', '.join(known)}.")
    return known.get(suffix.lower(), "WAV")


def _check_rate(path: str | os.PathLike[str], sample_rate: int) -> None:
    if not is_integer(sample_rate, 1, MAX_SAMPLE_RATE):
        rate = quoted(sample_rate)
        raise not_written(path, f"its rate is {rate} Hz, which is none from 1 to {MAX_SAMPLE_RATE}. {_ANOTHER_RATE}")


def _check_samples(path: str | os.PathLike[str], samples: NDArray[np.float32]) -> None:
    """Refuse what is no mono sound."""
    if not isinstance(samples, np.ndarray) or samples.ndim != 1 or samples.dtype.kind != "f":
        raise not_written(path, f"the samples are {quoted(samples)}. Give floats [n] in [-1, 1].")
    if not np.isfinite(samples).all():
        raise not_written(path, "a sample is no finite number. Give floats [n] in [-1, 1].")


@contextlib.contextmanager
def _no_room(path: str | os.PathLike[str]) -> Iterator[None]:
    """Tell a short write, which libsndfile calls a system error and soundfile asserts against, as what it is."""
    try:
        yield
    except (soundfile.LibsndfileError, AssertionError) as error:
        raise not_written(
            path,
            "the disk took only a part of the sound. Make room there, or lift the limit on the size of files, and try "
            "again.",
        ) from error
