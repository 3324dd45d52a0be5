"""What decides a run's buffers and launches, and what its launches are told.

Letters as in ``notewave.voice.contracts``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from notewave.backends.device.shapes import MAX_BATCH
from notewave.backends.protocol import PARTS
from notewave.errors import BackendError
from notewave.sampling.job import Job
from notewave.sampling.windows import Windows
from notewave.sound.mel import FRAMES, MELS


class Told(NamedTuple):
    """What the kernels are told of a segment, or of a window of live play, in frames."""

    segment: int  # its number; of a window, the one in which its first frame lies
    first: int = 0  # of that segment, where a window begins
    given: int = 0  # at a window's beginning, that were played
    moved: int = 0  # from the window before

    @property
    def frame(self) -> int:
        """Its first frame's number in the song."""
        return self.segment * FRAMES + self.first


@dataclass(frozen=True)
class RunShape:
    """All that decides the buffers and the launches of a run."""

    batch: int  # B
    steps: int  # S; 0 where frames are written one by one
    guided: bool
    draws: int  # noise tensors given for each segment; 0 when the kernels draw them
    windows: Windows | None  # of live play, where each is vocoded with its denoising; B is 1 then

    @classmethod
    def of(cls, job: Job) -> RunShape:
        """Shape of a job; raises BackendError when the GPU's networks do not take it."""
        batch = len(job.seeds)
        if batch > MAX_BATCH:
            raise BackendError(
                f"{batch} songs were given at once; the plans take {MAX_BATCH}. Render them in smaller groups."
            )
        return cls(batch, job.table.steps, job.guided, 0 if job.noise is None else job.table.draws, job.windows)

    @property
    def decoded(self) -> int:
        """Songs that the decoder runs at once; with guidance each a second time, without its notes."""
        return self.batch * (2 if self.guided else 1)

    @property
    def parts(self) -> int:
        """In how many parts a segment is made."""
        return 1 if self.steps else PARTS

    @property
    def frames(self) -> int:
        """Frames of a part, T."""
        return FRAMES // self.parts

    @property
    def mel_bytes(self) -> int:
        """Size of one float32 mel of a part of all songs, [B, T, M]."""
        return 4 * self.batch * self.frames * MELS


def span(frames: slice) -> int:
    """How many frames these are."""
    return int(frames.stop - frames.start)
