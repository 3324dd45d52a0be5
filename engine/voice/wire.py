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
MAX_DEPTH = 16  # of messages in messages


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
Schema: TypeAlias = Mapping[str, Mapping[int, Field]]  # fields of each kind of message, by number
_NUMBERS = {INT: _VARINT, INT32: _VARINT, UINT: _VARINT, FLOAT: _FIXED32, DOUBLE: _FIXED64}
_FIXED = {FLOAT: "<f", DOUBLE: "<d"}


class Reader:
    """Reads messages of a schema."""

    def __init__(self, schema: Schema, most_fields: int) -> None:
        """most_fields: how many fields all messages read may have together, packed numbers among them."""
        self._schema, self._left = schema, most_fields

    def read(self, message: memoryview, kind: str, depth: int = 0) -> dict[str, Any]:
        """A message's fields by name, without those that are absent; of repeated ones a list.

        Raises ValueError or IndexError for what is no message of the kind, in the one way that it can be written.
        """
        if depth > MAX_DEPTH:
            raise ValueError("messages are nested too deep")
        fields, values = self._schema[kind], {}
        position, end = 0, len(message)
        while position < end:
            tag, position = varint(message, position)
            field = fields.get(tag >> 3)
            if field is None or field.kind == REFUSED:
                what = f"field {tag >> 3}" if field is None else field.name
                raise ValueError(f"{what} has no place in a {kind} of a voice")
            content, position = _content(message, tag & 7, position, end)
            value = self._value(field, tag & 7, content, depth)
            if not field.repeated:
                if field.name in values:
                    raise ValueError(f"a {kind} has two of {field.name}")
                values[field.name] = value
            elif field.kind in _NUMBERS and tag & 7 == _BYTES:
                values.setdefault(field.name, []).extend(value)
            else:
                values.setdefault(field.name, []).append(value)
        return values

    def _value(self, field: Field, wire: int, content: Any, depth: int) -> Any:
        """What a field holds; of packed numbers a list."""
        self._left -= 1
        if self._left < 0:
            raise ValueError("it has too many fields")
        kind = field.kind
        if wire == _BYTES:
            if kind == TEXT:
                return str(content, "utf-8")
            if kind in (BYTES, PASSED):
                return content
            if kind not in _NUMBERS:
                return self.read(content, kind, depth + 1)
            if field.repeated:
                return self._unpack(kind, content)
        if _NUMBERS.get(kind) != wire:
            raise ValueError(f"{field.name} has wire type {wire}")
        return _signed(content, kind) if wire == _VARINT else struct.unpack(_FIXED[kind], content)[0]

    def _unpack(self, kind: str, packed: memoryview) -> list[Any]:
        if kind in _FIXED:
            self._left -= len(packed) // 4
            if self._left < 0:
                raise ValueError("it has too many fields")
            try:
                return [value for (value,) in struct.iter_unpack(_FIXED[kind], packed)]
            except struct.error as error:
                raise ValueError(str(error)) from error
        values, position = [], 0
        while position < len(packed):
            self._left -= 1
            if self._left < 0:
                raise ValueError("it has too many fields")
            value, position = varint(packed, position)
            values.append(_signed(value, kind))
        return values


def _content(message: memoryview, wire: int, position: int, end: int) -> tuple[Any, int]:
    """A field's integer or bytes, and the position behind it."""
    if wire == _VARINT:
        return varint(message, position)
    if wire == _BYTES:
        size, position = varint(message, position)
    elif wire in (_FIXED64, _FIXED32):
        size = 8 if wire == _FIXED64 else 4
    else:
        raise ValueError(f"wire type {wire}")
    if size > end - position:
        raise ValueError("it ends early")
    return message[position : position + size], position + size


def varint(message: memoryview | bytes, position: int) -> tuple[int, int]:
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
