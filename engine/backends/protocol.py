"""What a backend is: it loads a voice's graphs, owns the buffers and runs them. A song's story is told above it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from notewave.checks import quoted
from notewave.errors import BackendError
from notewave.kernels.reference import philox_normal
from notewave.sampling.samplers import SamplerTable
from notewave.song.codec import PAD, Tokens
from notewave.voice.folder import Voice

FloatArray = NDArray[np.float32]
log = logging.getLogger(__name__)

AUTO = ("tensorrt", "cuda", "cpu")  # the best first
BACKENDS = ("auto", *AUTO)


@dataclass(frozen=True)
class Job:
    """How a batch of B songs is to be denoised, the same from its first segment to its last."""

    table: SamplerTable
    guidance: float
    seeds: tuple[int, ...]  # one a song: B
    noise: FloatArray | None  # [draws, T, M] in drawing order, instead of the seeds' noise; B is 1 then
    on_step: Callable[[], object] | None = None  # called after every denoising step

    def draw(self, segment: int, draw: int, out: FloatArray) -> None:
        """Fill out [B, T, M] with one draw of one segment."""
        if self.noise is not None:
            out[0] = self.noise[segment * self.table.draws + draw]
            return
        for seed, row in zip(self.seeds, out, strict=True):
            philox_normal(seed, segment, draw, row)


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


def pad_tokens(tokens: Sequence[Tokens], length: int | None = None) -> NDArray[np.int32]:
    """Token arrays of B songs -> int32 [B, N], padded to the longest or to ``length``."""
    padded = np.full((len(tokens), length or max(map(len, tokens))), PAD, np.int32)
    for row, sequence in zip(padded, tokens, strict=True):
        row[: len(sequence)] = sequence
    return padded


def open_backend(name: str, voice: Voice, threads: int | None, options: dict[str, Any]) -> Backend:
    """Backend by name; "auto" takes the first of AUTO that works and logs why. Raises BackendError where none does."""
    if not isinstance(name, str) or name not in BACKENDS:
        raise BackendError(f"there is no backend {quoted(name)}. Choose one of {', '.join(BACKENDS)}.")
    if name != "auto":
        return _open(name, voice, threads, options)
    for candidate in AUTO[:-1]:
        try:
            backend = _open(candidate, voice, threads, options)
        except BackendError as error:
            log.info("backend auto: not %s, since %s", candidate, error)
        else:
            log.info("backend auto: %s", candidate)
            return backend
    log.info("backend auto: %s", AUTO[-1])
    return _open(AUTO[-1], voice, threads, options)


def _open(name: str, voice: Voice, threads: int | None, options: dict[str, Any]) -> Backend:
    if name == "tensorrt":
        from notewave.backends.gpu.backend import TensorRTBackend

        return TensorRTBackend(voice, options)
    from notewave.backends.ort.backend import OrtBackend

    return OrtBackend(voice, name, threads, options)
