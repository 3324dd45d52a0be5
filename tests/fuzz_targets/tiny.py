"""A voice and checkpoints as small as they can be, made in code: what mutations begin with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from notewave.song.dialect import VOCABULARY
from notewave.sound.mel import FRAMES, HOP, MELS
from notewave.voice.contracts import Contract, Dimensions, Tensor, contracts
from notewave.voice.library import DESCRIPTION

WEIGHTS = "weights.bin"
SIZE = Dimensions(2, 1, 2, 2, 1, 1, 1, max_tokens=16)
OPSET, IR = 23, 10  # as export writes them
TYPES = {"float32": TensorProto.FLOAT, "int32": TensorProto.INT32, "int64": TensorProto.INT64}
Weights = Mapping[str, NDArray[Any]]


def voice_files(vocoder: bool = True) -> dict[str, bytes]:
    """The files of a tiny voice, by name, with its description; its embedding lies in the weights' file."""
    files = {f"{name}.onnx": graph for name, graph in _graphs().items() if vocoder or name != "vocoder"}
    files[WEIGHTS] = _random(VOCABULARY, SIZE.width).tobytes()
    return files | {DESCRIPTION: json.dumps(description(files), indent=1).encode()}


def description(files: Mapping[str, bytes]) -> dict[str, Any]:
    """What ``voice.json`` says of a tiny voice of these files."""
    records = {
        name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()} for name, content in files.items()
    }
    traits = {"left_frames": 0, "right_frames": 0, "positional": False}
    return {
        "format": 1,
        "name": "tiny",
        "licence": "Apache-2.0",
        "provenance": "Made for fuzzing.",
        "dimensions": vars(SIZE),
        "prediction": "epsilon",
        "schedule": {"name": "squaredcos_cap_v2", "train_steps": 1000},
        "sampling": {"sampler": "dpmpp-2m", "steps": 4, "guidance": 2.0},
        "vocoder": traits if "vocoder.onnx" in records else None,
        "precision": "fp32",
        "parity": {"decoder": 1e-6},
        "files": records,
    }


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Make a folder hold these files."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def _random(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(0).normal(0, 0.5, shape).astype(np.float32)


def _graphs() -> dict[str, bytes]:
    """Every network's graph, by the contracts."""
    known = contracts(SIZE)
    node, width = helper.make_node, SIZE.width
    embed = [node("Gather", ["table", "tokens"], ["notes"])]
    encode = [node("MatMul", ["mel", "w"], ["context"])]
    attend = [
        node("Concat", ["notes", "context"], ["joined"], axis=1),
        node("Unsqueeze", ["joined", "heads"], ["keys_0"]),
        node("Mul", ["keys_0", "half"], ["values_0"]),
    ]
    time = [node("Reshape", ["time", "shape"], ["steps"]), node("Mul", ["steps", "ones"], ["film"])]
    flat = [node("Reshape", ["film", "row"], ["flat"]), node("MatMul", ["flat", "f"], ["shift"])]
    decode = [
        *flat,
        node("MatMul", ["x", "q"], ["query"]),
        node("Unsqueeze", ["query", "heads"], ["queries"]),
        node("Expand", ["mask", "each"], ["masks"]),
        node("Attention", ["queries", "keys_0", "values_0", "masks"], ["heard"]),
        node("Squeeze", ["heard", "heads"], ["found"]),
        node("MatMul", ["found", "o"], ["out"]),
        node("Add", ["out", "shift"], ["prediction"]),
    ]
    sound = [
        node("MatMul", ["mel", "m"], ["level"]),
        node("Mul", ["level", "wave"], ["samples"]),
        node("Reshape", ["samples", "rows"], ["audio"]),
    ]
    heads, film = np.array([1]), {"row": np.array([1, 4 * width]), "f": _random(4 * width, MELS)}
    project = {"each": np.array([1, 1, FRAMES, 1]), "q": _random(MELS, width), "o": _random(width, MELS)}
    weights: dict[str, tuple[Sequence[onnx.NodeProto], Weights]] = {
        "note_encoder": (embed, {}),
        "context_encoder": (encode, {"w": _random(MELS, width)}),
        "cross_attention": (attend, {"heads": heads, "half": np.float32(0.5)}),
        "time_embedding": (time, {"shape": np.array([-1, 1, 1, 1, 1]), "ones": _random(1, 1, 2, 2, width)}),
        "decoder": (decode, {"heads": heads, **film, **project}),
        "unconditional_decoder": ([*flat, node("Add", ["x", "shift"], ["prediction"])], film),
        "vocoder": (sound, {"m": _random(MELS, 1), "wave": _random(HOP), "rows": np.array([0, -1])}),
    }
    return {name: _graph(nodes, known[name], arrays) for name, (nodes, arrays) in weights.items()}


