"""Changes of serialised protobuf messages, by the wire format alone: no schema is known.

What one parser takes and another does not: numbers written longer than need be, tags above 32 bits, lengths that are
off, groups, other wire types, fields twice, in another order, or nested.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fuzz_mutators import plain
from fuzz_mutators.chance import Chance, Unfit

VARINT, FIXED64, BYTES, START, END, FIXED32 = range(6)  # wire types
WIDTHS = {FIXED64: 8, FIXED32: 4, START: 0, END: 0}
DEEPER = 0.8  # how often a change is made inside a field, where that may be a message
DEPTHS = (1, 2, 60, 99, 101, 2000)


@dataclass(frozen=True)
class Field:
    """One field as it stands."""

    tag: int
    body: bytes  # of a varint its bytes; of bytes those alone, without their length
    raw: bytes = b""  # all of it as it stood, be it written as it should or not

    @property
    def wire(self) -> int:
        return self.tag & 7

    def written(self, tag: bytes = b"", size: bytes = b"") -> bytes:
        """The field's bytes, with another tag or length in front if given."""
        length = size or (varint(len(self.body)) if self.wire == BYTES else b"")
        return (tag or varint(self.tag)) + length + self.body


def varint(number: int, more: int = 0) -> bytes:
    """A number of up to 64 bits and beyond, with so many bytes more than it needs."""
    parts = bytearray()
    while number > 0x7F or more > 0:
        more -= number <= 0x7F
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*parts, number])


def fields(content: bytes) -> list[Field]:
    """The fields of a message. Raises Unfit for what is none."""
    found, at = [], 0
    while at < len(content):
        begin = at
        tag, at = _number(content, at)
        wire, start = tag & 7, at
        if wire == VARINT:
            _, at = _number(content, at)
        elif wire == BYTES:
            size, start = _number(content, at)
            at = start + size
        elif wire in WIDTHS:
            at += WIDTHS[wire]
        else:
            raise Unfit
        if at > len(content) or not tag >> 3:
            raise Unfit
        found.append(Field(tag, content[start:at], content[begin:at]))
    return found


def change(content: bytes, chance: Chance) -> bytes:
    """One change of a field somewhere in a message or in the messages in it."""
    found = fields(content)
    if not found:
        raise Unfit
    at = _choose(found, chance)
    field = found[at]
    pieces = [each.raw for each in found]
    if field.wire == BYTES and field.body and chance.rng.random() < DEEPER:
        pieces[at] = Field(field.tag, _inside(field.body, chance)).written()
    elif chance.rng.random() < 0.5:
        pieces = chance.rearranged(pieces, (_foreign(chance), *[word for word in chance.words if len(word) > 2]))
    else:
        pieces[at] = chance.rng.choice(CHANGES)(field, chance)
    return b"".join(pieces)


def _choose(found: list[Field], chance: Chance) -> int:
    """Any field, or one that is the more likely the larger it is."""
    if chance.rng.random() < 0.5:
        return chance.rng.randrange(len(found))
    return chance.rng.choices(range(len(found)), [len(field.body) + 1 for field in found])[0]


def _inside(body: bytes, chance: Chance) -> bytes:
    try:
        return change(body, chance)
    except Unfit:
        return chance.word() if chance.rng.random() < 0.3 else plain.change(body, chance)


def _foreign(chance: Chance) -> bytes:
    """A field of another input, from any depth of it."""
    content = chance.rng.choice(chance.pool)
    try:
        found = fields(content)
        while found:
            field = chance.rng.choice(found)
            if field.wire != BYTES or chance.rng.random() < 0.3:
                return field.raw
            content, found = field.raw, fields(field.body)
    except Unfit:
        pass
    return content[: 1 << 12]


def _longer_tag(field: Field, chance: Chance) -> bytes:
    return field.written(tag=varint(field.tag, chance.rng.choice((1, 1, 3, 8, 9))))


def _higher_tag(field: Field, chance: Chance) -> bytes:
    """What is the same tag to a parser that keeps 32 bits, or 64."""
    bits = chance.rng.choice((32, 32, 33, 35, 63, 64))
    return field.written(tag=varint(field.tag | 1 << bits))


def _other_number(field: Field, chance: Chance) -> bytes:
    number = chance.rng.choice((chance.rng.randrange(1, 32), field.tag >> 3 ^ 1, 0, 19000, (1 << 29) - 1, 1 << 29))
    return field.written(tag=varint(number << 3 | field.wire))


def _other_wire(field: Field, chance: Chance) -> bytes:
    return field.written(tag=varint(field.tag & ~7 | chance.rng.randrange(8)))


def _other_length(field: Field, chance: Chance) -> bytes:
    size = len(field.body)
    number = chance.rng.choice((size - 1, size + 1, *(size | 1 << bit for bit in (31, 32, 64)), chance.integer(size)))
    return Field(field.tag & ~7 | BYTES, field.body).written(size=varint(max(0, number)))


def _longer_length(field: Field, chance: Chance) -> bytes:
    return field.written(size=varint(len(field.body), chance.rng.choice((1, 3, 8, 9)))) if field.wire == BYTES else b""


def _other_value(field: Field, chance: Chance) -> bytes:
    number = chance.integer(_number(field.body, 0)[0] if field.wire == VARINT else 0) % (1 << 70)
    more = chance.rng.choice((0, 0, 0, 1, 4, 10))
    return varint(field.tag & ~7) + varint(number, more)


def _grouped(field: Field, chance: Chance) -> bytes:
    """The field in a group, as its body or beside, or half of one."""
    start, end = varint(field.tag & ~7 | START), varint(field.tag & ~7 | END)
    whole, depth = field.raw, chance.rng.choice((1, 1, 5, 101, 2000))
    beside = (start + field.body + end, start + whole, whole + end)
    return chance.rng.choice((start * depth + whole + end * depth, *beside))


def _nested(field: Field, chance: Chance) -> bytes:
    """The field in itself, again and again."""
    nested = field.raw
    for _ in range(chance.rng.choice(DEPTHS)):
        nested = Field(field.tag & ~7 | BYTES, nested).written()
    return nested


def _packed(field: Field, chance: Chance) -> bytes:
    """A number as a list of one, or a few; or the numbers of a list one by one."""
    if field.wire != BYTES:
        return Field(field.tag & ~7 | BYTES, field.body * chance.rng.choice((1, 1, 2, 1000))).written()
    return b"".join(varint(field.tag & ~7) + varint(byte) for byte in field.body[:100])


def _words(field: Field, chance: Chance) -> bytes:
    return Field(field.tag & ~7 | BYTES, chance.word()).written()


CHANGES: tuple[Callable[[Field, Chance], bytes], ...] = (
    _longer_tag,
    _higher_tag,
    _other_number,
    _other_wire,
    _other_length,
    _longer_length,
    _other_value,
    _grouped,
    _nested,
    _packed,
    _words,
)


def _number(content: bytes, at: int) -> tuple[int, int]:
    """A varint of any length, and what comes after it."""
    number = shift = 0
    while at < len(content) and shift < 200:
        byte = content[at]
        number |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return number, at
    raise Unfit


def _is_message(content: bytes) -> bool:
    try:
        return bool(fields(content))
    except Unfit:
        return False


FORMS = ((_is_message, change),)
