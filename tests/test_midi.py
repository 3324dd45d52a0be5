"""MIDI files to notes and tokens: equal to the reference on its files, right on odd ones, plain about bad ones."""

from __future__ import annotations

import io
import logging
import struct
import subprocess
import sys
from pathlib import Path

import mido
import numpy as np
import pretty_midi
import pytest

from notewave import ArgumentError, MidiError, tokenize
from notewave.song import codec
from notewave.song.dialect import EOS
from notewave.song.midi import MAX_BYTES, MidiSource, read
from notewave.song.notes import Notes

MIDI = Path(__file__).parent / "data" / "midi"
REFERENCE = dict(np.load(MIDI / "tokens.npz"))  # what diffusers' MidiProcessor made of them, padded with 0
NOTE = b"\x00\x90\x3c\x40\x83\x60\x80\x3c\x00"  # middle C for 480 ticks
END = b"\x00\xff\x2f\x00"


def smf(*tracks: bytes, division: int = 480, kind: int = 1) -> bytes:
    """A Standard MIDI File of tracks' events."""
    header = struct.pack(">4sIHHh", b"MThd", 6, kind, len(tracks), division)
    return header + b"".join(b"MTrk" + struct.pack(">I", len(track)) + track for track in tracks)


def played(*events: tuple[float, str, int, int], channel: int = 0) -> list[tuple[float, float, int]]:
    """The notes (onset, offset, pitch) of timed messages (s, mido's type, data bytes)."""
    file, last = mido.MidiFile(ticks_per_beat=500), 0  # 1000 ticks a second
    track = file.add_track()
    for seconds, kind, first, second in events:
        name = ("control", "value") if kind == "control_change" else ("note", "velocity")
        tick = round(seconds * 1000)
        track.append(
            mido.Message(kind, channel=channel, time=tick - last, **dict(zip(name, (first, second), strict=True)))
        )
        last = tick
    buffer = io.BytesIO()
    file.save(file=buffer)
    notes = read(buffer.getvalue())
    return sorted(
        zip(notes.onset_s.round(6).tolist(), notes.offset_s.round(6).tolist(), notes.pitch.tolist(), strict=True)
    )


def on(seconds: float, pitch: int) -> tuple[float, str, int, int]:
    return seconds, "note_on", pitch, 90


def off(seconds: float, pitch: int) -> tuple[float, str, int, int]:
    return seconds, "note_off", pitch, 0


def pedal(seconds: float, value: int) -> tuple[float, str, int, int]:
    return seconds, "control_change", 64, value


@pytest.mark.parametrize("name", sorted(REFERENCE))
def test_tokens_equal_the_reference(name: str) -> None:
    expected = [row[row != codec.PAD].tolist() for row in REFERENCE[name]]
    assert [tokens.tolist() for tokens in codec.encode_notes(read(MIDI / f"{name}.mid"))] == expected


