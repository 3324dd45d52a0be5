"""The codec "pytorch": tokens as music-spectrogram-diffusion-pytorch's own preprocessor writes them, and back.

``port_tokens.npz`` has songs, each as a table of notes, and what that preprocessor (preprocessor/preprocessor.py with
the codec of infer.py) made of them; for "ensemble", what it made of the file of that name.
"""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import notewave
from notewave import ArgumentError, Dialect, MidiError, Notes
from notewave.benchmarks.speed import synthetic_song
from notewave.export.training.diffusion import until
from notewave.song import codec
from notewave.song.codec import SEGMENT_STEPS
from notewave.song.dialect import PAD, PUBLISHED, Tokens, dialect_of
from notewave.song.playing import Deed, Event, Key, Playing

PORT = Dialect(programs="gm", codec="pytorch")
WRITTEN = np.load(Path(__file__).parent / "data" / "port_tokens.npz")
TABLES = [name.removesuffix(".notes") for name in WRITTEN if name.endswith(".notes")]

unhurried = settings(max_examples=60, deadline=None)  # other work may share the machine

Row = tuple[float, float, int, int, int, bool]


def table(rows: list[Row]) -> Notes:
    return Notes(*np.array(rows, np.float64).reshape(-1, 6).T)


def rows_of(notes: Notes) -> list[Row]:
    return sorted(zip(*(column.tolist() for column in vars(notes).values()), strict=True))


def song(name: str) -> Notes:
    return Notes(*WRITTEN[f"{name}.notes"].T)


def written(name: str) -> list[list[int]]:
    ends = np.cumsum(WRITTEN[f"{name}.lengths"])[:-1]
    return [tokens.tolist() for tokens in np.split(WRITTEN[f"{name}.tokens"], ends)]


@st.composite
def songs(draw: st.DrawFn) -> Notes:
    """Any notes that sound: off the grid and on it, overlapping, of no length, few pitches so that they meet."""
    time = st.one_of(
        st.floats(0, 25), st.integers(0, 5000).map(lambda half: half / 200), st.sampled_from([5.12, 10.24])
    )
    length = st.one_of(st.just(0.0), st.floats(0, 12), st.integers(0, 1200).map(lambda step: step / 100))
    note = st.tuples(time, length, st.integers(60, 62), st.just(90), st.sampled_from([0, 1, 127]), st.booleans())
    return table([(onset, onset + length, *rest) for onset, length, *rest in draw(st.lists(note, max_size=25))])


@st.composite
def clean_songs(draw: st.DrawFn) -> Notes:
    """Notes that tokens tell in full: on the grid, no overlaps on a pitch of a program, dry drums of program 0."""
    rows: list[Row] = [
        (step / 100, step / 100, pitch, 127, 0, True)
        for step, pitch in draw(st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 127)), max_size=10))
    ]
    for program, pitch in draw(st.sets(st.tuples(st.integers(0, 127), st.integers(0, 127)), max_size=8)):
        steps = sorted(draw(st.sets(st.integers(0, 2000), min_size=2, max_size=8)))
        rows += [
            (on / 100, off / 100, pitch, 127, program, False) for on, off in zip(steps[::2], steps[1::2], strict=False)
        ]
    return table(rows)


def slow_encoding(notes: Notes) -> list[list[int]]:
    """The rules one row at a time; ids are 0 shift, 514 pitch, 642 velocity, 644 tie, 645 program, 773 drum."""
    rows = []
    for onset, offset, pitch, _, program, is_drum in rows_of(notes):
        start, end = round(onset * 100), round(offset * 100)
        rows.append((start, is_drum, program, 1, pitch))
        if not is_drum:
            rows.append((max(end, start + 1), is_drum, program, 0, pitch))
    rows.sort()
    segments = []
    for first in range(0, max(row[0] for row in rows) + 1 if rows else 1, 512):
        sounds = {(program, pitch): on for step, drum, program, on, pitch in rows if step < first and not drum}
        tokens, told, shift, velocity = [], None, 0, None
        for program, pitch in sorted(key for key, on in sounds.items() if on):
            tokens += [645 + program] * (program != told) + [514 + pitch]
            told = program
        tokens.append(644)
        told = None
        for step, is_drum, program, on, pitch in rows:
            if not 0 <= step - first < 512:
                continue
            if step - first != shift:
                shift, told, velocity = step - first, None, None
                tokens.append(shift)
            if not is_drum and program != told:
                told, velocity = program, None
                tokens.append(645 + program)
            tokens += [642 + on] * (on != velocity) + [(773 if is_drum else 514) + pitch]
            velocity = on
        segments.append(tokens)
    return segments


def test_ids_are_the_ports() -> None:
    assert (PORT.shift, PORT.pitch, PORT.velocity, PORT.tie) == (0, 514, 642, 644)
    assert (PORT.program, PORT.drum, PORT.end) == (645, 773, 901)
    events = [PORT.decode_event(token) for token in range(PORT.end)]
    assert [PORT.encode_event(*event) for event in events] == list(range(PORT.end))
    with pytest.raises(MidiError, match="ids 0 to 900"):
        PORT.decode_event(901)
    with pytest.raises(MidiError, match="There is no event"):
        PORT.encode_event("shift", 514)


@pytest.mark.parametrize("name", TABLES)
def test_tokens_are_the_ports_own(name: str) -> None:
    assert [tokens.tolist() for tokens in codec.encode_notes(song(name), PORT)] == written(name)


