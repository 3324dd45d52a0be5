"""What a backend is: it loads a voice's graphs, owns the buffers and runs them. A song's story is told above it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from notewave.sampling.job import Job
from notewave.song.codec import Tokens
from notewave.sound.mel import FloatArray


class Run(Protocol):
    """A batch of songs under way: each segment's mel becomes the context of the next."""

    def submit(self, tokens: Sequence[Tokens]) -> None:
        """Begin the next segment of each song, B token arrays; a device that works by itself is not waited for."""

    def result(self) -> FloatArray:
        """Mel [B, T, M], in the networks' range, of the segment submitted last; valid until the next result."""

    def denoise(self, tokens: Sequence[Tokens]) -> FloatArray:
        """``submit``, then ``result``."""

    def sound(self) -> Sound | None:
        """What vocodes the one song of this run where its mel lies; None where that is the host's memory."""


class Sound(Protocol):
    """A run's song on its way through the vocoder, segment by segment."""

    def begin(self, last: bool) -> None:
        """Vocode the segment submitted last, the song's ``last`` or not, behind its denoising; does not wait.

        It stands in the place of the run's ``result``.
        """

    def finish(self) -> FloatArray:
        """Wait for what ``begin`` began: the audio [n] that is now final, in [-1, 1]; it may be empty."""


class Backend(Protocol):
    """One voice on one device."""

    name: str

    def start(self, job: Job) -> AbstractContextManager[Run]:
        """Prepare the schedule and begin a batch of songs; runs may be under way side by side."""

    def vocode(self, mel: FloatArray, frame: int) -> FloatArray:
        """Log-mel [B, V, M], whose first frame is the song's frame ``frame`` -> audio [B, HOP * V]."""
