"""ONNX Runtime: the voice's graphs on the CPU, or on a GPU by its CUDA provider, bound to buffers allocated once.

Options of the CUDA backend are those of ONNX Runtime's CUDA provider; any named trt_... are for its TensorRT provider,
which then stands in front of CUDA's. Keys and values of a segment stay on the GPU. The rest is the host's: the loop's
arithmetic, and so x, FiLM and prediction, are copied at every step; mask, encodings, mel and sound once a segment.
"""

from __future__ import annotations

import contextlib
import ctypes.util
import importlib
import re
import threading
import traceback
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from notewave.backends.protocol import FloatArray, Job, pad_tokens
from notewave.backends.trt.plans import HOME_VARIABLE, extents, graphs_digest, plans_home
from notewave.checks import is_integer, quoted
from notewave.errors import BackendError, VoiceError
from notewave.kernels.reference import mel_to_context, sampler_step
from notewave.sampling.samplers import SamplerTable
from notewave.song.codec import PAD, Tokens
from notewave.sound.mel import FRAMES, MELS
from notewave.voice.contracts import Axis, Contract, contracts, keys_values
from notewave.voice.folder import Voice, graph_name

try:
    import onnxruntime
except ImportError as error:
    raise BackendError(
        "ONNX Runtime is not installed, and every backend but TensorRT needs it. "
        "Install notewave[cpu], or notewave[gpu] on a machine with an NVIDIA GPU."
    ) from error

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
TENSORRT = "TensorrtExecutionProvider"
CUDA_DEFAULTS = {"use_tf32": "0"}  # float32 products as the CPU's, which TF32 would round to 10 bits
MAX_DEVICE = 99
KEPT_SCHEDULES = 4  # FiLM tables kept for the schedules used last


def usable_devices() -> list[str]:
    """Which of PROVIDERS this machine can run."""
    has_driver = ctypes.util.find_library("cuda") is not None
    available = onnxruntime.get_available_providers()
    return [device for device, name in PROVIDERS.items() if name in available and (device == "cpu" or has_driver)]


