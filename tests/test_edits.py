"""Songs made of songs, by functions and by words; and songs written as files."""

from __future__ import annotations

import dataclasses
import io
import itertools
import re
from typing import Any

import numpy as np
import pretty_midi
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from notes_at_random import columns, songs

from notewave import ArgumentError, MidiError, Notes, examine, read, tokenize
from notewave.song.beats import Beats
from notewave.song.editing import EDITS, SEVERAL, Edits
from notewave.song.edits import cut, merge, mute, quantise, remap, shift, solo, tempo, transpose, velocity
from notewave.song.parts import find_parts, find_program, part_name, parts
from notewave.song.writing import to_midi


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


@given(songs(low=40, high=90), st.integers(-30, 30))
def test_transposed_there_and_back_is_the_song(notes: Notes, semitones: int) -> None:
    there = transpose(notes, semitones)
    assert columns(transpose(there, -semitones)) == columns(notes)
    moved = there.pitch - notes.pitch
    assert (moved == np.where(notes.is_drum, 0, semitones)).all()


def test_notes_without_a_key_are_left_out_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    notes = song((0.0, 1.0, 126, False), (0.0, 1.0, 125, False), (1.0, 2.0, 127, True))
    assert transpose(notes, 2).pitch.tolist() == [127, 127]
    assert "1 note left out, which +2 semitones away MIDI has no keys for" in caplog.text
    with pytest.raises(MidiError, match="No note is left 5 semitones away"):
        transpose(notes.rows(np.array([0, 1])), 5)


@given(songs(), st.sets(st.one_of(st.integers(0, 127), st.just("drums"))))
def test_solo_and_mute_of_parts_are_all_of_a_song(notes: Notes, who: set[int | str]) -> None:
    kept = []
    for edit in (solo, mute):
        try:
            kept += columns(edit(notes, who))
        except MidiError as error:
            assert "Nothing is left" in str(error)
    assert sorted(kept) == sorted(columns(notes))


@given(songs(), st.data())
def test_muting_a_part_leaves_the_others(notes: Notes, data: st.DataObject) -> None:
    there = parts(notes)
    assert merge(*there.values()).onset_s.shape == notes.onset_s.shape
    name = data.draw(st.sampled_from(sorted(there)))
    assert columns(solo(notes, name)) == columns(there[name])
    if len(there) > 1:
        assert parts(mute(notes, name)).keys() == there.keys() - {name}
    else:
        with pytest.raises(MidiError, match=f"the song has {name}"):
            mute(notes, name)


@pytest.mark.parametrize(
    ("who", "keys"),
    [
        (33, {33}),
        ("33", {33}),
        ("drums", {128}),
        ("Drums", {128}),
        ("violin", {40}),
        ("Electric Bass (finger)", {33}),
        ("electric-bass-finger", {33}),
        ("piano", set(range(8))),
        ("strings", {*range(40, 48), *range(48, 52)}),
        ("Sound Effects", set(range(120, 128))),
        (["drums", 0, "flute"], {128, 0, 73}),
        ((), set()),
        (np.int64(5), {5}),
    ],
)
def test_parts_are_found_by_number_name_and_family(who: Any, keys: set[int]) -> None:
    assert find_parts(who) == keys


@pytest.mark.parametrize(
    "who", ["violn", "", -1, 128, "128", "-1", None, 1.5, True, "²", ["drums", "nobody"], b"drums"]
)
def test_who_is_no_part(who: Any) -> None:
    with pytest.raises(ArgumentError, match=r"there is no part .*Say drums, a program"):
        find_parts(who)


def test_a_slip_is_told_what_is_near() -> None:
    with pytest.raises(ArgumentError, match="Near it: violin"):
        find_parts("violn")


def test_every_program_has_a_name_of_its_own_that_finds_it() -> None:
    names = [part_name(program, False) for program in range(128)]
    assert len(set(names)) == 128
    assert [find_program(name) for name in names] == list(range(128))
    assert all(re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name) for name in names), "names of files"