def test_a_dense_segment_is_cut_with_a_warning_or_refused(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        segments = tokenize(MIDI / "dense.mid")
    assert len(caplog.records) == 1
    assert "3647" in caplog.text
    for tokens, row in zip(segments, REFERENCE["dense"], strict=True):
        assert tokens.dtype == np.int32
        assert tokens.tolist() == [*row[: codec.MAX_TOKENS - 1].tolist(), EOS]
    with pytest.raises(MidiError, match=r"Segment 0, .* 3647 tokens"):
        tokenize(MIDI / "dense.mid", strict=True)


def test_every_kind_of_source_gives_the_same_tokens() -> None:
    path = MIDI / "sustain_pedal.mid"
    expected = [tokens.tolist() for tokens in tokenize(path)]
    data = path.read_bytes()
    sources: list[MidiSource] = [str(path), data, bytearray(data), io.BytesIO(data), pretty_midi.PrettyMIDI(str(path))]
    for source in sources:
        assert [tokens.tolist() for tokens in tokenize(source)] == expected


def test_reading_files_needs_neither_mido_nor_pretty_midi() -> None:
    path = str(MIDI / "sustain_pedal.mid")
    program = (
        "import sys, pathlib\n"
        "sys.modules['mido'] = sys.modules['pretty_midi'] = None\n"
        "import notewave\n"
        f"for song in ({path!r}, pathlib.Path({path!r}).read_bytes()):\n"
        "    print([tokens.tolist() for tokens in notewave.tokenize(song)])"
    )
    run = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert run.stdout.splitlines() == [str([tokens.tolist() for tokens in tokenize(path)])] * 2


def test_notes_are_a_song_too() -> None:
    path = MIDI / "sustain_pedal.mid"
    notes = read(path)
    assert read(notes) is notes
    assert [tokens.tolist() for tokens in tokenize(notes)] == [tokens.tolist() for tokens in tokenize(path)]
    with pytest.raises(MidiError, match="more than max_seconds=1"):
        tokenize(notes, max_seconds=1)
    nothing = Notes(*np.empty((6, 0)))
    for reading in (read, tokenize):
        with pytest.raises(MidiError, match="The note table has no notes"):
            reading(nothing)


def test_the_pedal_holds_notes_until_it_rises() -> None:
    assert played(pedal(0, 64), on(0.5, 60), off(1, 60), pedal(2, 63)) == [(0.5, 2, 60)]
    assert played(pedal(0, 63), on(0.5, 60), off(1, 60), pedal(2, 0)) == [(0.5, 1, 60)]
    assert played(on(0.5, 60), pedal(0.7, 127), pedal(2, 0), off(3, 60)) == [(0.5, 3, 60)]


def test_the_pedal_holds_notes_until_their_pitch_is_struck_anew() -> None:
    notes = played(
        pedal(0, 127), on(0.5, 60), on(0.5, 64), off(1, 60), on(1.5, 60), off(1.7, 60), off(1.7, 64), pedal(3, 0)
    )
    assert notes == [(0.5, 1.5, 60), (0.5, 3, 64), (1.5, 3, 60)]


def test_a_pedal_that_never_rises_holds_to_the_end() -> None:
    assert played(pedal(0, 127), on(0, 60), off(1, 60), on(1, 62), off(4, 62)) == [(0, 4, 60), (1, 4, 62)]


def test_the_pedal_moves_before_the_notes_of_its_time() -> None:
    assert played(on(0, 60), off(1, 60), pedal(1, 127), pedal(2, 0)) == [(0, 2, 60)]
    assert played(pedal(0, 127), on(0, 60), off(1, 60), pedal(1, 0), pedal(2, 0)) == [(0, 1, 60)]


def test_down_and_up_at_one_time_leave_the_pedal_up() -> None:
    assert played(pedal(0, 0), pedal(0, 127), on(0.5, 60), off(1, 60), pedal(2, 0)) == [(0.5, 1, 60)]


def test_of_one_pitch_struck_twice_at_one_time_one_note_is_kept() -> None:
    assert played(pedal(0, 127), on(0, 60), on(0, 60), off(1, 60), pedal(2, 0)) == [(0, 2, 60)]


def test_controls_before_the_first_note_share_the_pedal_among_a_channels_programs() -> None:
    """pretty_midi's rule: a bend before any note makes the pedal of one program also that of the next."""
    song = NOTE + b"\x00\xb0\x40\x7f\x00\xc0\x05" + NOTE + b"\x83\x60\xb0\x40\x00" + END
    bend = b"\x00\xe0\x00\x40"
    assert sorted(read(smf(song)).offset_s.tolist()) == [1.0, 1.5]
    assert sorted(read(smf(bend + song)).offset_s.tolist()) == [1.5, 1.5]


def test_drums_do_not_heed_the_pedal() -> None:
    assert played(pedal(0, 127), on(0.5, 38), off(1, 38), pedal(2, 0), channel=9) == [(0.5, 1, 38)]


@pytest.mark.parametrize(
    "track",
    [
        pytest.param(b"\x00\xff\x59\x02\x63\x09" + NOTE + END, id="key signature of 99 sharps"),
        pytest.param(b"\x00\xff\x58\x04\x04\xff\x18\x08" + NOTE + END, id="time signature over 2^255"),
        pytest.param(b"\x00\xff\x03\x03\xff\xfe\xfd" + NOTE + END, id="track name in no charset"),
        pytest.param(b"\x00\xff\x7f\x81\x00" + bytes(range(128)) + NOTE + END, id="sequencer's own event"),
        pytest.param(b"\x00\xf0\x03\x01\x02\xf7" + NOTE + END, id="system exclusive"),
        pytest.param(b"\x00\x90\x3c\x40\x00\xff\x01\x01a\x83\x60\x3c\x00" + END, id="running status across a text"),
        pytest.param(b"\x00\xd0\x10\x00\xa0\x3c\x10\x00\xe0\x00\x40" + NOTE + END, id="pressure and bend"),
        pytest.param(NOTE, id="no end of track"),
        pytest.param(NOTE + b"\xff\xff\xff\x7f\xff\x2f\x00", id="hours of silence before the end of track"),
        pytest.param(b"\x80\x80\x80\x00\x90\x3c\x40\x80\x80\x83\x60\x80\x3c\x00", id="numbers longer than need be"),
    ],
)
def test_what_makes_no_sound_changes_nothing(track: bytes) -> None:
    assert [tokens.tolist() for tokens in tokenize(smf(track))] == [[1134, 1135, 1133, 1064, 53, 1132, 1064, 1]]


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(smf(NOTE + END).replace(b"MTrk", b"XFIH\x00\x00\x00\x02ab" + b"MTrk"), id="a chunk of its own"),
        pytest.param(smf(NOTE + END) + b"trailing", id="bytes after the last track"),
        pytest.param(smf(NOTE + END, kind=0), id="format 0"),
        pytest.param(smf(NOTE + END, kind=2), id="format 2"),
        pytest.param(smf(b"", NOTE + END), id="an empty track"),
        pytest.param(smf(NOTE + END, division=-(25 << 8) | 40).replace(b"\x83\x60", b"\x83\x74"), id="SMPTE time"),
        pytest.param(smf(b"\x00\xff\x51\x03\x07\xa1\x20" + NOTE + END), id="a tempo"),
        pytest.param(smf(END, b"\x00\xff\x51\x03\x07\xa1\x20" + NOTE + END), id="a tempo outside the first track"),
    ],
)
def test_odd_files_are_read(data: bytes) -> None:
    notes = read(data)
    assert notes.pitch.tolist() == [60]
    np.testing.assert_allclose([notes.onset_s, notes.offset_s], [[0.0], [0.5]])


