"""Griffin-Lim: sound from mels alone, for voices without a vocoder."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from notewave.kernels.reference import philox
from notewave.sound.mel import MAGNITUDE_MIN, FloatArray, istft, mel_weights, stft
from notewave.sound.stream import VocoderTraits

MOMENTUM = 0.99  # of Griffin-Lim; none leaves half as much again of the error


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
