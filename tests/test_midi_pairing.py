"""Files that say all of themselves give the notes and tokens that pretty_midi's reading gives, to the last bit.

In them each track says its channels' programs, pedals and ends, every note has an end, and a stroke a length.
"""

from __future__ import annotations

import io

import mido
import pretty_midi
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from notewave import MidiError, tokenize
from notewave.song.midi import read

Event = tuple[int, mido.Message]  # ticks since the one before
Row = tuple[float, float, int, int, int, bool]

# Few values of each, so that notes meet: equal pitches overlap, end at the tick at which they start, change program.
PITCHES = (60, 61)
PITCH = st.sampled_from(PITCHES)


def message(kind: str, **values: st.SearchStrategy[int]) -> st.SearchStrategy[mido.Message]:
    return st.builds(mido.Message, st.just(kind), **values)


strikes = message("note_on", note=PITCH, velocity=st.sampled_from([0, 1, 90]))
ends = message("note_off", note=PITCH)
programs = message("program_change", program=st.sampled_from([0, 1, 40]))
pedals = message("control_change", control=st.just(64), value=st.sampled_from([0, 63, 64, 127]))
others = (
    message("control_change", control=st.just(7), value=st.sampled_from([1, 127]))
    | message("control_change", control=st.sampled_from([1, 10, 66, 91]), value=st.integers(0, 127))
    | message("pitchwheel")
    | message("aftertouch")
)
delta = st.one_of(st.just(0), st.integers(0, 3), st.integers(0, 2000))
events = st.tuples(delta, st.one_of(strikes, strikes, ends, ends, programs, pedals, others), st.integers(0, 1))


@st.composite
def melodies(draw: st.DrawFn, first: int) -> list[Event]:
    """The track of two channels, from the first of them, in the end of which every note ends."""
    track = [(time, event.copy(channel=first + which)) for time, event, which in draw(st.lists(events, max_size=40))]
    closing = [(channel, pitch) for channel in (first, first + 1) for pitch in PITCHES]
    return [*track, *((draw(st.integers(1, 9)), off(note=pitch, channel=channel)[1]) for channel, pitch in closing)]


@st.composite
def drums(draw: st.DrawFn) -> list[Event]:
    """The track of the drums, whose strokes may overlap."""
    strokes = draw(st.lists(st.tuples(st.integers(0, 900), st.integers(1, 400), PITCH), max_size=10))
    timed = [(onset, 1, pitch) for onset, _, pitch in strokes] + [(on + long, 0, pitch) for on, long, pitch in strokes]
    track, last = [], 0
    for tick, struck, pitch in sorted(timed):
        track.append((tick - last, mido.Message("note_on", channel=9, note=pitch, velocity=90 * struck)))
        last = tick
    return track


@st.composite
def songs(draw: st.DrawFn) -> list[list[Event]]:
    tracks = [draw(melodies(first)) for first in range(0, 2 * draw(st.integers(0, 3)), 2)]
    return draw(st.permutations([*tracks, draw(drums())]))


tempos = st.lists(st.tuples(delta, st.integers(1, (1 << 24) - 1)), max_size=3)


def file_of(tempos: list[tuple[int, int]], tracks: list[list[Event]], division: int) -> bytes:
    file = mido.MidiFile(ticks_per_beat=division)
    file.add_track().extend(mido.MetaMessage("set_tempo", tempo=tempo, time=time) for time, tempo in tempos)
    for events in tracks:
        file.add_track().extend(event.copy(time=time) for time, event in events)
    buffer = io.BytesIO()
    file.save(file=buffer)
    return buffer.getvalue()


def rows(song: bytes | pretty_midi.PrettyMIDI) -> list[Row] | str:
    try:
        return sorted(zip(*(column.tolist() for column in vars(read(song)).values()), strict=True))
    except MidiError as error:
        return str(error)


def tokens(song: bytes | pretty_midi.PrettyMIDI) -> list[list[int]] | str:
    try:
        return [segment.tolist() for segment in tokenize(song, max_seconds=1000)]
    except MidiError as error:
        return str(error)


def on(time: int = 0, **values: int) -> Event:
    return time, mido.Message("note_on", **{"note": 60, **values})


def off(time: int = 0, **values: int) -> Event:
    return time, mido.Message("note_off", **{"note": 60, **values})


def program(value: int, time: int = 0) -> Event:
    return time, mido.Message("program_change", program=value)


def pedal(value: int, time: int = 0) -> Event:
    return time, mido.Message("control_change", control=64, value=value)


def stroke(note: int) -> list[Event]:
    return [on(note=note, channel=9), off(10, note=note, channel=9)]


DRUM_KIT: Event = (0, mido.Message("program_change", program=16, channel=9))
BEND: Event = (0, mido.Message("pitchwheel"))


@settings(max_examples=300, deadline=None)
@example([], [[on(), on(10), off(10), on(), off(), off(10)]], 480)  # an end at the tick of the next strike and its end
@example([], [[on(), on(5), off(), on(5), off(), off(5)]], 480)  # what an end leaves open depends on the end before
@example([], [[on(), on(5), off(), on(), off(), off(5)]], 480)  # two ends at a tick
@example([], [[on(), off(), off(5), on(), off(10)]], 480)  # no length
@example([], [[program(1), on(), program(40, 5), off(5)]], 480)  # a program midway
@example([], [[on(), off(10), on(), off(10)], [on(5), off(10)]], 480)  # tracks of a channel
@example([], [[program(1), on(), off(10)], [program(2), on(5), off(10)]], 480)  # its programs
@example([], [[DRUM_KIT, *stroke(35)], [*stroke(42)]], 480)  # a kit in one of the drums' tracks
@example([], [[pedal(127), on(), off(10), program(40), on(), off(10), pedal(0, 10)]], 480)  # stragglers
@example([], [[on(), off(10), pedal(127), program(40), on(), off(10), pedal(0, 10)]], 480)  # none
@example([], [[BEND, on(), off(10), pedal(127), program(40), on(), off(10), pedal(0, 10)]], 480)  # a bend is one, too
@given(tempos, songs(), st.sampled_from([1, 96, 480, 32767]))
def test_notes_and_tokens_are_those_that_pretty_midi_reads(
    tempos: list[tuple[int, int]], tracks: list[list[Event]], division: int
) -> None:
    data = file_of(tempos, tracks, division)
    song = pretty_midi.PrettyMIDI(io.BytesIO(data))
    assert rows(data) == rows(song)
    assert tokens(data) == tokens(song)


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        pytest.param([on(), on(480), off(480)], [(0.0, 1.0), (0.5, 1.0)], id="one end for two notes"),
        pytest.param([on(), on(480), off(), off(480)], [(0.0, 0.5), (0.5, 1.0)], id="an end at the next strike"),
        pytest.param([on(), off(), off(480), on(), off(480)], [(0.5, 1.0)], id="a note of no length"),
        pytest.param([on(), on(480), off(), off(), off(480)], [(0.0, 0.5)], id="two ends at the next strike"),
    ],
)
def test_which_end_is_whose(events: list[Event], expected: list[tuple[float, float]]) -> None:
    notes = read(file_of([], [events], 480))
    assert sorted(zip(notes.onset_s.tolist(), notes.offset_s.tolist(), strict=True)) == expected