def test_long_songs_of_many_ticks_are_read() -> None:
    """An hour at 30000 ticks a quarter note: more ticks than pretty_midi has room for."""
    file = mido.MidiFile(ticks_per_beat=30000)
    track = file.add_track()
    for _ in range(60):
        track.extend([mido.Message("note_on", note=60), mido.Message("note_off", note=60, time=3_600_000)])
    buffer = io.BytesIO()
    file.save(file=buffer)
    np.testing.assert_allclose(np.sort(read(buffer.getvalue()).offset_s), 60.0 * np.arange(1, 61))


@pytest.mark.parametrize(
    ("data", "fact"),
    [
        (b"", "there is no MIDI header in it"),
        (b"RIFF" + bytes(100), "there is no MIDI header in it"),
        (smf(NOTE + END)[:13], "there is no MIDI header in it"),
        (smf(NOTE + END)[:14], "has no notes that can be read: only 0 tracks where its header says 1"),
        (smf(NOTE + END)[:25], "has no notes that can be read: track 1 ends in the middle of an event"),
        (smf(b"\x00\xff\x01\x7fabc"), "track 1 ends in the middle of an event"),
        (smf(b"\x00\x3c\x40"), "track 1 has byte 23 where no event has one"),
        (smf(b"\xff\xff\xff\xff\xff\x00" + NOTE), "track 1 has a number at byte 22 that does not end"),
        (smf(NOTE, division=0), "a quarter note of 0 ticks"),
        (smf(b"\x00\xff\x51\x03\x00\x00\x00" + NOTE), "a quarter note of 0 ticks or 0 microseconds"),
        (smf(NOTE, division=-(23 << 8) | 40), "23 frames of 40 ticks"),
        (smf(END), "has no notes"),
        (smf(b"\x00\x90\x3c\x40" + END), "has no notes"),
        (smf(), "has no notes"),
        (smf(b"\xff\xff\xff\x7f" + NOTE[1:]), "The song lasts 279621 s: more than max_seconds=7200"),
        (bytes(MAX_BYTES + 1), "larger than 4 MiB"),
    ],
)
def test_bad_files_are_told_apart(data: bytes, fact: str) -> None:
    with pytest.raises(MidiError, match=fact):
        tokenize(data)


