"""Songs as players play them: files with faults, or state spread over tracks, are the music that was meant."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from dirty_songs import DRUMS, END, KINDS, LEAD, Track, body, control, file_of, header, number, strokes, tempo, twins

from notewave import ArgumentError, MidiError, read, tokenize
from notewave.song.midi import MAX_BYTES, MidiSource, examine

FIXTURES = Path(__file__).parent / "data" / "dirty"
NOTE = b"\x00\x90\x3c\x40\x83\x60\x80\x3c\x00"  # middle C for 480 ticks


def tokens(song: MidiSource) -> list[list[int]]:
    return [segment.tolist() for segment in tokenize(song)]


def played(*tracks: Track, ends: tuple[int, ...] = ()) -> list[tuple[float, float, int, int, bool]]:
    """Onset and offset in beats, pitch, program, drum of each note."""
    bodies = [body(track, end) for track, end in zip(tracks, [*ends, *[0] * len(tracks)], strict=False)]
    notes = read(file_of(bodies))
    columns = (notes.onset_s * 2).round(6), (notes.offset_s * 2).round(6), notes.pitch, notes.program, notes.is_drum
    return sorted(zip(*(column.tolist() for column in columns), strict=True))


def program(tick: int, value: int, channel: int = LEAD) -> tuple[int, bytes]:
    return tick, bytes((0xC0 | channel, value))


def note(on: int, off: int, pitch: int = 60, channel: int = LEAD) -> Track:
    return strokes([(on, off, pitch)], channel)


def port(value: int) -> tuple[int, bytes]:
    return 0, bytes((0xFF, 0x21, 1, value))


@pytest.mark.parametrize("kind", KINDS)
def test_dirty_files_are_the_music_of_their_clean_twins(kind: str) -> None:
    for seed in range(12):
        clean, dirty = twins(kind, seed)
        assert tokens(dirty) == tokens(clean), seed


@pytest.mark.parametrize("kind", sorted({path.name.split(".")[0] for path in FIXTURES.iterdir()}))
def test_files_as_found_are_their_clean_twins(kind: str) -> None:
    (dirty,) = FIXTURES.glob(f"{kind}.dirty.*")
    assert tokens(dirty) == tokens(FIXTURES / f"{kind}.clean.mid")


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("data bytes above 127", "data bytes above 127 in"),
        ("length too short", "1 track of another length than said"),
        ("length zero", "1 track of another length than said"),
        ("length huge", "1 track of another length than said"),
        ("count too few", "4 tracks where its header says"),
        ("count too many", "only 4 tracks where its header says"),
        ("MacBinary", "128 bytes stand before its header"),
        ("last note without an off", "1 note without an end"),
    ],
)
def test_one_warning_names_what_was_mended(kind: str, words: str, caplog: pytest.LogCaptureFixture) -> None:
    clean, dirty = twins(kind, 1)
    assert examine(clean).mended == ()
    assert any(words in phrase for phrase in examine(dirty).mended)
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        tokenize(clean)
        assert not caplog.records
        tokenize(dirty)
    (record,) = caplog.records
    assert "The MIDI data was mended: " in record.getMessage()
    assert words in record.getMessage()


@pytest.mark.parametrize("kind", ["RIFF", "program in another track", "GS drum part", "drums without an off"])
def test_what_is_no_fault_is_not_mentioned(kind: str) -> None:
    assert examine(twins(kind, 1)[1]).mended == ()


def test_many_faults_are_one_warning(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    song = tmp_path / "song.mid"
    loud = b"\x00\x90\x3c\xff\x83\x60\x80\x3c\x00" + b"\x00\xff\x2f\x00"
    song.write_bytes(
        b"stray" + header(1) + b"MTrk\x00\x00\x00\x00" + loud + b"MTrk\x00\x00\x00\x0d" + NOTE + b"\x00" + END
    )
    with caplog.at_level(logging.WARNING):
        assert len(read(song)) == 2
    (record,) = caplog.records
    assert record.getMessage() == (
        f"{song} was mended: 5 bytes stand before its header; 1 track of another length than said; data bytes above "
        "127 in 1 event; 2 tracks where its header says 1."
    )


@pytest.mark.parametrize("size", range(15, 56))
def test_of_a_file_that_breaks_off_there_is_what_is_there(size: int, caplog: pytest.LogCaptureFixture) -> None:
    data = file_of([body([]), body([*note(0, 480), *note(480, 960, 62)])])
    part = data[:size]
    with pytest.raises(MidiError, match=r"is incomplete: .*strict=False|has no notes that can be read"):
        read(part, strict=True)
    with pytest.raises(MidiError):
        tokenize(part, strict=True)
    try:
        notes = read(part)
    except MidiError as error:
        assert "has no notes that can be read: " in str(error)
    else:
        assert notes.pitch.tolist() in ([60], [60, 62])
        assert any("track 2 " in record.getMessage() for record in caplog.records)
    assert len(read(data, strict=True)) == 2


def test_broken_tracks_leave_the_others() -> None:
    """What no event can be made of is lost to the end of its track, and said."""
    tracks = [NOTE + b"\x00\xff\x01\x7fabc", b"\x00\x3c\x40", NOTE + b"\xff\xff\xff\xff\xff\x00", NOTE + b"\x00" + END]
    reading = examine(file_of(tracks))
    assert reading.notes.pitch.tolist() == [60, 60, 60]
    assert reading.lost == (
        "track 1 ends in the middle of an event",
        "track 2 has byte 47 where no event has one",
        "track 3 has a number at byte 66 that does not end",
    )


def test_a_note_without_an_end_lasts_to_the_end_of_its_track() -> None:
    strike: Track = [(480, b"\x90\x3c\x40")]
    assert played(strike, ends=(1440,)) == [(1, 3, 60, 0, False)]
    assert played([*strike, *note(960, 1440, 62)]) == [(1, 3, 60, 0, False), (2, 3, 62, 0, False)]


def test_each_track_s_own_ends_come_first() -> None:
    """Two hands on one channel: a note ends where its own track ends it, as pretty_midi reads it."""
    assert played(note(0, 1440), note(480, 960)) == [(0, 3, 60, 0, False), (1, 2, 60, 0, False)]


def test_an_end_that_ends_nothing_in_its_track_ends_the_channel_s_note() -> None:
    lead: Track = [(0, b"\x90\x3c\x40"), (480, b"\x90\x3c\x40"), (960, b"\x80\x3c\x40")]
    assert played(lead, [(240, b"\x80\x3c\x40")]) == [(0, 0.5, 60, 0, False), (1, 2, 60, 0, False)]
    assert played(lead, [(240, b"\x81\x3c\x40")]) == [(0, 2, 60, 0, False), (1, 2, 60, 0, False)]  # another channel


def test_of_programs_at_one_tick_a_track_s_own_counts() -> None:
    """Tracks that share a channel and each say their program are instruments of their own."""
    assert played([program(0, 5), *note(0, 480)], [program(0, 40), *note(480, 960)]) == [
        (0, 1, 60, 5, False),
        (1, 2, 60, 40, False),
    ]


def test_a_later_program_of_another_track_counts() -> None:
    assert played([program(0, 5), *note(0, 480), *note(960, 1440)], [program(500, 40)]) == [
        (0, 1, 60, 5, False),
        (2, 3, 60, 40, False),
    ]
    assert played([program(0, 5), *note(960, 1440), program(960, 7)], [program(500, 40)]) == [(2, 3, 60, 7, False)]
    assert played([*note(480, 960)], [program(480, 40)]) == [(1, 2, 60, 40, False)]  # at its tick, in a later track


def test_ports_have_channels_of_their_own() -> None:
    assert played([port(0), program(0, 5), *note(0, 480)], [port(1), *note(480, 960)]) == [
        (0, 1, 60, 5, False),
        (1, 2, 60, 0, False),
    ]
    assert played([port(1), *note(0, 480, 38, DRUMS)])[0][4] is True


def test_tracks_of_a_file_of_songs_share_nothing() -> None:
    """Kind 2: each track is a song of its own."""
    tracks = [body([program(0, 5), *note(0, 480)]), body(note(480, 960))]
    data = file_of(tracks)
    kind_2 = data[:9] + b"\x02" + data[10:]
    assert read(data).program.tolist() == [5, 5]
    assert sorted(read(kind_2).program.tolist()) == [0, 5]


def test_the_first_track_s_tempo_counts_at_one_tick() -> None:
    """Writers that repeat a tempo in each track leave stale ones there; players take the first track's."""
    fast, slow = (0, tempo(250_000)), (0, tempo(1_000_000))
    assert played([fast], [slow, *note(0, 480)]) == [(0, 0.5, 60, 0, False)]
    assert played([], [slow, *note(0, 480)]) == [(0, 2, 60, 0, False)]


