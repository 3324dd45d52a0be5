"""A song part by part: each alone, by the same seed, beside the mix.

A voice that sings a part alone makes another sound than where it sings all: their sum is near the mix, not the mix.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np

from notewave.song.dialect import Dialect, Tokens
from notewave.song.midi import tokenize
from notewave.song.notes import Notes
from notewave.song.parts import parts
from notewave.sound.audio import Audio
from notewave.sound.distance import mel_error
from notewave.sound.mel import HOP, FloatArray, MelStream

MIX = "mix"  # what files of it are called, as no part is
BLOCK = 512 * HOP  # samples whose mel is made at once


class Stems(dict[str, Audio]):
    """Each part of a song by its name, programs in their order and drums last; all as long as the mix."""

    def __init__(self, stems: dict[str, Audio], mix: Audio) -> None:
        super().__init__(stems)
        self.mix = mix

    @cached_property
    def error(self) -> float:
        """How far the sum of the parts is from the mix: see ``sum_error``."""
        return sum_error(np.sum([stem.samples for stem in self.values()], axis=0), self.mix.samples)


def stem_tokens(notes: Notes, mix: list[Tokens], dialect: Dialect, max_seconds: float) -> dict[str, list[Tokens]]:
    """The tokens of each part alone, as many segments as the mix has. Errors as ``tokenize``."""
    told = {
        name: tokenize(part, dialect=dialect, max_seconds=max_seconds)[: len(mix)]
        for name, part in parts(notes).items()
    }
    return {name: tokens + [dialect.silence] * (len(mix) - len(tokens)) for name, tokens in told.items()}


def sum_error(total: FloatArray, mix: FloatArray) -> float:
    """Mean difference of the log-mels of two sounds [n], in nats, within 78 dB below the mix's loudest value."""
    return mel_error(_mel(total), _mel(mix))


def _mel(samples: FloatArray) -> FloatArray:
    """The log-mel [T, M] of a sound [n], in little memory."""
    stream = MelStream()
    whole = [stream.push(samples[start : start + BLOCK]) for start in range(0, len(samples), BLOCK)]
    return np.concatenate([*whole, stream.finish()])