def test_a_length_limit_is_kept() -> None:
    data = smf(NOTE + END)
    assert len(tokenize(data, max_seconds=0.5)) == 1
    with pytest.raises(MidiError, match=r"max_seconds=0\.4"):
        tokenize(data, max_seconds=0.4)


@pytest.mark.parametrize("limit", ["5", None, True, float("nan"), -1, [600]], ids=repr)
def test_a_length_limit_is_a_number(limit: object) -> None:
    with pytest.raises(ArgumentError, match="max_seconds is"):
        tokenize(smf(NOTE + END), max_seconds=limit)  # type: ignore[arg-type]


@pytest.mark.parametrize("limit", [10**400, float("inf"), np.float32(1)], ids=str)
def test_any_length_can_be_allowed(limit: float) -> None:
    assert len(tokenize(smf(NOTE + END), max_seconds=limit)) == 1


@pytest.mark.parametrize("source", [None, 7, [], io.StringIO("MThd")])
def test_sources_that_are_no_midi_are_refused(source: MidiSource) -> None:
    with pytest.raises(MidiError, match="cannot be read as MIDI"):
        tokenize(source)


def test_paths_that_cannot_be_opened_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MidiError, match=r"missing\.mid cannot be opened: No such file"):
        tokenize(tmp_path / "missing.mid")
    for folder in (tmp_path, ".", "/"):
        with pytest.raises(MidiError, match="cannot be opened: it is a folder"):
            tokenize(folder)
    with pytest.raises(MidiError, match="The empty path cannot be opened"):
        tokenize("")


@pytest.mark.parametrize(("attribute", "value"), [("end", -1.0), ("end", "soon"), ("pitch", 300), ("velocity", None)])
def test_broken_pretty_midi_objects_are_refused(attribute: str, value: object) -> None:
    song = pretty_midi.PrettyMIDI()
    song.instruments.append(pretty_midi.Instrument(0))
    song.instruments[0].notes.append(pretty_midi.Note(90, 60, 0.0, 1.0))
    assert len(tokenize(song)) == 1
    setattr(song.instruments[0].notes[0], attribute, value)
    with pytest.raises(MidiError):
        tokenize(song)


def test_fractions_in_pretty_midi_objects_are_cut() -> None:
    song = pretty_midi.PrettyMIDI()
    song.instruments.append(pretty_midi.Instrument(5.5))
    song.instruments[0].notes.append(pretty_midi.Note(90.9, 60.5, 0.25, 1.75))
    notes = read(song)
    assert (notes.velocity.item(), notes.pitch.item(), notes.program.item()) == (90, 60, 5)
    assert (notes.onset_s.item(), notes.offset_s.item()) == (0.25, 1.75)
