"""ONNX Runtime on a GPU as an engine of the GPU's backend: sessions of its CUDA provider at fixed addresses.

What was seen of version 1.31 over a stand-in for CUDA's libraries, and is relied on: a session launches on the stream
that it was opened with, and only there; with inputs and outputs bound by address and no synchronisation of its own, a
run neither allocates nor waits once its shape was run twice; so its launches can be recorded in a graph of ours, at
addresses in the session's own memory, which must not shrink, nor the session go, as long as the graph lives.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from notewave.backends.device.cache import plans_home
from notewave.backends.device.contracts import gpu_contracts
from notewave.backends.device.driver import CudaDevice
from notewave.backends.device.plans import (
    PLAN_PRECISIONS,
    Plans,
    check_makeable,
    has_plans,
    open_plans,
    target_of,
)
from notewave.backends.executor import Capture, Scratch
from notewave.backends.gpu.backend import GpuBackend
from notewave.backends.gpu.workspace import SEGMENT_NETWORKS
from notewave.backends.graphs.make import gpu_graph, make_plans
from notewave.backends.graphs.typed import ELEMENTS
from notewave.backends.ort.failures import on_gpu
from notewave.backends.ort.providers import CPU, CUDA, check_driver
from notewave.backends.ort.sessions import check_contract, let_go_of_bytes
from notewave.backends.ort.weights import GpuWeights
from notewave.checks import is_integer, quoted
from notewave.errors import BackendError, OutputError, VoiceError
from notewave.kernels.loader import load_kernels
from notewave.sound.mel import MELS
from notewave.voice.contracts import Contract, Tensor
from notewave.voice.folder import Voice

log = logging.getLogger(__name__)

OWN_OPTIONS = ("precision", "device_id", "graphs")  # the others are the CUDA provider's
TAKEN = ("user_compute_stream", "has_user_compute_stream", "enable_cuda_graph")  # of the provider's, by this engine
DEFAULTS = {
    "arena_extend_strategy": "kSameAsRequested",
    "cudnn_conv_algo_search": "HEURISTIC",  # the others try what is there at each new shape
    "use_tf32": "0",  # what stays float32 stays for its precision
}
AMPERE = (8, 0)  # the first of bfloat16
MAX_DEVICE = 99


def open_cuda(
    voice: Voice, options: Mapping[str, Any], *, device: CudaDevice | None = None, runtime: Any = None
) -> GpuBackend:
    """A voice on one NVIDIA GPU by ONNX Runtime; its graphs for this GPU are made now, if that was not done before.

    options: OWN_OPTIONS, or the CUDA provider's, by name. device, runtime: stand in for the GPU and the module
    onnxruntime. Raises BackendError when packages, driver, GPU or memory are missing.
    """
    if taken := sorted(set(options) & set(TAKEN)):
        raise BackendError(
            f"backend 'cuda' sets {', '.join(taken)} of ONNX Runtime's CUDA provider itself. "
            "Leave that out; graphs=false launches without CUDA graphs."
        )
    runtime = runtime or onnxruntime
    ordinal = _ordinal(options.get("device_id", 0))
    device = device or CudaDevice(ordinal)
    check_driver(runtime, device)
    provider = DEFAULTS | {name: value for name, value in options.items() if name not in OWN_OPTIONS}
    if hasattr(runtime, "preload_dlls"):
        runtime.preload_dlls()  # CUDA and cuDNN from pip's packages, where they are not installed otherwise
    with device:
        precision = options.get("precision", PLAN_PRECISIONS[0])
        graphs = _graphs(voice, runtime, device, precision)
        sessions = Sessions(graphs, runtime, device, ordinal, gpu_contracts(voice, precision), provider)
        kernels = device.kernels(load_kernels(graphs.files, device.capability))
        backend = GpuBackend(voice, device, sessions, kernels, bool(options.get("graphs", True)))
        backend.shared.streams.append(sessions.open_ahead(SEGMENT_NETWORKS))
        if voice.vocoder:
            backend.vocode(np.zeros((1, 1, MELS), np.float32), 0)  # what it lacks is to be found now
    log.info("graphs of %s on %s, CUDA %s", graphs.folder, device.name, device.driver)
    return backend


def make_graphs(voice: Voice, precision: str, capability: tuple[int, int], runtime: Any = onnxruntime) -> Path:
    """Make a voice's graphs for ONNX Runtime on a GPU; the folder they are kept in.

    Raises VoiceError for a voice with 8-bit weights, BackendError for a precision that the GPU has not.
    """
    check_makeable(voice, precision)
    if precision == "bf16" and capability < AMPERE:
        raise BackendError(
            "compute capability {}.{} has no bfloat16. Ask for --precision fp16 or fp32.".format(*capability)
        )

    def plan(network: str, contract: Contract) -> bytes:
        typing = "fp32" if network == "vocoder" else precision  # its errors are heard, and it runs once a segment
        return gpu_graph(voice, network, typing, narrow_norms=typing == "fp16").SerializeToString()

    return make_plans(voice, runtime, capability, precision, plan)


def _graphs(voice: Voice, runtime: Any, device: CudaDevice, precision: str) -> Plans:
    """A voice's graphs, checked, or made now."""
    try:
        check_makeable(voice, precision)
        target = target_of(voice, runtime, device.capability, precision)
        folder = target.folder(voice, plans_home())
        if has_plans(folder):
            try:
                return open_plans(folder, target, voice)
            except BackendError as error:
                log.warning("making the graphs again: %s", error)
        log.warning("making the graphs of voice %r for %s; they are kept in %s", voice.name, device.name, folder)
        return open_plans(make_graphs(voice, precision, device.capability, runtime), target, voice)
    except (OutputError, VoiceError) as error:
        raise BackendError(str(error)) from error


