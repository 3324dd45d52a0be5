"""The codec: its vocabulary, its inverse, and a slow reading of its rules that must agree with it."""

from __future__ import annotations

import dataclasses
import logging
import math
import pickle
import tracemalloc

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from notewave.errors import ArgumentError, MidiError
from notewave.song import codec, dialect
from notewave.song.codec import MAX_TOKENS, SEGMENT_STEPS
from notewave.song.dialect import EOS, PUBLISHED, VOCABULARY, Dialect, Tokens, dialect_of
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


TIE = PUBLISHED.tie
GM = Dialect(velocities=32, programs="gm")
dialects = pytest.mark.parametrize("spoken", [PUBLISHED, GM, Dialect(127, "slakh"), Dialect(1, "gm")], ids=str)


def loudness(velocity: int, bins: int) -> int:
    """The bin of a velocity by MT3's formula."""
    return 0 if velocity == 0 else math.ceil(bins * velocity / 127)


def slow_encoding(notes: Notes, spoken: Dialect) -> list[list[int]]:
    """The rules one event at a time."""
    first = {"pitch": 1004, "velocity": 1132, "tie": 1133 + spoken.velocities}
    first |= {"program": first["tie"] + 1, "drum": first["tie"] + 129}
    slakh = spoken.programs == "slakh"
    rows = [
        (*row[:4], int(dialect.SLAKH_PROGRAM[row[4]]) if slakh and not row[5] else row[4], row[5])
        for row in zip(*(x.tolist() for x in vars(notes).values()), strict=True)
    ]
    rows.sort(key=lambda row: (row[5], row[4], row[2]))
    events = [(row[1], row, 0) for row in rows if not row[5]]
    events += [(row[0], row, loudness(row[3], spoken.velocities)) for row in rows]
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
            tokens += [first["program"] + key[0]] * (key[0] != program)
            if spoken.velocities > 1:
                tokens += [first["velocity"] + sounding[key]] * (sounding[key] != velocity)
                velocity = sounding[key]
            tokens.append(first["pitch"] + key[1])
            program = key[0]
        tokens.append(first["tie"])
        for time, row, on in events:
            step = round(time * 100)
            if start <= step < stop:
                tokens += [3 + step - start] * (step - start != shift)
                if not row[5]:
                    tokens += [first["program"] + row[4]] * (row[4] != program)
                    program = row[4]
                tokens += [first["velocity"] + on] * (on != velocity)
                tokens.append(first["drum" if row[5] else "pitch"] + row[2])
                shift, velocity = step - start, on
        segments.append([*tokens, EOS])
    return segments


def test_vocabulary_has_the_published_ids() -> None:
    assert (dialect.SHIFT, dialect.PITCH, dialect.VELOCITY) == (3, 1004, 1132)
    assert (PUBLISHED.tie, PUBLISHED.program, PUBLISHED.drum, PUBLISHED.end) == (1134, 1135, 1263, 1391)


def test_the_largest_dialect_fits_into_the_published_vocabulary() -> None:
    assert Dialect(127, "gm").end == 1517 <= VOCABULARY


@dialects
def test_events_and_ids_invert_each_other(spoken: Dialect) -> None:
    events = [spoken.decode_event(token) for token in range(dialect.SPECIAL, spoken.end)]
    assert [spoken.encode_event(*event) for event in events] == list(range(dialect.SPECIAL, spoken.end))
    assert spoken.decode_event(spoken.tie) == ("tie", 0) and spoken.decode_event(spoken.drum) == ("drum", 0)


@dialects
@pytest.mark.parametrize("token", [-1, dialect.PAD, EOS, dialect.UNK, None])
def test_ids_without_an_event_are_refused(spoken: Dialect, token: int | None) -> None:
    with pytest.raises(MidiError, match="is no event"):
        spoken.decode_event(spoken.end if token is None else token)


@pytest.mark.parametrize(
    ("velocities", "programs"), [(0, "gm"), (128, "gm"), (True, "gm"), (1.5, "gm"), (1, "GM"), (1, None)]
)
def test_dialects_that_there_are_not_are_refused(velocities: int, programs: str) -> None:
    with pytest.raises(ArgumentError, match=r"velocities is|programs is"):
        Dialect(velocities, programs)


def test_bins_of_velocities_are_mt3s() -> None:
    velocities = np.arange(128)
    for bins in (1, 2, 16, 32, 127):
        spoken = Dialect(bins)
        assert spoken.velocity_bin(velocities).tolist() == [loudness(v, bins) for v in range(128)]
        back = np.array([spoken.bin_velocity(number) for number in range(bins + 1)])
        assert back.tolist() == [int(127 * number / bins) for number in range(bins + 1)]
        assert spoken.velocity_bin(back).tolist() == list(range(bins + 1))


def test_tokens_say_their_dialect_in_parts_copies_and_pickles() -> None:
    tokens = GM.tokens([GM.tie, EOS])
    for same in (tokens, tokens[:1], tokens.copy(), tokens.astype(np.int64), pickle.loads(pickle.dumps(tokens))):
        assert dialect_of(same) == GM
    assert type(PUBLISHED.tokens(tokens)) is np.ndarray
    for plain in ([3, EOS], np.array([3, EOS]), PUBLISHED.tokens([3, EOS]), np.asarray(tokens).view(np.ndarray)):
        assert dialect_of(plain) == PUBLISHED


