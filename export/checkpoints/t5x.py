"""The original's T5X checkpoints: a folder of zarr (version 2) arrays, one for each parameter (``t5x_names``).

Every parameter of the original carries partitioning axes, so T5X writes each as an array of its own; none is in the
msgpack file beside them. The reader here is small and bounded: chunks are plain or deflated, in C order.
"""

from __future__ import annotations

import errno
import functools
import itertools
import math
import os
import re
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from notewave.errors import VoiceError
from notewave.export.checkpoints import t5x_names
from notewave.export.checkpoints.assemble import MAX_JSON_BYTES, SAMPLING, Checkpoint, Stored, assemble, read_json
from notewave.export.checkpoints.records import is_shape
from notewave.export.checkpoints.t5x_names import BASIC, LAYOUTS, POSITIONS, WITH_CONTEXT, Layout
from notewave.inputs import read_regular
from notewave.sampling.options import FRAME_BY_FRAME
from notewave.sampling.samplers import AUTOREGRESSIVE
from notewave.sampling.schedule import NoiseSchedule
from notewave.song.codec import MAX_TOKENS
from notewave.sound.mel import FRAMES
from notewave.voice.contracts import Dimensions

PREFIX = "target."  # of the parameters; the optimiser's state lies beside them
ARRAY = ".zarray"
GIN = "config.gin"  # of the training run, in the folder of the checkpoint or the one above
HEAD_WIDTH = 64  # of both published models; the arrays hold only heads x head width
GUIDANCE = 2.0  # as in the original's demo

MAX_ENTRIES = 1 << 16  # of a folder: each parameter has up to three arrays of the optimiser's beside it
MAX_STEPS = 100  # last ones, in which arrays are looked for
MAX_ARRAY_BYTES = 1 << 12  # of a description: ten times what T5X writes
MAX_CHUNKS = 1 << 12  # of an array, each a file
MAX_INFLATION = 50  # bytes of all arrays for each that their files have: gzip's most is a thousand
FREE_BYTES = 1 << 24  # that any arrays may have
GROWTH = 1 << 20  # bytes: what does not compress grows a little

_DTYPES = {"<f4": "<f4", "<f2": "<f2", "bfloat16": "<i2"}  # zarr's name: NumPy's of the same width
_GZIP_OR_ZLIB = zlib.MAX_WBITS | 32

_STEP = re.compile(r"checkpoint_(\d{1,18})")
_NOTATION = {r"\*": r"(?:0|[1-9]\d{0,2})", r"\{": "(?:", ",": "|", r"\}": ")"}  # of the table, escaped: of a pattern
_KNOWN = re.compile(
    "|".join(
        re.sub(r"\\[*{}]|,", lambda sign: _NOTATION[sign[0]], re.escape(one))
        for layout in LAYOUTS
        for one in layout.names.values()
    )
)


def find_t5x(source: Path) -> Path | None:
    """Folder of the arrays: the source itself, or the last ``checkpoint_<step>`` in it; None where neither has any.

    Raises VoiceError for a folder of more than MAX_ENTRIES entries.
    """
    try:
        steps = [found for name in _names_in(source) if (found := _STEP.fullmatch(name))]
    except OSError:  # what is no folder, or closed to us, has no arrays
        return None
    last = sorted(steps, key=lambda step: int(step[1]), reverse=True)[:MAX_STEPS]
    return next(filter(_has_arrays, (source, *(source / step[0] for step in last))), None)


def load_t5x(folder: Path) -> Checkpoint:
    """Load a checkpoint from the folder of its arrays; raises VoiceError where it is not complete or not readable.

    Of arrays that no network here has only the names are read.
    """
    try:
        names = [name.removeprefix(PREFIX) for name in _names_in(folder) if name.startswith(PREFIX)]
    except OSError as error:
        raise VoiceError(f"{folder} cannot be read: {error.strerror or error}. Check its permissions.") from error
    arrays = {name: _Array.open(folder / f"{PREFIX}{name}") for name in names if _KNOWN.fullmatch(name)}
    _check_bulk(folder, arrays.values())
    stored = {name: Stored(array.weight_shape, array.read) for name, array in arrays.items()}
    layout, others = _layout(stored), set(names) - set(arrays)
    size = _dimensions(stored, layout, _head_width(folder))
    if not layout.is_autoregressive:
        model = assemble(size, layout.names, stored, others, family=layout.family, kind=layout.kind)
        return Checkpoint(model, schedule=NoiseSchedule("cosine"), sampling=replace(SAMPLING, guidance=GUIDANCE))
    for part, rows in ((layout.notes, size.max_tokens), ("decoder", size.frames)):
        stored[f"{part}.{POSITIONS}"] = Stored((rows, size.width), functools.partial(_sinusoids, rows, size.width))
    model = assemble(size, layout.names, stored, others, family=layout.family, kind=layout.kind)
    return Checkpoint(model, AUTOREGRESSIVE, sampling=FRAME_BY_FRAME)


