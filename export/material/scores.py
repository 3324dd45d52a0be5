"""Public-domain scores of music21's corpus as songs to train on, and those that are held out from it."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from notewave.errors import ToolError
from notewave.export.material.ensembles import PIANO, Instrument
from notewave.export.material.pieces import Row, as_notes
from notewave.song.notes import Notes

CORPUS_WEIGHTS = {"bach": 6.0, "palestrina": 2.0, "monteverdi": 2.0, "ryansMammoth": 1.0, "essenFolksong": 0.5}
SCORE_SUFFIXES = (".mxl", ".xml", ".krn", ".abc")
PART_MUSIC = ("bach", "palestrina", "monteverdi")  # the folders whose scores have several parts
HELD_OUT_SCORES = ("bach/bwv66.6", "bach/bwv269", "bach/bwv302", "palestrina/Kyrie_2", "monteverdi/madrigal.3.1")


def music21() -> Any:
    """The package, imported when asked for, as that takes seconds. Raises ToolError where it is missing."""
    try:
        import music21
    except ImportError as error:
        raise ToolError(
            "Scores cannot be read: music21, whose corpus has them, is missing. Install notewave[train] to train, "
            "notewave[evaluate] to judge a voice."
        ) from error
    return music21


@functools.cache
def corpus_paths() -> dict[str, tuple[str, ...]]:
    """Folder of music21's corpus to its scores that may be trained on."""
    paths = {}
    for folder in CORPUS_WEIGHTS:
        found = sorted(path for path in map(str, music21().corpus.getComposer(folder)) if path.endswith(SCORE_SUFFIXES))
        paths[folder] = tuple(path for path in found if not any(_same_score(path, held) for held in HELD_OUT_SCORES))
    return paths


def _same_score(path: str, name: str) -> bool:
    folder, stem = name.split("/")
    return f"/{folder}/{stem}." in path


@functools.lru_cache(maxsize=64)  # a collection of tunes takes seconds to read
def read_score(path: str) -> Any:
    """A score or collection, by its path or by its name in music21's corpus. Raises ToolError."""
    return (music21().converter if path.startswith("/") else music21().corpus).parse(path)


def part_notes(part: Any, quarter_s: float, program: int) -> list[Row]:
    """Notes of one part of a score for a program, at so many seconds a quarter; grace notes have no length."""
    rows: list[Row] = []
    for note in part.stripTies().flatten().notes:
        onset_s, length_s = float(note.offset) * quarter_s, float(note.quarterLength) * quarter_s
        if length_s:
            pitches = getattr(note, "pitches", ())
            rows += [(onset_s, onset_s + length_s, pitch.midi, program, False) for pitch in pitches]
    return rows


def score_notes(path: str, rng: np.random.Generator, programs: Sequence[int] = (0,)) -> list[Row]:
    """Rows for ``as_notes`` of one score, at a random tempo and transposition; of a collection, one tune.

    The programs take its parts in turn, from the highest part down.
    """
    score = read_score(path)
    if isinstance(score, music21().stream.Opus):
        tunes = list(score.scores)
        score = tunes[rng.integers(len(tunes))]
    quarter_s, shift = 60.0 / rng.uniform(55, 150), int(rng.integers(-7, 8))
    parts = enumerate(score.parts or [score])
    rows = [row for index, part in parts for row in part_notes(part, quarter_s, programs[index % len(programs)])]
    shifted = [(on, off, pitch + shift, program, drum) for on, off, pitch, program, drum in rows]
    return [row for row in shifted if 21 <= row[2] <= 108]


def medley(
    rng: np.random.Generator,
    seconds: float,
    ensemble: Sequence[Instrument] = PIANO,
    composers: Sequence[str] = tuple(CORPUS_WEIGHTS),
) -> Notes:
    """Scores of the corpus's folders one after the other until the time is full, chorales most often; drums pause."""
    pitched = sorted((one for one in ensemble if not one.is_drum), key=lambda one: -one.low)
    folders = {folder: paths for folder, paths in corpus_paths().items() if folder in composers}
    weights = np.array([CORPUS_WEIGHTS[folder] for folder in folders])
    rows: list[Row] = []
    start = 0.0
    while start < seconds:
        scores = folders[list(folders)[rng.choice(len(weights), p=weights / weights.sum())]]
        tune = score_notes(scores[rng.integers(len(scores))], rng, [one.program for one in pitched] or [0])
        rows += [(start + on, start + off, *key) for on, off, *key in tune if on < 60 and start + on < seconds]  # type: ignore[misc]
        start += min(60.0, max((row[1] for row in tune), default=0.0)) + rng.uniform(0.2, 1.0)
    return as_notes(rows)