@pytest.mark.parametrize("event", [("shift", 1001), ("velocity", 2), ("pitch", -1), ("tempo", 0)])
def test_events_without_an_id_are_refused(event: tuple[str, int]) -> None:
    with pytest.raises(MidiError, match="There is no event"):
        PUBLISHED.encode_event(*event)


@unhurried
@example(table([(0, 1, 60, 1, 0, False), (0.5, 6, 38, 1, 0, True)]))  # a drum rings on after the last event
@example(table([(0, 5.1199, 60, 1, 0, False)]))  # a last step rounded up, past the last frame
@given(songs())
def test_encoding_agrees_with_a_slow_reading_of_its_rules(notes: Notes) -> None:
    for spoken in (PUBLISHED, GM, Dialect(3, "slakh"), Dialect(1, "gm")):
        assert [tokens.tolist() for tokens in codec.encode_notes(notes, spoken)] == slow_encoding(notes, spoken)


@unhurried
@given(clean_songs())
def test_decoding_inverts_encoding(notes: Notes) -> None:
    assert rows_of(codec.decode_tokens(codec.encode_notes(notes))) == rows_of(notes)
    rng = np.random.default_rng(len(notes))
    program = np.where(notes.is_drum, 0, rng.permutation(128)[notes.program])
    other = dataclasses.replace(notes, velocity=rng.integers(1, 128, len(notes)), program=program)
    assert rows_of(codec.decode_tokens(codec.encode_notes(other, Dialect(127, "gm")))) == rows_of(other)


@unhurried
@given(songs())
@dialects
def test_every_segment_is_well_formed(spoken: Dialect, notes: Notes) -> None:
    segments = codec.encode_notes(notes, spoken)
    assert len(segments) == int(notes.seconds * 16000) // 320 // 256 + 1
    for tokens in segments:
        assert tokens.dtype == np.int32
        assert tokens[-1] == EOS
        assert tokens[:-1].min() >= dialect.SPECIAL
        assert tokens.max() < spoken.end
        assert (tokens == spoken.tie).sum() == 1
        ties = [spoken.decode_event(token)[0] for token in tokens[: np.flatnonzero(tokens == spoken.tie)[0]].tolist()]
        assert set(ties) <= {"program", "pitch"} | ({"velocity"} if spoken.velocities > 1 else set())
        shifts = tokens[(tokens >= dialect.SHIFT) & (tokens < dialect.PITCH)] - dialect.SHIFT
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
    spoken = [GM.tokens(tokens) for tokens in segments]
    assert {dialect_of(tokens) for tokens in codec.limit_tokens(spoken)} == {GM}


def test_one_warning_names_the_longest_segment(caplog: pytest.LogCaptureFixture) -> None:
    segments: list[Tokens] = [np.array([TIE, *[EOS] * (n - 1)], np.int32) for n in (5, 2049, 2311, 2048)]
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


def is_pitch(token: int) -> bool:
    return dialect.PITCH <= token < dialect.VELOCITY


@unhurried
@given(songs(), st.sampled_from([PUBLISHED, GM]), st.integers(1, 40), st.integers(0, 4))
def test_written_in_groups_or_cut_short_songs_are_the_same(notes: Notes, spoken: Dialect, rows: int, ties: int) -> None:
    whole = [tokens.tolist() for tokens in codec.encode_notes(notes, spoken)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codec, "MOST_ROWS", rows)
        assert [tokens.tolist() for tokens in codec.encode_notes(notes, spoken)] == whole
        fewer = codec.encode_notes(notes, spoken, most_ties=ties)
    for tokens, all_of_them in zip(fewer, whole, strict=True):
        tied = [token for token in all_of_them[: all_of_them.index(spoken.tie)] if is_pitch(token)]
        written = tokens[: tokens.tolist().index(spoken.tie)]
        assert [token for token in written.tolist() if is_pitch(token)] == tied[:ties]
        assert written.tolist() == all_of_them[: len(written)]
        assert len(tied) > ties or tokens.tolist() == all_of_them


@pytest.mark.parametrize("spoken", [PUBLISHED, GM], ids=str)
def test_hours_of_held_notes_take_little_memory(spoken: Dialect) -> None:
    """Each of thousands of notes sounds on in each of hundreds of segments, which hold two thousand tokens."""
    programs, pitches = np.divmod(np.arange(128 * 128), 128)
    none = np.zeros(128 * 128)
    notes = Notes(none, none + 1200.0, pitches, none + 80, programs, none)
    tracemalloc.start()
    segments = codec.limit_tokens(codec.encode_notes(notes, spoken, most_ties=MAX_TOKENS))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert {len(tokens) for tokens in segments[1:]} == {MAX_TOKENS}
    assert peak < 40 << 20
    few = notes.rows(np.arange(0, 128 * 128, 8))
    whole, cut = codec.encode_notes(few, spoken), codec.encode_notes(few, spoken, most_ties=MAX_TOKENS)
    assert [x.tolist() for x in codec.limit_tokens(whole)] == [x.tolist() for x in codec.limit_tokens(cut)]


def test_a_segment_of_ties_alone_is_said_to_have_more_than_fit(caplog: pytest.LogCaptureFixture) -> None:
    programs, pitches = np.divmod(np.arange(128 * 128), 128)
    none = np.zeros(128 * 128)
    notes = Notes(none, none + 8.0, pitches, none + 80, programs, none)
    with caplog.at_level(logging.WARNING):
        codec.limit_tokens(codec.encode_notes(notes, most_ties=MAX_TOKENS)[1:])
    assert f"Segment 0, from 0.00 s, has more than {MAX_TOKENS} tokens" in caplog.text