def _ordinal(given: Any) -> int:
    if not (is_integer(given, 0, MAX_DEVICE) or (isinstance(given, str) and re.fullmatch(r"[0-9]{1,2}", given))):
        raise BackendError(f"device_id is {quoted(given)}; it must be a GPU's number, from 0 to {MAX_DEVICE}.")
    return int(given)


class Sessions:
    """A voice's graphs in sessions: see ``notewave.backends.executor.Runtime``."""

    name = "cuda"
    warm_runs = 2  # of a shape: the first allocates, the second settles what it allocated
    stream_bound = True

    def __init__(
        self,
        graphs: Plans,
        runtime: Any,
        device: CudaDevice,
        ordinal: int,
        contracts: Mapping[str, Contract],
        options: Mapping[str, Any],
    ) -> None:
        """options: of the CUDA provider."""
        self.graphs, self.device, self.contracts, self.ordinal = graphs, device, contracts, ordinal
        self.runtime = runtime
        self._provider = (CUDA, {**options, "device_id": str(ordinal)})
        self._weights: dict[str, GpuWeights] = {}
        self._open: dict[tuple[str, int], Any] = {}  # by network and stream's handle
        self._lock = threading.RLock()

    def scratch_bytes(self, networks: Sequence[str]) -> int:
        """None: each session has memory of its own."""
        return 0

    def open(self, network: str, stream: Any, scratch: Scratch, capture: Capture) -> SessionExecutor:
        """A network in the session that belongs to the stream."""
        return SessionExecutor(self, network, self._session(network, stream))

    def open_ahead(self, networks: Sequence[str]) -> Any:
        """A new stream whose sessions are open, and of which one was run: what this GPU lacks is found now."""
        stream = self.device.stream()
        sessions = {network: self._session(network, stream) for network in networks if network in self.contracts}
        with on_gpu(self.device, "in its first run"):
            sessions["note_encoder"].run(None, {"tokens": np.ones((1, 1), np.int32)})
        return stream

    def leave(self, stream: Any) -> None:
        """Give the memory of a stream's sessions back."""
        with self._lock:
            self._open = {key: session for key, session in self._open.items() if key[1] != stream.handle}

    def drop(self, network: str) -> None:
        """Give the memory of a network's sessions and weights back."""
        with self._lock:
            self._open = {key: session for key, session in self._open.items() if key[0] != network}
            if network in self._weights:
                self._weights.pop(network).free()

    def keep(self) -> None:
        """Nothing was compiled that could be kept."""

    def free(self) -> None:
        """Give all memory back, within the GPU's context."""
        for network in self.contracts:
            self.drop(network)

    def _session(self, network: str, stream: Any) -> Any:
        with self._lock:
            key = (network, stream.handle)
            if key not in self._open:
                self._open[key] = self._load(network, stream)
            return self._open[key]

    def _shared(self, network: str, graph: bytes) -> Mapping[str, Any]:
        """Weights that sessions of several streams share; other networks have one session at a time, with its own."""
        if network not in SEGMENT_NETWORKS:
            return {}
        if network not in self._weights:
            path, from_dlpack = self.graphs.path(network), self.runtime.OrtValue.from_dlpack
            self._weights[network] = GpuWeights(self.device, self.ordinal, graph, path, from_dlpack)
        return self._weights[network].values

    def _load(self, network: str, stream: Any) -> Any:
        path, graph = self.graphs.path(network), self.graphs.read(network)
        settings = self.runtime.SessionOptions()
        settings.intra_op_num_threads = 1  # what stays on the CPU is a few numbers
        settings.log_severity_level = 3
        with on_gpu(self.device, f"opening {path}"):
            for name, value in self._shared(network, graph).items():
                settings.add_initializer(name, value)
            name, options = self._provider
            providers = [(name, {**options, "user_compute_stream": str(stream.handle)}), CPU]
            session = self.runtime.InferenceSession(graph, settings, providers=providers)
        if CUDA not in (taken := session.get_providers()):  # a provider that fails is passed over
            raise BackendError(
                f"ONNX Runtime cannot load its {CUDA} and took {', '.join(taken)}; why is on stderr. "
                "Install the libraries that it needs: pip install 'onnxruntime-gpu[cuda,cudnn]'."
            )
        check_contract(path, self.contracts[network], session)
        let_go_of_bytes(session)
        return session


