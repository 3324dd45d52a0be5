"""ONNX Runtime: the voice's graphs on the CPU, or on a GPU by its CUDA provider, bound to buffers allocated once.

Options of the CUDA backend are those of ONNX Runtime's CUDA provider; any named trt_... are for its TensorRT provider,
which then stands in front of CUDA's. Keys and values of a segment stay on the GPU. The rest is the host's: the loop's
arithmetic, and so x, FiLM and prediction, are copied at every step; mask, encodings, mel and sound once a segment.
"""

from __future__ import annotations

import contextlib
import re
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from notewave.backends.ort.providers import usable_devices
from notewave.backends.ort.sessions import Graphs, shared_graphs
from notewave.checks import is_integer, quoted
from notewave.errors import BackendError, VoiceError
from notewave.kernels.reference import mel_to_context, sampler_step
from notewave.sampling.job import Job
from notewave.song.codec import PAD, Tokens, pad_tokens
from notewave.sound.mel import FRAMES, MELS, FloatArray
from notewave.voice.contracts import keys_values
from notewave.voice.folder import Voice

MAX_DEVICE = 99


class Slab:
    """Float32 memory on the device, taken once; the pages of a CPU slab cost nothing until they are written."""

    def __init__(self, size: int, device: str, ordinal: int) -> None:
        if device == "cpu":
            self.memory: Any = np.empty(size, np.float32)
            self.pointer = int(self.memory.ctypes.data)
        else:
            self.memory = onnxruntime.OrtValue.ortvalue_from_shape_and_type([size], np.float32, device, ordinal)
            self.pointer = int(self.memory.data_ptr())


class OrtBackend:
    """One voice on one ONNX Runtime provider; graphs are shared by all backends alike on the same voice."""

    def __init__(self, voice: Voice, device: str, threads: int | None, options: dict[str, Any]) -> None:
        if device not in usable_devices():
            raise BackendError(
                f"backend {device!r} cannot run here: ONNX Runtime offers {', '.join(usable_devices())}. "
                "A GPU needs its driver and notewave[gpu] (onnxruntime-gpu in the place of onnxruntime)."
            )
        self.name = device
        self.voice = voice
        self._ordinal = _device_id(options)
        if device == "cuda" and hasattr(onnxruntime, "preload_dlls"):
            onnxruntime.preload_dlls()  # CUDA and cuDNN from pip's packages, where they are not installed otherwise
        self.graphs = shared_graphs(voice, device, threads, options)
        self._idle: dict[int, list[Workspace]] = {}  # by batch
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def start(self, job: Job) -> Iterator[OrtRun]:
        """Begin a batch of songs on buffers that no other run is using, and leave them to the next run."""
        batch = len(job.seeds)
        with _failures(self.name):
            with self._lock:
                idle = self._idle.setdefault(batch, [])
                workspace = idle.pop() if idle else Workspace(self.voice, batch, self.name, self._ordinal)
            try:
                yield OrtRun(self.graphs, workspace, job)
            finally:
                idle.append(workspace)

    def vocode(self, mel: FloatArray, frame: int) -> FloatArray:
        """See ``notewave.backends.protocol.Backend.vocode``."""
        inputs: dict[str, NDArray[Any]] = {"mel": mel}
        if self.voice.vocoder is not None and self.voice.vocoder.positional:
            inputs["frame"] = np.array([frame], np.int64)
        with _failures(self.name):
            return self.graphs["vocoder"].run(inputs)[0]


def _device_id(options: dict[str, Any]) -> int:
    """Which GPU the options name; the first if they name none."""
    given = options.get("device_id", 0)
    if not (is_integer(given, 0, MAX_DEVICE) or (isinstance(given, str) and re.fullmatch(r"[0-9]{1,2}", given))):
        raise BackendError(f"device_id is {quoted(given)}; it must be a GPU's number, from 0 to {MAX_DEVICE}.")
    return int(given)


@contextlib.contextmanager
def _failures(device: str) -> Iterator[None]:
    """Make an error of ours of what ONNX Runtime raises while it runs: the voice's fault, or the GPU's."""
    try:
        yield
    except Exception as error:
        if not _is_onnx_runtimes(error):
            raise
        if device == "cpu":
            raise VoiceError(
                f"ONNX Runtime cannot run the voice's graphs ({error}). Export the voice again, or free memory if it "
                "asks for that."
            ) from error
        raise BackendError(
            f"ONNX Runtime failed on the GPU ({error}). Close other programs on it, or take fewer songs."
        ) from error


def _is_onnx_runtimes(error: Exception) -> bool:
    """Whether an exception was raised in ONNX Runtime: its types are many, plain RuntimeError among them."""
    *_, (innermost, _) = traceback.walk_tb(error.__traceback__)
    return str(innermost.f_globals.get("__name__")).startswith("onnxruntime")


