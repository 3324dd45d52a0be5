"""Protocol Buffers' wire format, read strictly: one spelling of each message, fields that are known, all bounded.

What a lenient reader and a strict one would understand differently is refused here: numbers written longer than need
be, tags above 32 bits, fields nobody knows, groups. The format: https://protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types


@dataclass(frozen=True)
class Field:
    """A field of a message, and what it holds.

    PASSED is what nobody needs, REFUSED what none may have.
    """

    name: str
    kind: str  # one of the above, or a message's name in the schema
    repeated: bool = False


INT, INT32, UINT, FLOAT, DOUBLE, TEXT, BYTES = "int", "int32", "unsigned", "float", "double", "text", "bytes"
PASSED, REFUSED = "passed over", "refused"
# Fields of each kind of message, by number; no kind may hold itself, so messages are as deep as the schema is.
Schema: TypeAlias = Mapping[str, Mapping[int, Field]]
_NUMBERS = {INT: _VARINT, INT32: _VARINT, UINT: _VARINT, FLOAT: _FIXED32, DOUBLE: _FIXED64}
_FIXED = {FLOAT: "<f", DOUBLE: "<d"}


class Reader:
    """Reads messages of a schema."""

    def __init__(self, content: bytes, schema: Schema, most_fields: int) -> None:
        """most_fields: how many fields all messages read may have together, packed numbers among them."""
        self._content, self._view, self._schema, self._left = content, memoryview(content), schema, most_fields

    def read(self, kind: str) -> dict[str, Any]:
        """The content as a message: its fields by name, without those that are absent; of repeated ones a list.

        Raises ValueError or IndexError for what is no message of the kind, in the one way that it can be written.
        """
        return self._message(0, len(self._content), kind)

    def _message(self, at: int, end: int, kind: str) -> dict[str, Any]:
        content, fields, values = self._content, self._schema[kind], dict[str, Any]()
        while at < end:
            tag = content[at]
            at += 1
            if tag > 0x7F:
                tag, at = varint(content, at - 1)
            field, wire = fields.get(tag >> 3), tag & 7
            if field is None or field.kind == REFUSED:
                what = f"field {tag >> 3}" if field is None else field.name
                raise ValueError(f"{what} has no place in a {kind} of a voice")
            self._left -= 1
            if wire == _BYTES:
                size = content[at]
                at += 1
                if size > 0x7F:
                    size, at = varint(content, at - 1)
                begin, at = at, at + size
                if at > end:
                    raise ValueError("it ends early")
                value = self._held(field, begin, at)
            else:
                value, at = self._number(field, wire, at, end)
            if self._left < 0:
                raise ValueError("it has too many fields")
            self._put(values, field, value, kind, is_packed=wire == _BYTES and field.kind in _NUMBERS)
        return values

    @staticmethod
    def _put(values: dict[str, Any], field: Field, value: Any, kind: str, is_packed: bool) -> None:
        name = field.name
        if not field.repeated:
            if name in values:
                raise ValueError(f"a {kind} has two of {name}")
            values[name] = value
        elif is_packed:
            values.setdefault(name, []).extend(value)
        elif name in values:
            values[name].append(value)
        else:
            values[name] = [value]

    def _held(self, field: Field, at: int, end: int) -> Any:
        """What a field of so many bytes holds; of packed numbers a list."""
        kind = field.kind
        if kind == TEXT:
            return self._content[at:end].decode()
        if kind in (BYTES, PASSED):
            return self._view[at:end]
        if kind not in _NUMBERS:
            return self._message(at, end, kind)
        if not field.repeated:
            raise ValueError(f"{field.name} has wire type {_BYTES}")
        return self._packed(kind, at, end)

    def _packed(self, kind: str, at: int, end: int) -> list[Any]:
        values = []
        if kind in _FIXED:
            each = struct.calcsize(_FIXED[kind])
            self._left -= (end - at) // each
            if self._left < 0 or (end - at) % each:
                raise ValueError("it has too many fields, or half of one")
            return [value for (value,) in struct.iter_unpack(_FIXED[kind], self._view[at:end])]
        while at < end:
            self._left -= 1
            if self._left < 0:
                raise ValueError("it has too many fields")
            value, at = varint(self._content, at)
            values.append(_signed(value, kind))
        if at > end:
            raise ValueError("it ends early")
        return values

    def _number(self, field: Field, wire: int, at: int, end: int) -> tuple[Any, int]:
        """A number that stands by itself, and the position behind it."""
        kind = field.kind
        if _NUMBERS.get(kind) != wire:
            raise ValueError(f"{field.name} has wire type {wire}")
        if wire == _VARINT:
            value, at = varint(self._content, at)
            number: Any = _signed(value, kind)
        else:
            (number,) = struct.unpack_from(_FIXED[kind], self._content, at)
            at += struct.calcsize(_FIXED[kind])
        if at > end:
            raise ValueError("it ends early")
        return number, at


def varint(message: bytes | memoryview, position: int) -> tuple[int, int]:
    """A number of up to 64 bits, and the position behind it. Raises ValueError for one written longer than need be."""
    byte = message[position]
    position += 1
    if byte < 0x80:
        return byte, position
    number, shift = byte & 0x7F, 7
    while True:
        byte = message[position]
        position += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            if not byte or number >> 64:
                raise ValueError("a number is not written the one way that it can be")
            return number, position
        shift += 7
        if shift > 63:
            raise ValueError("a number is too long")


def _signed(value: int, kind: str) -> int:
    """A number of 64 bits, in two's complement where it has a sign. Raises ValueError where a kind of 32 has more."""
    number = value - (1 << 64) if value >> 63 and kind != UINT else value
    if kind == "int32" and not -(1 << 31) <= number < 1 << 31:
        raise ValueError("a number is beyond 32 bits")
    return number
