"""ONNX Runtime on the CPU: the voice's graphs, bound to buffers allocated once."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, TypeVar

from notewave.backends.ort.denoiser import Buffers
from notewave.backends.ort.encoder import vocode
from notewave.backends.ort.failures import on_cpu
from notewave.backends.ort.frames import FrameBuffers
from notewave.backends.ort.live import OrtLive
from notewave.backends.ort.run import DenoisingRun, FrameRun, OrtRun
from notewave.backends.ort.sessions import shared_networks
from notewave.backends.processors import processors
from notewave.sampling.job import Job
from notewave.sound.mel import FloatArray
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
        self._idle: deque[Buffers | FrameBuffers] = deque(maxlen=KEPT_BUFFERS)
        self._lock = threading.Lock()

    def start(self, job: Job) -> AbstractContextManager[OrtRun]:
        """See ``notewave.backends.protocol.Backend.start``."""
        return self._begun(FrameRun if self.voice.is_autoregressive else DenoisingRun, job)

    def live(self, job: Job) -> AbstractContextManager[OrtLive]:
        """See ``notewave.backends.protocol.Backend.live``."""
        return self._begun(OrtLive, job)

    @contextlib.contextmanager
    def _begun(self, kind: Callable[[Voice, Any, Any, Job], Begun], job: Job) -> Iterator[Begun]:
        """A run on buffers that no other run is using, which are left to the next run."""
        batch = len(job.seeds)
        with on_cpu():
            with self._lock:
                alike = next((buffers for buffers in self._idle if buffers.batch == batch), None)
                if alike:
                    self._idle.remove(alike)
            buffers = alike or (FrameBuffers if self.voice.is_autoregressive else Buffers)(self.voice, batch)
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
