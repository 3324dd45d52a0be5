"""Vocoders as ONNX: our own exported, a foreign one adopted, and how far any of them sees."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import torch
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from numpy.typing import NDArray

from notewave.checks import quoted
from notewave.errors import VoiceError
from notewave.export.graphs.precision import quantise, weight_of, widen_halves
from notewave.export.graphs.translate import EMBEDDED_BYTES, export_graph, relative_error
from notewave.export.vocoders import MelGAN, Tonewheel
from notewave.files import atomic_file
from notewave.inputs import read_regular
from notewave.sound.mel import HOP, LOG_MAX, LOG_MIN, MELS
from notewave.sound.stream import VocoderTraits
from notewave.voice.contracts import Contract, Dimensions, Tensor, contracts
from notewave.voice.files import MAX_GRAPH_BYTES
from notewave.voice.graph_check import check_graph
from notewave.voice.graph_reader import ELEMENTS, Graph, read_graph

PARITY_LIMIT = 1e-4  # largest relative error of an exported vocoder
MAX_REACH = 512  # frames on either side that a foreign vocoder may see: 10 s


def quantise_vocoder(graph: ir.Graph) -> None:
    """Make the products of a trunk's hidden activations with weights int8: two thirds of a Tonewheel's work.

    What leads from the mel, and what turns amplitudes to sound, stays as it is.
    """
    widen_halves(graph)
    hidden = [
        node
        for node in graph
        if node.op_type == "MatMul"
        and node.inputs[1] is not None
        and node.inputs[1].const_value is not None
        and node.inputs[0] is not None
        and (source := node.inputs[0].producer()) is not None
        and source.op_type in ("LayerNormalization", "Gelu")
    ]
    quantise(graph, hidden)


def convert_vocoder_onnx(source: Path, path: Path) -> float:
    """Write an exported vocoder anew with an int8 trunk; returns its largest relative error against the source."""
    model = ir.load(source)
    quantise_vocoder(model.graph)
    with atomic_file(path) as temporary:
        ir.save(model, temporary)
        onnx.checker.check_model(str(temporary), full_check=True)
        mel = np.random.default_rng(0).normal(-4, 2, (1, 50, MELS)).astype(np.float32)
        whole, ours = (_vocode(_session(file), mel) for file in (source, temporary))
    return float(np.abs(ours - whole).max() / np.abs(whole).max())


def export_vocoder_onnx(module: Tonewheel | MelGAN, path: Path) -> float:
    """Write a vocoder as one ONNX file by the "vocoder" contract; weights that float16 holds exactly are stored so.

    Returns its largest relative error against PyTorch; raises VoiceError where that exceeds PARITY_LIMIT.
    """
    module = module.folded() if isinstance(module, MelGAN) else module
    model = export_graph(module.eval(), _contract(module.traits.positional))
    _store_exact_halves(model.graph)
    generator = torch.Generator().manual_seed(0)
    mel = torch.randn(2, 50, MELS, generator=generator) * 2 - 4
    inputs = (mel, torch.tensor([123456])) if module.traits.positional else (mel,)
    with atomic_file(path) as temporary:
        ir.save(model, temporary)
        onnx.checker.check_model(str(temporary), full_check=True)
        error = relative_error(temporary, module, inputs)
        if not error <= PARITY_LIMIT:
            raise VoiceError(
                f"the vocoder in ONNX differs from PyTorch by {error:.2g} (relative), more than {PARITY_LIMIT:g}. "
                "Its weights are not finite or this version of torch miscompiles it; try another version."
            )
    return error


def _contract(positional: bool) -> Contract:
    smallest = Dimensions(1, 1, 1, 1, 1, 1, 1)  # the vocoder's contract depends on no dimension of the voice
    return contracts(smallest, positional)["vocoder"]


def _store_exact_halves(graph: ir.Graph) -> None:
    """Store float32 weights that lose nothing by it as float16, each behind a Cast that runtimes fold at load."""
    for name, value in list(graph.initializers.items()):
        content = weight_of(value)
        with np.errstate(over="ignore"):
            half = content.astype(np.float16)
        if content.dtype != np.float32 or content.nbytes < EMBEDDED_BYTES or (half != content).any():
            continue
        stored = ir.Value(name=f"{name}.half", const_value=ir.tensor(half, name=f"{name}.half"))
        cast = ir.node("Cast", [stored], attributes={"to": ir.DataType.FLOAT})
        ir.convenience.replace_all_uses_with(value, cast.outputs[0])
        del graph.initializers[name]
        graph.register_initializer(stored)
        graph.insert_before(graph[0], cast)


def receptive_field(source: Path | onnxruntime.InferenceSession) -> tuple[int, int]:
    """Frames (left, right) around a frame that its samples depend on, for any ONNX vocoder, found by perturbation.

    One frame in the middle of a random mel is changed, in several ways; whatever sample is then not bit for bit the
    same depends on it. Raises VoiceError where the reach exceeds MAX_REACH.
    """
    session = _session(source) if isinstance(source, Path) else source
    rng = np.random.default_rng(0)
    frames = 64
    while frames <= 2 * MAX_REACH:
        middle = frames // 2
        changed = np.zeros(frames, bool)
        for level in (LOG_MIN, LOG_MAX, *rng.uniform(LOG_MIN, LOG_MAX, 4)):
            mel = rng.normal(-4, 2, (1, frames, MELS)).astype(np.float32)
            before = _vocode(session, mel)
            mel[0, middle] = level
            changed |= (_vocode(session, mel) != before).reshape(frames, HOP).any(axis=1)
        first, last = (int(edge) for edge in np.flatnonzero(changed)[[0, -1]]) if changed.any() else (middle, middle)
        if first > 0 and last < frames - 1:
            return max(last - middle, 0), max(middle - first, 0)
        frames *= 2
    raise VoiceError(
        f"the vocoder sees more than {MAX_REACH} frames around each frame, so it cannot stream: it "
        "normalises over time or runs recurrently. Use a convolutional vocoder."
    )


def _vocode(session: onnxruntime.InferenceSession, mel: NDArray[np.float32]) -> NDArray[np.float32]:
    """Run any vocoder on log-mel [1, V, M] from the song's start; audio [HOP V], else VoiceError."""
    inputs: dict[str, NDArray[Any]] = {session.get_inputs()[0].name: mel}
    inputs |= {extra.name: np.zeros(1, np.int64) for extra in session.get_inputs()[1:]}
    try:
        audio: NDArray[np.float32] = session.run(None, inputs)[0].reshape(-1)
    except Exception as error:  # ONNX Runtime's errors have no common base
        raise VoiceError(f"the vocoder does not run on {mel.shape[1]} frames of log-mel: {error}") from error
    if len(audio) != HOP * mel.shape[1] or not np.isfinite(audio).all():
        raise VoiceError(
            f"the vocoder gives {len(audio)} samples for {mel.shape[1]} frames, where {HOP} finite ones a frame are "
            "due. It was made for other mel settings or is damaged; use one for this mel."
        )
    return audio


