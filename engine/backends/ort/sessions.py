"""A voice's graphs in ONNX Runtime's sessions on the CPU, each held to its contract."""

from __future__ import annotations

import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from notewave.backends.ort.providers import CPU
from notewave.errors import VoiceError
from notewave.sampling.job import Job
from notewave.sound.mel import FRAMES, FloatArray
from notewave.voice.contracts import Axis, Contract
from notewave.voice.files import graph_name
from notewave.voice.folder import Voice
from notewave.voice.graph_reader import ELEMENTS, Weight

FOLDER_OF_WEIGHTS = "session.model_external_initializers_file_folder_path"  # ONNX Runtime's, for models given as bytes
KEPT_SCHEDULES = 4  # FiLM tables kept for the schedules used last


class Network:
    """One of a voice's graphs in a session, held to its contract."""

    def __init__(self, voice: Voice, network: str, threads: int) -> None:
        path, contract = voice.graph(network), voice.contracts()[network]

        def settings() -> Any:
            made = onnxruntime.SessionOptions()
            made.intra_op_num_threads = threads
            made.inter_op_num_threads = 1
            made.log_severity_level = 3
            # Threads that spin while they wait take the time of those that work where there are fewer processors than
            # threads, be they another program's; on idle processors it gained nothing (benchmarks/NOTES.md,
            # "Spinning").
            made.add_session_config_entry("session.intra_op.allow_spinning", "0")
            return made

        try:
            self.session = open_session(voice, network, settings)
        except VoiceError:
            raise
        except Exception as error:  # ONNX Runtime raises many types of its own
            raise VoiceError(f"{path} does not load in ONNX Runtime ({error}). Export the voice again.") from error
        self._path, self._contract = path, contract
        check_contract(path, contract, self.session)

    @property
    def takes_parts(self) -> bool:
        """Whether its segments may be shorter; decoders once took whole ones only."""
        frames = [
            size
            for tensor, node in zip(self._contract.inputs, self.session.get_inputs(), strict=True)
            for axis, size in zip(tensor.shape, node.shape, strict=True)
            if axis == "T"
        ]
        return all(isinstance(size, str) for size in frames)

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


def open_session(voice: Voice, network: str, settings: Callable[[], Any]) -> Any:
    """A graph of a voice in a session on the CPU, by the bytes that were checked; it keeps no file mapped.

    ONNX Runtime reads most weights from their file, where that is still as it was checked, before and after; those
    that it would leave there are handed to it. Where it is not, all are: twice the memory, while it opens. settings:
    makes options of a session.
    """
    session = None
    if voice.are_weights_in_place(network) and _is_text(voice.folder):
        session = _open_session(voice, network, settings(), in_place=True)
    if session is None or not voice.are_weights_in_place(network):
        session = _open_session(voice, network, settings(), in_place=False)
    let_go_of_bytes(session)
    _sessions.add(session)
    return session


def _open_session(voice: Voice, network: str, settings: Any, *, in_place: bool) -> Any:
    weights = voice.weights(network, kept_only=in_place)
    values = [
        onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(
            np.frombuffer(content, np.uint8).view(_numpy_type(weight)).reshape(weight.shape), weight.element
        )
        for weight, content in weights
    ]
    settings.add_external_initializers([weight.name for weight, _ in weights], values)
    if in_place:
        settings.add_session_config_entry(FOLDER_OF_WEIGHTS, str(voice.folder.absolute()))
    return onnxruntime.InferenceSession(voice.model(network), settings, providers=[CPU])


def _is_text(path: Path) -> bool:
    """Whether a path can be told to ONNX Runtime."""
    try:
        return bool(str(path).encode())
    except UnicodeEncodeError:
        return False


def let_go_of_bytes(session: Any) -> None:
    """Free the graph that a session was made of, which it keeps only to begin anew on the CPU where a GPU fails."""
    session.disable_fallback()
    session._model_bytes = None


ALWAYS_NEEDED = ("note_encoder", "context_encoder", "cross_attention", "decoder", "vocoder")


class Networks:
    """The sessions of a voice: those that every song needs opened at once, the others when first needed."""

    def __init__(self, voice: Voice, threads: int) -> None:
        self._voice, self._threads = voice, threads
        self._open: dict[str, Network] = {}
        self._films: OrderedDict[bytes, FloatArray] = OrderedDict()
        self._lock = threading.Lock()
        for network in ALWAYS_NEEDED:
            if graph_name(network) in voice.files:
                self._open[network] = self._load(network)

    def __getitem__(self, network: str) -> Network:
        with self._lock:
            if network not in self._open:
                self._open[network] = self._load(network)
            return self._open[network]

    def film(self, job: Job) -> FloatArray:
        """FiLM scales and shifts of every step of a job's schedule [S, L, 2, 2, D], computed once.

        Half of a decoder's weights serve only this, so their session is closed again at once.
        """
        key = job.table.time.tobytes()
        with self._lock:
            if key not in self._films:
                embedding = self._load("time_embedding")
                with job.watched("time_embedding"):
                    self._films[key] = embedding.run({"time": job.table.time})[0]
                if len(self._films) > KEPT_SCHEDULES:
                    self._films.popitem(last=False)
            self._films.move_to_end(key)
            return self._films[key]

    def _load(self, network: str) -> Network:
        return Network(self._voice, network, self._threads)


def _numpy_type(weight: Weight) -> np.dtype[Any]:
    """NumPy's type of a weight; it has none for bfloat16, whose bits are integers to it."""
    name, _ = ELEMENTS[weight.element]
    return np.dtype("uint16" if name == "bfloat16" else name)


# A forked process has none of the threads that a session waits for when it is destroyed: it keeps what it inherits.
_sessions: weakref.WeakSet[Any] = weakref.WeakSet()
_inherited: list[Any] = []
if hasattr(os, "register_at_fork"):  # there is none on Windows
    os.register_at_fork(after_in_child=lambda: _inherited.extend(_sessions))

_networks: weakref.WeakValueDictionary[tuple[Any, ...], Networks] = weakref.WeakValueDictionary()
_networks_lock = threading.Lock()  # voices load one after another, and each once


def shared_networks(voice: Voice, threads: int) -> Networks:
    """The sessions of a voice, opened once for all backends alike that live."""
    checksums = tuple(sorted((name, record.sha256) for name, record in voice.files.items()))
    key = (voice.folder.resolve(), checksums, threads)
    with _networks_lock:
        networks = _networks.get(key)
        if networks is None:
            networks = _networks[key] = Networks(voice, threads)
        return networks


def check_contract(path: Path, contract: Contract, session: Any) -> None:
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


_ORT_TYPES = {name: f"tensor({name})" for name in ("float16", "bfloat16", "int32", "int64")} | {
    "float32": "tensor(float)"
}


def _fits(expected: tuple[Axis, ...], actual: list[int | str | None], kind: str) -> bool:
    """Whether fixed axes agree, and no dynamic axis of an input is fixed, save one song or all frames of a segment."""

    def agree(want: Axis, have: int | str | None) -> bool:
        if isinstance(want, int):
            return want == have
        return kind == "outputs" or not isinstance(have, int) or (want, have) in (("B", 1), ("T", FRAMES))

    return len(expected) == len(actual) and all(map(agree, expected, actual))
