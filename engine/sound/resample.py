"""Sound at another rate, chunk by chunk, by soxr's very high quality."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from notewave.checks import as_array, is_integer, quoted
from notewave.errors import ArgumentError
from notewave.sound.audio import MAX_SAMPLE_RATE

QUALITY = "VHQ"  # of soxr: its errors lie below the 24th bit


class Resampler:
    """Turns mono sound of one rate into another as it comes; its chunks join to what the whole at once would be.

    Of n samples in all come n * rate_out / rate_in, to the nearest whole number. At equal rates sound passes untouched.
    """

    def __init__(self, rate_in: int, rate_out: int) -> None:
        """Between two rates in Hz. Raises as ``check_rate``."""
        check_rate(rate_in)
        check_rate(rate_out)
        self._stream = None
        if rate_in != rate_out:
            from soxr import ResampleStream

            self._stream = ResampleStream(rate_in, rate_out, 1, np.float32, QUALITY)

    def push(self, samples: NDArray[np.float32], last: bool) -> NDArray[np.float32]:
        """The sound's next samples [n] in [-1, 1] -> those [m] of the new rate that are now final; all when ``last``.

        n may be 0. What overshoots is clipped to [-1, 1]. Raises ArgumentError when the samples are no mono sound.
        """
        chunk = as_array(samples)
        if chunk.ndim != 1 or chunk.dtype.kind != "f":
            raise ArgumentError(f"The sound cannot be resampled: it is {quoted(samples)}. Give floats [n] in [-1, 1].")
        chunk = np.ascontiguousarray(chunk, np.float32)
        if self._stream is None:
            return chunk
        return np.clip(self._stream.resample_chunk(chunk, last), -1.0, 1.0)


def check_rate(rate: int) -> None:
    """Raise ArgumentError for what is no rate of sound in whole Hz from 1 to MAX_SAMPLE_RATE."""
    if not is_integer(rate, 1, MAX_SAMPLE_RATE):
        raise ArgumentError(
            f"The sound's rate cannot be {quoted(rate)}: it is one in Hz. Give a whole number up to {MAX_SAMPLE_RATE}."
        )
