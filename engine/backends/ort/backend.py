"""ONNX Runtime on the CPU: the voice's graphs, bound to buffers allocated once."""

from __future__ import annotations

import contextlib
import functools
import math
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from notewave.backends.ort.failures import on_cpu
from notewave.backends.ort.sessions import Network, Networks, shared_networks
from notewave.backends.processors import processors
from notewave.backends.protocol import OVER, Run
from notewave.errors import BackendError, VoiceError
from notewave.kernels.reference import bounded, carry_nan, mel_to_context
from notewave.sampling.job import Job
from notewave.sampling.loop import denoise
from notewave.song.codec import pad_tokens
from notewave.song.dialect import PAD, Tokens
from notewave.sound.mel import FRAMES, MELS, FloatArray, from_network
from notewave.sound.stream import VocoderStream
from notewave.voice.contracts import keys_values
from notewave.voice.folder import Voice

KEPT_BUFFERS = 2  # idle ones: a few hundred megabytes each of the published size


class OrtBackend:
    """One voice on ONNX Runtime's CPU provider; sessions are shared by all backends alike on the same voice.

    threads: as many as there are processors for this process if None.
    """

    name = "cpu"
    side_by_side = 1  # more are slower, unless all are of one length and several threads sing

    def __init__(self, voice: Voice, threads: int | None) -> None:
        self.voice = voice
        self.networks = shared_networks(voice, threads or processors())
        self._idle: deque[Buffers] = deque(maxlen=KEPT_BUFFERS)
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def start(self, job: Job) -> Iterator[Run]:
        """Begin a batch of songs on buffers that no other run is using, and leave them to the next run."""
        batch = len(job.seeds)
        with on_cpu():
            with self._lock:
                alike = next((buffers for buffers in self._idle if buffers.batch == batch), None)
                if alike:
                    self._idle.remove(alike)
            buffers = alike or Buffers(self.voice, batch)
            run = OrtRun(self.voice, self.networks, buffers, job)
            try:
                yield run
            finally:
                run.end()
                with self._lock:
                    self._idle.append(buffers)

    def vocode(self, mel: FloatArray, frame: int) -> FloatArray:
        """See ``notewave.backends.protocol.Backend.vocode``."""
        with on_cpu():
            return _vocode(self.voice, self.networks["vocoder"], mel, frame)

    def device_facts(self) -> None:
        """See ``notewave.backends.protocol.Backend.device_facts``."""


def _vocode(voice: Voice, vocoder: Network, mel: FloatArray, frame: int) -> FloatArray:
    """Log-mel [B, V, M], index of its first frame -> audio [B, HOP V] in [-1, 1]."""
    inputs: dict[str, NDArray[Any]] = {"mel": mel}
    if voice.vocoder is not None and voice.vocoder.positional:
        inputs["frame"] = np.array([frame], np.int64)
    return bounded(carry_nan(vocoder.run(inputs)[0], mel))


def _vocode_of_job(voice: Voice, networks: Networks, job: Job, mel: FloatArray, frame: int) -> FloatArray:
    vocoder = networks["vocoder"]
    with job.watched("vocoder"):
        return _vocode(voice, vocoder, mel, frame)


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


class Later:
    """Work that the host does when it is first waited for, after all that was asked of the run before it."""

    def __init__(self, run: OrtRun, work: Callable[[], FloatArray]) -> None:
        self._run, self._work = run, work
        self._value: FloatArray | None = None
        run.asked.append(self)

    def result(self) -> FloatArray:
        """See ``notewave.backends.protocol.Pending.result``."""
        while self._value is None and self._run.asked:
            self._run.asked.popleft()._do()
        if self._value is None:
            raise BackendError(OVER)
        return self._value

    def _do(self) -> None:
        try:
            self._value = self._work()
        except BaseException:
            self._run.end()  # what follows would stand on what is not there
            raise


