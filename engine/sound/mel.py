"""The spectrogram that voices speak: its settings, its analysis, its network range.

Shapes: T frames, M mel bins, F = FFT // 2 + 1 linear bins, n samples. Frame i covers samples [HOP i, HOP i + WINDOW),
with no centring; the end is padded with silence. Values are natural logarithms of HTK-mel-weighted STFT magnitudes, as
TensorFlow's ``signal.stft`` and ``signal.linear_to_mel_weight_matrix`` define them and the original code uses them.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from notewave.checks import is_number, require

SAMPLE_RATE = 16000  # Hz
HOP = 320  # samples: 50 frames a second
WINDOW = 640  # samples, periodic Hann
FFT = 1024  # samples; the window is followed by zeros
MELS = 128
MEL_HIGH_HZ = 8000.0  # the lowest edge is 0 Hz
FRAMES = 256  # frames of one segment
FRAME_RATE = SAMPLE_RATE // HOP  # frames a second
FRAME_SECONDS = HOP / SAMPLE_RATE  # 20 ms
SEGMENT_SECONDS = FRAMES * FRAME_SECONDS  # 5.12 s

MAGNITUDE_MIN, MAGNITUDE_MAX = 1e-5, 1e8  # clip before the logarithm
LOG_MIN = math.log(1e-5)  # log-mel of silence
LOG_MAX = 4.0  # log-mel that the published networks see as +1
MAX_LOG_MEL = 50.0  # of any log-mel, either way; the loudest magnitude is MAGNITUDE_MAX, 18 in its logarithm

FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class MelRange:
    """The log-mel that a voice's networks see as [-1, 1]; the default is the published voices'.

    Raises VoiceError for what is no range.
    """

    low: float = LOG_MIN
    high: float = LOG_MAX

    def __post_init__(self) -> None:
        """Refuse what is no range of log-mels."""
        for name in ("low", "high"):
            value = getattr(self, name)
            rule = f"must be a log-mel from {-MAX_LOG_MEL:g} to {MAX_LOG_MEL:g}"
            require(is_number(value, -MAX_LOG_MEL, MAX_LOG_MEL), f"the mel range's {name}", value, rule)
        require(self.high - self.low >= 1.0, "the mel range's high", self.high, f"must lie 1 above its low, {self.low}")

    @property
    def scale(self) -> float:
        """Log-mel of one unit of the networks' range."""
        return 0.5 * (self.high - self.low)

    @property
    def silence(self) -> float:
        """Silence in the networks' range: -1 where that begins there."""
        return float(self.to_network(np.array(LOG_MIN, np.float32)))

    def to_network(self, log_mel: FloatArray) -> FloatArray:
        """Map log-mel [..., M] to the networks' range [-1, 1], clipped."""
        unit = (np.clip(log_mel, self.low, self.high) - self.low) / (self.high - self.low)
        return (2.0 * unit - 1.0).astype(np.float32, copy=False)

    def from_network(self, x: FloatArray) -> FloatArray:
        """Map the networks' range [-1, 1] back to log-mel; the inverse of ``to_network``, without clipping."""
        return ((x + 1.0) * self.scale + self.low).astype(np.float32, copy=False)


PUBLISHED_RANGE = MelRange()
LOG_SCALE = PUBLISHED_RANGE.scale
to_network, from_network = PUBLISHED_RANGE.to_network, PUBLISHED_RANGE.from_network


def log_mel(samples: NDArray[np.floating]) -> FloatArray:
    """Log-mel spectrogram float32 [ceil(n / HOP), M] of mono audio [n] at SAMPLE_RATE."""
    magnitude = np.abs(stft(samples)) @ mel_weights()
    return np.log(np.clip(magnitude, MAGNITUDE_MIN, MAGNITUDE_MAX)).astype(np.float32)


class MelStream:
    """The log-mel of sound that comes in chunks, in the memory of one chunk."""

    def __init__(self) -> None:
        self._rest: NDArray[np.floating] = np.empty(0, np.float32)  # from the first frame that is not given out

    def push(self, samples: NDArray[np.floating]) -> FloatArray:
        """The sound's next samples [n] -> the frames [T, M] that are now whole."""
        sound = np.concatenate([self._rest, samples])
        whole = max((len(sound) - WINDOW) // HOP + 1, 0)
        self._rest = sound[whole * HOP :]
        return log_mel(sound[: (whole - 1) * HOP + WINDOW])[:whole]

    def finish(self) -> FloatArray:
        """The last frames [T, M], which reach beyond the sound."""
        return log_mel(self._rest)


def stft(samples: NDArray[np.floating]) -> NDArray[np.complex128]:
    """Short-time Fourier transform [ceil(n / HOP), F] of mono audio [n]."""
    frames = -(-len(samples) // HOP)
    padded = np.zeros((frames - 1) * HOP + WINDOW if frames else 0)
    padded[: len(samples)] = samples[: len(padded)]
    windows = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP] if frames else np.zeros((0, WINDOW))
    return np.fft.rfft(windows * hann(), FFT)


def istft(spectrum: NDArray[np.complexfloating]) -> NDArray[np.float64]:
    """Audio [T * HOP] whose ``stft`` is nearest to the spectrum [T, F] by least squares (Griffin & Lim 1984)."""
    frames = len(spectrum)
    blocks = np.fft.irfft(spectrum, FFT)[:, :WINDOW] * hann()
    audio, weight = np.zeros((frames + 1) * HOP), np.zeros((frames + 1) * HOP)
    for half in range(WINDOW // HOP):  # the window spans two hops
        span = slice(half * HOP, half * HOP + frames * HOP)
        audio[span] += blocks[:, half * HOP : (half + 1) * HOP].reshape(-1)
        weight[span] += np.tile(hann()[half * HOP : (half + 1) * HOP] ** 2, frames)
    return (audio / np.maximum(weight, 1e-3))[: frames * HOP]


@functools.cache
def hann() -> NDArray[np.float64]:
    """Periodic Hann window [WINDOW]."""
    return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)


@functools.cache
def mel_weights() -> NDArray[np.float64]:
    """Triangular HTK mel weights [F, M] without area normalisation; the DC bin's weights are zero."""
    mels = _hertz_to_mel(np.arange(1, FFT // 2 + 1) * SAMPLE_RATE / FFT)[:, None]
    edges = _mel_edges()
    lower, centre, upper = edges[:-2], edges[1:-1], edges[2:]
    triangles = np.minimum((mels - lower) / (centre - lower), (upper - mels) / (upper - centre))
    return np.pad(np.maximum(triangles, 0.0), ((1, 0), (0, 0)))


def mel_centres() -> NDArray[np.float64]:
    """Centre frequency of each mel bin in Hz [M]."""
    return 700.0 * np.expm1(_mel_edges()[1:-1] / 1127.0)


def _mel_edges() -> NDArray[np.float64]:
    return np.linspace(0.0, _hertz_to_mel(MEL_HIGH_HZ), MELS + 2)


def _hertz_to_mel(hertz: NDArray[np.float64] | float) -> NDArray[np.float64]:
    return 1127.0 * np.log1p(np.asarray(hertz) / 700.0)