def _session(path: Path) -> onnxruntime.InferenceSession:
    try:
        return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors have no common base
        raise VoiceError(f"{path} is no model that ONNX Runtime can run: {error}") from error


def adopt_onnx_vocoder(source: Path, path: Path) -> VocoderTraits:
    """Copy a foreign mel decoder to ``path`` as a vocoder by our contract, and measure how far it sees.

    It must take float32 log-mel [1 or B, frames, M] as its only input and give HOP samples a frame, in any shape; the
    file is not trusted: it must be whole in itself, and not huge. Raises VoiceError where it does not fit.
    """
    model = _read_foreign(source)
    graph = model.graph
    mel, audio = graph.inputs[0], graph.outputs[0]
    batch = mel.shape[0] if mel.shape is not None else None
    mel.name, mel.shape = "mel", ir.Shape([1 if batch == 1 else "B", "V", MELS])
    rows = ir.Value(name="audio_shape", const_value=ir.tensor([1 if batch == 1 else 0, -1], name="audio_shape"))
    graph.register_initializer(rows)
    reshape = ir.node("Reshape", [audio, rows])
    graph.append(reshape)
    graph.outputs[0] = reshape.outputs[0]
    graph.outputs[0].name, graph.outputs[0].dtype = "audio", ir.DataType.FLOAT
    graph.outputs[0].shape = ir.Shape([1 if batch == 1 else "B", f"{HOP}*V"])
    with atomic_file(path) as temporary:
        ir.save(model, temporary)
        left, right = receptive_field(temporary)
    return VocoderTraits(left_frames=left, right_frames=right)


def _read_foreign(source: Path) -> ir.Model:
    """Read an untrusted ONNX file that takes one mel and gives one signal."""
    try:
        content = read_regular(source, MAX_GRAPH_BYTES)
    except OSError as error:
        raise VoiceError(f"{source} cannot be read: {error.strerror or error}. It must be one whole file.") from error
    try:
        graph = read_graph(content)
        _check_foreign(source, graph)
        model = ir.from_proto(onnx.compose.add_prefix(onnx.load_model_from_string(content), "foreign/"))
    except (ValueError, DecodeError, VoiceError) as error:  # the prefix keeps clear of the names we give
        raise VoiceError(f"{source} is no ONNX model that can be used: {error}") from error
    for value in [value for value in model.graph.inputs if value.name in model.graph.initializers]:
        model.graph.inputs.remove(value)
    return model


def _check_foreign(source: Path, graph: Graph) -> None:
    """Refuse a graph that has its weights elsewhere, is no vocoder, or takes too much for one."""
    if places := graph.places():
        raise VoiceError(f"it has weights in {', '.join(map(quoted, sorted(places)))}. It must be one whole file.")
    inputs = [value for value in graph.inputs if value.name not in graph.weights]
    shape = inputs[0].shape if inputs else None
    fits = shape is not None and len(shape) == 3 and not _fixed(shape[1]) and (shape[2] == MELS or not _fixed(shape[2]))
    if len(inputs) != 1 or len(graph.outputs) != 1 or ELEMENTS[inputs[0].element][0] != "float32" or not fits:
        found = ", ".join(f"{value.name} {ELEMENTS[value.element][0]} {list(value.shape or ())}" for value in inputs)
        raise VoiceError(
            f"it takes {found}; a vocoder takes one float32 log-mel [1, frames, {MELS}] of any number of frames. "
            "Export it with a dynamic frame axis and nothing beside the mel."
        )
    batch = 1 if shape is not None and shape[0] == 1 else "B"
    mel = Tensor(inputs[0].name, "float32", (batch, "V", MELS))
    contract = Contract((mel,), (Tensor(graph.outputs[0].name, "float32", (batch, f"{HOP}*V")),))
    smallest, reach = Dimensions(1, 1, 1, 1, 1, 1, 1), VocoderTraits(MAX_REACH, MAX_REACH)
    check_graph(dataclasses.replace(graph, inputs=tuple(inputs)), contract, smallest, reach)


def _fixed(axis: int | str) -> bool:
    """Whether an axis has one size."""
    return isinstance(axis, int) and axis > 0
