"""The backend on a GPU: a voice's networks on one slab of its memory, a whole segment's work in one CUDA graph.

It knows no engine by name: whatever runs the networks is a ``notewave.backends.executor.Runtime``.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import TypeVar

from notewave.backends.device.driver import CudaDevice, Kernel
from notewave.backends.device.shapes import MAX_BATCH
from notewave.backends.executor import Runtime
from notewave.backends.gpu.denoising import DenoisingProgram, DenoisingWorkspace
from notewave.backends.gpu.frames import FrameProgram, FrameWorkspace
from notewave.backends.gpu.live import GpuLive, LiveProgram
from notewave.backends.gpu.program import Denoiser
from notewave.backends.gpu.run import DeviceRun, GpuRun
from notewave.backends.gpu.shape import RunShape
from notewave.backends.gpu.shared import Recorder, Shared
from notewave.backends.gpu.vocoder import VocoderLane
from notewave.backends.protocol import DeviceFacts
from notewave.errors import BackendError
from notewave.sampling.job import Job
from notewave.sound.mel import FloatArray
from notewave.voice.folder import Voice

KEPT_DENOISERS = 2  # idle ones, with their captured graphs

UnderWay = TypeVar("UnderWay", bound=DeviceRun)


class GpuBackend:
    """One voice on one NVIDIA GPU.

    runtime: the voice's networks, opened on the device. kernels: the project's own, loaded there. graphs: whether
    launches are to be recorded in CUDA graphs. Its GPU memory, the runtime's included, is given back by ``close``, or
    when nothing refers to it any more.
    """

    side_by_side = MAX_BATCH

    def __init__(
        self, voice: Voice, device: CudaDevice, runtime: Runtime, kernels: dict[str, Kernel], graphs: bool = True
    ) -> None:
        self.name = runtime.name
        self.shared = Shared(voice, device, runtime, kernels, Recorder(graphs))
        self._idle: deque[Denoiser] = deque()
        self._vocoders: list[VocoderLane] = []  # none until there is something to vocode, then one
        self._lock = threading.Lock()
        self._lane_lock = threading.Lock()  # held while the vocoder is given work, never while that is waited for
        self._vocode_lock = threading.Lock()  # held by who vocodes from the host's memory
        self._finalizer = weakref.finalize(self, _give_back, self.shared, self._idle, self._vocoders)
        self._finalizer.atexit = False  # the driver gives all back then

    def close(self) -> None:
        """Give all GPU memory back; no run may be under way, and none can be started any more."""
        self._finalizer()

    def start(self, job: Job) -> AbstractContextManager[GpuRun]:
        """See ``notewave.backends.protocol.Backend.start``."""
        return self._under_way(job, lambda denoiser: GpuRun(denoiser, job, self._lane))

    def live(self, job: Job) -> AbstractContextManager[GpuLive]:
        """See ``notewave.backends.protocol.Backend.live``."""
        return self._under_way(job, lambda denoiser: GpuLive(denoiser, job))

    @contextlib.contextmanager
    def _under_way(self, job: Job, begin: Callable[[Denoiser], UnderWay]) -> Iterator[UnderWay]:
        """Begin a run on buffers that no other run is using, and leave them to the next run."""
        self._check_open()
        shape = RunShape.of(job)
        with self.shared.device:
            denoiser = self._take(shape)
            try:
                denoiser.space.begin(job)
            except BaseException:
                self._discard(denoiser)
                raise
        run = begin(denoiser)
        try:
            yield run
        finally:
            with self.shared.device, self._lock:
                run.end()
                try:
                    denoiser.space.settle()  # a run may be left with segments under way
                except BaseException:
                    self._discard(denoiser)
                    raise
                self._idle.append(denoiser)
                while len(self._idle) > KEPT_DENOISERS:
                    self._discard(self._idle.popleft())

    def vocode(self, mel: FloatArray, frame: int) -> FloatArray:
        """See ``notewave.backends.protocol.Backend.vocode``; runs beside a segment that is being denoised."""
        self._check_open()
        with self.shared.device, self._vocode_lock:
            with self._lane() as lane:
                lane.send(mel, frame)
            return lane.receive(*mel.shape[:2])

    def device_facts(self) -> DeviceFacts:
        """See ``notewave.backends.protocol.Backend.device_facts``."""
        device = self.shared.device
        with device:
            free, total = device.memory()
        return DeviceFacts(device.name, total - free, dict(self.shared.recorder.launches))

    @contextlib.contextmanager
    def _lane(self) -> Iterator[VocoderLane]:
        """The vocoder, to be given work, for one thread at a time."""
        with self._lane_lock:
            if not self._vocoders:
                self._vocoders.append(VocoderLane(self.shared))
            yield self._vocoders[0]

    def _check_open(self) -> None:
        if not self._finalizer.alive:
            raise BackendError("this backend was closed, and its GPU memory given back. Open another.")

    def _take(self, shape: RunShape) -> Denoiser:
        """An idle denoiser of this shape, or a new one; idle ones make room when memory is short."""
        with self._lock:
            for denoiser in self._idle:
                if denoiser.space.shape == shape:
                    self._idle.remove(denoiser)
                    return denoiser
            while True:
                try:
                    return self._denoiser(shape)
                except BackendError:
                    if not self._idle:
                        raise
                    self._discard(self._idle.popleft())

    def _denoiser(self, shape: RunShape) -> Denoiser:
        """A new denoiser of the kind that the shape needs."""
        if shape.parts > 1:
            written = FrameWorkspace(self.shared, shape)
            return Denoiser(written, functools.partial(FrameProgram, written))
        space, kind = DenoisingWorkspace(self.shared, shape), LiveProgram if shape.windows else DenoisingProgram
        return Denoiser(space, functools.partial(kind, space))

    def _discard(self, denoiser: Denoiser) -> None:
        """Give a denoiser's memory back, but keep its stream if networks belong to it: the next one finds them open."""
        stream, spare = denoiser.space.stream, self.shared.streams
        denoiser.free()
        if self.shared.runtime.stream_bound and len(spare) < KEPT_DENOISERS:
            spare.append(stream)
        else:
            self.shared.runtime.leave(stream)


def _give_back(shared: Shared, idle: deque[Denoiser], vocoders: list[VocoderLane]) -> None:
    """Let go of all that a backend held, where PyCUDA can free it; a GPU that failed holds nothing any more."""
    with contextlib.suppress(BackendError), shared.device:
        for denoiser in idle:
            denoiser.free()
        for vocoder in vocoders:
            vocoder.free()
        for held in (idle, vocoders, shared.streams, shared.kernels):
            held.clear()
        shared.runtime.free()
