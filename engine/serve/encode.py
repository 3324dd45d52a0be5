"""Sound to the bytes of a file, chunk by chunk, for readers who cannot go back."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import soundfile

from notewave.errors import ArgumentError
from notewave.sound.audio import BLOCK, pcm16
from notewave.sound.mel import SAMPLE_RATE, FloatArray
from notewave.sound.resample import Resampler

WAV_HEAD = 44  # bytes
_FLAC_HEAD = 42  # bytes of a FLAC file up to the end of its first block, which says the length
_FLAC_COUNT = slice(21, 26)  # of them: 4 bits of something else, then the number of samples in 36


class Encoder(Protocol):
    """A file of sound under way."""

    def push(self, samples: FloatArray) -> bytes:
        """The next samples [n] in [-1, 1] -> the bytes that are now final."""

    def finish(self) -> bytes:
        """The bytes that are left."""


class Raw:
    """Samples one after another, after a head."""

    def __init__(self, head: bytes, pack: Callable[[FloatArray], Any]) -> None:
        self._head, self._pack = head, pack

    def push(self, samples: FloatArray) -> bytes:
        """See ``Encoder.push``."""
        head, self._head = self._head, b""
        return head + bytes(self._pack(samples).tobytes())

    def finish(self) -> bytes:
        """See ``Encoder.finish``."""
        return self._head


class Flac:
    """FLAC by libsndfile, which would write the length at the end into what is long sent: it is known before."""

    def __init__(self, rate: int, count: int) -> None:
        """count: samples in all."""
        self._sink = _Sink(count)
        try:
            self._file = soundfile.SoundFile(self._sink, "w", rate, 1, format="FLAC")
        except soundfile.LibsndfileError as error:
            raise ArgumentError(
                f"FLAC cannot be of {rate} Hz: {error.error_string} Choose another rate or format."
            ) from error

    def push(self, samples: FloatArray) -> bytes:
        """See ``Encoder.push``."""
        for start in range(0, len(samples), BLOCK):
            self._file.write(pcm16(samples[start : start + BLOCK]))
        return self._sink.take()

    def finish(self) -> bytes:
        """See ``Encoder.finish``."""
        self._file.close()
        return self._sink.take()


class _Sink:
    """A file to libsndfile whose bytes are sent as they come; what it writes over them later is let go."""

    def __init__(self, count: int) -> None:
        self._count, self._at, self._end = count, 0, 0
        self._waiting = bytearray()

    def write(self, data: Any) -> int:
        size = len(memoryview(data))
        if self._at == self._end:
            self._waiting += bytes(data)
            self._end += size
        self._at += size
        return size

    def read(self, size: int = -1) -> bytes:
        return b""  # nobody reads what is written; soundfile asks for the method

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset + (0, self._at, self._end)[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def take(self) -> bytes:
        """The bytes that came since; none until the head is there, which then says the length."""
        if self._end < _FLAC_HEAD:
            return b""
        taken, self._waiting = self._waiting, bytearray()
        if self._count and self._end == len(taken):  # the first ones
            kept = taken[_FLAC_COUNT.start] & 0xF0
            number = (kept << 32 | self._count).to_bytes(5, "big")
            taken[_FLAC_COUNT] = number
        return bytes(taken)


class Rated:
    """Sound at 16 kHz, taken at another rate by whatever encodes it."""

    def __init__(self, encoder: Encoder, rate: int) -> None:
        self._encoder, self._resampler = encoder, Resampler(SAMPLE_RATE, rate)

    def push(self, samples: FloatArray) -> bytes:
        """See ``Encoder.push``."""
        return self._encoder.push(self._resampler.push(samples, last=False))

    def finish(self) -> bytes:
        """See ``Encoder.finish``."""
        rest = self._resampler.push(np.empty(0, np.float32), last=True)
        return self._encoder.push(rest) + self._encoder.finish()


def samples_at(count: int, rate: int) -> int:
    """How many samples so many at 16 kHz come to at another rate: see ``Resampler``."""
    return (2 * count * rate + SAMPLE_RATE) // (2 * SAMPLE_RATE)


def wav_head(rate: int, count: int) -> bytes:
    """The head of a WAV file of 16 bits, of so many samples."""
    layout = (16, 1, 1, rate, 2 * rate, 2, 16)  # PCM, a channel; bytes a second and a sample, bits
    size = 2 * count
    return struct.pack("<4sI8sIHHIIHH4sI", b"RIFF", WAV_HEAD - 8 + size, b"WAVEfmt ", *layout, b"data", size)


@dataclass(frozen=True)
class Format:
    """A way to write sound down."""

    kind: str  # as HTTP names it
    width: int  # bytes of a sample, at most
    head: int  # bytes beside them, at most
    is_exact: bool  # whether it comes to exactly so many
    open: Callable[[int, int], Encoder]  # an encoder, of a rate and a count of samples

    def size(self, count: int, rate: int) -> int:
        """Bytes that so many samples at 16 kHz come to at a rate."""
        return self.head + self.width * samples_at(count, rate)

    def encoder(self, count: int, rate: int) -> Encoder:
        """What takes so many samples at 16 kHz. Raises ArgumentError for a rate that the format cannot have."""
        return Rated(self.open(rate, samples_at(count, rate)), rate)


def _s16(samples: FloatArray) -> Any:
    return pcm16(samples).astype("<i2", copy=False)


def _f32(samples: FloatArray) -> Any:
    return samples.astype("<f4", copy=False)


_SAMPLES = "application/octet-stream"
FORMATS = {
    "wav": Format("audio/wav", 2, WAV_HEAD, True, lambda rate, count: Raw(wav_head(rate, count), _s16)),
    "flac": Format("audio/flac", 2, 1 << 16, False, Flac),
    "s16le": Format(_SAMPLES, 2, 0, True, lambda rate, count: Raw(b"", _s16)),
    "f32le": Format(_SAMPLES, 4, 0, True, lambda rate, count: Raw(b"", _f32)),
}
