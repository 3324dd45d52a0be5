"""A walker over graphs with a hole, which comparing it with protobuf's own parser must find."""

from __future__ import annotations

from collections.abc import Hashable, Iterator

from onnx import ModelProto

from fuzz_targets import Target
from fuzz_targets.graph import locations
from fuzz_targets.tiny import voice_files


class Fuzzed(Target):
    """Looks for the files that a graph names, and takes a tag for what its lowest 32 bits are not."""

    def corpus(self) -> list[bytes]:
        return [voice_files()["note_encoder.onnx"]]

    def run(self, content: bytes) -> Hashable:
        try:
            theirs = set(locations(ModelProto.FromString(content)))
        except Exception:  # protobuf raises of many kinds
            return "no model"
        assert theirs == set(_named(content))
        return len(theirs)


def _named(content: bytes, *inside: int) -> Iterator[str]:
    """The locations that tensors of a graph's weights name, by a walk of a few lines."""
    at = 0
    fields: dict[int, bytes] = {}
    while at < len(content):
        tag, at = _number(content, at)
        if tag & 7 == 2:
            size, at = _number(content, at)
            fields[tag >> 3] = content[at : at + size]
            at += size
            if (*inside, tag >> 3) in ((7,), (7, 5), (7, 5, 13)):
                yield from _named(fields[tag >> 3], *inside, tag >> 3)
        else:
            at = _number(content, at)[1] if tag & 7 == 0 else at + (8 if tag & 7 == 1 else 4)
    if inside == (7, 5, 13) and fields.get(1) == b"location":
        yield fields.get(2, b"").decode(errors="replace")


def _number(content: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while at < len(content):
        number |= (content[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if content[at - 1] < 0x80:
            break
    return number, at
