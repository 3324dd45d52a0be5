"""Sound that comes in chunks, as long as was asked."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator

import numpy as np

from notewave.sound.audio import BLOCK
from notewave.sound.mel import SAMPLE_RATE, FloatArray


def fitted(sung: Iterable[FloatArray], seconds: float | None, is_filled: bool) -> Iterator[FloatArray]:
    """Chunks of samples [n] at SAMPLE_RATE, of a song that is to last so long; all of it where nothing is asked.

    What is beyond is cut off. is_filled: whether silence follows where the song is shorter.
    """
    if seconds is None:
        yield from sung
        return
    left = round(min(seconds * SAMPLE_RATE, sys.maxsize))
    for samples in sung:
        yield samples[:left]
        left -= min(left, len(samples))
    while left and is_filled:
        yield np.zeros(min(left, BLOCK), np.float32)
        left -= min(left, BLOCK)
