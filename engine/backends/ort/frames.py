"""An autoregressive voice on ONNX Runtime: a segment's mel is written frame by frame, in buffers allocated once.

Keys and values of the frames so far lie in a cache for all layers; each new frame's are written into their place there.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from notewave.backends.ort.encoder import Encoder, Memory, allocated, bind_array
from notewave.backends.ort.sessions import Networks
from notewave.kernels.reference import keep_frame
from notewave.sampling.job import Job
from notewave.song.dialect import Tokens
from notewave.sound.mel import FRAMES, MELS, FloatArray
from notewave.voice.contracts import own_keys_values
from notewave.voice.folder import Voice


class FrameBuffers(Memory):
    """Every buffer that one run needs, for a batch of B songs."""

    def __init__(self, voice: Voice, batch: int) -> None:
        super().__init__(voice, batch)
        size = self.size
        self.x = np.empty((batch, FRAMES, MELS), np.float32)
        self.before, self.prediction = np.zeros((2, batch, 1, MELS), np.float32)  # a frame, and the one it foretells
        self.frame = np.zeros(1, np.int64)
        shape = (2 * size.decoder_layers, batch, size.heads, FRAMES, size.head_width)
        self.own = allocated(int(np.prod(shape)), batch).reshape(shape)  # keys and values of the segment's frames
        self.new = np.zeros((*shape[:3], 1, shape[4]), np.float32)  # of the frame at hand


class FrameWriter(Encoder):
    """A batch of B songs in one run's buffers."""

    def __init__(self, voice: Voice, networks: Networks, buffers: FrameBuffers, job: Job) -> None:
        super().__init__(voice, networks, buffers, job)
        self._buffers, self._decoder = buffers, networks["decoder"].session
        buffers.own.fill(0.0)  # what another run left there may be no numbers
        self._binding = self._decoder.io_binding()

    def begin(self, tokens: Sequence[Tokens], segment: int) -> None:
        """Encode a segment of each song; its first frame follows one of zeros."""
        buffers = self._buffers
        self.encode(tokens, None, segment)
        buffers.before.fill(0.0)
        binding = self._binding = self._decoder.io_binding()
        for name, array in (("x", buffers.before), ("frame", buffers.frame), ("mask", buffers.mask)):
            bind_array(binding.bind_input, name, array)
        for kinds, bind in (("own_", binding.bind_input), ("new_", binding.bind_output)):
            memory = buffers.own if kinds == "own_" else buffers.new
            for tensor, layer in zip(own_keys_values(buffers.size, FRAMES, kinds), memory, strict=True):
                bind_array(bind, tensor.name, layer)
        buffers.bind_keys_values(binding.bind_input)
        bind_array(binding.bind_output, "prediction", buffers.prediction)

    def write(self, first: int, end: int) -> FloatArray:
        """The segment's frames from one to before another [B, T, M], in the buffers."""
        buffers, job = self._buffers, self._job
        for frame in range(first, end):
            buffers.frame[0] = frame
            with job.watched("decoder"):
                self._decoder.run_with_iobinding(self._binding)
            prediction, before = buffers.prediction[:, 0], buffers.before[:, 0]
            keep_frame(prediction, before, buffers.x, buffers.new[:, :, :, 0], buffers.own, frame, frame)
            if job.on_step is not None:
                job.on_step()
        return buffers.x[:, first:end]
