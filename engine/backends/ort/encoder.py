"""What a decoder attends to, on ONNX Runtime: encoders and cross-attention, in memory allocated once."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from notewave.backends.ort.sessions import Network, Networks
from notewave.errors import BackendError, VoiceError
from notewave.kernels.reference import bounded, carry_nan
from notewave.sampling.job import Job
from notewave.song.codec import pad_tokens
from notewave.song.dialect import PAD, Tokens
from notewave.sound.mel import FRAMES, FloatArray
from notewave.voice.contracts import keys_values
from notewave.voice.folder import Voice


class Memory:
    """Mask, keys and values of every layer for a batch of B songs."""

    def __init__(self, voice: Voice, batch: int) -> None:
        self.batch = batch
        self.size = size = voice.dimensions
        self.mask = np.empty(0, np.float32)
        self.keys = 0  # J of the segment at hand
        most = size.max_tokens + size.context_frames
        self._capacity = most * batch * size.heads * size.head_width  # floats, of a layer's keys
        self._keys_values = allocated(2 * size.decoder_layers * self._capacity, batch)

    def bind_keys_values(self, bind: Callable[..., None]) -> None:
        """Bind each layer's keys and values where they lie, as inputs or as outputs."""
        sizes = {"B": self.batch, "J": self.keys}
        for index, tensor in enumerate(keys_values(self.size)):
            size = math.prod(shape := tensor.shape_at(sizes))
            first = index * self._capacity
            bind_array(bind, tensor.name, self._keys_values[first : first + size].reshape(shape))


class Encoder:
    """A batch of B songs, segment by segment, into a run's memory."""

    def __init__(self, voice: Voice, networks: Networks, memory: Memory, job: Job) -> None:
        self._voice, self._networks, self._memory, self._job = voice, networks, memory, job

    def encode_context(self, mel: FloatArray) -> FloatArray | None:
        """What the songs' frames before, [B, C, M] and bounded, are to the decoder: [B, C, D]. Raises VoiceError.

        None where the voice is not told of them.
        """
        if not self._voice.takes_context:
            return None
        context = self._run("context_encoder", {"mel": mel})
        if context.shape[1] != FRAMES:
            raise VoiceError(
                f"the voice's context encoder made {context.shape[1]} frames of {FRAMES}: it is not what its "
                "description says. Export the voice again."
            )
        return context

    def encode(self, tokens: Sequence[Tokens], context: FloatArray | None, segment: int) -> None:
        """Tokens of each song, and its context [B, C, D] if any -> mask, keys and values of every layer, in place.

        segment: its number, for who gave too many tokens: VoiceError.
        """
        memory, padded = self._memory, pad_tokens(tokens)
        most = memory.size.max_tokens  # more keys than the memory holds would be written beyond it
        if padded.shape[1] > most:
            raise VoiceError(
                f"segment {segment} has {padded.shape[1]} tokens; the voice takes {most}. Thin out its notes or take a "
                "voice of more."
            )
        given = {"notes": self._run("note_encoder", {"tokens": padded})}
        if self._voice.takes_context:
            none = np.empty((memory.batch, 0, memory.size.width), np.float32)
            given["context"] = none if context is None else context
        memory.keys = sum(part.shape[1] for part in given.values())
        memory.mask = np.zeros((memory.batch, 1, 1, memory.keys), np.float32)
        memory.mask[:, 0, 0, : padded.shape[1]][padded == PAD] = np.finfo(np.float32).min
        session = self._networks["cross_attention"].session
        binding = session.io_binding()
        for name, part in given.items():
            binding.bind_cpu_input(name, part)
        memory.bind_keys_values(binding.bind_output)
        with self._job.watched("cross_attention"):
            session.run_with_iobinding(binding)

    def vocode(self, mel: FloatArray, frame: int) -> FloatArray:
        """See ``notewave.backends.protocol.Backend.vocode``, watched as the job says."""
        vocoder = self._networks["vocoder"]
        with self._job.watched("vocoder"):
            return vocode(self._voice, vocoder, mel, frame)

    def _run(self, network: str, inputs: dict[str, NDArray[Any]]) -> FloatArray:
        """The only output of a network for these inputs."""
        opened = self._networks[network]
        with self._job.watched(network):
            return opened.run(inputs)[0]


def vocode(voice: Voice, vocoder: Network, mel: FloatArray, frame: int) -> FloatArray:
    """Log-mel [B, V, M], index of its first frame -> audio [B, HOP V] in [-1, 1]."""
    inputs: dict[str, NDArray[Any]] = {"mel": mel}
    if voice.vocoder is not None and voice.vocoder.positional:
        inputs["frame"] = np.array([frame], np.int64)
    return bounded(carry_nan(vocoder.run(inputs)[0], mel))


def allocated(numbers: int, batch: int) -> FloatArray:
    """Memory for so many numbers of keys and values. Raises BackendError where there is none."""
    try:
        return np.zeros(numbers, np.float32)
    except (MemoryError, ValueError) as error:
        raise BackendError(
            f"there is no room for the keys and values of {batch} songs of this voice ({error}). Free memory, or "
            "take a smaller voice."
        ) from error


def bind_array(bind: Any, name: str, array: NDArray[Any]) -> None:
    """Bind a network's input or output to an array where it lies."""
    bind(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
