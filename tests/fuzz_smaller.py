"""A finding's input made small: pieces are left out, larger ones first, as long as it is found."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from fuzz_mutators import archives, protobuf
from fuzz_mutators.chance import Unfit

Holds = Callable[[bytes], bool]  # whether an input still makes the finding
Join = Callable[[bytes], bytes]  # a piece, from what is in it


def smaller(content: bytes, holds: Holds) -> bytes:
    """The input without files, fields and then bytes that it does not need."""
    kept = _without(_pieces(content), holds)
    for at, piece in enumerate(kept):
        before, after = b"".join(kept[:at]), b"".join(kept[at + 1 :])
        for inside, join in _inside(piece):
            if len(inside) > 1 and holds(before + join(inside) + after):
                inner = smaller(inside, lambda part, b=before, j=join, a=after: holds(b + j(part) + a))  # type: ignore[misc]
                kept[at] = join(inner)
    content = b"".join(kept)
    return b"".join(_without([content[at : at + 1] for at in range(len(content))], holds))


def _without(pieces: Sequence[bytes], holds: Holds) -> list[bytes]:
    """The pieces that are needed: halves are left out, then quarters, down to single ones."""
    kept, size = list(pieces), max(1, len(pieces) // 2)
    while size:
        at = 0
        while at < len(kept):
            shorter = kept[:at] + kept[at + size :]
            if holds(b"".join(shorter)):
                kept = shorter
            else:
                at += size
        size //= 2
    return kept


def _pieces(content: bytes) -> list[bytes]:
    """A folder's files, a message's fields, or the whole."""
    if content.startswith(archives.FILE):
        return [archives.FILE + entry for entry in content.split(archives.FILE)[1:]]
    try:
        return [field.raw for field in protobuf.fields(content)]
    except Unfit:
        return [content]


def _inside(piece: bytes) -> Iterator[tuple[bytes, Join]]:
    """What is in a file of a folder, or in a field that may be a message."""
    if piece.startswith(archives.FILE):
        start = piece.find(b"\n", len(archives.FILE)) + 1
        yield piece[start:], lambda inner: piece[:start] + inner
        return
    try:
        field = protobuf.fields(piece)[0]
    except (Unfit, IndexError):
        return
    if field.wire == protobuf.BYTES:
        yield field.body, lambda inner: protobuf.Field(field.tag, inner).written()
