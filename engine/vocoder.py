"""Vocoding as the mel grows: chunks that join to exactly what the whole song vocoded at once would be."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from notewave.kernels.reference import philox
from notewave.mel import HOP, MAGNITUDE_MIN, MELS, istft, mel_weights, stft
from notewave.voice import VocoderTraits

FloatArray = NDArray[np.float32]
MOMENTUM = 0.99  # of Griffin-Lim; none leaves half as much again of the error
Vocode = Callable[[FloatArray, int], FloatArray]  # log-mel [B, V, M], index of its first frame -> audio [B, HOP * V]


class VocoderStream:
    """Runs a vocoder over a growing mel, holding back only the frames whose sound needs what comes next."""

    def __init__(self, vocode: Vocode, traits: VocoderTraits) -> None:
        self._vocode, self._traits = vocode, traits
        self._window: FloatArray = np.empty((0, MELS), np.float32)
        self._first = 0  # the window's first frame in the song
        self._done = 0  # frames of the song already turned into sound

    def push(self, mel: FloatArray, last: bool) -> FloatArray:
        """The song's next frames of log-mel [T, M] -> the audio [n] that is now final; all of it when ``last``."""
        self._window = np.concatenate([self._window, mel])
        end = self._first + len(self._window)
        ready = end if last else max(end - self._traits.right_frames, self._done)
        if ready == self._done:
            return np.empty(0, np.float32)
        audio = self._vocode(self._window[None], self._first)[0]
        chunk = audio[(self._done - self._first) * HOP : (ready - self._first) * HOP]
        self._done = ready
        keep_from = max(ready - self._traits.left_frames, self._first)
        self._window = self._window[keep_from - self._first :]
        self._first = keep_from
        return np.clip(chunk, -1.0, 1.0)


class GriffinLim:
    """Phase by iteration (Griffin & Lim 1984, accelerated by Perraudin et al. 2013), for voices without a vocoder.

    A fixed number of iterations from phases that depend only on the frame's place in the song: each iteration reaches
    one frame further, so it streams as exactly as a convolution does.
    """

    def __init__(self, iterations: int = 60) -> None:
        self.iterations = iterations
        self.traits = VocoderTraits(left_frames=iterations + 2, right_frames=iterations + 2, positional=True)

    def __call__(self, mel: FloatArray, frame: int) -> FloatArray:
        """Log-mel [B, V, M] -> audio [B, HOP * V]."""
        return np.stack([self._one(song, frame) for song in mel])

    def _one(self, mel: FloatArray, frame: int) -> FloatArray:
        magnitude = invert_mel(np.exp(mel.astype(np.float64)))
        bins = np.arange(magnitude.shape[1], dtype=np.uint64)
        words = np.stack([philox((bins, frame + row, 0, 0), 0)[0] for row in range(len(mel))])
        spectrum = magnitude * np.exp(2j * np.pi * words / 2.0**32)
        before = np.zeros_like(spectrum)
        for _ in range(self.iterations):
            rebuilt = stft(istft(spectrum))
            ahead = rebuilt - MOMENTUM / (1.0 + MOMENTUM) * before
            spectrum = magnitude * ahead / np.maximum(np.abs(ahead), 1e-12)
            before = rebuilt
        return istft(spectrum).astype(np.float32)


def invert_mel(mel: NDArray[np.float64], iterations: int = 30) -> NDArray[np.float64]:
    """Linear magnitudes [T, F] that give these mel magnitudes [T, M], none negative (Lee & Seung 2001)."""
    weights = mel_weights()
    target = np.maximum(mel - MAGNITUDE_MIN, 0.0) @ weights.T
    linear = np.where(weights.sum(axis=1) > 0, target + 1e-12, 0.0)
    for _ in range(iterations):
        linear *= target / ((linear @ weights) @ weights.T + 1e-12)
    return linear
