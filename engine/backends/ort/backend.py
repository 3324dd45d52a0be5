"""ONNX Runtime on the CPU: the voice's graphs, bound to buffers allocated once."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import TypeVar

import numpy as np

from notewave.backends.ort.denoiser import Buffers, Denoiser, vocode
from notewave.backends.ort.failures import on_cpu
from notewave.backends.ort.live import OrtLive
from notewave.backends.ort.pending import Later
from notewave.backends.ort.sessions import Networks, shared_networks
from notewave.backends.processors import processors
from notewave.backends.protocol import OVER, Run
from notewave.errors import BackendError
from notewave.kernels.reference import mel_to_context
from notewave.sampling.job import Job
from notewave.song.dialect import Tokens
from notewave.sound.mel import MELS, FloatArray, from_network
from notewave.sound.stream import VocoderStream
from notewave.voice.folder import Voice

KEPT_BUFFERS = 2  # idle ones: a few hundred megabytes each of the published size


Begun = TypeVar("Begun", bound="OrtRun | OrtLive")


class OrtBackend:
    """One voice on ONNX Runtime's CPU provider; sessions are shared by all backends alike on the same voice.

    threads: as many as there are processors for this process if None.
    """

    name = "cpu"
    side_by_side = 1  # more are slower, unless all are of one length and several threads sing

    def __init__(self, voice: Voice, threads: int | None) -> None:
        self.voice = voice
        self.networks = shared_networks(voice, threads or processors())
        self._idle: deque[Buffers] = deque(maxlen=KEPT_BUFFERS)
        self._lock = threading.Lock()

    def start(self, job: Job) -> AbstractContextManager[OrtRun]:
        """See ``notewave.backends.protocol.Backend.start``."""
        return self._begun(OrtRun, job)

    def live(self, job: Job) -> AbstractContextManager[OrtLive]:
        """See ``notewave.backends.protocol.Backend.live``."""
        return self._begun(OrtLive, job)

    @contextlib.contextmanager
    def _begun(self, kind: Callable[[Voice, Networks, Buffers, Job], Begun], job: Job) -> Iterator[Begun]:
        """A run on buffers that no other run is using, which are left to the next run."""
        batch = len(job.seeds)
        with on_cpu():
            with self._lock:
                alike = next((buffers for buffers in self._idle if buffers.batch == batch), None)
                if alike:
                    self._idle.remove(alike)
            buffers = alike or Buffers(self.voice, batch)
            run = kind(self.voice, self.networks, buffers, job)
            try:
                yield run
            finally:
                run.end()
                with self._lock:
                    self._idle.append(buffers)

    def vocode(self, mel: FloatArray, frame: int) -> FloatArray:
        """See ``notewave.backends.protocol.Backend.vocode``."""
        with on_cpu():
            return vocode(self.voice, self.networks["vocoder"], mel, frame)

    def device_facts(self) -> None:
        """See ``notewave.backends.protocol.Backend.device_facts``."""


class OrtRun(Run):
    """A batch of songs under way on ONNX Runtime."""

    def __init__(self, voice: Voice, networks: Networks, buffers: Buffers, job: Job) -> None:
        self._buffers, self._job = buffers, job
        denoiser = self._denoiser = Denoiser(voice, networks, buffers, job)
        self._segment, self._over = 0, False
        self.asked: deque[Later] = deque()
        # No method of the run: in a circle it would wait for the collector, in whichever process that comes.
        self._stream = VocoderStream(denoiser.vocode, voice.vocoder) if voice.vocoder else None

    def submit(self, tokens: Sequence[Tokens]) -> None:
        """See ``notewave.backends.protocol.Run.submit``."""
        if self._over:
            raise BackendError(OVER)
        given = [one.copy() for one in tokens]
        Later(self, lambda: self._denoise(given))

    def mel(self) -> Later:
        """See ``notewave.backends.protocol.Run.mel``."""
        return Later(self, self._buffers.x.copy)

    def sound(self, last: bool) -> Later:
        """See ``notewave.backends.protocol.Run.sound``."""
        return self._sounded(lambda: from_network(self._buffers.x), last)

    def rest(self) -> Later:
        """See ``notewave.backends.protocol.Run.rest``."""
        return self._sounded(lambda: np.empty((self._buffers.batch, 0, MELS), np.float32), last=True)

    def end(self) -> None:
        """Do no more of what was asked, nor of what is yet to be: the buffers are another run's."""
        self.asked.clear()
        self._over = True

    def _sounded(self, mel: Callable[[], FloatArray], last: bool) -> Later:
        stream = self._stream
        assert stream is not None, "nobody asks a voice without a vocoder for its sound"
        return Later(self, lambda: stream.push(mel(), last))

    def _denoise(self, tokens: Sequence[Tokens]) -> FloatArray:
        """The next segment of each song -> its mel [B, T, M], in the buffers."""
        denoiser, segment = self._denoiser, self._segment
        before = mel_to_context(self._buffers.x) if segment else self._job.context
        if before is not None:
            before = denoiser.encode_context(np.broadcast_to(before, self._buffers.x.shape))
        denoiser.encode(tokens, before, segment)
        self._segment += 1
        return denoiser.denoise(lambda number, out: self._job.draw(segment, number, out))
