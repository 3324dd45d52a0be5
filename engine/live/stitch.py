"""Hops put together to one sound, at any rate: each fades in over what the one before said would follow.

What should have come and did not is covered by that, too, as it fades out.
"""

from __future__ import annotations

import numpy as np

from notewave.checks import quoted
from notewave.errors import ArgumentError
from notewave.live.hops import Hop
from notewave.sound.mel import FRAME_RATE, SAMPLE_RATE, FloatArray
from notewave.sound.resample import check_rate

FADE_SECONDS = 0.005  # in which a hop takes over from what was foreseen


class Stitch:
    """One sound of hops of so many frames.

    ``fit`` is for whoever makes hops, the others for whoever hears them: they take no time to speak of.
    """

    def __init__(self, hop: int, sample_rate: int) -> None:
        """Raises as ``check_live_rate``."""
        check_live_rate(sample_rate)
        self.length = hop * sample_rate // FRAME_RATE  # samples of a hop
        self.sample_rate = sample_rate
        self._fade = np.linspace(0.0, 1.0, round(FADE_SECONDS * sample_rate), dtype=np.float32)
        self._foreseen = np.empty(0, np.float32)  # what follows what was heard, if nothing comes

    def fit(self, hop: Hop) -> tuple[FloatArray, FloatArray]:
        """A hop's samples [length], and what may follow them, at the sound's rate."""
        if self.sample_rate == SAMPLE_RATE:
            return hop.samples, hop.ahead
        from soxr import resample

        whole = np.concatenate([hop.lead, hop.samples, hop.ahead])
        lead = len(hop.lead) * self.sample_rate // SAMPLE_RATE
        sound = np.clip(resample(whole, SAMPLE_RATE, self.sample_rate, quality="HQ"), -1.0, 1.0)
        return sound[lead : lead + self.length], sound[lead + self.length :]

    def come(self, samples: FloatArray, ahead: FloatArray) -> FloatArray:
        """What is heard of a hop that came, as ``fit`` gave it."""
        heard, count = samples.copy(), min(len(self._fade), len(self._foreseen))
        fade = self._fade[:count]
        heard[:count] = fade * samples[:count] + (1.0 - fade) * self._foreseen[:count]
        if not count and len(samples) and samples[0]:
            heard[: len(self._fade)] *= self._fade  # after silence
        self._foreseen = ahead * _falling(len(ahead))
        return heard

    def cover(self) -> FloatArray:
        """What is heard in the place of a hop that did not come."""
        heard = np.zeros(self.length, np.float32)
        part = self._foreseen[: self.length]
        heard[: len(part)] = part
        self._foreseen = self._foreseen[self.length :]
        return heard


def check_live_rate(rate: int) -> None:
    """Raise ArgumentError for a rate in Hz at which a frame is no whole number of samples."""
    check_rate(rate)
    if rate % FRAME_RATE:
        raise ArgumentError(
            f"rate is {quoted(rate)} Hz; live, it must be a multiple of {FRAME_RATE}, as 16000, 44100 and 48000 are."
        )


def _falling(length: int) -> FloatArray:
    """From 1 to 0, softly at both ends."""
    turn = np.pi * np.arange(1, length + 1, dtype=np.float32) / max(length, 1)
    return np.float32(0.5) + np.float32(0.5) * np.cos(turn, dtype=np.float32)