@given(songs(), st.integers(0, 127), st.integers(0, 127))
def test_programs_change_places(notes: Notes, one: int, other: int) -> None:
    swapped = remap(notes, {one: other, other: one})
    assert columns(remap(swapped, {one: other, other: one})) == columns(notes)
    assert (swapped.program[notes.is_drum] == notes.program[notes.is_drum]).all()
    mine = ~notes.is_drum & (notes.program == one)
    assert (swapped.program[mine] == other).all()


def test_families_and_drum_keys_are_remapped() -> None:
    notes = Notes([0] * 4, [1] * 4, [38, 38, 38, 40], [9] * 4, [0, 5, 40, 0], [0, 0, 0, 1])
    assert remap(notes, {"piano": "violin"}).program.tolist() == [40, 40, 40, 0]
    strokes = remap(notes, drums={40: 38, 38: 40})
    assert strokes.pitch.tolist() == [38, 38, 38, 38]


@pytest.mark.parametrize(
    ("programs", "drums", "fault"),
    [
        ({"drums": 0}, {}, "has no program to be remapped"),
        ({0: "drums"}, {}, "drums have none"),
        ({0: "piano"}, {}, "is 8 programs: 0 .acoustic-grand-piano., .*Say which"),
        ({0: 128}, {}, "there is no part 128"),
        ({}, {38: 128}, "drum key 38 is remapped to 128"),
        ({}, {-1: 0}, "drum key -1"),
    ],
)
def test_what_cannot_be_remapped(programs: Any, drums: Any, fault: str) -> None:
    with pytest.raises(ArgumentError, match=fault):
        remap(song((0.0, 1.0, 60, False)), programs, drums)


@given(songs(), st.floats(0, 127))
def test_velocity_is_scaled_within_midi(notes: Notes, scale: float) -> None:
    scaled = velocity(notes, scale).velocity
    assert (scaled >= 1).all() and (scaled <= 127).all()
    assert (np.diff(scaled[np.argsort(notes.velocity, kind="stable")]) >= 0).all(), "louder ones stay louder"
    assert velocity(notes, 1.0).velocity.tolist() == notes.velocity.tolist()


def test_silent_notes_stay_silent() -> None:
    notes = Notes([0, 0], [1, 1], [60, 61], [0, 1], [0, 0], [0, 0])
    assert velocity(notes, 3.0).velocity.tolist() == [0, 3]


@given(songs(), st.floats(0.01, 100.0))
def test_tempo_keeps_the_order_and_every_proportion(notes: Notes, factor: float) -> None:
    faster = tempo(notes, factor)
    np.testing.assert_allclose(faster.onset_s * factor, notes.onset_s, atol=1e-9)
    np.testing.assert_allclose(faster.offset_s * factor, notes.offset_s, atol=1e-9)
    order = np.argsort(notes.onset_s, kind="stable")
    assert (np.diff(faster.onset_s[order]) >= 0).all()


@given(songs(), st.floats(0, 1000))
def test_shifted_later_and_back_is_the_song(notes: Notes, seconds: float) -> None:
    back = shift(shift(notes, seconds), -seconds) if seconds else shift(notes, 0)
    if len(back) == len(notes):  # a note of no length may be rounded to before 0
        np.testing.assert_allclose(back.onset_s, notes.onset_s, atol=1e-9)
        np.testing.assert_allclose(back.offset_s, notes.offset_s, atol=1e-9)
    else:
        assert notes.offset_s.min() < 1e-9


@given(songs(), st.sampled_from([0.05, 0.125, 0.25, 1.0]))
def test_quantised_notes_lie_on_the_grid_and_once_is_enough(notes: Notes, step: float) -> None:
    there = quantise(notes, step)
    np.testing.assert_allclose(there.onset_s / step, np.rint(there.onset_s / step), atol=1e-6)
    assert (np.abs(there.onset_s - notes.onset_s) <= step / 2 + 1e-9).all()
    np.testing.assert_allclose(there.offset_s - there.onset_s, notes.offset_s - notes.onset_s, atol=1e-9)
    np.testing.assert_allclose(quantise(there, step).onset_s, there.onset_s, atol=1e-12)