def _layout(stored: Mapping[str, Stored]) -> Layout:
    """Which of the original's kinds of configurations a checkpoint is of, by what it has of one alone."""
    if any(name.startswith(f"{WITH_CONTEXT.notes}.") for name in stored):
        return WITH_CONTEXT
    return BASIC if any(name.startswith("decoder.time_emb_") for name in stored) else t5x_names.AUTOREGRESSIVE


def _sinusoids(rows: int, width: int) -> Tensor:
    """The original's fixed positions [rows, width]: half sines, half cosines, of periods from 2 pi to 20000 pi."""
    half = width // 2
    angles = np.arange(rows)[:, None] * np.exp(-math.log(1e4) / (half - 1) * np.arange(half))
    table = np.zeros((rows, width), np.float32)
    table[:, :half], table[:, half : 2 * half] = np.sin(angles), np.cos(angles)
    return torch.from_numpy(table)


def _names_in(folder: Path) -> list[str]:
    """Names of all entries of a folder. Raises OSError, and VoiceError where they are too many."""
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in itertools.islice(entries, MAX_ENTRIES + 1)]
    except ValueError as error:  # a zero byte
        raise OSError(errno.EINVAL, str(error)) from error
    if len(names) > MAX_ENTRIES:
        raise VoiceError(f"{folder} has more than {MAX_ENTRIES} entries, which no checkpoint has. Check the path.")
    return names


def _has_arrays(folder: Path) -> bool:
    """Whether a folder has any of the arrays that every checkpoint has once."""
    try:
        known = {name for layout in LAYOUTS for name in layout.names.values() if "*" not in name}
        return any((folder / f"{PREFIX}{name}" / ARRAY).is_file() for name in sorted(known))
    except OSError:  # closed to us
        return False


def _check_bulk(folder: Path, arrays: Iterable[_Array]) -> None:
    """Raise VoiceError where arrays would take far more memory than their files have bytes, or have no files."""
    said = have = 0
    for array in arrays:
        said += math.prod(array.shape) * array.bytes_each
        for index in array.indices():
            path = array.chunk_path(index)
            try:
                have += path.stat().st_size
            except OSError as error:
                raise _damaged(path, error.strerror or error) from error
    if said > MAX_INFLATION * have + FREE_BYTES:
        raise VoiceError(
            f"the arrays in {folder} are said to have {said} bytes, and their files have {have}: no trained weights "
            "are that much alike. Do not trust this checkpoint."
        )


def _dimensions(stored: Mapping[str, Stored], layout: Layout, head_width: int) -> Dimensions:
    """Read the sizes off the arrays' shapes."""

    def shape(name: str) -> tuple[int, ...]:
        if name not in stored or len(stored[name].shape) != 2:
            raise VoiceError(f"the checkpoint has no matrix {PREFIX}{name}. Use one of Spectrogram Diffusion, whole.")
        return stored[name].shape

    def layers(part: str) -> int:
        return len({name.split(".")[1] for name in stored if name.startswith(f"{part}.layers_")})

    def rows(part: str, most: int) -> int:
        return most if layout.is_autoregressive else shape(f"{part}.Embed_0.embedding")[0]

    vocabulary, width = shape(f"{layout.notes}.token_embedder.embedding")
    inner = shape("decoder.layers_0.self_attention.query.kernel")[0]
    if inner % head_width:
        raise VoiceError(f"attention of width {inner} does not split into heads of {head_width}. Put {GIN} beside it.")
    return Dimensions(
        width=width,
        heads=inner // head_width,
        head_width=head_width,
        feed_forward=shape("decoder.layers_0.mlp.wi_0.kernel")[0],
        note_encoder_layers=layers(layout.notes),
        context_encoder_layers=layers("continuous_encoder") if layout is WITH_CONTEXT else 0,
        decoder_layers=layers("decoder"),
        vocabulary=vocabulary,
        max_tokens=rows(layout.notes, MAX_TOKENS),
        frames=rows("decoder", FRAMES),
        mels=shape("decoder.continuous_inputs_projection.kernel")[1],
    )


def _head_width(folder: Path) -> int:
    """What the training run's configuration says, or else what the published models have."""
    for path in (folder / GIN, folder.parent / GIN):
        try:
            content = read_regular(path, MAX_JSON_BYTES)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise VoiceError(f"{path} cannot be read: {error.strerror or error}. Mend or remove it.") from error
        if found := re.findall(r"\bhead_dim\s*=\s*(\d{1,5})\b", content.decode("utf-8", "replace")):
            return max(1, int(found[-1]))  # later bindings override earlier ones
    return HEAD_WIDTH


