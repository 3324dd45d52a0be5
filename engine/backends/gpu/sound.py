"""Songs through the vocoder where their mels lie: the mel never leaves the GPU, a copy of audio alone comes back."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

from notewave.backends.gpu.vocoder import VocoderLane
from notewave.backends.gpu.workspace import Part, Workspace
from notewave.kernels.layout import ordered
from notewave.kernels.loader import blocks
from notewave.sound.mel import HOP, MELS, FloatArray
from notewave.sound.stream import VocoderTraits, Window

Lane = Callable[[], AbstractContextManager[VocoderLane]]  # the vocoder, for one thread at a time
ROW_BYTES = 4 * MELS  # of one frame


class DeviceSound:
    """The sound of a run's songs, segment by segment or part by part.

    The frames that the vocoder must see again lie in one of two windows of the run's memory; what it keeps of one
    moves to the beginning of the other. Streams wait for each other by events, the host for nothing.
    """

    def __init__(self, space: Workspace, lane: Lane, traits: VocoderTraits) -> None:
        self._space, self._lane, self._window = space, lane, Window(traits)
        self._at, self._spare = space.address["window"], space.address["spare_window"]

    def enqueue(self, part: Part, frames: int, last: bool) -> FloatArray:
        """Vocode what is now final into a part's audio, behind the making of ``frames`` more, all it has or none.

        Returns where it will be when the part's ``audio_ready`` was reached: page-locked [B, n], n may be 0.
        """
        space, window, batch = self._space, self._window, self._space.shape.batch
        with self._lane() as lane:
            end = window.length
            final = window.grow(frames, last)
            first, length, surplus = window.first, window.length, window.shrink()
            if frames:
                self._hand_over(end, lane)
            samples = HOP * (final.stop - final.start)
            audio = part.audio[: batch * samples].reshape(batch, samples)
            if samples:
                lane.enqueue(self._songs(self._at), length, first, part, final.start, audio)
                if window.length:
                    kept = ROW_BYTES * window.length
                    for source, target in zip(self._songs(self._at, surplus), self._songs(self._spare), strict=True):
                        space.device.copy(target, source, kept, lane.stream)
                self._at, self._spare = self._spare, self._at
            part.audio_ready.record(lane.stream)
        return audio

    def _hand_over(self, frame: int, lane: VocoderLane) -> None:
        """Put the part's log-mel into the window from a frame on; the next part waits until it is there."""
        space = self._space
        space.denoised.record(space.stream)
        lane.stream.wait_for_event(space.denoised)
        size, seen = space.shape.frames * MELS, space.shared.voice.mel_range
        for song, target in enumerate(self._songs(self._at, frame)):
            mel = space.address["x"] + 4 * size * song
            given = ordered("from_network", mel=mel, log_mel=target, scale=seen.scale, offset=seen.low, size=size)
            space.kernels["from_network"](blocks(size), lane.stream, *given)
        space.handed_over.record(lane.stream)
        space.stream.wait_for_event(space.handed_over)

    def _songs(self, window: int, frame: int = 0) -> list[int]:
        """Addresses of a frame in each song's part of a window."""
        offset = ROW_BYTES * frame
        return [window + self._space.window_bytes * song + offset for song in range(self._space.shape.batch)]