class OrtRun(Run):
    """A batch of songs under way on ONNX Runtime."""

    def __init__(self, voice: Voice, networks: Networks, buffers: Buffers, job: Job) -> None:
        self._networks, self._buffers, self._job = networks, buffers, job
        self._film = networks.film(job)
        self._segment, self._over = 0, False
        self.asked: deque[Later] = deque()
        # No method of the run: in a circle it would wait for the collector, in whichever process that comes.
        vocode = functools.partial(_vocode_of_job, voice, networks, job)
        self._stream = VocoderStream(vocode, voice.vocoder) if voice.vocoder else None
        self._voice = voice

    def submit(self, tokens: Sequence[Tokens]) -> None:
        """See ``notewave.backends.protocol.Run.submit``."""
        if self._over:
            raise BackendError(OVER)
        padded = pad_tokens(tokens)
        Later(self, lambda: self._denoise(padded))

    def mel(self) -> Later:
        """See ``notewave.backends.protocol.Run.mel``."""
        return Later(self, self._buffers.x.copy)

    def sound(self, last: bool) -> Later:
        """See ``notewave.backends.protocol.Run.sound``."""
        return self._sounded(lambda: from_network(self._buffers.x), last)

    def rest(self) -> Later:
        """See ``notewave.backends.protocol.Run.rest``."""
        return self._sounded(lambda: np.empty((self._buffers.batch, 0, MELS), np.float32), last=True)

    def end(self) -> None:
        """Do no more of what was asked, nor of what is yet to be: the buffers are another run's."""
        self.asked.clear()
        self._over = True

    def _sounded(self, mel: Callable[[], FloatArray], last: bool) -> Later:
        stream = self._stream
        assert stream is not None, "nobody asks a voice without a vocoder for its sound"
        return Later(self, lambda: stream.push(mel(), last))

    def _denoise(self, tokens: NDArray[np.int32]) -> FloatArray:
        """The next segment of tokens [B, N] -> mel [B, T, M], in the buffers."""
        buffers, job = self._buffers, self._job
        self._encode(tokens)
        passes = [self._bind("decoder", buffers.prediction)]
        if job.guided:
            passes.append(self._bind("unconditional_decoder", buffers.unconditional))

        def predict(step: int) -> tuple[FloatArray, FloatArray | None]:
            for network, session, binding in passes:
                _bind(binding.bind_input, "film", self._film[step : step + 1])
                with job.watched(network):
                    session.run_with_iobinding(binding)
            return buffers.prediction, buffers.unconditional if job.guided else None

        def draw(number: int) -> FloatArray:
            job.draw(self._segment, number, buffers.noise)
            return buffers.noise

        job.draw(self._segment, 0, buffers.x)
        denoise(
            job.table,
            buffers.x,
            predict,
            draw,
            guidance=job.guidance,
            x0_previous=buffers.x0_previous,
            on_step=job.on_step,
        )
        self._segment += 1
        return buffers.x

    def _encode(self, tokens: NDArray[np.int32]) -> None:
        """Tokens [B, N] and the last segment's mel -> mask, and keys and values of every decoder layer, in place."""
        buffers = self._buffers
        notes = self._run("note_encoder", {"tokens": tokens})
        context = np.empty((buffers.batch, 0, buffers.size.width), np.float32)
        if self._segment:
            context = self._run("context_encoder", {"mel": mel_to_context(buffers.x)})
        self._check_keys(tokens.shape[1], context.shape[1])
        buffers.keys = notes.shape[1] + context.shape[1]
        buffers.mask = np.zeros((buffers.batch, 1, 1, buffers.keys), np.float32)
        buffers.mask[:, 0, 0, : tokens.shape[1]][tokens == PAD] = np.finfo(np.float32).min
        session = self._networks["cross_attention"].session
        binding = session.io_binding()
        binding.bind_cpu_input("notes", notes)
        binding.bind_cpu_input("context", context)
        buffers.bind_keys_values(binding.bind_output)
        with self._job.watched("cross_attention"):
            session.run_with_iobinding(binding)

    def _run(self, network: str, inputs: dict[str, NDArray[Any]]) -> FloatArray:
        """The only output of a network for these inputs."""
        opened = self._networks[network]
        with self._job.watched(network):
            return opened.run(inputs)[0]

    def _check_keys(self, tokens: int, context: int) -> None:
        """Refuse more keys than the buffers hold, which graphs would write beyond."""
        if tokens > (most := self._buffers.size.max_tokens):
            raise VoiceError(
                f"segment {self._segment} has {tokens} tokens; the voice takes {most}. Thin out its notes or take a "
                "voice of more."
            )
        if self._segment and context != FRAMES:
            raise VoiceError(
                f"the voice's context encoder made {context} frames of {FRAMES}: it is not what its description says. "
                "Export the voice again."
            )

    def _bind(self, network: str, prediction: FloatArray) -> tuple[str, Any, Any]:
        """A decoder's name, its session, and a binding of everything but the step's FiLM."""
        buffers = self._buffers
        session = self._networks[network].session
        binding = session.io_binding()
        _bind(binding.bind_input, "x", buffers.x)
        _bind(binding.bind_output, "prediction", prediction)
        if network == "decoder":
            _bind(binding.bind_input, "mask", buffers.mask)
            buffers.bind_keys_values(binding.bind_input)
        return network, session, binding


def _bind(bind: Any, name: str, array: FloatArray) -> None:
    bind(name, "cpu", 0, np.float32, array.shape, array.ctypes.data)
