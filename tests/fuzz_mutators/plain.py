"""Changes of bytes that know nothing of their format."""

from __future__ import annotations

import re

from fuzz_mutators.chance import Chance

NUMBER = re.compile(rb"-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")


def change(content: bytes, chance: Chance) -> bytes:
    """One change of any kind."""
    return chance.rng.choice(CHANGES)(content, chance)


def flip_bits(content: bytes, chance: Chance) -> bytes:
    changed = bytearray(content or b"\0")
    for _ in range(chance.rng.choice((1, 1, 1, 2, 8))):
        changed[chance.rng.randrange(len(changed))] ^= 1 << chance.rng.randrange(8)
    return bytes(changed)


def set_byte(content: bytes, chance: Chance) -> bytes:
    changed = bytearray(content or b"\0")
    changed[chance.rng.randrange(len(changed))] = chance.rng.choice((0, 1, 0x7F, 0x80, 0xFF, chance.rng.randrange(256)))
    return bytes(changed)


def change_integer(content: bytes, chance: Chance) -> bytes:
    """Another integer of one, two, four or eight bytes, in either order."""
    size, order = chance.rng.choice((1, 2, 4, 8)), chance.rng.choice(("little", "big"))
    at = chance.rng.randrange(max(1, len(content) - size + 1))
    now = int.from_bytes(content[at : at + size], order)
    number = chance.integer(now) % (1 << 8 * size)
    return content[:at] + number.to_bytes(size, order) + content[at + size :]


def change_number(content: bytes, chance: Chance) -> bytes:
    """Another number where one stands in ASCII."""
    found = [match.span() for match in NUMBER.finditer(content[: 1 << 16])]
    if not found:
        return set_byte(content, chance)
    start, end = chance.rng.choice(found)
    try:
        near = int(content[start:end])
    except ValueError:
        near = 0
    texts = (str(chance.integer(near)), "-1", "-0.0", "1e999", "NaN", "0.5", "9" * 30, "9" * 5000, "00", "0x10")
    number = texts[0] if chance.rng.random() < 0.7 else chance.rng.choice(texts)
    return content[:start] + number.encode() + content[end:]


def drop(content: bytes, chance: Chance) -> bytes:
    piece = chance.span(len(content))
    return content[: piece.start] + content[piece.stop :]


def repeat(content: bytes, chance: Chance) -> bytes:
    piece, times = chance.span(len(content)), chance.rng.choice((1, 1, 1, 2, 16, 1000))
    return content[: piece.start] + content[piece] * times + content[piece.start :]


def cut(content: bytes, chance: Chance) -> bytes:
    return content[: chance.rng.randrange(len(content) + 1)]


def fill(content: bytes, chance: Chance) -> bytes:
    piece = chance.span(len(content))
    filling = content[piece][:1] * (piece.stop - piece.start)
    return content[: piece.start] + filling + content[piece.stop :]


def insert_word(content: bytes, chance: Chance) -> bytes:
    at, word = chance.rng.randrange(len(content) + 1), chance.word()
    return content[:at] + word + content[at + chance.rng.choice((0, len(word))) :]


def replace_word(content: bytes, chance: Chance) -> bytes:
    """Another word where one stands."""
    found = [(at, word) for word in chance.words if (at := content.find(word)) >= 0]
    if not found:
        return insert_word(content, chance)
    at, word = chance.rng.choice(found)
    return content[:at] + chance.word() + content[at + len(word) :]


def splice(content: bytes, chance: Chance) -> bytes:
    """The beginning of one input and the end of another."""
    other = chance.rng.choice(chance.pool)
    at, their = chance.rng.randrange(len(content) + 1), chance.rng.randrange(len(other) + 1)
    return content[:at] + other[their:]


def cross(content: bytes, chance: Chance) -> bytes:
    """A piece of another input in the place of as much."""
    other = chance.rng.choice(chance.pool)
    piece, at = other[chance.span(len(other))], chance.rng.randrange(len(content) + 1)
    return content[:at] + piece + content[at + chance.rng.choice((0, len(piece))) :]


CHANGES = (
    flip_bits,
    flip_bits,
    set_byte,
    set_byte,
    change_integer,
    change_integer,
    change_number,
    change_number,
    drop,
    repeat,
    cut,
    fill,
    insert_word,
    replace_word,
    splice,
    cross,
)