@dataclass(frozen=True)
class _Array:
    """A zarr array by its description, which has been checked."""

    folder: Path
    shape: tuple[int, ...]
    chunks: tuple[int, ...]  # sizes of a chunk
    dtype: str  # a key of _DTYPES
    compressed: bool
    separator: str  # between the indices in a chunk's name

    @classmethod
    def open(cls, folder: Path) -> _Array:
        """Read and check an array's description. Raises VoiceError."""
        said = read_json(folder / ARRAY, MAX_ARRAY_BYTES)
        shape, chunks = (_sizes(said.get(key)) for key in ("shape", "chunks"))
        dtype, separator = said.get("dtype"), said.get("dimension_separator", ".")
        compressor = said.get("compressor") or {"id": None}
        readable = (
            said.get("zarr_format") == 2
            and said.get("order") == "C"
            and not said.get("filters")
            and isinstance(dtype, str)
            and dtype in _DTYPES
            and isinstance(compressor, dict)
            and compressor.get("id") in (None, "gzip", "zlib")
            and separator in (".", "/")
            and 0 < len(shape) == len(chunks)
            and all(chunk <= size for chunk, size in zip(chunks, shape, strict=True))
            and math.prod(_grid(shape, chunks)) <= MAX_CHUNKS
        )
        if not readable:
            raise VoiceError(
                f"{folder / ARRAY} describes no array that can be read: it must be zarr version 2 in C order, float32, "
                f"float16 or bfloat16, plain, gzip or zlib, in up to {MAX_CHUNKS} chunks. Write the checkpoint again "
                "with T5X's defaults."
            )
        return cls(folder, shape, chunks, str(dtype), compressor.get("id") is not None, str(separator))

    @property
    def bytes_each(self) -> int:
        """Bytes of a number."""
        return np.dtype(_DTYPES[self.dtype]).itemsize

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Shape of the torch weight."""
        return self.shape[::-1] if self._transposed else self.shape

    @property
    def _transposed(self) -> bool:
        return self.folder.name.endswith(".kernel")

    def indices(self) -> Iterable[tuple[int, ...]]:
        """Of all chunks."""
        return np.ndindex(*_grid(self.shape, self.chunks))

    def chunk_path(self, index: tuple[int, ...]) -> Path:
        """Where a chunk lies."""
        return self.folder / self.separator.join(map(str, index))

    def read(self) -> Tensor:
        """The torch weight. Raises VoiceError."""
        array = np.empty(self.shape, _DTYPES[self.dtype])
        for index in self.indices():
            spans = [slice(i * chunk, (i + 1) * chunk) for i, chunk in zip(index, self.chunks, strict=True)]
            region = array[tuple(spans)]
            block = _read_chunk(self.chunk_path(index), math.prod(self.chunks) * array.itemsize, self.compressed)
            whole = np.frombuffer(block, array.dtype).reshape(self.chunks)
            region[...] = whole[tuple(slice(size) for size in region.shape)]  # chunks at the end reach beyond the array
        tensor = torch.from_numpy(array)
        tensor = tensor.view(torch.bfloat16) if self.dtype == "bfloat16" else tensor
        return tensor.mT if self._transposed else tensor


def _grid(shape: tuple[int, ...], chunks: tuple[int, ...]) -> tuple[int, ...]:
    """Chunks along each axis."""
    return tuple(-(-size // chunk) for size, chunk in zip(shape, chunks, strict=True))


def _sizes(value: Any) -> tuple[int, ...]:
    """A list of plausible sizes, or nothing."""
    return tuple(value) if is_shape(value) and all(1 <= size <= 1 << 16 for size in value) else ()


def _read_chunk(path: Path, size: int, compressed: bool) -> bytes:
    try:
        block, whole = read_regular(path, size + GROWTH), True
        if compressed:
            stream = zlib.decompressobj(_GZIP_OR_ZLIB)
            block = stream.decompress(block, size + 1)
            whole = stream.eof  # behind the checksum
    except OSError as error:
        raise _damaged(path, error.strerror or error) from error
    except zlib.error as error:
        raise _damaged(path, error) from error
    if len(block) != size or not whole:
        raise VoiceError(f"{path} does not hold the {size} bytes of a chunk. Download the checkpoint again.")
    return block


def _damaged(path: Path, reason: object) -> VoiceError:
    return VoiceError(f"{path} is missing or damaged ({reason}). Download the checkpoint again.")