def test_the_pedal_is_the_channel_s() -> None:
    down, up = (0, control(LEAD, 64, 127)), (960, control(LEAD, 64, 0))
    assert played(note(0, 480), [down, up]) == [(0, 2, 60, 0, False)]
    assert played([*note(0, 480), down, up], note(0, 240, 64)) == [(0, 2, 60, 0, False), (0, 2, 64, 0, False)]
    assert played(note(0, 480), [(0, control(3, 64, 127)), up]) == [(0, 1, 60, 0, False)]  # another channel's


@pytest.mark.parametrize("controller", [120, 123, 124, 127])
def test_all_notes_of_a_channel_can_be_ended(controller: int) -> None:
    strike: Track = [(0, b"\x90\x3c\x40"), (0, b"\x91\x40\x40")]
    off = (480, control(LEAD, controller, 0))
    assert played([*strike, off], ends=(960,)) == [(0, 1, 60, 0, False), (0, 2, 64, 0, False)]
    assert played([*note(0, 960), off]) == [(0, 1, 60, 0, False)]  # sooner than its own end
    assert played(strike, [off], ends=(960,)) == [(0, 1, 60, 0, False), (0, 2, 64, 0, False)]  # from another track


def test_only_all_sound_off_overrules_the_pedal() -> None:
    held: Track = [(0, control(LEAD, 64, 127)), *note(0, 240), (960, control(LEAD, 64, 0))]
    assert played([*held, (480, control(LEAD, 123, 0))]) == [(0, 2, 60, 0, False)]
    assert played([*held, (480, control(LEAD, 120, 0))]) == [(0, 1, 60, 0, False)]
    assert played([*held, (240, control(LEAD, 120, 0))]) == [(0, 0.5, 60, 0, False)]


