"""Songs: bytes to tokens, mended or refused."""

from __future__ import annotations

import re
from collections.abc import Hashable

from dirty_songs import END, chunk, header, number

import notewave
from fuzz_targets import DATA, Target
from notewave.song.dialect import MAX_VELOCITY, Dialect

SEEDS = ("midi", "dirty")  # folders of songs beside the tests
LARGEST = 4096  # bytes of a song to begin with
LARGEST_DIALECT = Dialect(MAX_VELOCITY, "gm")


def held_notes() -> bytes:
    """Notes of many programs, held for two hours: each is told again in every segment."""
    strikes = [bytes((0, 0xC0, program, 0, 0x90, 60, 64, 0, 61, 64)) for program in range(64)]
    return header(1) + chunk(b"".join(strikes) + number(480 * 2 * 7190) + b"\x80\x3c\x00" + END)


class Fuzzed(Target):
    """Songs."""

    expected = notewave.MidiError
    words = (b"MThd", b"MTrk", b"RIFF", b"RMID", b"\xff\x2f\x00", b"\xff\x51\x03", b"\xf7", b"\xff\xff\xff\x7f")

    def corpus(self) -> list[bytes]:
        songs = [path for name in SEEDS for path in sorted((DATA / name).iterdir()) if path.suffix in (".mid", ".rmi")]
        small = [path.read_bytes() for path in songs if path.stat().st_size <= LARGEST]
        return [*small, held_notes(), *super().corpus()]

    def run(self, content: bytes) -> Hashable:
        reading = notewave.examine(content)
        notewave.tokenize(reading.notes, dialect=LARGEST_DIALECT)
        mended = tuple(re.sub(r"\d+", "0", phrase) for phrase in reading.mended)
        try:
            notewave.tokenize(content, strict=True)
        except notewave.MidiError:
            return mended, "refused"
        return mended, "taken"
