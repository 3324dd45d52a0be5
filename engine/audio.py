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

from notewave.errors import OutputError
from notewave.files import atomic_file
from notewave.mel import SAMPLE_RATE


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
        """Write a 16-bit file whose format follows the suffix (.wav, .flac, .ogg, ...), whole or not at all.

        Raises OutputError when the suffix is unknown or the file cannot be written.
        """
        with audio_file(path, self.sample_rate) as file:
            file.write(self.samples)


@contextlib.contextmanager
def audio_file(path: str | os.PathLike[str], sample_rate: int = SAMPLE_RATE) -> Iterator[soundfile.SoundFile]:
    """Yield a mono sound file to write float32 chunks to, in bounded memory; it appears at ``path`` at the end.

    Raises OutputError when the suffix is unknown or the file cannot be written.
    """
    kind = Path(path).suffix[1:].upper()
    if kind not in soundfile.available_formats():
        raise OutputError(
            f"{path} was not written: {kind or 'no suffix'} is no known sound format. Use .wav, .flac or .ogg."
        )
    with atomic_file(path) as temporary:
        try:
            with soundfile.SoundFile(temporary, "w", sample_rate, 1) as file:
                yield file
                expected = file.frames
            written = soundfile.info(temporary).frames
        except (soundfile.LibsndfileError, AssertionError) as error:  # soundfile asserts that all frames were taken
            raise OutputError(
                f"{path} was not written: {error or 'the disk took only a part'}. Check the room there."
            ) from error
        if written != expected:
            raise OutputError(
                f"{path} was not written: the disk took {written} of {expected} samples. Make room and try again."
            )
