"""Songs under way on ONNX Runtime: what is asked of a run is done when it is waited for."""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from notewave.backends.ort.denoiser import Buffers, Denoiser
from notewave.backends.ort.encoder import Encoder
from notewave.backends.ort.frames import FrameBuffers, FrameWriter
from notewave.backends.ort.pending import Later
from notewave.backends.ort.sessions import Networks
from notewave.backends.protocol import OVER, PARTS, Run
from notewave.errors import BackendError
from notewave.kernels.reference import mel_to_context
from notewave.sampling.job import Job
from notewave.song.dialect import Tokens
from notewave.sound.mel import FRAMES, MELS, FloatArray
from notewave.sound.stream import VocoderStream
from notewave.voice.folder import Voice


class OrtRun(Run):
    """A batch of songs under way."""

    def __init__(self, voice: Voice, encoder: Encoder, job: Job) -> None:
        self._job, self._mel_range = job, voice.mel_range
        self._segments, self._over = 0, False  # how many were begun
        self._coming: Iterator[FloatArray] = iter(())  # parts of the segment at hand
        self._mel = np.empty((len(job.seeds), 0, MELS), np.float32)  # of the part at hand
        self.asked: deque[Later] = deque()
        # No method of the run: in a circle it would wait for the collector, in whichever process that comes.
        self._stream = VocoderStream(encoder.vocode, voice.vocoder) if voice.vocoder else None

    def submit(self, tokens: Sequence[Tokens]) -> None:
        """See ``notewave.backends.protocol.Run.submit``."""
        if self._over:
            raise BackendError(OVER)
        given = [one.copy() for one in tokens]
        Later(self, lambda: self._begin(given))

    def go_on(self) -> None:
        """See ``notewave.backends.protocol.Run.go_on``."""
        if self._over:
            raise BackendError(OVER)
        Later(self, self._next)

    def mel(self) -> Later:
        """See ``notewave.backends.protocol.Run.mel``."""
        return Later(self, lambda: self._mel.copy())

    def sound(self, last: bool) -> Later:
        """See ``notewave.backends.protocol.Run.sound``."""
        return self._sounded(lambda: self._mel_range.from_network(self._mel), last)

    def rest(self) -> Later:
        """See ``notewave.backends.protocol.Run.rest``."""
        return self._sounded(lambda: np.empty((len(self._job.seeds), 0, MELS), np.float32), last=True)

    def end(self) -> None:
        """Do no more of what was asked, nor of what is yet to be: the buffers are another run's."""
        self.asked.clear()
        self._coming = iter(())
        self._over = True

    @abstractmethod
    def _parts(self, tokens: Sequence[Tokens], segment: int) -> Iterator[FloatArray]:
        """The next segment of each song, part by part: [B, T, M], in the buffers."""

    def _begin(self, tokens: Sequence[Tokens]) -> FloatArray:
        self._coming = self._parts(tokens, self._segments)
        self._segments += 1
        return self._next()

    def _next(self) -> FloatArray:
        self._mel = next(self._coming)
        return self._mel

    def _sounded(self, mel: Callable[[], FloatArray], last: bool) -> Later:
        stream = self._stream
        assert stream is not None, "nobody asks a voice without a vocoder for its sound"
        return Later(self, lambda: stream.push(mel(), last))


class DenoisingRun(OrtRun):
    """Songs whose segments are denoised, each at once."""

    def __init__(self, voice: Voice, networks: Networks, buffers: Buffers, job: Job) -> None:
        self._buffers, self._denoiser = buffers, Denoiser(voice, networks, buffers, job)
        super().__init__(voice, self._denoiser, job)

    def _parts(self, tokens: Sequence[Tokens], segment: int) -> Iterator[FloatArray]:
        denoiser = self._denoiser
        before = mel_to_context(self._buffers.x) if segment else self._job.context
        if before is not None:
            before = denoiser.encode_context(np.broadcast_to(before, self._buffers.x.shape))
        denoiser.encode(tokens, before, segment)
        yield denoiser.denoise(lambda number, out: self._job.draw(segment, number, out))


class FrameRun(OrtRun):
    """Songs of an autoregressive voice, whose frames are written one by one."""

    parts = PARTS

    def __init__(self, voice: Voice, networks: Networks, buffers: FrameBuffers, job: Job) -> None:
        self._writer = FrameWriter(voice, networks, buffers, job)
        super().__init__(voice, self._writer, job)

    def _parts(self, tokens: Sequence[Tokens], segment: int) -> Iterator[FloatArray]:
        self._writer.begin(tokens, segment)
        length = FRAMES // self.parts
        for first in range(0, FRAMES, length):
            yield self._writer.write(first, first + length)
