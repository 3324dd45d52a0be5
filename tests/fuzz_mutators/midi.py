"""Changes of MIDI files: chunks and their lengths, events, times."""

from __future__ import annotations

from fuzz_mutators import plain
from fuzz_mutators.chance import Chance, Unfit

HEAD = b"MThd"
EVENTS = (
    b"\x00\x90\x3c\x40",
    b"\x81\x00\x80\x3c\x00",
    b"\x00\x3c\x00",
    b"\x00\xb0\x40\x7f",
    b"\x00\xb0\x40\x00",
    b"\x00\xb0\x07\x00",
    b"\x00\xb0\x78\x00",
    b"\x00\xb0\x00\x79",
    b"\x00\xc0\x30",
    b"\x00\xe0\x00\x00",
    b"\x00\x99\x24\x7f",
    b"\xff\xff\xff\x7f\x90\x3c\x40",
    b"\x8f\xff\xff\xff\x7f",
    b"\x00\xff\x51\x03\x00\x00\x00",
    b"\x00\xff\x51\x03\xff\xff\xff",
    b"\x00\xff\x51\x03\x07\xa1\x20",
    b"\x00\xff\x2f\x00",
    b"\x00\xff\x21\x01\x01",
    b"\x00\xff\x58\x04\x04\x02\x18\x08",
    b"\x00\xff\x03\xff\xff\xff\x7f",
    b"\x00\xf0\x05\x7e\x7f\x09\x01\xf7",
    b"\x00\xf0\x0a\x41\x10\x42\x12\x40\x11\x15\x01\x19\xf7",
    b"\x00\xf7\x01\xf8",
    b"\x00\xf8",
)


def change(content: bytes, chance: Chance) -> bytes:
    """One change of a chunk, its events, or their order; lengths are mended more often than not."""
    chunks = _chunks(content)
    at = chance.rng.randrange(len(chunks))
    name, size, body = chunks[at]
    kind = chance.rng.choice(("event", "event", "event", "data", "data", "status", "body", "size", "order", "name"))
    if kind == "order":
        chunks = chance.rearranged(chunks, _chunks(chance.rng.choice(chance.pool)))
        return b"".join(name + size + body for name, size, body in chunks)
    if kind == "size":
        size = (chance.integer(len(body)) % (1 << 32)).to_bytes(4, "big")
    elif kind == "name":
        name = chance.rng.choice((HEAD, b"MTrk", b"XFIH", b"RIFF", b"RMID", b"data"))
    else:
        body = _events(body, kind, chance)
        size = len(body).to_bytes(4, "big") if chance.rng.random() < 0.8 else size
    chunks[at] = (name, size, body)
    return b"".join(name + size + body for name, size, body in chunks)


def _events(body: bytes, kind: str, chance: Chance) -> bytes:
    at = chance.rng.randrange(len(body) + 1)
    if kind == "event":
        event = chance.rng.choice(EVENTS)
        return body[:at] + event * chance.rng.choice((1, 1, 1, 2, 50)) + body[at + chance.rng.choice((0, len(event))) :]
    if kind == "body" or at == len(body):
        return plain.change(body, chance)
    byte = chance.rng.randrange(0x80) if kind == "data" else chance.rng.randrange(0x80, 0x100)
    return body[:at] + bytes([byte]) + body[at + 1 :]


def _chunks(content: bytes) -> list[tuple[bytes, bytes, bytes]]:
    """Name, declared size and body of each chunk."""
    chunks, at = [], content.find(HEAD)
    if at < 0:
        raise Unfit
    while at + 8 <= len(content):
        end = at + 8 + int.from_bytes(content[at + 4 : at + 8], "big")
        chunks.append((content[at : at + 4], content[at + 4 : at + 8], content[at + 8 : end]))
        at = end
    if not chunks:
        raise Unfit
    return chunks


FORMS = ((lambda content: HEAD in content[:100], change),)
