"""Songs under way on the GPU, and what is common to all that is under way there."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from notewave.backends.gpu.pending import Copied, Copy
from notewave.backends.gpu.program import Denoiser
from notewave.backends.gpu.shape import Told
from notewave.backends.gpu.sound import DeviceSound, Lane
from notewave.backends.gpu.workspace import Part, Slot
from notewave.backends.protocol import OVER, Pending, Run
from notewave.errors import BackendError
from notewave.kernels.reference import bounded
from notewave.sampling.job import Job
from notewave.song.dialect import Tokens
from notewave.sound.mel import FloatArray


class DeviceRun:
    """What was submitted last, a segment or a window, and what is asked of it; the denoiser is another run's later."""

    def __init__(self, denoiser: Denoiser, job: Job) -> None:
        self._denoiser, self._space, self._job = denoiser, denoiser.space, job
        self._count, self._over = 0, False  # how many were submitted
        self._slot: Slot | None = None  # of the one submitted last
        self._parts = self._reported = 0  # parts begun, and those whose steps were told of

    def end(self) -> None:
        """Let go of the device's memory, within its context; nothing can be asked any more."""
        self._slot = None
        self._over = True

    def _submit(self, told: Told, tokens: Sequence[Tokens]) -> None:
        """Begin the next; returns while the GPU works."""
        if self._over:
            raise BackendError(OVER)
        with self._space.device:
            self._slot = self._denoiser.submit(self._job, told, tokens)
        self._count += 1
        self._parts += 1

    def _submitted(self) -> Slot:
        if self._slot is None:
            raise BackendError(OVER if self._over else "nothing was submitted to this run yet. Submit something.")
        return self._slot

    def _begun(self) -> Part:
        """The part begun last."""
        parts = self._submitted().parts
        return parts[(self._parts - 1) % len(parts)]

    def _mel(self, copy: Copy) -> Pending:
        """The mel, as copied from [B, T, M]."""
        space, part = self._space, self._begun()
        with space.device:
            space.device.download(part.mel, space.address["x"], space.stream)
            part.mel_ready.record(space.stream)
            return self._pending(part.mel_ready, part.mel, copy)

    def _pending(self, ready: Any, memory: FloatArray, copy: Copy, slot: Slot | None = None) -> Copied:
        """What comes back when ``ready`` was reached, to a slot, that of the segment submitted last if None."""
        report = functools.partial(self._report_steps, self._parts)
        pending = Copied(self._space.device, ready, memory, copy, report)
        (slot or self._submitted()).pending.append(pending)
        return pending

    def _report_steps(self, done: int) -> None:
        """So many parts are done; tell of the steps, or frames, that were not told of yet."""
        fresh = max(done - self._reported, 0)
        self._reported += fresh
        if self._job.on_step is not None:
            for _ in range(fresh * (self._space.shape.steps or self._space.shape.frames)):
                self._job.on_step()


class GpuRun(DeviceRun, Run):
    """A batch of songs under way on the GPU."""

    def __init__(self, denoiser: Denoiser, job: Job, lane: Lane) -> None:
        super().__init__(denoiser, job)
        self._lane = lane
        self._sound: DeviceSound | None = None
        self.parts = denoiser.space.shape.parts

    def submit(self, tokens: Sequence[Tokens]) -> None:
        """See ``notewave.backends.protocol.Run.submit``."""
        self._submit(Told(self._count), tokens)

    def go_on(self) -> None:
        """See ``notewave.backends.protocol.Run.go_on``."""
        self._submitted()
        with self._space.device:
            self._denoiser.go_on()
        self._parts += 1

    def mel(self) -> Pending:
        """See ``notewave.backends.protocol.Run.mel``."""
        return self._mel(np.copy)

    def sound(self, last: bool) -> Pending:
        """See ``notewave.backends.protocol.Run.sound``."""
        return self._vocode(self._submitted(), self._begun(), self._space.shape.frames, last)

    def rest(self) -> Pending:
        """See ``notewave.backends.protocol.Run.rest``."""
        self._submitted()
        slot = self._space.slots[self._count % len(self._space.slots)]  # as the next segment would
        slot.collect()
        return self._vocode(slot, slot.parts[0], 0, last=True)

    def end(self) -> None:
        """See ``DeviceRun.end``."""
        super().end()
        self._sound = None

    def _vocode(self, slot: Slot, part: Part, frames: int, last: bool) -> Pending:
        space = self._space
        assert space.traits is not None, "nobody asks a voice without a vocoder for its sound"
        with space.device:
            self._sound = self._sound or DeviceSound(space, self._lane, space.traits)
            audio = self._sound.enqueue(part, frames, last)
            return self._pending(part.audio_ready, audio, bounded, slot)
