"""Which other files an ONNX graph reads, found without ONNX: untrusted graphs must not reach outside their voice.

ONNX Runtime before 1.24 follows any path. Field numbers are those of ``onnx.proto``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

from notewave.errors import VoiceError

Descent: TypeAlias = dict[int, str]  # field number to the kind of message it holds

# The ways from a model down to the entries of its tensors' external_data.
_INSIDE: dict[str, Descent] = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}
_KEY, _VALUE = 1, 2  # of an entry
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types
_MAX_DEPTH = 64  # of messages in messages


def external_files(model: bytes) -> set[str]:
    """The locations that a serialised ONNX model names for its tensors. Raises VoiceError if it is no such thing."""
    try:
        return set(_locations(memoryview(model), "model", 0))
    except (IndexError, ValueError) as error:
        raise VoiceError(f"it is not a whole ONNX graph ({error}). Copy or export the voice again.") from error


def _locations(message: memoryview, kind: str, depth: int) -> Iterator[str]:
    if depth > _MAX_DEPTH:
        raise ValueError("graphs are nested too deep")
    if kind == "entry":
        fields = {number: bytes(content).decode() for number, content in _fields(message)}
        if fields.get(_KEY) == "location":
            yield fields.get(_VALUE, "")
        return
    inside = _INSIDE[kind]
    for number, content in _fields(message):
        if number in inside:
            yield from _locations(content, inside[number], depth + 1)


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Number and content of each length-delimited field; the others are skipped."""
    position, end = 0, len(message)
    while position < end:
        tag, position = varint(message, position)
        wire = tag & 7
        if wire == _BYTES:
            size, position = varint(message, position)
            if size > end - position:
                raise ValueError("it ends early")
            yield tag >> 3, message[position : position + size]
            position += size
        elif wire == _VARINT:
            _, position = varint(message, position)
        elif wire in (_FIXED64, _FIXED32):
            position += 8 if wire == _FIXED64 else 4
        else:
            raise ValueError(f"wire type {wire} at byte {position}")


def varint(message: memoryview | bytes, position: int) -> tuple[int, int]:
    """A number, and the position behind it."""
    number = shift = 0
    while True:
        byte = message[position]
        position += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, position
        shift += 7
        if shift > 63:
            raise ValueError("a number is too long")