def test_a_files_tokens_are_the_ports_own(midi_folder: Path) -> None:
    tokens = notewave.tokenize(midi_folder / "ensemble.mid", dialect=PORT)
    assert [segment.tolist() for segment in tokens] == written("ensemble")
    assert {dialect_of(segment) for segment in tokens} == {PORT}


@unhurried
@given(songs(), st.sampled_from([1, 7, 40, codec.MOST_ROWS]))
def test_encoding_agrees_with_a_slow_reading_of_its_rules(notes: Notes, rows: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codec, "MOST_ROWS", rows)
        assert [tokens.tolist() for tokens in codec.encode_notes(notes, PORT)] == slow_encoding(notes)


@unhurried
@given(clean_songs())
def test_decoding_inverts_encoding(notes: Notes) -> None:
    assert rows_of(codec.decode_tokens(codec.encode_notes(notes, PORT))) == rows_of(notes)


@pytest.mark.parametrize("name", TABLES)
def test_what_is_decoded_is_told_alike(name: str) -> None:
    """Of notes that overlap on a pitch tokens tell less; what they tell is in the notes that come back."""
    whole = [PORT.tokens(tokens) for tokens in written(name)]
    once = codec.decode_tokens(whole)
    assert rows_of(codec.decode_tokens(codec.encode_notes(once, PORT))) == rows_of(once)
    drums, struck = song(name).is_drum, codec.to_steps(song(name).onset_s)
    assert sorted(codec.to_steps(once.onset_s[once.is_drum])) == sorted(struck[drums])


def test_no_notes_are_a_tie_alone() -> None:
    assert PORT.silence.tolist() == [644]
    assert [tokens.tolist() for tokens in codec.encode_notes(table([]), PORT)] == [[644]]
    assert PUBLISHED.silence.tolist() == [PUBLISHED.tie, 1]


@pytest.mark.parametrize("velocity", [1, 64, 127])
def test_velocity_is_told_as_on_or_off_alone(velocity: int) -> None:
    (tokens,) = codec.encode_notes(table([(0, 1, 60, velocity, 4, False)]), PORT)
    assert tokens.tolist() == [644, 649, 643, 574, 100, 649, 642, 574]


def test_cut_segments_keep_3000_tokens_and_end_in_none() -> None:
    whole = codec.encode_notes(song("more_than_fit"), PORT)
    (cut,) = codec.limit_tokens(whole)
    assert len(whole[0]) > PORT.max_tokens == 3000
    assert cut.tolist() == whole[0][:3000].tolist() and dialect_of(cut) == PORT
    with pytest.raises(MidiError, match="the note encoder takes 3000"):
        codec.limit_tokens(whole, strict=True)
    fits = [PORT.tokens(np.full(3000, 644)), PORT.silence]
    assert all(one is same for one, same in zip(codec.limit_tokens(fits, strict=True), fits, strict=True))


@pytest.mark.parametrize("name", TABLES)
def test_a_window_at_a_segments_start_is_that_segment(name: str) -> None:
    for index, tokens in enumerate(written(name)):
        assert codec.encode_window(song(name), index * SEGMENT_STEPS, PORT).tolist() == tokens


def test_live_play_tells_what_is_held_in_this_codec() -> None:
    playing = Playing(PORT)
    playing.put(Event(100, Deed.ON, Key(40, 60), velocity=80))
    playing.put(Event(150, Deed.ON, Key(0, 36, is_drum=True), velocity=80))
    playing.advance(0, 200)
    assert playing.tokens(50).tolist() == [644, 50, 685, 643, 574, 100, 643, 809]
    assert playing.tokens(120).tolist() == [685, 574, 644, 30, 643, 809]


@pytest.mark.parametrize(
    ("tokens", "is_one"),
    [([644], True), ([644, 1], True), ([1, 900], True), ([644, PAD], False), ([644, 901], False), ([-1, 644], False)],
)
def test_segments_are_ids_from_1_to_900_in_any_order(tokens: list[int], is_one: bool) -> None:
    assert PORT.is_segment(PORT.tokens(tokens)) == is_one


def test_hours_of_held_notes_take_little_memory() -> None:
    programs, pitches = np.divmod(np.arange(128 * 128), 128)
    none = np.zeros(128 * 128)
    notes = Notes(none, none + 1200.0, pitches, none + 80, programs, none)
    tracemalloc.start()
    segments = codec.limit_tokens(codec.encode_notes(notes, PORT, most_ties=PORT.max_tokens))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert {len(tokens) for tokens in segments} == {PORT.max_tokens}
    assert peak < 40 << 20


def test_random_songs_have_as_many_tokens_as_asked_for() -> None:
    tokens = synthetic_song(3000, 2, PORT)
    assert [len(segment) for segment in tokens] == [3000, 3000]
    assert all(PORT.is_segment(segment) for segment in tokens)
    with pytest.raises(ArgumentError, match="1 to 3000"):
        synthetic_song(3001, 1, PORT)


@pytest.mark.parametrize(("frames", "known"), [(10, [644, 10, 645, 643, 574]), (256, None)])
def test_what_is_known_of_a_segment_early_has_no_eos(frames: int, known: list[int] | None) -> None:
    whole: Tokens = PORT.tokens([644, 10, 645, 643, 574, 100, 645, 642, 574])
    assert until(whole, frames).tolist() == (whole.tolist() if known is None else known)


def test_a_codec_that_there_is_not_is_refused() -> None:
    with pytest.raises(ArgumentError, match="codec is 'remi'"):
        Dialect(codec="remi")
    with pytest.raises(ArgumentError, match="velocities is 2; codec 'pytorch'"):
        Dialect(2, codec="pytorch")
