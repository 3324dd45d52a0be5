"""Files in the safetensors format: a header in JSON says where each tensor's numbers lie.

The header is checked here, since what there is beside these types of numbers may be unknown to torch; the library maps
the whole file, which ends the process where someone cuts the file short.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch

from notewave.checks import quoted
from notewave.errors import VoiceError
from notewave.export.checkpoints.assemble import Stored, parse_json
from notewave.export.checkpoints.records import MAX_HEADER_BYTES, MAX_TENSORS, OpenFile, is_shape

_LENGTH = 8  # bytes that say the header's length
_FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def read_safetensors(file: OpenFile) -> dict[str, Stored]:
    """The tensors of a file by name, none of them read yet.

    Raises VoiceError, before memory is taken, for what is broken or has numbers of another type than float32, float64,
    float16 or bfloat16.
    """
    try:
        if file.bytes < _LENGTH:
            raise ValueError(f"it has {file.bytes} bytes")
        length = int.from_bytes(file.read(0, _LENGTH), "little")
        if length > min(MAX_HEADER_BYTES, file.bytes - _LENGTH):
            raise ValueError(f"its header is said to have {length} bytes")
        header = parse_json(file.read(_LENGTH, length))
        header.pop("__metadata__", None)
        return _find_tensors(file, header, _LENGTH + length)
    except ValueError as error:
        raise VoiceError(f"{file.path} is not a readable safetensors file: {error}. Download it again.") from error


def _find_tensors(file: OpenFile, header: dict[str, Any], start: int) -> dict[str, Stored]:
    """Tensors that lie one after another from a byte on, and fill the file. Raises ValueError."""
    if len(header) > MAX_TENSORS:
        raise ValueError(f"it has {len(header)} tensors, over {MAX_TENSORS}")
    stored, spans = {}, []
    for name, facts in header.items():
        dtype, shape, first, end = _read_facts(quoted(name), facts)
        spans.append((first, end))
        stored[name] = Stored(shape, functools.partial(file.read_tensor, dtype, start + first, shape))
    ends = [0, *(end for _, end in sorted(spans))]
    if [first for first, _ in sorted(spans)] != ends[:-1] or ends[-1] != file.bytes - start:
        raise ValueError("its tensors do not lie one after another to its end: it was cut short or changed")
    return stored


def _read_facts(name: str, facts: Any) -> tuple[torch.dtype, tuple[int, ...], int, int]:
    """Type, shape, first byte and the byte after the last of one tensor. Raises ValueError."""
    match facts:
        case {"dtype": str(kind), "shape": sizes, "data_offsets": [int(first), int(end)]} if is_shape(sizes):
            if kind not in _FLOATS:
                raise ValueError(f"the numbers of {name} are of the type {quoted(kind)}")
            if end - first != math.prod(sizes) * _FLOATS[kind].itemsize:
                raise ValueError(f"{name} has other bytes than its shape needs")
            return _FLOATS[kind], tuple(sizes), first, end
    raise ValueError(f"it does not say what {name} is")
