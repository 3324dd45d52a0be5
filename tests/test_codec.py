"""The codec: its vocabulary, its inverse, and a slow reading of its rules that must agree with it."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from notewave.errors import MidiError
from notewave.song import codec
from notewave.song.codec import EOS, EVENT_END, MAX_TOKENS, SEGMENT_STEPS, TIE, VOCABULARY, Tokens
from notewave.song.notes import Notes

unhurried = settings(max_examples=60, deadline=None)  # other work may share the machine

Row = tuple[float, float, int, int, int, bool]


def table(rows: list[Row]) -> Notes:
    return Notes(*np.array(rows, np.float64).reshape(-1, 6).T)


def rows_of(notes: Notes) -> list[Row]:
    return sorted(zip(*(column.tolist() for column in vars(notes).values()), strict=True))


@st.composite
def songs(draw: st.DrawFn) -> Notes:
    """Any notes: off the grid and on it, overlapping, of no length, silent, few pitches so that they meet."""
    time = st.one_of(
        st.floats(0, 25), st.integers(0, 2500).map(lambda step: step / 100), st.sampled_from([5.12, 10.24])
    )
    length = st.one_of(st.just(0.0), st.floats(0, 12), st.integers(0, 1200).map(lambda step: step / 100))
    pitch, program = st.integers(60, 62), st.sampled_from([0, 1, 5, 41, 127])
    note = st.tuples(time, length, pitch, st.sampled_from([0, 1, 127]), program, st.booleans())
    return table(
        [(onset, onset + length, *rest) for onset, length, *rest in draw(st.lists(note, min_size=1, max_size=25))]
    )


@st.composite
def clean_songs(draw: st.DrawFn) -> Notes:
    """Notes that tokens tell in full: on the grid, no overlaps on a pitch of a program, Slakh programs, dry drums."""
    rows: list[Row] = [
        (step / 100, step / 100, pitch, 127, 0, True)
        for step, pitch in draw(st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 127)), max_size=10))
    ]
    for program, pitch in draw(st.sets(st.tuples(st.sampled_from([0, 24, 88]), st.integers(0, 127)), max_size=8)):
        steps = sorted(draw(st.sets(st.integers(0, 2000), min_size=2, max_size=8)))
        rows += [
            (on / 100, off / 100, pitch, 127, program, False) for on, off in zip(steps[::2], steps[1::2], strict=False)
        ]
    return table(rows)


def slow_encoding(notes: Notes) -> list[list[int]]:
    """The rules one event at a time."""
    rows = [
        (*row[:4], row[4] if row[5] else int(codec.SLAKH_PROGRAM[row[4]]), row[5])
        for row in zip(*(x.tolist() for x in vars(notes).values()), strict=True)
    ]
    rows.sort(key=lambda row: (row[5], row[4], row[2]))
    events = [(row[1], row, 0) for row in rows if not row[5]] + [(row[0], row, min(row[3], 1)) for row in rows]
    events.sort(key=lambda event: event[0])
    last_step = round(events[-1][0] * 100)
    count = int(notes.seconds * 16000) // 320 // 256 + 1
    segments = []
    for index in range(count):
        start, stop = index * 512, (index + 1) * 512 if index < count - 1 else 10**9
        sounding: dict[tuple[int, int], int] = {}
        tokens, shift, program, velocity = [], 0, -1, -1
        for time, row, on in events:
            if round(time * 100) < min(start, last_step) and not row[5]:
                sounding[row[4], row[2]] = on
        for key in sorted(key for key in sounding if sounding[key]):
            tokens += [codec.PROGRAM + key[0]] * (key[0] != program) + [codec.PITCH + key[1]]
            program = key[0]
        tokens.append(codec.TIE)
        for time, row, on in events:
            step = round(time * 100)
            if start <= step < stop:
                tokens += [codec.SHIFT + step - start] * (step - start != shift)
                if not row[5]:
                    tokens += [codec.PROGRAM + row[4]] * (row[4] != program)
                    program = row[4]
                tokens += [codec.VELOCITY + on] * (on != velocity)
                tokens.append((codec.DRUM if row[5] else codec.PITCH) + row[2])
                shift, velocity = step - start, on
        segments.append([*tokens, codec.EOS])
    return segments


def test_vocabulary_has_the_published_ids() -> None:
    assert (codec.SHIFT, codec.PITCH, codec.VELOCITY, codec.TIE, codec.PROGRAM, codec.DRUM) == (
        3,
        1004,
        1132,
        1134,
        1135,
        1263,
    )
    assert EVENT_END == 1391 <= VOCABULARY


def test_events_and_ids_invert_each_other() -> None:
    events = [codec.decode_event(token) for token in range(codec.SPECIAL, EVENT_END)]
    assert [codec.encode_event(*event) for event in events] == list(range(codec.SPECIAL, EVENT_END))


@pytest.mark.parametrize("token", [-1, codec.PAD, EOS, codec.UNK, EVENT_END])
def test_ids_without_an_event_are_refused(token: int) -> None:
    with pytest.raises(MidiError, match="is no event"):
        codec.decode_event(token)


@pytest.mark.parametrize("event", [("shift", 1001), ("velocity", 2), ("pitch", -1), ("tempo", 0)])
def test_events_without_an_id_are_refused(event: tuple[str, int]) -> None:
    with pytest.raises(MidiError, match="There is no event"):
        codec.encode_event(*event)


@unhurried
@example(table([(0, 1, 60, 1, 0, False), (0.5, 6, 38, 1, 0, True)]))  # a drum rings on after the last event
@example(table([(0, 5.1199, 60, 1, 0, False)]))  # a last step rounded up, past the last frame
@given(songs())
def test_encoding_agrees_with_a_slow_reading_of_its_rules(notes: Notes) -> None:
    assert [tokens.tolist() for tokens in codec.encode_notes(notes)] == slow_encoding(notes)


@unhurried
@given(clean_songs())
def test_decoding_inverts_encoding(notes: Notes) -> None:
    assert rows_of(codec.decode_tokens(codec.encode_notes(notes))) == rows_of(notes)


@unhurried
@given(songs())
def test_every_segment_is_well_formed(notes: Notes) -> None:
    segments = codec.encode_notes(notes)
    assert len(segments) == int(notes.seconds * 16000) // 320 // 256 + 1
    for tokens in segments:
        assert tokens.dtype == np.int32
        assert tokens[-1] == EOS
        assert tokens[:-1].min() >= codec.SPECIAL
        assert tokens.max() < EVENT_END
        assert (tokens == TIE).sum() == 1
        ties = [codec.decode_event(token)[0] for token in tokens[: np.flatnonzero(tokens == TIE)[0]].tolist()]
        assert set(ties) <= {"program", "pitch"}
        shifts = tokens[(tokens >= codec.SHIFT) & (tokens < codec.PITCH)] - codec.SHIFT
        assert (np.diff(shifts) > 0).all()
        assert (shifts <= SEGMENT_STEPS).all()


@unhurried
@given(st.lists(st.integers(1, 3000), min_size=1, max_size=5))
def test_limited_segments_keep_their_first_tokens_and_end_in_eos(lengths: list[int]) -> None:
    segments: list[Tokens] = [np.append(np.full(n - 1, TIE), EOS).astype(np.int32) for n in lengths]
    for whole, cut in zip(segments, codec.limit_tokens(segments), strict=True):
        assert len(cut) == min(len(whole), MAX_TOKENS)
        assert cut[-1] == EOS
        assert (cut[:-1] == whole[: len(cut) - 1]).all()


def test_one_warning_names_the_longest_segment(caplog: pytest.LogCaptureFixture) -> None:
    segments: list[Tokens] = [np.full(n, EOS, np.int32) for n in (5, 2049, 2311, 2048)]
    with caplog.at_level(logging.WARNING):
        codec.limit_tokens(segments)
    assert len(caplog.records) == 1
    assert "Segment 2, from 10.24 s, has 2311 tokens (1 more have too many)" in caplog.text
    with pytest.raises(MidiError, match="has 2311 tokens"):
        codec.limit_tokens(segments, strict=True)


@pytest.mark.parametrize(
    "row",
    [(-1, 1, 60, 1, 0, 0), (2, 1, 60, 1, 0, 0), (0, np.inf, 60, 1, 0, 0), (np.nan, 1, 60, 1, 0, 0),
     (0, 1, 128, 1, 0, 0), (0, 1, 60, -1, 0, 0), (0, 1, 60, 1, 200, 0)],
)  # fmt: skip
def test_notes_out_of_range_are_refused(row: Row) -> None:
    with pytest.raises(MidiError, match="A note"):
        table([row])


def test_no_notes_are_one_silent_segment() -> None:
    assert [tokens.tolist() for tokens in codec.encode_notes(table([]))] == [[TIE, EOS]]
    assert len(codec.decode_tokens([[TIE, EOS]])) == 0
