"""Vocoding as the mel grows: chunks that join to exactly what the whole song vocoded at once would be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from notewave.checks import is_integer, require
from notewave.sound.mel import HOP, FloatArray

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
        self._mel: FloatArray | None = None  # the window's frames [B, V, M]

    def push(self, mel: FloatArray, last: bool) -> FloatArray:
        """The song's next frames of log-mel [T, M] -> the audio [n] that is now final; all of it when ``last``.

        Of songs side by side, [B, T, M] -> [B, n]. T may be 0.
        """
        frames = mel[None] if mel.ndim == 2 else mel
        self._mel = frames if self._mel is None else np.concatenate([self._mel, frames], axis=1)
        final = self._window.grow(frames.shape[1], last)
        audio = np.empty((len(frames), 0), np.float32)
        if final.start < final.stop:
            audio = self._vocode(self._mel, self._window.first)[:, final.start * HOP : final.stop * HOP]
            self._mel = self._mel[:, self._window.shrink() :]
        audio = np.clip(audio, -1.0, 1.0)
        return audio[0] if mel.ndim == 2 else audio


MAX_RECEPTIVE_FRAMES = 4096


@dataclass(frozen=True)
class VocoderTraits:
    """How far the vocoder looks around a frame, so that a song can be vocoded in chunks without a seam."""

    left_frames: int  # frames before a frame that its audio depends on
    right_frames: int  # frames after it
    positional: bool = False  # also takes the index of its first frame in the song

    def __post_init__(self) -> None:
        """Refuse receptive fields that would need absurd buffers."""
        for side in (self.left_frames, self.right_frames):
            reach = is_integer(side, 0, MAX_RECEPTIVE_FRAMES)
            require(reach, "the vocoder's reach", side, f"must be 0 to {MAX_RECEPTIVE_FRAMES} frames")
        require(isinstance(self.positional, bool), "positional", self.positional, "must be true or false")