def execution_providers(device: str, options: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """ONNX Runtime's providers for a device, the first asked first, each with its options."""
    if device == "cpu":
        return [(PROVIDERS["cpu"], options)]
    tensorrt = {name: value for name, value in options.items() if name.startswith("trt_")}
    cuda = CUDA_DEFAULTS | {name: value for name, value in options.items() if name not in tensorrt}
    if tensorrt:
        tensorrt |= {"device_id": cuda["device_id"]} if "device_id" in cuda else {}
    return [*([(TENSORRT, tensorrt)] if tensorrt else []), (PROVIDERS["cuda"], cuda), (PROVIDERS["cpu"], {})]


def tensorrt_options(voice: Voice, contract: Contract, options: dict[str, Any]) -> dict[str, Any]:
    """Options for one network: with any trt_... among them, also the shapes that TensorRT is to build it for at once,
    not again for each that it meets, and a folder to keep engines in; unless these are given too.
    """
    if not any(name.startswith("trt_") for name in options):
        return options
    folder = plans_home() / f"onnxruntime-{onnxruntime.__version__}-{_tensorrt_version()}-{graphs_digest(voice)[:12]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BackendError(f"{folder} cannot be made ({error}). Set {HOME_VARIABLE} to where plans can go.") from error
    defaults: dict[str, Any] = {}
    for kind in ("engine", "timing"):
        defaults |= {f"trt_{kind}_cache_enable": True, f"trt_{kind}_cache_path": str(folder)}
    if not any(name.startswith("trt_profile_") for name in options):
        dynamic = tuple(tensor for tensor in contract.inputs if any(isinstance(axis, str) for axis in tensor.shape))
        shapes = extents(voice, dynamic, padded=False).items()
        for which in ("min", "opt", "max"):
            sizes = (f"{name}:{'x'.join(map(str, getattr(extent, which)))}" for name, extent in shapes)
            defaults[f"trt_profile_{which}_shapes"] = ",".join(sizes)
    return defaults | options


def _tensorrt_version() -> str:
    """Version of pip's tensorrt, whose libraries ONNX Runtime finds once it is imported; of the system's, unknown."""
    try:
        version: str = importlib.import_module("tensorrt").__version__
    except (ImportError, AttributeError, OSError):
        return "unknown"
    return version


class Graph:
    """One ONNX graph in a session, held to its contract."""

    def __init__(
        self, path: Path, contract: Contract, device: str, threads: int | None, options: dict[str, Any]
    ) -> None:
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = threads or 0
        settings.inter_op_num_threads = 1
        settings.log_severity_level = 3
        # Each session has threads of its own: those of one must not spin while another's work.
        settings.add_session_config_entry("session.force_spinning_stop", "1")
        providers = execution_providers(device, options)
        try:
            self.session = onnxruntime.InferenceSession(str(path), settings, providers=providers)
        except Exception as error:  # ONNX Runtime raises many types of its own
            if device != "cpu":
                raise BackendError(
                    f"{path} does not load in ONNX Runtime's {providers[0][0]} ({error}). Check its options and the "
                    "GPU's free memory."
                ) from error
            raise VoiceError(f"{path} does not load in ONNX Runtime ({error}). Export the voice again.") from error
        if providers[0][0] not in (taken := self.session.get_providers()):  # a provider that fails is passed over
            raise BackendError(
                f"ONNX Runtime cannot load its {providers[0][0]} and took {', '.join(taken)}; why is on stderr. "
                "Install the libraries it needs: pip install 'onnxruntime-gpu[cuda,cudnn]'"
                f"{' tensorrt' if providers[0][0] == TENSORRT else ''}."
            )
        self.device = device
        self._path, self._contract = path, contract
        _check_contract(path, contract, self.session)

    def run(self, inputs: dict[str, NDArray[Any]]) -> list[FloatArray]:
        """Run on host arrays, into new host arrays; raises VoiceError when these have other shapes than is due."""
        outputs: list[FloatArray] = self.session.run(None, inputs)
        sizes = self._contract.sizes({name: array.shape for name, array in inputs.items()})
        for tensor, output in zip(self._contract.outputs, outputs, strict=True):
            if not tensor.takes(output.shape, sizes):
                raise VoiceError(
                    f"{self._path} gave {tensor.name} {list(output.shape)}, where {list(tensor.shape)} is due with "
                    f"{sizes}. Export the voice again."
                )
        return outputs


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
        self.graphs = _shared_graphs(voice, device, threads, options)
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


ALWAYS_NEEDED = ("note_encoder", "context_encoder", "cross_attention", "decoder", "vocoder")


class Graphs:
    """The sessions of a voice: those that every song needs opened at once, the others when first needed."""

    def __init__(self, voice: Voice, device: str, threads: int | None, options: dict[str, Any]) -> None:
        self._voice, self._device, self._threads, self._options = voice, device, threads, options
        self._contracts = contracts(voice.dimensions, voice.vocoder is not None and voice.vocoder.positional)
        self._open: dict[str, Graph] = {}
        self._films: OrderedDict[bytes, FloatArray] = OrderedDict()
        self._lock = threading.Lock()
        for network in ALWAYS_NEEDED:
            if graph_name(network) in voice.files:
                self._open[network] = self._load(network)

    def __getitem__(self, network: str) -> Graph:
        with self._lock:
            if network not in self._open:
                self._open[network] = self._load(network)
            return self._open[network]

    def film(self, table: SamplerTable) -> FloatArray:
        """FiLM scales and shifts of every step of a schedule [S, L, 2, 2, D], computed once.

        Half of a decoder's weights serve only this, so their session is closed again at once.
        """
        key = table.time.tobytes()
        with self._lock:
            if key not in self._films:
                self._films[key] = self._load("time_embedding").run({"time": table.time})[0]
                if len(self._films) > KEPT_SCHEDULES:
                    self._films.popitem(last=False)
            self._films.move_to_end(key)
            return self._films[key]

    def _load(self, network: str) -> Graph:
        path, contract = self._voice.graph(network), self._contracts[network]
        options = tensorrt_options(self._voice, contract, self._options)
        return Graph(path, contract, self._device, self._threads, options)


_graphs: weakref.WeakValueDictionary[tuple[Any, ...], Graphs] = weakref.WeakValueDictionary()
_graphs_lock = threading.Lock()  # voices load one after another, and each once


def _shared_graphs(voice: Voice, device: str, threads: int | None, options: dict[str, Any]) -> Graphs:
    checksums = tuple(sorted((name, record.sha256) for name, record in voice.files.items()))
    key = (voice.folder.resolve(), checksums, device, threads, tuple(sorted(options.items())))
    with _graphs_lock:
        graphs = _graphs.get(key)
        if graphs is None:
            graphs = _graphs[key] = Graphs(voice, device, threads, options)
        return graphs


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


def _check_contract(path: Path, contract: Contract, session: Any) -> None:
    """Refuse a graph whose inputs or outputs are not those of its contract."""
    for kind, expected, actual in (
        ("inputs", contract.inputs, session.get_inputs()),
        ("outputs", contract.outputs, session.get_outputs()),
    ):
        names = [tensor.name for tensor in expected]
        if names != [node.name for node in actual]:
            found = ", ".join(node.name for node in actual)
            raise VoiceError(
                f"{path} has the {kind} {found}, where {', '.join(names)} are due. Export the voice again."
            )
        for tensor, node in zip(expected, actual, strict=True):
            if not _fits(tensor.shape, node.shape, kind) or node.type != _ORT_TYPES[tensor.dtype]:
                raise VoiceError(
                    f"{path}: {tensor.name} is {node.type} {node.shape}, where {tensor.dtype} {list(tensor.shape)} is "
                    "due. The voice's dimensions and its graphs disagree: export the voice again."
                )


_ORT_TYPES = {"float32": "tensor(float)", "int32": "tensor(int32)", "int64": "tensor(int64)"}


def _fits(expected: tuple[Axis, ...], actual: list[int | str | None], kind: str) -> bool:
    """Whether fixed axes agree, and no dynamic axis of an input is fixed, save a batch of one song."""

    def agree(want: Axis, have: int | str | None) -> bool:
        if isinstance(want, int):
            return want == have
        return kind == "outputs" or not isinstance(have, int) or (want, have) == ("B", 1)

    return len(expected) == len(actual) and all(map(agree, expected, actual))
