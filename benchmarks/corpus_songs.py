"""Songs to make corpora of: equally long ones, numbers of tiny ones, excerpts of scores; and files that are broken."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np

from notewave.export.material.pieces import as_notes
from notewave.export.material.scores import PART_MUSIC, corpus_paths, score_notes
from notewave.song.edits import transpose, velocity
from notewave.song.midi import MAX_BYTES, read
from notewave.song.writing import to_midi

KEYS = 12  # in which a song is written
TO_A_FOLDER = 1000
EXCERPT_SECONDS = (2.0, 8.0)  # of a score, about
PROGRAMS = (0, 19, 24, 33, 40, 48, 52, 56, 73, 80)


def write_varied(folder: Path, count: int) -> None:
    """Write a bundled song so many times, each in another key or at another loudness: all take equally long."""
    song = read(resources.files("notewave").joinpath("bundled", "songs", "band.mid").read_bytes())
    for number in range(count):
        louder, key = divmod(number, KEYS)
        notes = velocity(transpose(song, key - KEYS // 2), 1.0 - 0.7 * louder / (count // KEYS + 1))
        (folder / f"{number:04}.mid").write_bytes(to_midi(notes))


def write_numbered(folder: Path, count: int) -> None:
    """Write so many files of a note each, no two alike: a chunk that no reader knows holds their number."""
    note = to_midi(as_notes([(0.0, 0.5, 60, 0, False)]))
    for number in range(count):
        inner = folder / f"{number // TO_A_FOLDER:04}"
        if not number % TO_A_FOLDER:
            inner.mkdir()
        (inner / f"{number:07}.mid").write_bytes(note + b"XNUM\0\0\0\x04" + number.to_bytes(4))


def excerpts(seed: int) -> Iterator[tuple[str, bytes]]:
    """Names and MIDI files of beginnings of scores, without end. Raises ToolError where music21 is missing."""
    rng = np.random.default_rng(seed)
    scores = [path for folder in PART_MUSIC for path in corpus_paths()[folder]]
    number = 0
    while True:
        score = scores[rng.integers(len(scores))]
        end_s = rng.uniform(*EXCERPT_SECONDS)
        rows = [row for row in score_notes(score, rng, rng.permutation(PROGRAMS).tolist()) if row[0] < end_s]
        if rows:
            yield f"{Path(score).parent.name}/{number:04} {Path(score).stem}.mid", to_midi(as_notes(rows))
            number += 1


@dataclass(frozen=True)
class Breakage:
    """A way in which a file is no song."""

    write: Callable[[Path, bytes, random.Random], object]  # where it is to be, a good song's bytes, and chance
    reason: str | None = None  # what is said of a file that cannot be read; None where its bytes are no song
    may_be_sung: bool = False  # what is left of it


def _swell(path: Path, song: bytes, _: random.Random) -> None:
    with path.open("wb") as file:
        file.write(song)
        file.truncate(MAX_BYTES + (1 << 20))


def _forbid(path: Path, song: bytes, _: random.Random) -> None:
    path.write_bytes(song)
    path.chmod(0)


NO_NOTES = b"MThd\0\0\0\x06\0\0\0\x01\x01\xe0MTrk\0\0\0\x04\0\xff\x2f\0"
SOUND = b"RIFF\x24\0\0\0WAVEfmt " + bytes(28)
BREAKAGES = {
    "cut": Breakage(lambda path, song, chance: path.write_bytes(song[: chance.randrange(20, len(song))]), None, True),
    "cut in its header": Breakage(lambda path, song, chance: path.write_bytes(song[: chance.randrange(1, 12)])),
    "emptied": Breakage(lambda path, song, chance: path.write_bytes(b"")),
    "noise": Breakage(lambda path, song, chance: path.write_bytes(chance.randbytes(len(song)))),
    "without notes": Breakage(lambda path, song, chance: path.write_bytes(NO_NOTES)),
    "of sound": Breakage(lambda path, song, chance: path.write_bytes(SOUND)),
    "a pipe": Breakage(lambda path, song, chance: os.mkfifo(path), "it is a FIFO, not a file"),
    "too large": Breakage(_swell, f"larger than {MAX_BYTES} bytes"),
    "a dangling link": Breakage(lambda path, song, chance: path.symlink_to(f"no {path.name}"), "No such file"),
    "forbidden": Breakage(_forbid, "Permission denied"),
}
