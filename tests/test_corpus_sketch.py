"""Songs that are nearly the same are found among others, and no others."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from notes_at_random import songs as songs_at_random

from notewave import Notes, examine
from notewave.corpus.sketch import BANDS, MOST_IN_BAND, ROWS, VALUES, Seen, _likeness, _runs, sketch
from notewave.export.material.pieces import as_notes
from notewave.export.material.scores import corpus_paths, part_notes, read_score
from notewave.song.edits import cut, merge, quantise, remap, shift, solo, tempo, transpose, velocity
from notewave.song.writing import to_midi

ROOT = Path(__file__).parents[1]
FILES = [*(ROOT / "tests/data/midi").glob("*.mid"), *(ROOT / "engine/bundled/songs").glob("*.mid")]
EDITS: dict[str, Callable[[Notes], Notes]] = {
    "slower": lambda notes: tempo(notes, 0.83),
    "faster": lambda notes: tempo(notes, 1.31),
    "softer": lambda notes: velocity(notes, 0.4),
    "later": lambda notes: shift(notes, 3.217),
    "doubled": lambda notes: merge(notes, notes),
    "shorter notes": lambda notes: replace(notes, offset_s=(notes.onset_s + notes.offset_s) / 2),
    "other rows": lambda notes: notes.rows(np.random.default_rng(0).permutation(len(notes))),
    "written": lambda notes: examine(to_midi(notes)).notes,
    "all": lambda notes: examine(to_midi(shift(tempo(velocity(notes, 0.7), 1.1), 0.9))).notes,
}


@pytest.fixture(scope="module")
def songs() -> dict[str, Notes]:
    """Songs of files, and scores of music21's corpus that are close to each other: chorales, masses, tunes."""
    found = {path.name: examine(path).notes for path in FILES}
    for folder, count in (("bach", 12), ("palestrina", 3), ("ryansMammoth", 8)):
        for path in corpus_paths()[folder][:count]:
            score = read_score(path)
            rows = [row for part in score.parts or [score] for row in part_notes(part, 0.5, 0)]
            found[path] = as_notes(rows)
    return found


@pytest.fixture(scope="module")
def long_songs(songs: dict[str, Notes]) -> dict[str, Notes]:
    """Those that are compared by their runs."""
    return {name: notes for name, notes in songs.items() if len(sketch(notes)) == VALUES * 2}


def seen(songs: dict[str, Notes]) -> Seen:
    one = Seen()
    for name, notes in songs.items():
        one.add(name, sketch(notes))
    return one


def alike(one: Notes, other: Notes) -> bool:
    return seen({"one": one}).like(sketch(other)) is not None


def some_notes(notes: Notes, share: float, seed: int = 0) -> Notes:
    return notes.rows(np.random.default_rng(seed).random(len(notes)) < share)


def a_song(count: int = 400, seed: int = 0) -> Notes:
    random = np.random.default_rng(seed)
    onset_s = np.cumsum(random.integers(0, 3, count)) / 4
    part = random.integers(0, 3, count)
    return Notes(onset_s, onset_s + 0.2, random.integers(40, 80, count), [80] * count, part * 20, part == 2)


def test_different_songs_are_not_confused(songs: dict[str, Notes]) -> None:
    """Save two that music21's corpus has under two names."""
    same = {"BagOfMealThe.abc", "BanishMisfortune.abc"}
    one = Seen()
    for name, notes in songs.items():
        found = one.like(sketch(notes))
        assert found is None or {Path(found).name, Path(name).name} == same
        one.add(name, sketch(notes))
    assert len(songs) > 30


@pytest.mark.parametrize("edit", EDITS)
def test_an_edited_song_is_found_among_all(long_songs: dict[str, Notes], edit: str) -> None:
    one = seen(long_songs)
    for name, notes in long_songs.items():
        found = one.like(sketch(EDITS[edit](notes)))
        assert found is not None, name
        assert found == name or sketch(long_songs[found]) == sketch(notes)
    assert len(long_songs) > 25


@pytest.mark.parametrize("seed", range(5))
def test_a_few_notes_more_or_less_make_no_other_song(seed: int) -> None:
    notes = a_song(1000, seed)
    others = {str(number): a_song(1000, 100 + number) for number in range(20)}
    one = seen({**others, "it": notes})
    fewer, more = some_notes(notes, 0.98, seed), merge(notes, some_notes(a_song(1000, 50 + seed), 0.02))
    cut_off = cut(notes, notes.seconds * 0.05)
    for near in (fewer, more, cut_off, cut(notes, 0, notes.seconds * 0.95)):
        assert len(near) != len(notes)
        assert one.like(sketch(near)) == "it"


