"""One window of a song on ONNX Runtime: encoders, then the denoising loop, in buffers allocated once."""

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
from notewave.sampling.loop import denoise
from notewave.song.codec import pad_tokens
from notewave.song.dialect import PAD, Tokens
from notewave.sound.mel import FRAMES, MELS, FloatArray
from notewave.voice.contracts import keys_values
from notewave.voice.folder import Voice


class Buffers:
    """Every buffer that one run needs, for a batch of B songs."""

    def __init__(self, voice: Voice, batch: int) -> None:
        self.batch = batch
        self.size = size = voice.dimensions
        shape = (batch, FRAMES, MELS)
        self.x = np.empty(shape, np.float32)
        self.x0_previous = np.empty(shape, np.float32)
        self.noise = np.empty(shape, np.float32)
        self.prediction = np.empty(shape, np.float32)
        self.unconditional = np.empty(shape, np.float32)
        self.mask = np.empty(0, np.float32)
        self.keys = 0  # J of the segment at hand
        self._capacity = (size.max_tokens + FRAMES) * batch * size.heads * size.head_width  # floats, of a layer's keys
        try:
            self._keys_values = np.empty(2 * size.decoder_layers * self._capacity, np.float32)
        except (MemoryError, ValueError) as error:
            raise BackendError(
                f"there is no room for the keys and values of {batch} songs of this voice ({error}). Free memory, or "
                "take a smaller voice."
            ) from error

    def bind_keys_values(self, bind: Callable[..., None]) -> None:
        """Bind each layer's keys and values where they lie, as inputs or as outputs."""
        sizes = {"B": self.batch, "J": self.keys}
        for index, tensor in enumerate(keys_values(self.size)):
            size = math.prod(shape := tensor.shape_at(sizes))
            first = index * self._capacity
            _bind(bind, tensor.name, self._keys_values[first : first + size].reshape(shape))


class Denoiser:
    """A batch of B songs in one run's buffers."""

    def __init__(self, voice: Voice, networks: Networks, buffers: Buffers, job: Job) -> None:
        self._voice, self._networks, self._buffers, self._job = voice, networks, buffers, job
        self._film = networks.film(job)
        self._frames = FRAMES  # that the decoder is given: of a window those that matter
        if job.windows and networks["decoder"].takes_parts:
            self._frames = job.windows.length

    def encode_context(self, mel: FloatArray) -> FloatArray:
        """What the songs' frames before, [B, C, M] and bounded, are to the decoder: [B, C, D]. Raises VoiceError."""
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
        buffers, padded = self._buffers, pad_tokens(tokens)
        most = buffers.size.max_tokens  # more keys than the buffers hold would be written beyond them
        if padded.shape[1] > most:
            raise VoiceError(
                f"segment {segment} has {padded.shape[1]} tokens; the voice takes {most}. Thin out its notes or take a "
                "voice of more."
            )
        notes = self._run("note_encoder", {"tokens": padded})
        if context is None:
            context = np.empty((buffers.batch, 0, buffers.size.width), np.float32)
        buffers.keys = notes.shape[1] + context.shape[1]
        buffers.mask = np.zeros((buffers.batch, 1, 1, buffers.keys), np.float32)
        buffers.mask[:, 0, 0, : padded.shape[1]][padded == PAD] = np.finfo(np.float32).min
        session = self._networks["cross_attention"].session
        binding = session.io_binding()
        binding.bind_cpu_input("notes", notes)
        binding.bind_cpu_input("context", context)
        buffers.bind_keys_values(binding.bind_output)
        with self._job.watched("cross_attention"):
            session.run_with_iobinding(binding)

    def denoise(self, draw: Callable[[int, FloatArray], object], played: FloatArray | None = None) -> FloatArray:
        """What was encoded -> the mel [B, T, M], in the buffers.

        draw: fills [B, T, M] with noise, by the draw's number. played [B, P, M]: the mel of the first frames, if known.
        """
        buffers, job = self._buffers, self._job
        x, noises, prediction, unconditional, x0_previous = (
            memory[:, : self._frames]
            for memory in (buffers.x, buffers.noise, buffers.prediction, buffers.unconditional, buffers.x0_previous)
        )
        passes = [self._bind("decoder", x, prediction)]
        if job.guided:
            passes.append(self._bind("unconditional_decoder", x, unconditional))

        def predict(step: int) -> tuple[FloatArray, FloatArray | None]:
            for network, session, binding in passes:
                _bind(binding.bind_input, "film", self._film[step : step + 1])
                with job.watched(network):
                    session.run_with_iobinding(binding)
            return prediction, unconditional if job.guided else None

        def noise(number: int) -> FloatArray:
            draw(number, noises)
            return noises

        draw(0, x)
        denoise(
            job.table,
            x,
            predict,
            noise,
            guidance=job.guidance,
            x0_previous=x0_previous,
            played=played,
            on_step=job.on_step,
        )
        return x

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

    def _bind(self, network: str, x: FloatArray, prediction: FloatArray) -> tuple[str, Any, Any]:
        """A decoder's name, its session, and a binding of everything but the step's FiLM."""
        buffers = self._buffers
        session = self._networks[network].session
        binding = session.io_binding()
        _bind(binding.bind_input, "x", x)
        _bind(binding.bind_output, "prediction", prediction)
        if network == "decoder":
            _bind(binding.bind_input, "mask", buffers.mask)
            buffers.bind_keys_values(binding.bind_input)
        return network, session, binding


def vocode(voice: Voice, vocoder: Network, mel: FloatArray, frame: int) -> FloatArray:
    """Log-mel [B, V, M], index of its first frame -> audio [B, HOP V] in [-1, 1]."""
    inputs: dict[str, NDArray[Any]] = {"mel": mel}
    if voice.vocoder is not None and voice.vocoder.positional:
        inputs["frame"] = np.array([frame], np.int64)
    return bounded(carry_nan(vocoder.run(inputs)[0], mel))


def _bind(bind: Any, name: str, array: FloatArray) -> None:
    bind(name, "cpu", 0, np.float32, array.shape, array.ctypes.data)
