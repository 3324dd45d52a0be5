"""Vocoding as the mel grows: chunks that join to exactly what the whole song vocoded at once would be."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from notewave.kernels.reference import philox
from notewave.sound.mel import HOP, MAGNITUDE_MIN, MELS, istft, mel_weights, stft
from notewave.voice.folder import VocoderTraits

FloatArray = NDArray[np.float32]
MOMENTUM = 0.99  # of Griffin-Lim; none leaves half as much again of the error
Vocode = Callable[[FloatArray, int], FloatArray]  # log-mel [B, V, M], index of its first frame -> audio [B, HOP * V]


class Window:
    """Which frames of a growing song its vocoder must hold, and whose sound is final: numbers only, no frames."""

    def __init__(self, traits: VocoderTraits) -> None:
        self._traits = traits
        self.first = 0  # its first frame in the song
        self.length = 0  # frames
        self._done = 0  # frames of the song already turned into sound

    def grow(self, frames: int, last: bool) -> slice:
        """Take in the song's next frames; returns the window's frames whose sound is now final, all when ``last``."""
        self.length += frames
        end = self.first + self.length
        ready = end if last else max(end - self._traits.right_frames, self._done)
        final = slice(self._done - self.first, ready - self.first)
        self._done = ready
        return final

    def shrink(self) -> int:
        """Let go of the frames that no sound to come depends on; returns how many they are."""
        surplus = max(self._done - self._traits.left_frames - self.first, 0)
        self.first += surplus
        self.length -= surplus
        return surplus


class VocoderStream:
    """Runs a vocoder over a growing mel, holding back only the frames whose sound needs what comes next."""

    def __init__(self, vocode: Vocode, traits: VocoderTraits) -> None:
        self._vocode, self._window = vocode, Window(traits)
        self._mel: FloatArray = np.empty((0, MELS), np.float32)  # the window's frames

    def push(self, mel: FloatArray, last: bool) -> FloatArray:
        """The song's next frames of log-mel [T, M] -> the audio [n] that is now final; all of it when ``last``."""
        self._mel = np.concatenate([self._mel, mel])
        final = self._window.grow(len(mel), last)
        if final.start == final.stop:
            return np.empty(0, np.float32)
        audio = self._vocode(self._mel[None], self._window.first)[0]
        self._mel = self._mel[self._window.shrink() :]
        return np.clip(audio[final.start * HOP : final.stop * HOP], -1.0, 1.0)


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
