"""safetensors files are read as their library reads them; broken and hostile ones are refused by their header."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from notewave.errors import VoiceError
from notewave.export.checkpoints.records import MAX_HEADER_BYTES, MAX_TENSORS, OpenFile
from notewave.export.checkpoints.safetensors_file import read_safetensors

W = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def read(path: Path) -> dict[str, Tensor]:
    file = OpenFile.find(path)
    assert file is not None
    return {name: stored.read() for name, stored in read_safetensors(file).items()}


def written(path: Path, header: object, data: bytes = bytes(8), length: int | None = None) -> Path:
    content = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(content) if length is None else length).to_bytes(8, "little") + content + data)
    return path


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_tensors_are_those_of_the_library(dtype: torch.dtype, tmp_path: Path) -> None:
    numbers = torch.randn(6, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    content = {"plain": numbers, "one": numbers[0, 0].clone(), "none": numbers[:0], "ünï": numbers.reshape(3, 2, 8) + 1}
    save_file(content, tmp_path / "file", metadata={"format": "pt"})
    ours, theirs = read(tmp_path / "file"), load_file(tmp_path / "file")
    assert ours.keys() == theirs.keys()
    assert all(ours[name].dtype == dtype and torch.equal(ours[name], theirs[name]) for name in theirs)


def test_files_without_tensors(tmp_path: Path) -> None:
    assert read(written(tmp_path / "file", {}, b"")) == {}


def test_headers_are_padded(tmp_path: Path) -> None:
    assert read(written(tmp_path / "file", json.dumps({"w": W}).encode() + b" " * 100))["w"].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("dtype", "size"),
    [("F4", 1), ("F8_E4M3", 2), ("I64", 16), ("BOOL", 2), ("C64", 16), ("x" * 10_000, 8), ("\x1b[", 8)],
)
def test_other_types_of_numbers_are_named(dtype: str, size: int, tmp_path: Path) -> None:
    path = written(tmp_path / "file", {"odd": {**W, "dtype": dtype, "data_offsets": [0, size]}}, bytes(size))
    with pytest.raises(VoiceError, match="not a readable safetensors file: the numbers of 'odd' are of") as caught:
        read(path)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 600


HEADERS: dict[str, Any] = {
    "no JSON": b"{",
    "no object": [W],
    "no text": b"\xff{}",
    "no tensor": {"w": 5},
    "missing offsets": {"w": {"dtype": "F32", "shape": [2]}},
    "a type that is a list": {"w": {**W, "dtype": ["F32"]}},
    "one offset": {"w": {**W, "data_offsets": [8]}},
    "offsets in texts": {"w": {**W, "data_offsets": ["0", "8"]}},
    "fractional offsets": {"w": {**W, "data_offsets": [0.0, 8.0]}},
    "negative offset": {"w": {**W, "data_offsets": [-8, 0]}},
    "offset beyond the end": {"w": {**W, "data_offsets": [8, 16]}},
    "huge offsets": {"w": {**W, "data_offsets": [10**300, 10**300 + 8]}},
    "offset that is not used": {"w": {**W, "shape": [1], "data_offsets": [4, 8]}},
    "bytes left": {"w": {**W, "shape": [1], "data_offsets": [0, 4]}},
    "other shape": {"w": {**W, "shape": [3]}},
    "huge shape": {"w": {**W, "shape": [1 << 62, 1 << 62]}},
    "negative shape": {"w": {**W, "shape": [-1, -2]}},
    "shape of truths": {"w": {**W, "shape": [True, 2]}},
    "many axes": {"w": {**W, "shape": [2, *[1] * 64]}},
    "nested shape": {"w": {**W, "shape": [[2]]}},
    "overlap": {"w": W, "v": W},
    "deep": b'{"w":' * 100_000,
    "a number of many digits": b'{"w":' + b"9" * 100_000 + b"}",
    "too many tensors": {str(i): {**W, "shape": [0], "data_offsets": [0, 0]} for i in range(MAX_TENSORS + 1)},
}


@pytest.mark.parametrize("name", HEADERS)
def test_crooked_headers(name: str, tmp_path: Path) -> None:
    path = written(tmp_path / "file", HEADERS[name])
    with pytest.raises(VoiceError, match=r"not a readable safetensors file: .* Download it again"):
        read(path)


@pytest.mark.parametrize("length", [1 << 63, (1 << 64) - 1, MAX_HEADER_BYTES + 1, 200])
def test_lengths_that_headers_do_not_have(length: int, tmp_path: Path) -> None:
    path = written(tmp_path / "file", {"w": W}, length=length)
    with pytest.raises(VoiceError, match=f"header is said to have {length} bytes"):
        read(path)


def test_a_long_header_is_not_read(tmp_path: Path) -> None:
    path = written(tmp_path / "file", {"w": W}, length=1 << 33)
    os.truncate(path, 1 << 34)  # all zeros, which take no place
    with pytest.raises(VoiceError, match="header is said to have"):
        read(path)


def test_files_that_break_off_anywhere(tmp_path: Path) -> None:
    path = written(tmp_path / "file", {"w": W})
    content = path.read_bytes()
    for size in range(len(content)):
        path.write_bytes(content[:size])
        with pytest.raises(VoiceError, match="not a readable safetensors file"):
            read(path)


PARTS = st.one_of(
    st.binary(min_size=1, max_size=4), st.sampled_from([b"9", b"-", b"[", b'"', b"}", b"\xff" * 8, b"1e9"])
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(st.tuples(st.floats(0, 1), PARTS), min_size=1, max_size=3))
def test_whatever_bytes_are_changed(tmp_path: Path, changes: list[tuple[float, bytes]]) -> None:
    """What is read is what the library reads."""
    path = tmp_path / "file"
    save_file({"a": torch.ones(2, 3), "b": torch.zeros(4, dtype=torch.float16)}, path)
    content = bytearray(path.read_bytes())
    for place, part in changes:
        at = int(place * (len(content) - len(part)))
        content[at : at + len(part)] = part
    path.write_bytes(content)
    try:
        ours = read(path)
    except VoiceError:
        return
    theirs = load_file(path)
    assert all(torch.equal(ours[name].nan_to_num(), theirs[name].nan_to_num()) for name in ours)
