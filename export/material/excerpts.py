"""Held-out songs: public-domain works that no voice was trained on, read from music21's corpus when asked for.

Nothing of the corpus is copied into this repository: its encodings have licences of their own. Tempi are ours.
"""

from __future__ import annotations

from dataclasses import dataclass

from notewave.export.material.pieces import Row, as_notes
from notewave.export.material.scores import part_notes, read_score
from notewave.song.codec import Tokens, encode_notes

PIANO, GUITAR, BASS, STRINGS, FLUTE = 0, 24, 33, 48, 73  # programs, each the first of its Slakh class
LOW_DRUM, SNARE, HI_HAT = 36, 38, 42  # General MIDI drum keys
QUARTET = (FLUTE, GUITAR, STRINGS, BASS)  # for first violin, second violin, viola, cello
EXCERPT_SECONDS = 40.0


@dataclass(frozen=True)
class Excerpt:
    """The beginning of a score."""

    score: str  # in music21's corpus
    tempo: float  # quarter notes a minute
    programs: tuple[int, ...] = ()  # one a part; none: the piano plays all
    drums: bool = False  # add a plain beat


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
        Excerpt("haydn/opus1no1/movement1", 150, QUARTET, drums=True),
        Excerpt("mozart/k80/movement1", 80, QUARTET, drums=True),
        Excerpt("mozart/k156/movement1", 130, QUARTET, drums=True),
        Excerpt("schumann_robert/opus41no1/movement2", 150, QUARTET, drums=True),
        Excerpt("corelli/opus3no1/1grave", 66, (FLUTE, GUITAR, BASS), drums=True),
    ),
}


def held_out_tokens(excerpt: Excerpt) -> list[Tokens]:
    """Tokens of an excerpt's segments. Raises ToolError when music21 is missing."""
    quarter_s = 60.0 / excerpt.tempo
    rows: list[Row] = []
    parts = read_score(excerpt.score).parts
    for part, program in zip(parts, excerpt.programs or [PIANO] * len(parts), strict=True):
        rows += [row for row in part_notes(part, quarter_s, program) if row[0] < EXCERPT_SECONDS]
    if excerpt.drums:
        rows += _beat(max(row[0] for row in rows), quarter_s)
    return encode_notes(as_notes(rows))


def _beat(seconds: float, quarter_s: float) -> list[Row]:
    """Low drum and snare in turn on the quarters, hi-hat on the eighths."""
    keys = {0: (LOW_DRUM, HI_HAT), 1: (HI_HAT,), 2: (SNARE, HI_HAT), 3: (HI_HAT,)}
    eighths = range(int(seconds / (quarter_s / 2)) + 1)
    strokes = [(eighth * quarter_s / 2, key) for eighth in eighths for key in keys[eighth % 4]]
    return [(start, start + 0.1, key, 0, True) for start, key in strokes]