def _graph(nodes: Sequence[onnx.NodeProto], contract: Contract, arrays: Weights) -> bytes:
    tensors = [numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items()]
    if not arrays:
        tensors = [external("table", (VOCABULARY, SIZE.width), WEIGHTS)]
    inputs, outputs = ([_declared(tensor) for tensor in side] for side in (contract.inputs, contract.outputs))
    graph = helper.make_graph(nodes, "main", inputs, outputs, tensors)
    return model(graph)


def model(graph: onnx.GraphProto, version: int = OPSET) -> bytes:
    """A graph as a file, of operators of a version."""
    opset = [helper.make_opsetid("", version)]
    return helper.make_model(graph, opset_imports=opset, ir_version=IR).SerializeToString()


def external(name: str, shape: Sequence[int], location: str) -> onnx.TensorProto:
    """A float tensor that lies at the beginning of another file."""
    tensor = TensorProto(name=name, dims=shape, data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", 0), ("length", 4 * int(np.prod(shape)))):
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def _declared(tensor: Tensor) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(tensor.name, TYPES[tensor.dtype], list(tensor.shape))


def foreign_vocoder() -> bytes:
    """A mel decoder as others export them."""
    node = helper.make_node
    nodes = [node("MatMul", ["log_mel", "m"], ["level"]), node("Mul", ["level", "wave"], ["signal"])]
    tensors = [numpy_helper.from_array(_random(MELS, 1), "m"), numpy_helper.from_array(_random(HOP), "wave")]
    mel = helper.make_tensor_value_info("log_mel", TensorProto.FLOAT, ["batch", "frames", MELS])
    signal = helper.make_tensor_value_info("signal", TensorProto.FLOAT, ["batch", "frames", HOP])
    return model(helper.make_graph(nodes, "vocoder", [mel], [signal], tensors))


def checkpoint_tensors() -> dict[str, NDArray[np.float32]]:
    """The tensors of a tiny checkpoint in diffusers' layout, by part/name, of the sizes that ``configs`` says."""
    reference = Path(__file__).parents[1] / "data" / "reference" / "checkpoint"
    tensors = {}
    for path in sorted(reference.glob("*/*.safetensors")):
        with path.open("rb") as stream:
            header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
        for name, entry in header.items():
            if name != "__metadata__" and "coders.1." not in name:
                tensors[f"{path.parent.name}/{name}"] = _random(*_shrunk(name, entry["shape"]))
    return tensors


def _shrunk(name: str, shape: Sequence[int]) -> list[int]:
    """The shape that a tensor of the reference checkpoint has in the tiny one."""
    width, rows = SIZE.width, shape[0]
    if "conditioning_emb" in name:
        return [4 * width, width if ".0." in name else 4 * width]
    if "scale_bias" in name:
        return [2 * width, 4 * width]
    small = {64: width, 1536: 3, 2048: SIZE.max_tokens}
    if "DenseReluDense" in name:
        small[128] = SIZE.feed_forward
    assert rows in (*small, FRAMES, MELS)
    return [small.get(axis, axis) for axis in shape]


def configs() -> dict[str, dict[str, Any]]:
    """The configurations of a tiny checkpoint in diffusers' layout, by path."""
    shared = {"d_model": SIZE.width, "num_heads": SIZE.heads, "d_kv": SIZE.head_width, "d_ff": SIZE.feed_forward}
    encoder = {**shared, "num_layers": 1, "feed_forward_proj": "gated-gelu", "is_decoder": False}
    segment = {"input_dims": MELS, "targets_length": FRAMES, "max_decoder_noise_time": 20000.0}
    return {
        "notes_encoder/config.json": {**encoder, "max_length": SIZE.max_tokens, "vocab_size": 3},
        "continuous_encoder/config.json": {**encoder, "input_dims": MELS, "targets_context_length": FRAMES},
        "decoder/config.json": {**shared, "num_layers": 1, **segment},
        "scheduler/scheduler_config.json": {
            "beta_schedule": "squaredcos_cap_v2",
            "clip_sample": True,
            "num_train_timesteps": 1000,
            "prediction_type": "epsilon",
            "trained_betas": None,
        },
    }
