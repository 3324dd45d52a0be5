"""The zip files of ``torch.save``, from torch 1.6 on, that hold named tensors: read without torch.load.

One record is a pickle, of bounded size, which is read and not executed; the others are storages, stored as they are.
"""

from __future__ import annotations

import functools
import io
import math
import re
import struct
import zipfile
from collections.abc import Mapping
from typing import NamedTuple

import torch

from notewave.checks import quoted
from notewave.errors import VoiceError
from notewave.export.checkpoints.assemble import Stored
from notewave.export.checkpoints.pickle_reader import PickledTensor, Unmade, read_pickle
from notewave.export.checkpoints.records import MAX_HEADER_BYTES, MAX_TENSORS, OpenFile, span

MAX_RECORDS = MAX_TENSORS + 16  # the others say how the file was written
MAX_SHARING = 4  # numbers in all tensors, for each that is in a storage
MAX_SPREAD = 16  # numbers from a tensor's first to its last, for each that it has
SPREAD_FREE = 1 << 16  # numbers that any tensor may spread over

_FLOATS = {
    "torch.FloatStorage": torch.float32,
    "torch.DoubleStorage": torch.float64,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
}
_LOCAL = struct.Struct("<4s22xHH")  # a record's own header: its mark and the lengths of two fields that follow it


class _Record(NamedTuple):
    """Where a record's bytes lie in the file."""

    start: int
    bytes: int


def read_pickled(file: OpenFile, part: str | None = None) -> dict[str, Stored]:
    """The tensors of a file by name, none of them read yet.

    part: where the file holds more, under which name it has the tensors; what else it holds is passed over, unmade.
    Raises VoiceError, before memory is taken, for what is broken or holds other things than named tensors of
    float32, float64, float16 or bfloat16.
    """
    try:
        records = _list_records(file)
        roots = [found[1] for name in records if (found := re.fullmatch(r"([^/]+)/data\.pkl", name))]
        if len(roots) != 1:
            raise ValueError(f"it has {len(roots)} pickles")
        root = roots[0]
        if f"{root}/byteorder" in records and _read_record(file, records, f"{root}/byteorder") != b"little":
            raise ValueError("its numbers are not little-endian")
        content = read_pickle(_read_record(file, records, f"{root}/data.pkl"), passing_over=part is not None)
        tensors = content if part is None else _take_part(content, part)
        return _find_tensors(file, tensors, records, root)
    except ValueError as error:
        raise VoiceError(
            f"{file.path} is not a readable file of plain tensors: {error}. Download it again; if that does not help, "
            "do not trust it. What you trust, load and save again: torch.save of a dict of named tensors."
        ) from error


class _Directory(io.FileIO):
    """A file for zipfile, which reads whole what an archive says of its own directory's size."""

    def read(self, size: int | None = -1, /) -> bytes:
        content = super().read(MAX_HEADER_BYTES + 1 if size is None or size < 0 else min(size, MAX_HEADER_BYTES + 1))
        if content is None or len(content) > MAX_HEADER_BYTES:
            raise ValueError(f"its directory has more than {MAX_HEADER_BYTES} bytes")
        return content


def _list_records(file: OpenFile) -> dict[str, _Record]:
    """The archive's records by name, which lie in the file one beside another, not compressed. Raises ValueError."""
    if file.bytes >= 2 and file.read(0, 2) == b"\x80\x02":
        raise ValueError("it is in the format of torch before 1.6")
    try:
        with zipfile.ZipFile(_Directory(file.descriptor, closefd=False)) as archive:
            entries = archive.infolist()
    except Exception as error:  # zipfile raises whatever a broken directory runs into
        raise ValueError(f"it is no zip file that can be read ({error})") from error
    if len(entries) > MAX_RECORDS:
        raise ValueError(f"it has {len(entries)} records, over {MAX_RECORDS}")
    if any(entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size for entry in entries):
        raise ValueError("its records are compressed, which torch.save does not do")
    records = {entry.filename: _Record(entry.header_offset, entry.file_size) for entry in entries}
    if len(records) != len(entries) or sum(record.bytes for record in records.values()) > file.bytes:
        raise ValueError("its records overlap or have one name")
    return records


def _locate(file: OpenFile, records: Mapping[str, _Record], name: str) -> _Record:
    """Where a record's content lies. Raises ValueError."""
    if name not in records:
        raise ValueError(f"it has no record {quoted(name)}")
    header, size = records[name]
    mark, *lengths = _LOCAL.unpack(file.read(header, _LOCAL.size))
    start = header + _LOCAL.size + sum(lengths)
    if mark != b"PK\x03\x04" or start + size > file.bytes:
        raise ValueError(f"its record {quoted(name)} is not where its directory says")
    return _Record(start, size)


def _read_record(file: OpenFile, records: Mapping[str, _Record], name: str) -> bytes:
    start, size = _locate(file, records, name)
    if size > MAX_HEADER_BYTES:
        raise ValueError(f"its record {quoted(name)} has {size} bytes, over {MAX_HEADER_BYTES}")
    return file.read(start, size)


def _take_part(content: object, part: str) -> object:
    if not isinstance(content, dict) or part not in content:
        raise ValueError(f"it has no {quoted(part)}")
    return content[part]


def _find_tensors(file: OpenFile, tensors: object, records: Mapping[str, _Record], root: str) -> dict[str, Stored]:
    if not isinstance(tensors, dict):
        raise ValueError(f"it holds {_describe(tensors)}, not named tensors")
    for name, value in tensors.items():
        if not isinstance(value, PickledTensor):
            raise ValueError(f"{quoted(name)} is {_describe(value)}, no plain tensor")
    if len(tensors) > MAX_TENSORS:
        raise ValueError(f"it has {len(tensors)} tensors, over {MAX_TENSORS}")
    used = {key: _locate(file, records, f"{root}/data/{key}") for key in {one.storage.key for one in tensors.values()}}
    stored, wanted = {}, 0
    for name, tensor in tensors.items():
        dtype = _check_tensor(name, tensor, used[tensor.storage.key].bytes)
        wanted += math.prod(tensor.shape) * dtype.itemsize
        start = used[tensor.storage.key].start + tensor.offset * dtype.itemsize
        read = functools.partial(file.read_tensor, dtype, start, tensor.shape, tensor.strides)
        stored[name] = Stored(tensor.shape, read)
    if wanted > MAX_SHARING * sum(record.bytes for record in used.values()):
        raise ValueError("its tensors share the same numbers over and over")
    return stored


def _describe(value: object) -> str:
    return f"what {quoted(value.function)} makes" if isinstance(value, Unmade) else f"a {type(value).__name__}"


def _check_tensor(name: str, tensor: PickledTensor, size: int) -> torch.dtype:
    """The type of a tensor's numbers, which lie all within its storage's bytes. Raises ValueError."""
    dtype = _FLOATS.get(tensor.storage.kind)
    if dtype is None:
        raise ValueError(f"the numbers of {quoted(name)} are of {quoted(tensor.storage.kind)}")
    count, spread = math.prod(tensor.shape), span(tensor.shape, tensor.strides)
    whole = tensor.storage.count
    if not 0 <= whole * dtype.itemsize <= size or tensor.offset + spread > whole or count > whole:
        raise ValueError(f"{quoted(name)} has more numbers than the file")
    if spread > MAX_SPREAD * count + SPREAD_FREE:
        raise ValueError(f"the numbers of {quoted(name)} are scattered, as those of a view are that was not cloned")
    return dtype