def test_a_song_s_own_beats_are_the_grid() -> None:
    """Its tempo halves after two beats; notes a little off are put back to where they were meant."""
    beats = Beats(np.array([0.0, 1.0]), np.array([0.5, 1.0]))
    meant_s = beats.seconds(np.arange(0, 6, 0.25))
    np.testing.assert_allclose(meant_s[:12:4], [0.0, 0.5, 1.0])
    np.testing.assert_allclose(meant_s[12::4], [2.0, 3.0, 4.0])
    played_s = np.abs(meant_s + np.random.default_rng(0).uniform(-0.05, 0.05, len(meant_s)))
    notes = song(*((onset, onset + 0.1, 60, False) for onset in played_s))
    np.testing.assert_allclose(quantise(notes, 0.25, beats).onset_s, meant_s, atol=1e-9)
    np.testing.assert_allclose(beats.quarters(meant_s), np.arange(0, 6, 0.25), atol=1e-9)


def test_files_say_where_their_beats_are(midi_folder: Any) -> None:
    path = midi_folder / "tempo_changes.mid"
    beats, song_of_it = examine(path).beats, pretty_midi.PrettyMIDI(str(path))
    other = examine(song_of_it).beats
    assert beats is not None and other is not None and len(beats.start_s) > 2
    expected = [song_of_it.tick_to_time(round(quarter * song_of_it.resolution)) for quarter in range(20)]
    for found in (beats, other):
        np.testing.assert_allclose(found.seconds(np.arange(20.0)), expected, atol=1e-9)
    assert examine(read(path)).beats is None, "a table of notes has none"


@pytest.mark.parametrize("edit", [tempo, velocity, shift, quantise, transpose])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1e9, "1", None, True, 10**400])
def test_what_is_no_amount(edit: Any, value: Any) -> None:
    with pytest.raises(ArgumentError, match=" must be "):
        edit(song((0.0, 9.0, 60, False)), value)


def test_a_song_does_not_become_endless() -> None:
    for edit in (lambda notes: tempo(notes, 0.01), lambda notes: shift(notes, 1e6)):
        with pytest.raises(ArgumentError, match="the song would last"):
            edit(song((0.0, 9e5, 60, False)))


def test_songs_are_merged_side_by_side() -> None:
    one, other = song((0.0, 1.0, 60, False)), song((0.5, 1.0, 61, True), (0.0, 2.0, 62, False))
    assert rows(merge(one, other)) == rows(one) + rows(other)
    with pytest.raises(ArgumentError, match="no songs to merge"):
        merge()


def test_edits_are_read_from_words_and_made_in_their_order(midi_folder: Any) -> None:
    words = {
        "mute": ["drums,flute"],
        "remap": ["0=48", "drums:38=40"],
        "transpose": ["-2"],
        "tempo": ["1.1"],
        "velocity": ["0.5"],
        "start": ["1"],
        "end": ["4"],
        "shift": ["0.5"],
    }
    found = Edits.parse(words)
    assert found == Edits(
        mute=("drums", "flute"),
        remap=(("0", "48"), ("drums:38", "40")),
        transpose=-2,
        tempo=1.1,
        velocity=0.5,
        start=1.0,
        end=4.0,
        shift=0.5,
    )
    assert found and not Edits() and not Edits.parse({"mute": [], "tempo": []})
    assert found.seconds == pytest.approx(3 / 1.1 + 0.5) and Edits(tempo=2.0).seconds is None
    notes = read(midi_folder / "ensemble.mid")
    expected = remap(mute(cut(notes, 1.0, 4.0), ["drums", "flute"]), {0: 48}, {38: 40})
    expected = shift(tempo(velocity(transpose(expected, -2), 0.5), 1.1), 0.5)
    assert columns(found.apply(midi_folder / "ensemble.mid")) == columns(expected)


def test_every_edit_has_its_line() -> None:
    assert list(EDITS) == [field.name for field in dataclasses.fields(Edits)]
    assert {name for name in EDITS if isinstance(getattr(Edits(), name), tuple)} == SEVERAL.keys()


