"""The vocoder on a stream of its own, so that it sounds a segment while the next is denoised.

Letters as in ``notewave.voice.contracts``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from notewave.backends.device.buffers import Layout, Slab, Staging
from notewave.backends.device.shapes import ITEM_BYTES, VOCODER_BATCH, vocoder_frames
from notewave.backends.executor import Capture, Scratch
from notewave.backends.gpu.shared import Shared
from notewave.backends.gpu.workspace import Part
from notewave.errors import BackendError
from notewave.kernels.layout import ordered
from notewave.kernels.loader import blocks
from notewave.kernels.reference import bounded
from notewave.sound.mel import HOP, MELS, FloatArray


class VocoderLane:
    """One vocoder for all runs of a backend; what it is given, it does in order.

    ``enqueue`` and ``send`` do not wait, and are for one thread at a time. Nothing else may be sent before ``receive``
    has given the audio of what was.
    """

    def __init__(self, shared: Shared) -> None:
        """Raises BackendError, with sizes, when there is not enough memory."""
        voice, runtime, device = shared.voice, shared.runtime, shared.device
        self._runtime, self._device, self._kernels = runtime, device, shared.kernels
        self._frames = vocoder_frames(voice)
        contract = runtime.contracts["vocoder"]
        largest = {"B": VOCODER_BATCH, "V": self._frames}
        sizes = {
            tensor.name: math.prod(tensor.shape_at(largest)) * ITEM_BYTES[tensor.dtype]
            for tensor in reversed(contract.inputs)  # the mel last, whose end is seldom used
        }
        inputs, audio_bytes = Layout(sizes), 4 * math.prod(contract.outputs[0].shape_at(largest))
        scratch = runtime.scratch_bytes(["vocoder"])
        layout = Layout({"staged": inputs.total, "audio": audio_bytes, "scratch": scratch})
        self._slab = Slab(device, layout, "the vocoder")
        self._base, self._mel_offset = self._slab.address["staged"], inputs.offsets["mel"]
        self._address = {name: self._base + offset for name, offset in inputs.offsets.items()}
        self._address["audio"] = self._slab.address["audio"]
        try:
            self.stream = device.stream()
            self._staging = Staging(device, inputs)
            self._audio = device.pinned(audio_bytes).view(np.float32)
            self._received = device.event()
            at = Scratch(self._slab.address["scratch"], scratch)
            self._network = runtime.open("vocoder", self.stream, at, Capture.NOBODY)
            self._network.bind(self._address)
        except BaseException:
            self.free()
            raise
        self._seen = set[tuple[int, int]]()  # shapes that the engine has compiled for

    def free(self) -> None:
        """Give all memory back, within the GPU's context; nothing is left to be used."""
        if "_network" in vars(self):
            self._network.free()
        self._slab.free()
        vars(self).clear()

    def send(self, mel: FloatArray, frame: int) -> None:
        """Begin to vocode log-mel [B, V, M] from the host's memory; ``receive`` gives the audio."""
        batch, frames, _ = mel.shape
        if batch > VOCODER_BATCH or frames > self._frames:
            raise BackendError(
                f"the vocoder was given {batch} songs of {frames} frames; it takes {VOCODER_BATCH} of {self._frames}. "
                "Give it fewer at once."
            )
        audio = self._audio[: batch * HOP * frames]
        self._staging.view("mel", np.float32, mel.shape)[...] = mel
        if self._mel_offset:
            self._staging.view("frame", np.int64, (1,))[...] = frame
        self._device.upload(self._base, self._staging.memory[: self._mel_offset + mel.nbytes], self.stream)
        self._run(batch, frames)
        self._device.download(audio, self._address["audio"], self.stream)
        self._received.record(self.stream)

    def receive(self, batch: int, frames: int) -> FloatArray:
        """Wait for the audio [B, HOP V], in [-1, 1], of what was sent, and for nothing behind it."""
        self._received.synchronize()
        return bounded(self._audio[: batch * HOP * frames].reshape(batch, HOP * frames))

    def enqueue(
        self, mels: Sequence[int], frames: int, frame: int, part: Part, skipped: int, audio: FloatArray
    ) -> None:
        """Vocode log-mel [V, M] of each song, at these device addresses, into a part's page-locked audio [B, n].

        frame: the first one's number in the song. skipped: frames whose sound does not come back. Does not wait.
        """
        row, hop = 4 * MELS * frames, 4 * HOP
        if self._mel_offset:
            part.frame[...] = frame
            self._device.upload(self._address["frame"], part.frame, self.stream)
        for first in range(0, len(mels), VOCODER_BATCH):
            some = slice(first, first + VOCODER_BATCH)
            for song, mel in enumerate(mels[some]):
                self._device.copy(self._address["mel"] + row * song, mel, row, self.stream)
            self._run(len(mels[some]), frames)
            self._carry_nan(len(mels[some]), frames)
            for song, samples in enumerate(audio[some]):
                start = self._address["audio"] + hop * (frames * song + skipped)
                self._device.download(samples, start, self.stream)

    def _carry_nan(self, batch: int, frames: int) -> None:
        """Let the audio show which mels were no numbers."""
        size, address = HOP * frames, self._address
        given = ordered("carry_nan", audio=address["audio"], log_mel=address["mel"], mels=MELS, hop=HOP, size=size)
        self._kernels["carry_nan"](blocks(size, batch), self.stream, *given)

    def _run(self, batch: int, frames: int) -> None:
        """Launch the network on what lies at its inputs."""
        self._network.reshape({"B": batch, "V": frames})
        self._network.launch()
        if (batch, frames) not in self._seen:
            self._seen.add((batch, frames))
            self._runtime.keep()
