"""The original's T5X checkpoints: a folder of zarr (version 2) arrays, one for each parameter.

Every parameter of the original carries partitioning axes, so T5X writes each as an array of its own; none is in the
msgpack file beside them. The reader here is small and bounded: chunks are plain or deflated, in C order.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from notewave.errors import VoiceError
from notewave.export.checkpoints.assemble import MAX_JSON_BYTES, SAMPLING, Checkpoint, Stored, assemble, read_json
from notewave.sampling.schedule import NoiseSchedule
from notewave.voice.contracts import Dimensions

PREFIX = "target."  # of the parameters; the optimiser's state lies beside them
ARRAY = ".zarray"
GIN = "config.gin"  # of the training run, in the folder of the checkpoint or the one above
HEAD_WIDTH = 64  # of both published models; the arrays hold only heads x head width
GUIDANCE = 2.0  # as in the original's demo

_DTYPES = {"<f4": "<f4", "<f2": "<f2", "bfloat16": "<i2"}  # zarr's name: NumPy's of the same width
_GZIP_OR_ZLIB = zlib.MAX_WBITS | 32

# Parameter here: T5X's array, in the notation of notewave.export.checkpoints.assemble. A kernel is a torch weight
# transposed.
_ENCODER = {
    "positions": "Embed_0.embedding",
    "layers.*.attention_norm.weight": "layers_*.pre_attention_layer_norm.scale",
    "layers.*.attention.qkv.weight": "layers_*.attention.{query,key,value}.kernel",
    "layers.*.attention.out.weight": "layers_*.attention.out.kernel",
    "layers.*.feed_forward_norm.weight": "layers_*.pre_mlp_layer_norm.scale",
    "layers.*.feed_forward.gate_up.weight": "layers_*.mlp.{wi_0,wi_1}.kernel",
    "layers.*.feed_forward.out.weight": "layers_*.mlp.wo.kernel",
    "norm.weight": "encoder_norm.scale",
}
_CROSS = "decoder.layers_*.MultiHeadDotProductAttention_0"
NAMES = {
    "note_encoder.embedding.weight": "token_encoder.token_embedder.embedding",
    **{f"note_encoder.{ours}": f"token_encoder.{theirs}" for ours, theirs in _ENCODER.items()},
    "context_encoder.input.weight": "continuous_encoder.input_proj.kernel",
    **{f"context_encoder.{ours}": f"continuous_encoder.{theirs}" for ours, theirs in _ENCODER.items()},
    "time_embedding.hidden.weight": "decoder.time_emb_dense0.kernel",
    "time_embedding.out.weight": "decoder.time_emb_dense1.kernel",
    "time_embedding.film.weight": "decoder.layers_*.{FiLMLayer_0,FiLMLayer_1}.DenseGeneral_0.kernel",
    "cross_attention.projection.weight": f"{_CROSS}.{{key,value}}.kernel",
    "decoder.input.weight": "decoder.continuous_inputs_projection.kernel",
    "decoder.positions": "decoder.Embed_0.embedding",
    "decoder.layers.*.attention_norm.weight": "decoder.layers_*.pre_self_attention_layer_norm.scale",
    "decoder.layers.*.attention.qkv.weight": "decoder.layers_*.self_attention.{query,key,value}.kernel",
    "decoder.layers.*.attention.out.weight": "decoder.layers_*.self_attention.out.kernel",
    "decoder.layers.*.cross_norm.weight": "decoder.layers_*.pre_cross_attention_layer_norm.scale",
    "decoder.layers.*.cross_queries.weight": f"{_CROSS}.query.kernel",
    "decoder.layers.*.cross_out.weight": f"{_CROSS}.out.kernel",
    "decoder.layers.*.feed_forward_norm.weight": "decoder.layers_*.pre_mlp_layer_norm.scale",
    "decoder.layers.*.feed_forward.gate_up.weight": "decoder.layers_*.mlp.{wi_0,wi_1}.kernel",
    "decoder.layers.*.feed_forward.out.weight": "decoder.layers_*.mlp.wo.kernel",
    "decoder.norm.weight": "decoder.decoder_norm.scale",
    "decoder.output.weight": "decoder.spec_out_dense.kernel",
}


def find_t5x(source: Path) -> Path | None:
    """Folder of the arrays: the source itself, or the last ``checkpoint_<step>`` in it; None where neither has any."""
    steps = sorted(source.glob("checkpoint_*"), key=lambda path: (len(path.name), path.name), reverse=True)
    return next((folder for folder in (source, *steps) if any(folder.glob(f"{PREFIX}*/{ARRAY}"))), None)


def load_t5x(folder: Path) -> Checkpoint:
    """Load a checkpoint from the folder of its arrays; raises VoiceError where it is not complete or not readable."""
    arrays = {path.parent.name: path.parent for path in folder.glob(f"{PREFIX}*/{ARRAY}")}
    stored = {name.removeprefix(PREFIX): _open_array(path) for name, path in arrays.items()}
    return Checkpoint(
        assemble(_dimensions(stored, _head_width(folder)), NAMES, stored),
        schedule=NoiseSchedule("cosine"),
        sampling=replace(SAMPLING, guidance=GUIDANCE),
    )


def _dimensions(stored: Mapping[str, Stored], head_width: int) -> Dimensions:
    """Read the sizes off the arrays' shapes."""

    def shape(name: str) -> tuple[int, ...]:
        if name not in stored or len(stored[name].shape) != 2:
            raise VoiceError(f"the checkpoint has no matrix {PREFIX}{name}. Use a checkpoint 'with context', whole.")
        return stored[name].shape

    def layers(part: str) -> int:
        return len({name.split(".")[1] for name in stored if name.startswith(f"{part}.layers_")})

    vocabulary, width = shape("token_encoder.token_embedder.embedding")
    inner = shape("decoder.layers_0.self_attention.query.kernel")[0]
    if inner % head_width:
        raise VoiceError(f"attention of width {inner} does not split into heads of {head_width}. Put {GIN} beside it.")
    return Dimensions(
        width=width,
        heads=inner // head_width,
        head_width=head_width,
        feed_forward=shape("decoder.layers_0.mlp.wi_0.kernel")[0],
        note_encoder_layers=layers("token_encoder"),
        context_encoder_layers=layers("continuous_encoder"),
        decoder_layers=layers("decoder"),
        vocabulary=vocabulary,
        max_tokens=shape("token_encoder.Embed_0.embedding")[0],
        frames=shape("decoder.Embed_0.embedding")[0],
        mels=shape("decoder.continuous_inputs_projection.kernel")[1],
    )