def test_what_is_another_song(long_songs: dict[str, Notes]) -> None:
    notes = long_songs["band.mid"]
    for other in (
        transpose(notes, 1),
        remap(notes, {program: (program + 1) % 128 for program in range(128)}),
        cut(notes, notes.seconds / 2),
        solo(notes, "drums"),
        some_notes(notes, 0.8),
        merge(notes, tempo(transpose(notes, 5), 1.01)),
    ):
        assert not alike(notes, other)


def test_the_nearest_song_is_named_and_the_first_of_equals() -> None:
    notes = a_song()
    one = Seen()
    for label, share in (("far", 0.97), ("near", 1.0), ("equal", 1.0), ("farther", 0.96)):
        one.add(label, sketch(some_notes(notes, share)))
    assert one.like(sketch(notes)) == "near"


def few(*times: float, pitch: int = 60, program: int = 0) -> Notes:
    count = len(times)
    pitches = pitch + np.arange(count) % 12
    return Notes(times, np.add(times, 0.1), pitches, [80] * count, [program] * count, [False] * count)


def test_songs_of_few_notes_are_like_equal_ones_only() -> None:
    """Else each bar of a bass drum would be like any other."""
    times = np.arange(12) / 7
    notes = few(*times)
    assert len(sketch(notes)) == 32
    for same in (shift(notes, 1.3), velocity(notes, 0.5), notes.rows(np.arange(12)[::-1]), merge(notes, notes)):
        assert alike(notes, same)
    for other in (
        few(*times[:-1]),
        few(*times[:-1], times[-1] + 0.01),
        few(*times, pitch=61),
        few(*times, program=1),
        replace(notes, is_drum=[True] * 12),
        tempo(notes, 1.1),
    ):
        assert not alike(notes, other)
    assert not alike(notes, a_song())
    assert not alike(a_song(), notes)


def test_many_notes_on_few_keys_are_few_runs() -> None:
    beat = quantise(few(*np.arange(500) / 4), 0.25)
    beat = replace(beat, pitch=np.tile([36, 42, 38, 42], 125), is_drum=[True] * 500)
    assert len(sketch(beat)) == 32
    assert not alike(beat, cut(beat, 0, 100))


@given(songs_at_random(most=60))
def test_any_song_is_like_itself(notes: Notes) -> None:
    assert alike(notes, notes)
    assert alike(notes, velocity(notes, 2))
    assert len(sketch(notes)) in (32, 256)


@given(st.integers(0, 2**32 - 1))
def test_songs_at_random_are_not_alike(seed: int) -> None:
    assert not alike(a_song(200, seed), a_song(200, seed + 1))


def test_likeness_is_the_share_of_runs_in_common() -> None:
    """What sketches say of two songs is what their runs say, within four standard deviations."""
    notes = a_song(3000)
    for share in (0.3, 0.7, 0.9, 0.97):
        other = some_notes(notes, share)
        one, two = ({*_runs(song).tolist()} for song in (notes, other))
        expected = len(one & two) / len(one | two)
        found = _likeness(sketch(notes), sketch(other))
        assert abs(found - expected) < 4 * np.sqrt(expected * (1 - expected) / VALUES)


def test_runs_are_of_one_part() -> None:
    """Also where one ends on the key and at the time with which the next begins."""
    one = replace(few(*range(30)), pitch=np.arange(40, 70))
    other = replace(few(*range(29, 60), program=1), pitch=np.arange(69, 100))
    both = {*_runs(merge(one, other)).tolist()}
    assert both == {*_runs(one).tolist(), *_runs(other).tolist()}


def test_a_sketch_is_the_same_everywhere() -> None:
    """Corpora keep them."""
    made = sketch(examine(ROOT / "engine/bundled/songs/band.mid").notes)
    assert hashlib.sha256(made).hexdigest()[:16] == "a56d5d263314a2f0"
    assert sketch(few(0, 1, 2)).hex()[:16] == "a54acf711a5b2318"


def test_time_is_bounded_where_many_songs_agree_in_a_band() -> None:
    """As songs might that someone made so: only so many of them are compared."""
    random = np.random.default_rng(0)
    shared = random.bytes(BANDS * ROWS * 2)
    sketches = [shared + random.bytes((VALUES - BANDS * ROWS) * 2) for _ in range(MOST_IN_BAND + 50)]
    one = Seen()
    for number, made in enumerate(sketches):
        one.add(str(number), made)
    kept = [one.like(made) for made in sketches]
    assert kept == [*map(str, range(MOST_IN_BAND)), *[None] * 50]


def test_songs_do_not_hide_each_other(long_songs: dict[str, Notes]) -> None:
    """Whatever their order."""
    for order in itertools.islice(itertools.permutations(list(long_songs)[:4]), 24):
        one = seen({name: long_songs[name] for name in order})
        assert [one.like(sketch(long_songs[name])) for name in order] == list(order)