class Workspace:
    """Every buffer that one run needs, for a batch of B songs."""

    def __init__(self, voice: Voice, batch: int, device: str, ordinal: int) -> None:
        self.batch, self.device, self._ordinal = batch, device, ordinal
        self.size = size = voice.dimensions
        shape = (batch, FRAMES, MELS)
        self.x = np.empty(shape, np.float32)
        self.x0_previous = np.empty(shape, np.float32)
        self.noise = np.empty(shape, np.float32)
        self.prediction = np.empty(shape, np.float32)
        self.unconditional = np.empty(shape, np.float32)
        self.mask = np.empty(0, np.float32)
        self.keys = 0  # J of the segment at hand
        self._row = batch * size.heads * size.head_width  # floats a key or value takes in one layer
        self._capacity = (size.max_tokens + FRAMES) * self._row
        try:
            self.keys_values = Slab(2 * size.decoder_layers * self._capacity, device, ordinal)
        except (MemoryError, ValueError) as error:
            raise BackendError(
                f"there is no room for the keys and values of {batch} songs of this voice ({error}). Free memory, or "
                "take a smaller voice."
            ) from error

    def bind_keys_values(self, bind: Callable[..., None]) -> None:
        """Bind each layer's keys and values where they lie, as inputs or as outputs."""
        shape = (self.batch, self.size.heads, self.keys, self.size.head_width)
        for index, tensor in enumerate(keys_values(self.size)):
            pointer = self.keys_values.pointer + 4 * index * self._capacity
            bind(tensor.name, self.device, self._ordinal, np.float32, shape, pointer)


class OrtRun:
    """A batch of songs under way on ONNX Runtime."""

    def __init__(self, graphs: Graphs, workspace: Workspace, job: Job) -> None:
        self._graphs, self._space, self._job = graphs, workspace, job
        self._film = graphs.film(job.table)
        self._segment = 0

    def denoise(self, tokens: Sequence[Tokens]) -> FloatArray:
        """See ``notewave.backends.protocol.Run.denoise``."""
        self.submit(tokens)
        return self.result()

    def submit(self, tokens: Sequence[Tokens]) -> None:
        """See ``Run.submit``; nothing runs until ``result``, which would only be held up by it."""
        self._tokens = pad_tokens(tokens)

    def result(self) -> FloatArray:
        """See ``notewave.backends.protocol.Run.result``."""
        space, job = self._space, self._job
        self._encode(self._tokens)
        guided = job.guidance != 1.0
        passes = [self._bind("decoder", space.prediction)]
        if guided:
            passes.append(self._bind("unconditional_decoder", space.unconditional))
        job.draw(self._segment, 0, space.x)
        space.x0_previous.fill(0.0)
        draws = 1
        for step, (row, noisy) in enumerate(zip(job.table.rows, job.table.noisy, strict=True)):
            for session, binding in passes:
                _bind_host(binding.bind_input, "film", self._film[step : step + 1])
                session.run_with_iobinding(binding)
            if noisy:
                job.draw(self._segment, draws, space.noise)
                draws += 1
            sampler_step(
                space.x,
                space.x0_previous,
                space.prediction,
                row,
                space.noise if noisy else None,
                space.unconditional if guided else None,
                job.guidance,
            )
            if job.on_step is not None:
                job.on_step()
        self._segment += 1
        return space.x

    def sound(self) -> None:
        """See ``notewave.backends.protocol.Run.sound``."""

    def _encode(self, tokens: NDArray[np.int32]) -> None:
        """Tokens [B, N] and the last segment's mel -> mask, and keys and values of every decoder layer, in place."""
        space = self._space
        notes = self._graphs["note_encoder"].run({"tokens": tokens})[0]
        context = np.empty((space.batch, 0, space.size.width), np.float32)
        if self._segment:
            context = self._graphs["context_encoder"].run({"mel": mel_to_context(space.x)})[0]
        self._check_keys(tokens.shape[1], context.shape[1])
        space.keys = notes.shape[1] + context.shape[1]
        space.mask = np.zeros((space.batch, 1, 1, space.keys), np.float32)
        space.mask[:, 0, 0, : tokens.shape[1]][tokens == PAD] = np.finfo(np.float32).min
        session = self._graphs["cross_attention"].session
        binding = session.io_binding()
        binding.bind_cpu_input("notes", notes)
        binding.bind_cpu_input("context", context)
        space.bind_keys_values(binding.bind_output)
        session.run_with_iobinding(binding)

    def _check_keys(self, tokens: int, context: int) -> None:
        """Refuse more keys than the buffers hold, which graphs would write beyond."""
        if tokens > (most := self._space.size.max_tokens):
            raise VoiceError(
                f"segment {self._segment} has {tokens} tokens; the voice takes {most}. Thin out its notes or take a "
                "voice of more."
            )
        if self._segment and context != FRAMES:
            raise VoiceError(
                f"the voice's context encoder made {context} frames of {FRAMES}: it is not what its description says. "
                "Export the voice again."
            )

    def _bind(self, network: str, prediction: FloatArray) -> tuple[Any, Any]:
        """A decoder's session, and a binding of everything but the step's FiLM."""
        space = self._space
        session = self._graphs[network].session
        binding = session.io_binding()
        _bind_host(binding.bind_input, "x", space.x)
        _bind_host(binding.bind_output, "prediction", prediction)
        if network == "decoder":
            _bind_host(binding.bind_input, "mask", space.mask)
            space.bind_keys_values(binding.bind_input)
        return session, binding


def _bind_host(bind: Any, name: str, array: FloatArray) -> None:
    bind(name, "cpu", 0, np.float32, array.shape, array.ctypes.data)