def _head_width(folder: Path) -> int:
    """What the training run's configuration says, or else what the published models have."""
    for path in (folder / GIN, folder.parent / GIN):
        if path.is_file():
            with path.open(encoding="utf-8", errors="replace") as stream:
                found = re.findall(r"\bhead_dim\s*=\s*(\d{1,5})\b", stream.read(MAX_JSON_BYTES))
            if found:
                return max(1, int(found[-1]))  # later bindings override earlier ones
    return HEAD_WIDTH


def _open_array(folder: Path) -> Stored:
    """Check an array's description; its shape is that of the torch weight."""
    description = read_json(folder / ARRAY)
    shape, chunks = (_sizes(description.get(key)) for key in ("shape", "chunks"))
    compressor = description.get("compressor") or {"id": None}
    readable = (
        description.get("zarr_format") == 2
        and description.get("order") == "C"
        and not description.get("filters")
        and str(description.get("dtype")) in _DTYPES
        and isinstance(compressor, dict)
        and compressor.get("id") in (None, "gzip", "zlib")
        and description.get("dimension_separator", ".") in (".", "/")
        and 0 < len(shape) == len(chunks)
        and all(chunk <= size for chunk, size in zip(chunks, shape, strict=True))
    )
    if not readable:
        raise VoiceError(
            f"{folder / ARRAY} describes no array that can be read: it must be zarr version 2 in C order, float32, "
            "float16 or bfloat16, plain, gzip or zlib. Write the checkpoint again with T5X's defaults."
        )
    transposed = folder.name.endswith(".kernel")
    return Stored(shape[::-1] if transposed else shape, lambda: _read_array(folder, description, transposed))


def _sizes(value: Any) -> tuple[int, ...]:
    """A list of plausible sizes, or nothing."""
    plausible = isinstance(value, list) and all(type(size) is int and 1 <= size <= 1 << 16 for size in value)
    return tuple(value) if plausible else ()


def _read_array(folder: Path, description: Mapping[str, Any], transposed: bool) -> Tensor:
    shape, chunks = description["shape"], description["chunks"]
    array = np.empty(shape, _DTYPES[description["dtype"]])
    for index in np.ndindex(*(-(-size // chunk) for size, chunk in zip(shape, chunks, strict=True))):
        path = folder / description.get("dimension_separator", ".").join(map(str, index))
        region = array[tuple(slice(i * chunk, (i + 1) * chunk) for i, chunk in zip(index, chunks, strict=True))]
        block = _read_chunk(path, math.prod(chunks) * array.itemsize, bool(description.get("compressor")))
        whole = np.frombuffer(block, array.dtype).reshape(chunks)
        region[...] = whole[tuple(slice(size) for size in region.shape)]  # chunks at the end reach beyond the array
    tensor = torch.from_numpy(array)
    tensor = tensor.view(torch.bfloat16) if description["dtype"] == "bfloat16" else tensor
    return tensor.mT if transposed else tensor


def _read_chunk(path: Path, size: int, compressed: bool) -> bytes:
    try:
        with path.open("rb") as stream:
            block = stream.read(size + MAX_JSON_BYTES)  # what does not compress grows a little
        if compressed:
            block = zlib.decompressobj(_GZIP_OR_ZLIB).decompress(block, size + 1)
    except (OSError, zlib.error) as error:
        raise VoiceError(f"{path} is missing or damaged ({error}). Download the checkpoint again.") from error
    if len(block) != size:
        raise VoiceError(f"{path} does not hold the {size} bytes of a chunk. Download the checkpoint again.")
    return block
