"""What a backend is: it loads a voice's graphs, owns the buffers and runs them. A song's story is told above it.

Which calls wait is part of the protocol, and holds on every backend. So does what becomes of a voice that fails: where
its networks give what is no finite number, NaN comes back, and whoever asked looks for it. Letters as in
``notewave.voice.contracts``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from notewave.sampling.job import Job
from notewave.sampling.windows import Place
from notewave.song.dialect import Tokens
from notewave.sound.mel import FloatArray

PARTS = 16  # in which a segment comes whose frames are written one by one, each of 0.32 s
OVER = "the run that this was asked of is over, or has failed. Take what it gives before it ends, or begin another."


class Pending(Protocol):
    """What was asked of a run, and may not be there yet."""

    def result(self) -> FloatArray:
        """Wait for it; asked again, it is there. To be taken while its run is open, else BackendError."""


class Run(ABC):
    """A batch of B songs under way: segments go in as they come, and each one's mel becomes the next one's context.

    A run holds two segments at a time: only ``result`` waits for work, as long as what was asked of a segment is taken
    before the next but one is submitted. If it is not, ``submit`` waits for it, and keeps it.

    A segment comes in ``parts`` of as many frames: ``submit`` begins the first, ``go_on`` each of the others, and what
    is asked for is the part's that was begun last.
    """

    parts = 1  # of a segment

    @abstractmethod
    def submit(self, tokens: Sequence[Tokens]) -> None:
        """Begin the next segment of each song, B token arrays; does not wait.

        The first segments of a length may take longer, as a device makes itself ready for it.
        """

    def go_on(self) -> None:
        """Begin the segment's next part; does not wait."""
        raise AssertionError("a segment of one part has no other")

    @abstractmethod
    def mel(self) -> Pending:
        """Ask for the mel [B, T, M], in the networks' range, of the part begun last; does not wait."""

    @abstractmethod
    def sound(self, last: bool) -> Pending:
        """Ask for the audio [B, n], in [-1, 1], that is final by the part begun last; does not wait.

        Once a part and before the next; n may be 0. last: whether the song ends with it, so that all of it is final.
        """

    @abstractmethod
    def rest(self) -> Pending:
        """Ask for the audio [B, n] held back, where the song's last segment was not known to be that; does not wait."""

    def denoise(self, tokens: Sequence[Tokens]) -> FloatArray:
        """``submit``, then wait for the mel, that of all parts."""
        self.submit(tokens)
        mels = [self.mel().result()]
        for _ in range(1, self.parts):
            self.go_on()
            mels.append(self.mel().result())
        return mels[0] if len(mels) == 1 else np.concatenate(mels, axis=1)


class LiveRun(ABC):
    """One song under way in windows that overlap, as its job's ``windows`` say; before it there was silence.

    A window is submitted, and what it came to is taken before the next one is.
    """

    @abstractmethod
    def submit(self, tokens: Tokens, place: Place) -> None:
        """Begin a window of these tokens, whose times count from its first frame on; does not wait."""

    @abstractmethod
    def mel(self) -> Pending:
        """Ask for the mel [T, M], in the networks' range, of the window submitted last; does not wait.

        Of its frames the first ``windows.length`` count.
        """

    @abstractmethod
    def sound(self) -> Pending:
        """Ask for the audio, in [-1, 1], of the window submitted last, of its ``windows.sounded``; does not wait."""

    @abstractmethod
    def prepare(self, place: Place) -> None:
        """Do what the next window needs, if it lies there, and no tokens say; may wait.

        To be called when the last one's sound was taken. ``submit`` does it where it was not done, or otherwise.
        """


@dataclass(frozen=True)
class DeviceFacts:
    """What can be told of a GPU that a backend runs on."""

    name: str
    memory: int  # bytes of its memory that are taken, by whomever
    launches: Mapping[int, int]  # of a segment as recorded in CUDA graphs, by its denoising steps; 0 where it has none


class Backend(Protocol):
    """One voice on one device."""

    name: str
    side_by_side: int  # the most songs that it best sings at once

    def start(self, job: Job) -> AbstractContextManager[Run]:
        """Prepare the schedule, which may wait, and begin a batch of songs; runs may be under way side by side."""

    def live(self, job: Job) -> AbstractContextManager[LiveRun]:
        """Prepare the schedule, which may wait, and begin a song of one seed that is played live."""

    def vocode(self, mel: FloatArray, frame: int) -> FloatArray:
        """Log-mel [B, V, M], from the song's frame ``frame`` on, -> audio [B, HOP * V] in [-1, 1]; waits."""

    def device_facts(self) -> DeviceFacts | None:
        """What can be told of its GPU; None on the CPU."""