@pytest.mark.parametrize(
    ("said", "step"), [("1/16", 0.25), ("1/8t", 1 / 3), ("1/4", 1.0), ("3/8", 1.5), ("1/12", 1 / 3)]
)
def test_grids_are_said_as_lengths_of_notes(said: str, step: float, midi_folder: Any) -> None:
    path = midi_folder / "tempo_changes.mid"
    reading = examine(path)
    assert reading.beats is not None
    expected = quantise(reading.notes, step, reading.beats)
    np.testing.assert_allclose(Edits(quantise=said).apply(path).onset_s, expected.onset_s, atol=1e-9)
    with pytest.raises(ArgumentError, match=r"has no beats\. Say seconds"):
        Edits(quantise=said).apply(reading.notes)
    assert columns(Edits(quantise="0.25s").apply(reading.notes)) == columns(quantise(reading.notes, 0.25))


@pytest.mark.parametrize(
    ("name", "word", "fault"),
    [
        ("tempo", "fast", "tempo is 'fast'; it must be a number"),
        ("transpose", "1.5", "must be a whole number"),
        ("quantise", "16", "a note's length, as 1/16"),
        ("quantise", "1/0", "a note's length"),
        ("mute", "violn", "Near it: violin"),
        ("solo", "300", "there is no part"),
        ("remap", "0", "must be a part and the program"),
        ("remap", "0=piano", "is 8 programs"),
        ("remap", "drums:38=x", "a drum key is 'x'"),
        ("remap", "drums:38=400", "keys are from 0 to 127"),
        ("louder", "1", "there is no edit 'louder'. Known: quantise, start"),
    ],
)
def test_words_that_say_no_edit(name: str, word: str, fault: str) -> None:
    with pytest.raises(ArgumentError, match=fault):
        Edits.parse({name: [word]})


WORDS = st.one_of(
    st.text(st.characters(codec="latin-1")),
    st.text("0123456789/.=-:,ts drums"),
    st.one_of(st.floats(), st.integers()).map(str),
)


@settings(suppress_health_check=[HealthCheck.too_slow])  # of the first word: tables of characters are made for it
@given(songs(most=3), st.dictionaries(st.sampled_from(list(EDITS)), st.lists(WORDS, max_size=2), max_size=3))
def test_any_words_are_edits_or_are_refused(notes: Notes, words: dict[str, list[str]]) -> None:
    try:
        edited = Edits.parse(words).apply(notes)
    except (ArgumentError, MidiError) as error:
        assert str(error)
    else:
        assert len(edited)


def test_what_is_strict_and_mended_stays_so(caplog: pytest.LogCaptureFixture, midi_folder: Any) -> None:
    data = (midi_folder / "piano_scale.mid").read_bytes()[:-30]
    assert len(Edits(transpose=1).apply(io.BytesIO(data)))
    assert "was mended" in caplog.text
    with pytest.raises(MidiError, match="incomplete"):
        Edits(transpose=1).apply(data, strict=True)


@given(songs())
def test_what_is_written_is_read_again(notes: Notes) -> None:
    again = read(to_midi(notes))
    same = [_sorted(columns(one), 4) for one in (notes, again)]
    assert len(same[0]) == len(same[1])
    for mine, theirs in zip(*same, strict=True):
        assert mine[2:] == theirs[2:]
        np.testing.assert_allclose(mine[:2], theirs[:2], atol=7e-5)


def _sorted(rows: list[tuple[Any, ...]], digits: int) -> list[tuple[Any, ...]]:
    return sorted(rows, key=lambda row: (*row[2:], round(row[0], digits), round(row[1], digits)))


def test_what_is_written_has_the_same_tokens(midi_folder: Any) -> None:
    for path in sorted(midi_folder.glob("*.mid")):
        notes = read(path)
        again = to_midi(notes)
        assert all(np.array_equal(*pair) for pair in zip(tokenize(again), tokenize(notes), strict=True)), path.name
        assert sum(len(one.notes) for one in pretty_midi.PrettyMIDI(io.BytesIO(again)).instruments) == len(notes)


def test_what_cannot_be_written() -> None:
    for notes, fault in (
        (Notes([], [], [], [], [], []), "no notes to be written"),
        (song((0.0, 1e8, 60, False)), "Cut it"),
    ):
        with pytest.raises(MidiError, match=fault):
            to_midi(notes)
    assert read(to_midi(song((0.0, 3e7, 60, False)))).seconds == pytest.approx(3e7)
