"""How far a sound is from another, in figures for logs and reports: no gradients, no PyTorch.

Shapes: n samples, T frames, M mels.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from notewave.sound.mel import FloatArray

SETTINGS = ((1024, 120, 600), (2048, 240, 1200), (512, 50, 240))  # of each resolution: FFT, hop, window, in samples
POWER_FLOOR = 1e-7
DB = math.log(10) / 20  # nats of a decibel
RANGE_DB = 78.0  # below a song's loudest value: what is softer is silence


def stft_loss(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> float:
    """Multi-resolution STFT loss of audio [n] with the settings of Parallel WaveGAN (Yamamoto et al. 2020).

    Spectral convergence plus L1 of log magnitudes, the mean over the resolutions.
    """
    total = 0.0
    for size, hop, width in SETTINGS:
        ours_there, theirs_there = (_magnitude(audio, size, hop, width) for audio in (ours, theirs))
        convergence = np.linalg.norm(ours_there - theirs_there) / np.linalg.norm(theirs_there)
        total += float(convergence) + float(np.abs(np.log(ours_there) - np.log(theirs_there)).mean(dtype=np.float64))
    return total / len(SETTINGS)


def silence_of(mel: FloatArray) -> float:
    """The log-mel, in nats, at and below which a song with this true mel [T, M] is silent."""
    return float(mel.max() - RANGE_DB * DB)


def in_range(mel: FloatArray, floor: float, level: float = 0.0) -> FloatArray:
    """A log-mel [T, M] that many nats louder, what is below the floor raised to it."""
    return np.maximum(mel + np.float32(level), np.float32(floor))


def mel_error(ours: FloatArray, theirs: FloatArray, level: float = 0.0) -> float:
    """Mean absolute difference in nats of two log-mels [T, M], ours and the true one, over the frames that both have.

    Ours is taken ``level`` nats louder. What the true one's range leaves out is silence in both.
    """
    frames, floor = min(len(ours), len(theirs)), silence_of(theirs)
    difference = in_range(ours[:frames], floor, level) - in_range(theirs[:frames], floor)
    return float(np.abs(difference).mean(dtype=np.float64))


def _magnitude(audio: NDArray[np.float32], size: int, hop: int, width: int) -> NDArray[np.float32]:
    """[frames, size / 2 + 1], of centred frames."""
    before = (size - width) // 2
    hann = np.sin(np.pi / width * np.arange(width)) ** 2
    window = np.pad(hann, (before, size - width - before)).astype(np.float32)
    padded = np.pad(audio, size // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, size)[::hop]
    power = np.square(np.abs(np.fft.rfft(frames * window))).astype(np.float32)
    return np.sqrt(np.maximum(power, np.float32(POWER_FLOOR)))
