"""Parts of songs."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from notewave import ArgumentError, MidiError, Notes, read, tokenize
from notewave.song.edits import cut


def song(*rows: tuple[float, float, int, bool]) -> Notes:
    """Notes from rows of onset, offset, pitch, is_drum."""
    onset_s, offset_s, pitch, is_drum = zip(*rows, strict=True)
    return Notes(onset_s, offset_s, pitch, [100] * len(rows), [0] * len(rows), is_drum)


def rows(notes: Notes) -> list[tuple[float, float, int, bool]]:
    return list(zip(*(getattr(notes, n).tolist() for n in ("onset_s", "offset_s", "pitch", "is_drum")), strict=True))


def test_the_whole_song_is_its_own_part(midi_folder: Any) -> None:
    notes = read(midi_folder / "piano_scale.mid")
    for part in (cut(notes), cut(notes, 0, notes.seconds), cut(notes, 0.0, 1e9)):
        assert all(np.array_equal(a, b) for a, b in zip(vars(part).values(), vars(notes).values(), strict=True))
        assert all(np.array_equal(a, b) for a, b in zip(tokenize(part), tokenize(notes), strict=True))


def test_notes_are_clipped_and_those_that_only_touch_the_border_are_out() -> None:
    notes = song(
        (9.0, 9.5, 1, False),  # after it
        (0.0, 2.0, 2, False),  # ends where it begins
        (1.0, 3.0, 3, False),  # reaches in
        (2.0, 2.5, 4, False),
        (3.0, 8.0, 5, False),  # reaches out
        (0.5, 8.0, 6, False),  # over all of it
        (4.0, 5.0, 7, False),  # begins where it ends
    )
    expected = [(0.0, 1.0, 3, False), (0.0, 0.5, 4, False), (1.0, 2.0, 5, False), (0.0, 2.0, 6, False)]
    assert rows(cut(notes, 2.0, 4.0)) == expected
    assert rows(cut(notes, 2)) == [
        (7.0, 7.5, 1, False),
        *expected[:2],
        (1.0, 6.0, 5, False),
        (0.0, 6.0, 6, False),
        (2.0, 3.0, 7, False),
    ]


@pytest.mark.parametrize("is_drum", [True, False])
def test_a_stroke_is_where_its_onset_is(is_drum: bool) -> None:
    length = 0.5 * is_drum  # and a note of no length is one, too
    strokes = song(*((onset, onset + length, 38, is_drum) for onset in (1.5, 1.99, 2.0, 3.9, 4.0)))
    assert rows(cut(strokes, 2.0, 4.0)) == [
        (0.0, length, 38, is_drum),
        (pytest.approx(1.9), pytest.approx(1.9 + 0.1 * is_drum), 38, is_drum),
    ]


def test_parts_join_to_the_song(midi_folder: Any) -> None:
    """Every onset is in one part, and all that sounds sounds as long."""
    notes = read(midi_folder / "piano_scale.mid")
    edges = np.linspace(0, notes.seconds + 0.1, 8)
    parts = [cut(notes, start, end) for start, end in itertools.pairwise(edges)]
    assert sum((part.offset_s - part.onset_s).sum() for part in parts) == pytest.approx(
        (notes.offset_s - notes.onset_s).sum()
    )
    assert all(part.seconds <= edges[1] + 1e-9 for part in parts)


@pytest.mark.parametrize("time", [-0.1, float("nan"), float("inf"), "1", True, None, 10**400])
def test_what_is_no_time(time: Any) -> None:
    notes = song((0.0, 9.0, 60, False))
    with pytest.raises(ArgumentError, match=r"start is .* no time"):
        cut(notes, time)
    if time is not None:
        with pytest.raises(ArgumentError, match=r"end is .* no time"):
            cut(notes, 0.0, time)


@pytest.mark.parametrize(("start", "end"), [(2.0, 2.0), (2, 1.5), (0, 0)])
def test_a_part_has_a_length(start: float, end: float) -> None:
    with pytest.raises(ArgumentError, match="Give an end after its start"):
        cut(song((0.0, 9.0, 60, False)), start, end)


@pytest.mark.parametrize(
    ("start", "end", "where"), [(9.0, None, "9 s on"), (20, 30, "20 s to 30 s"), (0, 1, "0 s to 1 s")]
)
def test_an_empty_part_says_how_long_the_song_is(start: float, end: float | None, where: str) -> None:
    with pytest.raises(MidiError, match=f"No note is in the part from {where}: the song is 9.00 s long"):
        cut(song((1.0, 9.0, 60, False)), start, end)
