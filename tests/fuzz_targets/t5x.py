"""The original's checkpoints: trees of zarr arrays."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Hashable, Iterator
from typing import Any

import numpy as np
from fuzz_mutators.archives import pack
from numpy.typing import NDArray

import notewave
from fuzz_targets.checkpoints import Folder, summary
from fuzz_targets.tiny import SIZE, checkpoint_tensors
from notewave.export.checkpoints import diffusers, t5x
from notewave.export.checkpoints.t5x_names import WITH_CONTEXT

STEP = "checkpoint_100"


class Fuzzed(Folder):
    """Folders of arrays, in the folder of a run."""

    expected = notewave.VoiceError
    words = (b"zarr_format", b"compressor", b'"gzip"', b'"zlib"', b'"blosc"', b"bfloat16", b"<f2", b"<f4", b"head_dim")

    def corpus(self) -> list[bytes]:
        tensors = {_original(name): array for name, array in checkpoint_tensors().items()}
        return [pack(dict(_files(tensors, kind))) for kind in (None, "zlib")] + super().corpus()

    def run(self, content: bytes) -> Hashable:
        folder = t5x.find_t5x(self.write(content))
        return summary(t5x.load_t5x(folder)) if folder else "no arrays"


def _files(tensors: dict[str, NDArray[np.float32]], compressor: str | None) -> Iterator[tuple[str, bytes]]:
    """A tree's files by path, each array in one chunk or, where it is compressed, in several."""
    yield "config.gin", f"head_dim = {SIZE.head_width}\n".encode()
    for name, tensor in tensors.items():
        array = np.ascontiguousarray(tensor.T if name.endswith(".kernel") else tensor)
        chunks = [min(size, 130 if compressor else size) for size in array.shape]
        folder = f"{STEP}/target.{name}"
        yield f"{folder}/.zarray", json.dumps(_description(array, chunks, compressor)).encode()
        for index in np.ndindex(*(-(-size // chunk) for size, chunk in zip(array.shape, chunks, strict=True))):
            block = array[tuple(slice(i * chunk, (i + 1) * chunk) for i, chunk in zip(index, chunks, strict=True))]
            padding = [(0, chunk - size) for chunk, size in zip(chunks, block.shape, strict=True)]
            content = np.pad(block, padding).tobytes()
            yield f"{folder}/{'.'.join(map(str, index))}", zlib.compress(content) if compressor else content


def _description(array: NDArray[Any], chunks: list[int], compressor: str | None) -> dict[str, Any]:
    return {
        "chunks": chunks,
        "compressor": compressor and {"id": compressor, "level": 1},
        "dtype": "<f4",
        "fill_value": None,
        "filters": None,
        "order": "C",
        "shape": list(array.shape),
        "zarr_format": 2,
    }


def _original(name: str) -> str:
    """The original's name of a tensor of diffusers', by the tables that both are read with."""
    for ours, pattern in diffusers.NAMES.items():
        for theirs, original in zip(_spelled(pattern), _spelled(WITH_CONTEXT.names[ours]), strict=True):
            found = re.fullmatch(re.escape(theirs).replace(r"\*", r"(\d+)"), name)
            if found:
                return original.replace("*", found[1]) if found.groups() else original
    raise KeyError(name)


def _spelled(pattern: str) -> list[str]:
    """The names that a pattern with braces stands for."""
    braces = re.search("{(.*)}", pattern)
    return [pattern.replace(braces[0], choice) for choice in braces[1].split(",")] if braces else [pattern]
