"""A network that hears pitches in sound: the ear that the vocoder's training adds to spectral losses.

Spectral losses are means over all bins of all windows, so a tone 20 dB below the one an octave above it hardly counts,
though it is heard as a note of its own. A small transcriber, taught on the same recordings what sounds and what starts,
and then held fixed, compares what is heard in the vocoder's sound and the true one (Johnson et al. 2016).

Letters: B batch, V frames, n samples, S bins on a scale of semitones, P pitches from LOWEST on, C channels.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from notewave.sound.mel import HOP, SAMPLE_RATE, WINDOW

LOWEST, HIGHEST = 21, 109  # MIDI pitches that are heard: a piano's
WINDOWS = (1024, 4096)  # samples: one for when, one for what
HARMONICS = (0.5, 1, 2, 3, 4, 5, 6, 7, 8)  # stacked at each pitch (Bittner et al. 2022)
BINS = 3  # a semitone
FLOOR = 1e-4  # added to magnitudes of a full-scale sine's 1 before the logarithm


class Listener(nn.Module):
    """Audio [B, HOP V] -> logits [B, V, 2, P] of what sounds and of what starts in each frame of the mel.

    Log magnitudes on a scale of semitones, their harmonics stacked on their fundamentals as channels, three
    convolutions over time and pitch: what tells one pitch tells all.
    """

    def __init__(self, channels: int = 32) -> None:
        super().__init__()
        below, above = (round(12 * BINS * abs(math.log2(harmonic))) for harmonic in (HARMONICS[0], HARMONICS[-1]))
        self.bins = (HIGHEST - LOWEST) * BINS
        self.offsets = [below + round(12 * BINS * math.log2(harmonic)) for harmonic in HARMONICS]
        pitches = LOWEST + (np.arange(-below, self.bins + above) - 1) / BINS
        hertz = 440 * 2 ** ((pitches - 69) / 12)
        for size in WINDOWS:
            self.register_buffer(f"scale_{size}", torch.from_numpy(_semitones(hertz, size)), persistent=False)
        self.attack = nn.Conv2d(len(WINDOWS) * len(HARMONICS), channels, (3, 7), stride=(1, BINS), padding=(1, 2))
        self.attack_norm = nn.GroupNorm(4, channels)
        self.mix = nn.Conv2d(channels, channels, (5, 3), padding=(2, 1))
        self.mix_norm = nn.GroupNorm(4, channels)
        self.hold = nn.Conv2d(channels, channels, (7, 1), padding=(3, 0))
        self.out = nn.Conv2d(channels, 2, 1)
        self.level = nn.Parameter(torch.full((2, HIGHEST - LOWEST), -3.0))  # pitches differ in how often they sound

    def forward(self, audio: Tensor) -> Tensor:
        """[B, HOP V] -> logits [B, V, 2, P]."""
        return self.hear(audio)[0]

    def hear(self, audio: Tensor) -> tuple[Tensor, list[Tensor]]:
        """[B, HOP V] -> logits [B, V, 2, P], and what each layer makes of it, [B, C, V, P]."""
        spectra = torch.stack([self._spectrum(audio, size) for size in WINDOWS], dim=1)
        x = torch.cat([spectra[..., offset : offset + self.bins] for offset in self.offsets], dim=1)
        first = F.relu(self.attack_norm(self.attack(x)))
        second = first + F.relu(self.mix_norm(self.mix(first)))
        third = second + F.relu(self.hold(second))
        logits = self.out(third).float() + self.level[:, None]
        return logits.transpose(1, 2), [first, second, third]

    def _spectrum(self, audio: Tensor, size: int) -> Tensor:
        """[B, HOP V] -> scaled log magnitudes [B, V, S] of windows centred where the mel's are."""
        before = (size - WINDOW) // 2
        frames = F.pad(audio, (before, size - HOP - before)).unfold(-1, size, HOP)
        magnitude = torch.fft.rfft(frames * torch.hann_window(size, device=audio.device)).abs() / (size / 4)
        return (magnitude @ self.get_buffer(f"scale_{size}") + FLOOR).log() * 0.25 + 1.5


def _semitones(hertz: NDArray[np.float64], size: int) -> NDArray[np.float32]:
    """Weights [size / 2 + 1, S]: triangles around each frequency, a bin of the spectrum or of the scale wide."""
    centres = hertz * size / SAMPLE_RATE
    widths = np.maximum(1.0, centres * (2 ** (1 / (12 * BINS)) - 1))
    weights = np.maximum(0.0, 1.0 - np.abs(np.arange(size // 2 + 1)[:, None] - centres) / widths)
    weights /= weights.sum(axis=0) + 1e-6
    return np.where(centres > size // 2, 0.0, weights).astype(np.float32)


def hearing_losses(listener: Listener, predicted: Tensor, true: Tensor) -> tuple[Tensor, Tensor]:
    """How differently two sounds [B, HOP V] are heard.

    Divergence (nats) of the pitches heard, and the L1 between the layers' features over their deviation.
    """
    with torch.no_grad():
        logits, features = listener.hear(true)
    heard, ours = listener.hear(predicted)
    target = logits.sigmoid()
    divergence = F.binary_cross_entropy_with_logits(heard, target) - F.binary_cross_entropy_with_logits(logits, target)
    return divergence, torch.stack([F.l1_loss(a, b) / b.std() for a, b in zip(ours, features, strict=True)]).mean()
