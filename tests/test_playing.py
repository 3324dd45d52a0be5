"""Notes as they are played, against the codec's tokens of whole songs; and what players do that nobody foresees."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from notewave.song.codec import SEGMENT_STEPS, encode_notes, encode_window
from notewave.song.dialect import EOS, PUBLISHED, Dialect
from notewave.song.notes import Notes
from notewave.song.playing import KEPT, Deed, Event, Key, Playing

PIANO, FLUTE = Key(0, 60), Key(73, 72)
GENERAL_MIDI = Dialect(velocities=32, programs="gm")


def played(*events: Event, until: int = KEPT, begin: int = 0) -> Playing:
    playing = Playing(PUBLISHED, 2048)
    for event in events:
        playing.put(event)
    playing.advance(begin, until)
    return playing


def said(playing: Playing, first: int = 0) -> list[tuple[str, int]]:
    tokens = playing.tokens(first).tolist()
    assert tokens[-1] == EOS
    return [PUBLISHED.decode_event(token) for token in tokens[:-1]]


def on(step: int, key: Key = PIANO, velocity: int = 80) -> Event:
    return Event(step, Deed.ON, key, velocity)


def off(step: int, key: Key = PIANO) -> Event:
    return Event(step, Deed.OFF, key)


@st.composite
def songs(draw: st.DrawFn) -> Notes:
    """Up to 20 notes within three segments, those of one key apart."""
    rows, ends = [], dict[tuple[int, int, bool], int]()
    for _ in range(draw(st.integers(1, 20))):
        pitch, program, drum = draw(st.integers(58, 62)), draw(st.sampled_from([0, 33, 73])), draw(st.booleans())
        program = 0 if drum else program
        onset = ends.get((program, pitch, drum), 0) + draw(st.integers(1, 300))
        offset = onset + draw(st.integers(1, 400))
        ends[program, pitch, drum] = offset
        rows.append((onset / 100, offset / 100, pitch, draw(st.integers(1, 127)), program, drum))
    return Notes(*zip(*rows, strict=True))


@given(songs(), st.sampled_from([PUBLISHED, GENERAL_MIDI]))
@settings(max_examples=60, deadline=None)
def test_a_song_that_is_played_reads_as_the_song(song: Notes, dialect: Dialect) -> None:
    playing = Playing(dialect, 2048)
    for onset, offset, pitch, velocity, program, drum in zip(*vars(song).values(), strict=True):
        key = Key(int(program), int(pitch), bool(drum))
        playing.put(Event(round(100 * onset), Deed.ON, key, int(velocity)))
        if not drum:
            playing.put(Event(round(100 * offset), Deed.OFF, key))
    playing.advance(0, round(100 * song.seconds) + 1)
    last = round(100 * max([*song.onset_s, *song.offset_s[~song.is_drum]]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("notewave.song.playing.KEPT", 1 << 30)
        for index, tokens in enumerate(encode_notes(song, dialect)):
            if index * SEGMENT_STEPS <= last:  # later segments tie what sounded before the end
                np.testing.assert_array_equal(playing.tokens(index * SEGMENT_STEPS), tokens)


@given(songs(), st.integers(1, 500))
@settings(max_examples=60, deadline=None)
def test_a_window_reads_as_the_segment_of_a_song_that_begins_later(song: Notes, start: int) -> None:
    later = (SEGMENT_STEPS - start) / 100
    shifted = Notes(song.onset_s + later, song.offset_s + later, *list(vars(song).values())[2:])
    segments = encode_notes(shifted)
    events = np.concatenate([song.onset_s, song.offset_s[~song.is_drum]])
    if len(segments) > 1 and round(100 * events.max()) >= start:
        np.testing.assert_array_equal(encode_window(song, start), segments[1])


def test_a_note_that_is_held_has_no_end_and_becomes_a_tie() -> None:
    playing = played(on(10))
    assert said(playing) == [("tie", 0), ("shift", 10), ("program", 0), ("velocity", 1), ("pitch", 60)]
    assert said(playing, 11) == [("program", 0), ("pitch", 60), ("tie", 0)] and playing.held == 1
    playing.put(off(1200))
    playing.advance(KEPT, 1201)
    assert said(playing, 1000)[3:] == [("shift", 200), ("velocity", 0), ("pitch", 60)]
    assert said(playing, 1201) == [("tie", 0)] and playing.held == 0


def test_what_is_late_or_out_of_order_comes_as_soon_as_it_can() -> None:
    playing = played(off(90), on(50, FLUTE), on(20), until=100, begin=40)
    assert [event for event in said(playing) if event[0] != "tie"] == [
        *[("shift", 40), ("program", 0), ("velocity", 1), ("pitch", 60)],
        *[("shift", 50), ("program", 73), ("pitch", 72)],
        *[("shift", 90), ("program", 0), ("velocity", 0), ("pitch", 60)],
    ]
    playing.put(off(-5, FLUTE))
    playing.advance(100, 104)
    assert said(playing)[-3:] == [("shift", 100), ("program", 73), ("pitch", 72)]


def test_what_is_to_come_is_not_known_yet() -> None:
    playing = Playing()
    playing.put(on(30))
    assert not playing.advance(0, 30) and playing.held == 0
    assert playing.advance(30, 31) and playing.held == 1


def test_a_note_that_ends_as_it_begins_sounds_for_a_step_and_one_that_does_not_sound_ends_nothing() -> None:
    playing = played(on(20), off(20), off(20, FLUTE), off(150))
    assert said(playing)[1:] == [
        *[("shift", 20), ("program", 0), ("velocity", 1), ("pitch", 60)],
        *[("shift", 21), ("velocity", 0), ("pitch", 60)],
    ]


def test_a_key_that_is_struck_again_ends_its_note() -> None:
    playing = played(on(20), on(40), off(60))
    kinds = [event for event in said(playing) if event[0] in ("shift", "velocity")]
    assert kinds == [
        *[("shift", 20), ("velocity", 1), ("shift", 40), ("velocity", 0), ("velocity", 1), ("shift", 60)],
        ("velocity", 0),
    ]
    assert playing.held == 0


def test_a_pedal_holds_its_programs_notes_until_it_rises() -> None:
    down, up = (Event(step, deed, program=0) for step, deed in ((5, Deed.PEDAL_DOWN), (300, Deed.PEDAL_UP)))
    playing = played(down, on(10), on(10, FLUTE), off(50), off(60, FLUTE), until=200)
    assert playing.held == 1, "the flute has no pedal"
    playing.put(up)
    playing.advance(200, 301)
    assert playing.held == 0 and said(playing)[-3:] == [("shift", 300), ("velocity", 0), ("pitch", 60)]


def test_all_off_ends_all_and_lifts_every_pedal() -> None:
    playing = played(Event(0, Deed.PEDAL_DOWN), on(10), on(11, FLUTE), off(20), Event(30, Deed.ALL_OFF), until=100)
    assert playing.held == 0
    playing.put(on(110))
    playing.put(off(120))
    playing.advance(100, 200)
    assert playing.held == 0


def test_drums_are_struck_and_forgotten_when_their_window_is_over() -> None:
    playing = played(on(10, Key(0, 38, True)), off(12, Key(0, 38, True)))
    assert playing.held == 0 and said(playing) == [("tie", 0), ("shift", 10), ("velocity", 1), ("drum", 38)]
    assert said(playing, 11) == [("tie", 0)]


def test_of_many_notes_those_that_ended_are_forgotten_without_a_word(caplog: pytest.LogCaptureFixture) -> None:
    playing = Playing(most_tokens=100)
    for step in range(200):
        playing.put(on(step, Key(0, step % 100)))
        playing.put(off(step + 2, Key(0, step % 100)))
    playing.put(on(230, FLUTE))
    playing.advance(0, 240)
    for first in range(0, 40, 4):
        tokens = playing.tokens(first)
        assert len(tokens) <= 100
    assert not caplog.records and playing.thinned == 0
    assert playing.held == 1 and PUBLISHED.encode_event("pitch", 72) in tokens, "what came last is kept"


def test_what_ended_long_ago_is_not_told_any_more() -> None:
    playing = played(on(10), off(20), on(30, FLUTE), until=KEPT)
    assert ("pitch", 60) in said(playing)
    playing.advance(KEPT, KEPT + 21)
    assert ("pitch", 60) not in said(playing) and ("pitch", 72) in said(playing)


def test_of_keys_that_all_sound_the_oldest_are_let_go_and_it_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    playing = Playing(most_tokens=64)
    for pitch in range(128):
        playing.put(on(pitch, Key(0, pitch)))
    playing.advance(0, 200)
    assert len(playing.tokens(0)) <= 64
    assert 10 < playing.held < 40 and playing.held + playing.thinned == 128
    assert PUBLISHED.encode_event("pitch", 127) in playing.tokens(0)
    for pitch in range(128):
        playing.put(on(200 + pitch, Key(1, pitch)))
    playing.advance(200, 400)
    assert len(playing.tokens(0)) <= 64 and len(caplog.records) == 1


def test_what_has_ended_can_be_forgotten() -> None:
    playing = played(on(10), off(20), on(30, FLUTE))
    playing.forget()
    assert said(playing) == [("tie", 0), ("shift", 30), ("program", 73), ("velocity", 1), ("pitch", 72)]


def test_events_come_from_any_thread() -> None:
    playing, start = Playing(most_tokens=1 << 20), threading.Barrier(8)

    def play(program: int) -> None:
        start.wait()
        for pitch in range(128):
            playing.put(on(pitch, Key(program, pitch)))

    threads = [threading.Thread(target=play, args=(program,)) for program in range(8)]
    for thread in threads:
        thread.start()
    for step in range(0, 128, 4):
        playing.advance(step, step + 4)
    for thread in threads:
        thread.join()
    playing.advance(128, 132)
    assert playing.held == 8 * 128
