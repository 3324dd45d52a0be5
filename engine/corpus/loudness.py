"""How loud a song is to a listener: ITU-R BS.1770-4's integrated loudness, by pyloudnorm's filters.

What is found is what its ``Meter(rate, "DeMan")`` finds, whose filters are the recommendation's at 48 kHz, and those of
libebur128 at any rate. But that meter takes 0.9 GB for an hour at 16 kHz, three times as much at 48 kHz. Here the same
filters run over one block after another, of each of which the powers of its steps are kept.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_STEPS = 10  # a second: windows begin so often
_WINDOW = 4  # steps: 0.4 s
_BLOCK = 50  # steps that are filtered at once
_SILENCE = -70.0  # LUFS, below which a window is none of the song's
_QUIET = -10.0  # LU to the loudness of the other windows, below which one does not count
_OFFSET = -0.691  # dB, to which the filters' gain at 997 Hz adds up to none


def peak(samples: NDArray[np.float32]) -> float:
    """The largest magnitude of samples [n] in a file, where none is over 1; 0 of none."""
    return min(float(max(samples.max(initial=0.0), -samples.min(initial=0.0))), 1.0)


def loudness(samples: NDArray[np.float32], rate: int) -> float | None:
    """The integrated loudness in LUFS of a sound [n] of one channel at so many Hz, as a file has it: clipped to 1.

    None of silence, and of less than 0.4 s: there is no window to measure. Needs the extra ``corpus``.
    """
    powers = _powers(samples, rate)
    if len(powers) < _WINDOW:
        return None
    windows = np.convolve(powers, np.full(_WINDOW, 1 / _WINDOW), "valid")
    windows = windows[windows > _power(_SILENCE)]
    if not len(windows):
        return None
    windows = windows[windows > windows.mean() * 10 ** (_QUIET / 10)]
    return float(_OFFSET + 10 * np.log10(windows.mean()))


def _powers(samples: NDArray[np.float32], rate: int) -> NDArray[np.float64]:
    """The mean square of each whole step of 0.1 s, as the ear weighs frequencies."""
    from pyloudnorm import Meter
    from scipy.signal import lfilter

    filters = [(stage.b, stage.a) for stage in Meter(rate, "DeMan")._filters.values()]
    states = [np.zeros(2) for _ in filters]
    edges = np.rint(np.arange(len(samples) * _STEPS // rate + 1) * (rate / _STEPS)).astype(np.int64)
    sums = []
    for first in range(0, len(edges) - 1, _BLOCK):
        block = edges[first : first + _BLOCK + 1]
        sound = np.clip(samples[block[0] : block[-1]], -1.0, 1.0).astype(np.float64)
        for index, (forward, backward) in enumerate(filters):
            sound, states[index] = lfilter(forward, backward, sound, zi=states[index])
        sums.append(np.add.reduceat(np.square(sound), block[:-1] - block[0]) / np.diff(block))
    return np.concatenate([*sums, np.empty(0)])


def _power(level: float) -> float:
    """The mean square of a loudness in LUFS."""
    return float(10 ** ((level - _OFFSET) / 10))