class SessionExecutor:
    """A graph in a session: see ``notewave.backends.executor.Executor``."""

    def __init__(self, sessions: Sessions, network: str, session: Any) -> None:
        self._sessions, self._network, self._session = sessions, network, session
        self._contract = sessions.contracts[network]
        self._options = sessions.runtime.RunOptions()
        self._options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        self._addresses: dict[str, int] = {}
        self._bindings: dict[tuple[tuple[str, int], ...], Any] = {}  # by sizes
        self._binding: Any = None

    def bind(self, addresses: Mapping[str, int]) -> None:
        """Say where inputs and outputs lie."""
        self._addresses |= addresses
        self._bindings.clear()

    def reshape(self, sizes: Mapping[str, int]) -> None:
        """Bind all at these sizes; ONNX Runtime refuses to run where an output would have another."""
        key = tuple(sorted(sizes.items()))
        if key not in self._bindings:
            binding = self._session.io_binding()
            for tensors, bind in (
                (self._contract.inputs, binding.bind_input),
                (self._contract.outputs, binding.bind_output),
            ):
                for tensor in tensors:
                    self._bind(bind, tensor, tensor.shape_at(sizes))
            self._bindings[key] = binding
        self._binding = self._bindings[key]

    def is_capturable(self) -> bool:
        """Its launches are recorded where its stream's are, or refuse to be."""
        return True

    def launch(self) -> None:
        """Enqueue it on its stream."""
        with on_gpu(self._sessions.device, f"running {self._network}"):
            self._session.run_with_iobinding(self._binding, self._options)

    def free(self) -> None:
        """Let go of the session, which its stream's next run finds open."""
        vars(self).clear()

    def _bind(self, bind: Any, tensor: Tensor, shape: tuple[int, ...]) -> None:
        element = ELEMENTS[tensor.dtype]
        bind(tensor.name, "cuda", self._sessions.ordinal, element, shape, self._addresses[tensor.name])
