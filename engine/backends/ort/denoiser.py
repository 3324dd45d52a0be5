"""The denoising loop of one segment or window on ONNX Runtime, in buffers allocated once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from notewave.backends.ort.encoder import Encoder, Memory, bind_array
from notewave.backends.ort.sessions import Networks
from notewave.sampling.job import Job
from notewave.sampling.loop import denoise
from notewave.sound.mel import FRAMES, MELS, FloatArray
from notewave.voice.folder import Voice


class Buffers(Memory):
    """Every buffer that one run needs, for a batch of B songs."""

    def __init__(self, voice: Voice, batch: int) -> None:
        super().__init__(voice, batch)
        shape = (batch, FRAMES, MELS)
        self.x = np.empty(shape, np.float32)
        self.x0_previous = np.empty(shape, np.float32)
        self.noise = np.empty(shape, np.float32)
        self.prediction = np.empty(shape, np.float32)
        self.unconditional = np.empty(shape, np.float32)


class Denoiser(Encoder):
    """A batch of B songs in one run's buffers."""

    def __init__(self, voice: Voice, networks: Networks, buffers: Buffers, job: Job) -> None:
        super().__init__(voice, networks, buffers, job)
        self._buffers = buffers
        self._film = networks.film(job)
        self._frames = FRAMES  # that the decoder is given: of a window those that matter
        if job.windows and networks["decoder"].takes_parts:
            self._frames = job.windows.length

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
                bind_array(binding.bind_input, "film", self._film[step : step + 1])
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

    def _bind(self, network: str, x: FloatArray, prediction: FloatArray) -> tuple[str, Any, Any]:
        """A decoder's name, its session, and a binding of everything but the step's FiLM."""
        buffers = self._buffers
        session = self._networks[network].session
        binding = session.io_binding()
        bind_array(binding.bind_input, "x", x)
        bind_array(binding.bind_output, "prediction", prediction)
        if network == "decoder":
            bind_array(binding.bind_input, "mask", buffers.mask)
            buffers.bind_keys_values(binding.bind_input)
        return network, session, binding
