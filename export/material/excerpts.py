"""Held-out songs: public-domain works that no voice was trained on, read from music21's corpus when asked for.

Nothing of the corpus is copied into this repository: its encodings have licences of their own. Tempi, instruments and
drums are ours.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from notewave.export.material.dynamics import with_dynamics
from notewave.export.material.pieces import Row, as_notes
from notewave.export.material.scores import part_notes, read_score
from notewave.song.notes import Notes

PIANO, GUITAR, BASS, STRINGS, FLUTE = 0, 24, 33, 48, 73  # programs, each the first of its Slakh class
QUARTET = (FLUTE, GUITAR, STRINGS, BASS)  # for first violin, second violin, viola, cello
EXCERPT_SECONDS = 40.0
TURN_SECONDS = 10.0  # for which each of a part's players plays
BEAT_BARS = 2  # for which each of an excerpt's beats plays
DRUM_SECONDS = 0.1

Beat = Mapping[int, str]  # by key of the percussion map: a bar in sixteenths, x is a stroke

# fmt: off
PLAIN: Beat = {36: "x.......", 38: "....x...", 42: "x.x.x.x."}
ROCK: tuple[Beat, ...] = (
    {35: "x.....x.x.......", 38: "....x.......x...", 46: "x.x.x.x.x.x.x.x."},
    {36: "x..x....x..x....", 40: "....x.......x..x", 51: "x.x.x.x.x.x.x.x.", 49: "x..............."},
    {36: "x.x.....x.......", 38: "....xxxx........", 50: "........xx......", 47: "..........xx....",
     43: "............xx..", 41: "..............xx", 57: "x..............."},
)
PARADE: tuple[Beat, ...] = (
    {36: "x.......x.......", 38: "x.xxx.x.xxxxx.x.", 57: "x..............."},
    {35: "x...x...x...x...", 40: "..x.x.xx..x.xxxx", 52: "........x.......", 55: "x..............."},
)
WALTZ: tuple[Beat, ...] = (
    {64: "x.....x.....", 63: "..x.x...x.x.", 62: "....x.......", 82: "xxxxxxxxxxxx", 75: "x..x..x..x.."},
    {61: "x...........", 60: "..x.x.x.x.x.", 54: "....x...x...", 70: "x.x.x.x.x.x.", 76: "x.....x.....",
     77: "...x.....x.."},
)
TINKLING: tuple[Beat, ...] = (
    {81: "x...........", 80: "....x...x...", 83: "x.....x....."},
    {53: "x.......x...", 69: "..x.x.x.x.x.", 84: "............x..........."},
)
DANCE: tuple[Beat, ...] = (
    {36: "x...x...x...x...", 39: "....x.......x...", 42: "x.xxx.xxx.xxx.xx", 46: "..x...x...x...x."},
    {36: "x...x...x...x...", 39: "....x.......x..x", 56: "x..x..x.x..x..x.", 70: "xxxxxxxxxxxxxxxx",
     66: "..........x.....", 65: "............x.x."},
)
SWING: tuple[Beat, ...] = (
    {51: "x...x..xx...x..x", 44: "....x.......x...", 37: "............x...", 36: "x..............."},
    {59: "x...x..xx...x..x", 44: "....x.......x...", 53: "x...............", 45: "..............x.",
     48: "............x..."},
)
MARKET: tuple[Beat, ...] = (
    {67: "x.x...x.", 68: "...x.x..", 73: "x...x...", 74: "......x.", 58: "....x..."},
    {78: "x..x....", 79: "....x.x.", 71: "x.......", 72: "....x...", 85: "xxx.x.x.", 86: "x.......", 87: "..x...x."},
    {76: "x.x.x...", 77: "...x..x.", 27: "x.......", 28: "..x.....", 29: "....x...", 30: ".....x..", 31: "x.x.x.x.",
     32: "x...x...", 33: ".x...x..", 34: "......x."},
)
# fmt: on
ALL_DRUMS = (*ROCK, *DANCE, *MARKET, *PARADE, *SWING)


@dataclass(frozen=True)
class Excerpt:
    """The beginning of a score as an ensemble plays it; without a score its drums alone."""

    score: str  # in music21's corpus
    tempo: float  # quarter notes a minute
    programs: tuple[int | tuple[int, ...], ...] = ()  # one a part, or several in turn; none: the piano plays all
    beats: tuple[Beat, ...] = ()  # of the drums, in turn
    dynamics: int | None = None  # seed of its velocities; none: all are equal

    @property
    def name(self) -> str:
        """Its name in reports."""
        return self.score.replace("/", "-") or "drums"


HELD_OUT = {
    "piano": (
        Excerpt("mozart/k545/movement1_exposition", 120),
        Excerpt("joplin/maple_leaf_rag", 80),
        Excerpt("chopin/mazurka06-2", 130),
        Excerpt("schumann_clara/polonaise_op1n1", 90),
        Excerpt("schumann_clara/polonaise_op1n3", 90),
        Excerpt("cpebach/h186", 66),
        Excerpt("schoenberg/opus19/movement2", 56),
        Excerpt("schumann_robert/opus48no2", 54),
        Excerpt("schubert/Lindenbaum", 66),
        Excerpt("verdi/laDonnaEMobile", 138),
    ),
    "band": (
        Excerpt("haydn/opus1no1/movement1", 150, QUARTET, (PLAIN,)),
        Excerpt("mozart/k80/movement1", 80, QUARTET, (PLAIN,)),
        Excerpt("mozart/k156/movement1", 130, QUARTET, (PLAIN,)),
        Excerpt("schumann_robert/opus41no1/movement2", 150, QUARTET, (PLAIN,)),
        Excerpt("corelli/opus3no1/1grave", 66, (FLUTE, GUITAR, BASS), (PLAIN,)),
    ),
    "gm": (  # all families of General MIDI and all of the percussion map
        Excerpt("haydn/opus74no1/movement1", 150, ((3, 29, 30), (27, 25), (18, 16), (33, 34)), ROCK, 1),
        Excerpt("mozart/k155/movement1", 140, ((56, 40, 59), (60, 68), (57, 61), (58, 47, 43)), PARADE, 2),
        Excerpt("mozart/k458/movement2", 120, ((52, 53), (89, 88), (91, 95, 54), (42, 92)), (), 3),
        Excerpt("schumann_robert/opus41no1/movement1", 70, ((45, 44, 41), (48, 49), (50, 51), (70, 43)), (), 4),
        Excerpt("haydn/opus1no1/movement2", 110, ((104, 105, 110), (107, 106), (108, 46, 24), (32,)), WALTZ, 25),
        Excerpt("mozart/k156/movement2", 60, ((11, 9), (12, 13), (8, 10, 114), (14, 15)), TINKLING, 6),
        Excerpt("mozart/k80/movement2", 130, ((80, 81, 84), (62, 63, 87), (82, 90), (38, 39)), DANCE, 22),
        Excerpt("schumann_clara/opus17/movement3", 66, ((65, 64), (71, 67), (4, 5, 26), (36, 35)), SWING, 20),
        Excerpt("schumann_robert/opus41no1/movement3", 84, ((98, 73, 100), (94, 96), (99, 101), (102, 93)), (), 9),
        Excerpt("schumann_clara/polonaise_op1n2", 92, ((72, 75, 79, 22), (21, 23, 6, 7)), MARKET, 10),
        Excerpt("mozart/k458/movement4", 130, ((112, 115, 111), (78, 109), (113, 117), (116, 118)), (), 11),
        Excerpt("schoenberg/opus19/movement6", 56, ((122, 120, 126, 119), (123, 55, 127, 97)), (), 12),
        Excerpt("schumann_clara/polonaise_op1n4", 92, (19, 19), (), 20),
        Excerpt("", 104, (), ALL_DRUMS, 24),
    ),
}


def held_out_notes(excerpt: Excerpt) -> Notes:
    """Notes of an excerpt. Raises ToolError when music21 is missing."""
    quarter_s = 60.0 / excerpt.tempo
    rows: list[Row] = []
    parts = read_score(excerpt.score).parts if excerpt.score else ()
    for part, programs in zip(parts, excerpt.programs or [PIANO] * len(parts), strict=True):
        players = programs if isinstance(programs, tuple) else (programs,)
        rows += [
            (onset_s, offset_s, pitch, players[int(onset_s // TURN_SECONDS) % len(players)], False)
            for onset_s, offset_s, pitch, _, _ in part_notes(part, quarter_s, PIANO)
            if onset_s < EXCERPT_SECONDS
        ]
    if excerpt.beats:
        rows += _strokes(excerpt.beats, max((row[0] for row in rows), default=EXCERPT_SECONDS), quarter_s)
    notes = as_notes(rows)
    return notes if excerpt.dynamics is None else with_dynamics(notes, np.random.default_rng(excerpt.dynamics))


def _strokes(beats: Sequence[Beat], seconds: float, quarter_s: float) -> list[Row]:
    """The strokes of beats that take turns, up to the last sixteenth that starts in the time."""
    rows: list[Row] = []
    last = int(seconds / (quarter_s / 4))
    start = 0
    for beat in itertools.cycle(beats):
        end = start + BEAT_BARS * len(next(iter(beat.values())))
        for key, bar in beat.items():
            struck = [step for step in range(start, min(end, last + 1)) if bar[(step - start) % len(bar)] == "x"]
            onsets_s = [step * quarter_s / 4 for step in struck]
            rows += [(onset_s, onset_s + DRUM_SECONDS, key, PIANO, True) for onset_s in onsets_s]
        if end > last:
            return rows
        start = end
    return rows
