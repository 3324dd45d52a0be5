"""Public-domain scores of music21's corpus as songs to train on, and those that are held out from it."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from notewave.export.material.pieces import PIANO, Instrument, as_notes
from notewave.song.notes import Notes

CORPUS_WEIGHTS = {"bach": 6.0, "palestrina": 2.0, "monteverdi": 2.0, "ryansMammoth": 1.0, "essenFolksong": 0.5}
SCORE_SUFFIXES = (".mxl", ".xml", ".krn", ".abc")
HELD_OUT_SCORES = ("bach/bwv66.6", "bach/bwv269", "bach/bwv302", "palestrina/Kyrie_2", "monteverdi/madrigal.3.1")


@functools.cache
def corpus_paths() -> dict[str, tuple[str, ...]]:
    """Folder of music21's corpus to its scores that may be trained on."""
    from music21 import corpus

    paths = {}
    for folder in CORPUS_WEIGHTS:
        found = sorted(path for path in map(str, corpus.getComposer(folder)) if path.endswith(SCORE_SUFFIXES))
        paths[folder] = tuple(path for path in found if not any(_same_score(path, held) for held in HELD_OUT_SCORES))
    return paths


def _same_score(path: str, name: str) -> bool:
    folder, stem = name.split("/")
    return f"/{folder}/{stem}." in path


@functools.lru_cache(maxsize=64)  # a collection of tunes takes seconds to read
def _read_score(path: str) -> Any:
    from music21 import converter, corpus

    return corpus.parse(path) if not path.startswith("/") else converter.parse(path)


def score_notes(
    path: str, rng: np.random.Generator, programs: Sequence[int] = (0,)
) -> list[tuple[float, float, int, int, bool]]:
    """Rows for ``as_notes`` of one score, at a random tempo and transposition; of a collection, one tune.

    The programs take its parts in turn, from the highest part down.
    """
    from music21 import stream

    score = _read_score(path)
    if isinstance(score, stream.Opus):
        tunes = list(score.scores)
        score = tunes[rng.integers(len(tunes))]
    quarter_s, shift = 60.0 / rng.uniform(55, 150), int(rng.integers(-7, 8))
    rows = []
    for index, part in enumerate(score.parts or [score]):
        program = programs[index % len(programs)]
        for note in part.stripTies().flatten().notes:
            onset_s, length_s = float(note.offset) * quarter_s, float(note.quarterLength) * quarter_s
            pitches = [pitch.midi + shift for pitch in getattr(note, "pitches", ())]
            rows += [
                (onset_s, onset_s + length_s, pitch, program, False)
                for pitch in pitches
                if length_s and 21 <= pitch <= 108
            ]
    return rows


def medley(rng: np.random.Generator, seconds: float, ensemble: Sequence[Instrument] = PIANO) -> Notes:
    """Scores of the corpus one after the other until the time is full, chorales most often; drums pause."""
    pitched = sorted((one for one in ensemble if not one.is_drum), key=lambda one: -one.low)
    folders = corpus_paths()
    weights = np.array([CORPUS_WEIGHTS[folder] for folder in folders])
    rows: list[tuple[float, float, int, int, bool]] = []
    start = 0.0
    while start < seconds:
        scores = folders[list(folders)[rng.choice(len(weights), p=weights / weights.sum())]]
        tune = score_notes(scores[rng.integers(len(scores))], rng, [one.program for one in pitched] or [0])
        rows += [(start + on, start + off, *key) for on, off, *key in tune if on < 60 and start + on < seconds]  # type: ignore[misc]
        start += min(60.0, max((row[1] for row in tune), default=0.0)) + rng.uniform(0.2, 1.0)
    return as_notes(rows)