def test_the_tenth_channel_can_be_a_melody_in_gs() -> None:
    off = b"\xf0\x0a\x41\x10\x42\x12\x40\x10\x15\x00\x1b\xf7"
    assert played([(0, off), *note(0, 480, 60, DRUMS)]) == [(0, 1, 60, 0, False)]


def test_a_drum_part_is_one_from_its_message_on() -> None:
    on = b"\xf0\x0a\x41\x10\x42\x12\x40\x11\x15\x01\x19\xf7"
    assert played([*note(0, 480), (480, on), *note(480, 960)]) == [(0, 1, 60, 0, False), (1, 2, 60, 0, True)]
    assert played(note(480, 960), [(0, on)]) == [(1, 2, 60, 0, True)]  # in another track


def test_banks_of_drums_are_xg_s_and_taken_with_a_program() -> None:
    bank = (0, control(LEAD, 0, 127))
    assert played([bank, *note(0, 480)]) == [(0, 1, 60, 0, False)]
    assert played([bank, program(0, 0), *note(0, 480)]) == [(0, 1, 60, 0, True)]
    back: Track = [(480, control(LEAD, 0, 0)), program(480, 3)]
    assert played([bank, program(0, 0), *note(0, 480), *back, *note(480, 960)]) == [
        (0, 1, 60, 0, True),
        (1, 2, 60, 3, False),
    ]
    gs_reset = (0, b"\xf0\x0a\x41\x10\x42\x12\x40\x00\x7f\x00\x41\xf7")
    assert played([gs_reset, bank, program(0, 0), *note(0, 480)]) == [(0, 1, 60, 0, False)]


def test_notes_of_no_volume_are_silent() -> None:
    silence, sound = (control(LEAD, 7, value) for value in (0, 90))
    loud = note(960, 1440, 62)
    assert played([(0, silence), *note(0, 480), (960, sound), *loud]) == [(2, 3, 62, 0, False)]
    assert played([*note(0, 480), *loud], [(0, silence), (500, sound)]) == [(2, 3, 62, 0, False)]  # another track's
    assert len(played([(0, silence), *note(0, 480), (240, sound), *loud])) == 2  # it swells
    assert len(played([*note(0, 480), (240, silence), *loud])) == 1
    with pytest.raises(MidiError, match="has no notes: nothing in it sounds"):
        read(file_of([body([(0, silence), *note(0, 480)])]))


def test_numbers_have_five_bytes_at_most_but_for_zeros() -> None:
    assert number(5, 7) == b"\x80\x80\x80\x80\x80\x80\x05"
    assert read(file_of([number(480, 9) + NOTE[1:]])).onset_s.tolist() == [0.5]
    assert examine(file_of([NOTE + b"\xff\xff\xff\xff\xff\x7f" + NOTE[1:]])).lost


def test_limits_can_be_raised(tmp_path: Path) -> None:
    text = b"\x00\xff\x01" + number(MAX_BYTES) + bytes(MAX_BYTES)
    data = file_of([text + NOTE + b"\x00" + END])
    with pytest.raises(MidiError, match=r"larger than 4 MiB; .* raise max_bytes \(--max-bytes\)"):
        read(data)
    song = tmp_path / "song.mid"
    song.write_bytes(data)
    for source in (data, song):
        assert len(read(source, max_bytes=len(data))) == 1
        assert len(tokenize(source, max_bytes=len(data))) == 1
    with pytest.raises(MidiError, match="larger than 100 bytes"):
        read(data, max_bytes=100)
    with pytest.raises(MidiError, match=r"raise max_seconds \(--max-seconds\)"):
        tokenize(file_of([number(480 * 14400) + NOTE[1:]]))
    assert len(tokenize(file_of([number(480 * 14400) + NOTE[1:]]), max_seconds=7201)) == 1407


@pytest.mark.parametrize("limit", ["5", None, True, -1, 1.5, 1 << 80])
def test_a_limit_of_bytes_is_a_number(limit: object) -> None:
    with pytest.raises(ArgumentError, match="max_bytes is"):
        tokenize(b"", max_bytes=limit)  # type: ignore[arg-type]
