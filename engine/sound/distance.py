"""How far a sound is from another, in figures for logs and reports: no gradients, no PyTorch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SETTINGS = ((1024, 120, 600), (2048, 240, 1200), (512, 50, 240))  # of each resolution: FFT, hop, window, in samples
POWER_FLOOR = 1e-7


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


def _magnitude(audio: NDArray[np.float32], size: int, hop: int, width: int) -> NDArray[np.float32]:
    """[frames, size / 2 + 1], of centred frames."""
    before = (size - width) // 2
    hann = np.sin(np.pi / width * np.arange(width)) ** 2
    window = np.pad(hann, (before, size - width - before)).astype(np.float32)
    padded = np.pad(audio, size // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, size)[::hop]
    power = np.square(np.abs(np.fft.rfft(frames * window))).astype(np.float32)
    return np.sqrt(np.maximum(power, np.float32(POWER_FLOOR)))
