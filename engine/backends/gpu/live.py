"""Live play on the GPU: a window's work, its vocoder included, in one CUDA graph on one stream.

Letters as in ``notewave.voice.contracts``.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from notewave.backends.device.driver import Graph
from notewave.backends.gpu.denoising import SIZE, DenoisingProgram, DenoisingWorkspace
from notewave.backends.gpu.program import Denoiser, Issue
from notewave.backends.gpu.run import DeviceRun
from notewave.backends.gpu.shape import Told, span
from notewave.backends.gpu.workspace import Workspace
from notewave.backends.protocol import LiveRun, Pending
from notewave.errors import BackendError
from notewave.kernels.layout import ordered
from notewave.kernels.loader import blocks
from notewave.kernels.reference import bounded
from notewave.sampling.job import Job
from notewave.sampling.windows import Place, Windows
from notewave.song.dialect import Tokens
from notewave.sound.mel import FRAMES, HOP, MELS

log = logging.getLogger(__name__)


class LiveProgram(DenoisingProgram):
    """All launches of one window: a segment's, but what was before it moves on first, and it ends in sound.

    A vocoder that cannot be recorded, since the engine reckons a part of it on the host, is launched behind the graph.
    """

    def __init__(self, space: DenoisingWorkspace, bucket: int) -> None:
        super().__init__(space, bucket)
        self._apart = not self._is_capturable("vocoder")  # whether it is

    def launch(self) -> None:
        """See ``Program.launch``."""
        super().launch()
        if self._apart:
            self._sound()

    def _record(self, parts: Sequence[Issue]) -> list[Graph]:
        try:
            return self._recorder.record_or_raise(self._space.device, self._space.stream, parts)
        except BackendError as error:
            log.info("launching the vocoder behind the graph, where it may be what cannot be recorded: %s", error)
            self._apart = True
            return self._recorder.record(self._space.device, self._space.stream, parts)

    def _begin(self) -> None:
        space, address = self._space, self._space.address
        known = {name: address[name] for name in ("x", "played", "next_context", "control")}
        given = ordered("advance", context=address["context_mel"], **known, size=SIZE)
        space.kernels["advance"](self._blocks, space.stream, *given)
        space.device.copy(address["context_mel"], address["next_context"], space.shape.mel_bytes, space.stream)
        super()._begin()

    def _end(self) -> None:
        if not self._apart:
            self._sound()

    def _sound(self) -> None:
        """Launch what makes sound of the finished mel."""
        space, address, heard = self._space, self._space.address, windows_of(self._space).heard
        mel, log_mel, frames = address["x"] + 4 * MELS * heard.start, address["log_mel"], span(heard)
        size, seen = MELS * frames, space.shared.voice.mel_range
        given = ordered("from_network", mel=mel, log_mel=log_mel, scale=seen.scale, offset=seen.low, size=size)
        space.kernels["from_network"](blocks(size), space.stream, *given)
        self._networks["vocoder"].launch()
        size = HOP * frames
        given = ordered("carry_nan", audio=address["audio"], log_mel=log_mel, mels=MELS, hop=HOP, size=size)
        space.kernels["carry_nan"](blocks(size), space.stream, *given)


class GpuLive(DeviceRun, LiveRun):
    """A song played live on the GPU."""

    def __init__(self, denoiser: Denoiser, job: Job) -> None:
        super().__init__(denoiser, job)
        self._windows = windows_of(self._space)

    def submit(self, tokens: Tokens, place: Place) -> None:
        """See ``notewave.backends.protocol.LiveRun.submit``."""
        assert 0 <= place.moved <= FRAMES, "a window begins no later than the one before ends"
        segment, first = divmod(place.first, FRAMES)
        self._submit(Told(segment, first, self._windows.given(place.moved), place.moved), [tokens])

    def mel(self) -> Pending:
        """See ``notewave.backends.protocol.LiveRun.mel``."""
        return self._mel(lambda mel: mel[0].copy())

    def sound(self) -> Pending:
        """See ``notewave.backends.protocol.LiveRun.sound``."""
        space, part = self._space, self._begun()
        with space.device:
            start = space.address["audio"] + 4 * HOP * self._windows.sounded.start
            space.device.download(part.audio, start, space.stream)
            part.audio_ready.record(space.stream)
            return self._pending(part.audio_ready, part.audio, bounded)

    def prepare(self, place: Place) -> None:
        """See ``notewave.backends.protocol.LiveRun.prepare``; here that is in the window's graph."""


def windows_of(space: Workspace) -> Windows:
    """The windows of a live run's workspace."""
    assert space.shape.windows is not None and space.traits is not None, "who plays live has windows and a vocoder"
    return space.shape.windows
