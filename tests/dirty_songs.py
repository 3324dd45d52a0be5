"""MIDI as real files have it, beside the same music written cleanly: any kind of fault, with any seed."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable

Event = tuple[int, bytes]  # tick, message
Track = list[Event]
LEAD, SECOND, DRUMS = 0, 1, 9  # channels

END = b"\xff\x2f\x00"


def number(value: int, size: int = 1) -> bytes:
    """A number of variable length, in at least so many bytes."""
    digits = [value & 0x7F]
    while value := value >> 7:
        digits.append(value & 0x7F | 0x80)
    digits += [0x80] * (size - len(digits))
    return bytes(reversed(digits))


def body(track: Track, end: int | None = None, *, size: int = 1, running: bool = False) -> bytes:
    """A track's events in order of time and its end, at a tick or with the last of them."""
    data, last, status = b"", 0, 0
    for tick, message in sorted(track, key=lambda event: event[0]):
        is_repeated = running and message[0] == status and message[0] < 0xF0
        data += number(tick - last, size) + message[is_repeated:]
        last, status = tick, message[0]
    return data + number(max((end or 0) - last, 0)) + END


def chunk(data: bytes, name: bytes = b"MTrk", size: int | None = None) -> bytes:
    return name + struct.pack(">I", len(data) if size is None else size) + data


def header(count: int, kind: int = 1, division: int = 480) -> bytes:
    return chunk(struct.pack(">HHH", kind, count, division), b"MThd")


def file_of(bodies: list[bytes], count: int | None = None) -> bytes:
    return header(len(bodies) if count is None else count) + b"".join(map(chunk, bodies))


class Song:
    """Two melodies and drums, a track each after one that says the tempo."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.running = rng.random() < 0.5
        self.tempo: Track = [(0, tempo(500_000))]
        self.programs = {LEAD: rng.randrange(128), SECOND: rng.randrange(128)}
        self.notes = {channel: self._melody(channel) for channel in (LEAD, SECOND, DRUMS)}

    def _melody(self, channel: int) -> list[tuple[int, int, int]]:
        """Onset, offset and pitch of each note; at their ends, some of them overlap with others."""
        notes, tick, until = [], 0, dict.fromkeys(range(128), 0)
        for _ in range(24):
            tick += self.rng.randint(1, 400)
            pitch = self.rng.choice((35, 38, 42, 46, 49)) if channel == DRUMS else self.rng.randint(40, 84)
            if tick > until[pitch]:
                until[pitch] = tick + self.rng.randint(60, 500)
                notes.append((tick, until[pitch], pitch))
        return notes

    def track(self, channel: int, more: Track = (), *, sent: int | None = None) -> Track:  # type: ignore[assignment]
        """A channel's program and notes, and what else is to stand in its track, before them."""
        to = channel if sent is None else sent
        program = [(0, bytes((0xC0 | to, self.programs[channel])))] if channel in self.programs else []
        return [*program, *more, *strokes(self.notes[channel], to)]

    def tracks(self) -> list[Track]:
        return [self.tempo, *map(self.track, self.notes)]

    def file(self, tracks: list[Track] | None = None, **options: int) -> bytes:
        return file_of(
            [body(one, running=self.running) for one in (self.tracks() if tracks is None else tracks)], **options
        )

    def end_with_a_note(self) -> None:
        """How long the last stroke is must not matter for the length of the song."""
        self.notes[LEAD].append((self.last, self.last + 400, 60))

    @property
    def last(self) -> int:
        return max(end for notes in self.notes.values() for _, end, _ in notes)


def strokes(notes: list[tuple[int, int, int]], channel: int) -> Track:
    """Note-offs come before the note-ons of their tick."""
    ons = [(on, bytes((0x90 | channel, pitch, 80))) for on, _, pitch in notes]
    return [*((off, bytes((0x80 | channel, pitch, 64))) for _, off, pitch in notes), *ons]


def tempo(microseconds: int) -> bytes:
    return b"\xff\x51\x03" + microseconds.to_bytes(3, "big")


def control(channel: int, controller: int, value: int) -> bytes:
    return bytes((0xB0 | channel, controller, value))


Twins = tuple[bytes, bytes]  # clean, dirty


def program_in_other_track(song: Song) -> Twins:
    programs = [(0, bytes((0xC0 | channel, program))) for channel, program in song.programs.items()]
    melodies = [strokes(song.notes[channel], channel) for channel in song.notes]
    tracks = [song.tempo, *melodies]
    tracks.insert(song.rng.randint(0, 4), programs)
    return song.file(), song.file(tracks)


def program_midway_in_other_track(song: Song) -> Twins:
    change: Track = [(song.rng.randint(1000, 5000), bytes((0xC0 | LEAD, song.rng.randrange(128))))]
    tempo, _, second, drums = song.tracks()
    clean = [tempo, song.track(LEAD, change), second, drums]
    return song.file(clean), song.file([tempo, song.track(LEAD), [*second, *change], drums])


def pedal_in_other_track(song: Song) -> Twins:
    ticks = sorted(song.rng.sample(range(500, song.last), 4))
    moves: Track = [(tick, control(LEAD, 64, value)) for tick, value in zip(ticks, (127, 0, 100, 10), strict=True)]
    tempo, lead, *others = song.tracks()
    return song.file([tempo, song.track(LEAD, moves), *others]), song.file([[*tempo, *moves], lead, *others])


def tempo_in_other_track(song: Song) -> Twins:
    changes: Track = [(0, tempo(song.rng.randint(3, 9) * 100_000)), (3000, tempo(song.rng.randint(300_000, 900_000)))]
    _, *melodies = song.tracks()
    first: Track = []
    dirty = [first, *melodies]
    where = song.rng.randint(1, 3)
    dirty[where] = [*changes, *dirty[where]]
    return song.file([changes, *melodies]), song.file(dirty)


def off_in_other_track(song: Song) -> Twins:
    tempo, lead, second, drums = song.tracks()
    offs = [event for event in lead if event[1][0] == 0x80]
    ons = [event for event in lead if event[1][0] != 0x80]
    return song.file(), song.file([tempo, ons, [*offs, *second], drums])


def drums_of_no_length(song: Song) -> Twins:
    song.end_with_a_note()
    drums: Track = []
    for on, _, pitch in song.notes[DRUMS]:
        drums += [(on, bytes((0x99, pitch, 80))), (on, bytes((0x99, pitch, 0)))]
    return song.file(), song.file([*song.tracks()[:3], drums])


def drums_without_off(song: Song) -> Twins:
    song.end_with_a_note()
    drums: Track = [(on, bytes((0x99, pitch, 80))) for on, _, pitch in song.notes[DRUMS]]
    return song.file(), song.file([*song.tracks()[:3], drums])


def value_over_127(song: Song) -> Twins:
    song.running = False
    tempo, lead, second, drums = song.tracks()
    loud = [(tick, bytes((x[0], x[1], song.rng.randint(128, 255)))) if x[0] == 0x90 else (tick, x) for tick, x in lead]
    clean = [(tick, bytes((x[0], x[1], 127))) if x[0] == 0x90 else (tick, x) for tick, x in lead]
    return song.file([tempo, clean, second, drums]), song.file([tempo, loud, second, drums])


def _wrong_length(change: Callable[[Song, int], int]) -> Callable[[Song], Twins]:
    def twins(song: Song) -> Twins:
        bodies = [body(one, running=song.running) for one in song.tracks()]
        wrong = song.rng.randint(1, 3)
        chunks = [chunk(x, size=change(song, len(x)) if n == wrong else None) for n, x in enumerate(bodies)]
        return song.file(), header(4) + b"".join(chunks)

    return twins


def count_too_few(song: Song) -> Twins:
    return song.file(), song.file(count=song.rng.randint(1, 3))


def count_too_many(song: Song) -> Twins:
    return song.file(), song.file(count=song.rng.randint(5, 99))


def foreign_chunk(song: Song) -> Twins:
    bodies = [body(one, running=song.running) for one in song.tracks()]
    chunks = [chunk(x) for x in bodies]
    foreign = b"say MTrk" + bytes(song.rng.randrange(256) for _ in range(8)) if song.rng.random() < 0.5 else b"odd"
    chunks.insert(song.rng.randint(0, 4), chunk(foreign, b"XFIH"))
    return song.file(), header(5) + b"".join(chunks)


def riff(song: Song) -> Twins:
    data = song.file()
    padded = b"data" + struct.pack("<I", len(data)) + data + b"\x00" * (len(data) % 2)
    info = b"INFOINAM" + struct.pack("<I", 6) + b"a tune"
    listed = b"LIST" + struct.pack("<I", len(info)) + info
    inner = b"RMID" + b"".join(song.rng.sample([padded, listed], 2))
    return data, b"RIFF" + struct.pack("<I", len(inner)) + inner


def macbinary(song: Song) -> Twins:
    data = song.file()
    before = bytearray(128)
    before[1:6] = b"\x04song"
    before[65:69] = b"Midi"
    before[83:87] = struct.pack(">I", len(data))
    return data, bytes(before) + data + bytes(-len(data) % 128)


def stray_bytes(song: Song) -> Twins:
    data = song.file()
    return data, song.rng.randbytes(song.rng.randint(1, 200)) + data


def last_note_without_off(song: Song) -> Twins:
    *notes, (on, _, pitch) = song.notes[LEAD]
    end = max(end for _, end, _ in song.notes[LEAD]) + 300
    song.notes[LEAD] = [*notes, (on, end, pitch)]
    clean = song.file()
    tempo, lead, *others = song.tracks()
    bodies = [body(x, end if x is lead else None) for x in (tempo, lead, *others)]
    without = body([x for x in lead if x != (end, bytes((0x80, pitch, 64)))], end)
    return clean, file_of([bodies[0], without, *bodies[2:]])


def _silenced(controller: int) -> Callable[[Song], Twins]:
    def twins(song: Song) -> Twins:
        on = song.last + 100
        chord = [(on, on + 400, pitch) for pitch in song.rng.sample(range(40, 90), 3)]
        melody = song.notes[LEAD]
        song.notes[LEAD] = [*melody, *chord]
        clean = song.file()
        song.notes[LEAD] = melody
        open_chord = [event for event in strokes(chord, LEAD) if event[1][0] == 0x90]
        lead = [*song.track(LEAD), *open_chord, (on + 400, control(LEAD, controller, 0))]
        tempo, _, *others = song.tracks()
        return clean, song.file([tempo, lead, *others])

    return twins


def long_number(song: Song) -> Twins:
    bodies = [body(one, size=5 if n == 1 else 1) for n, one in enumerate(song.tracks())]
    return song.file(), file_of(bodies)


def gs_drum_part(song: Song) -> Twins:
    channel = song.rng.choice((2, 8, 10, 11, 15))
    part = channel + 1 if channel < 9 else channel
    message = bytes((0x41, 0x10, 0x42, 0x12, 0x40, 0x10 | part, 0x15, song.rng.randint(1, 2)))
    system = b"\xf0" + number(len(message) + 2) + message + bytes((-sum(message[4:]) & 0x7F, 0xF7))
    return song.file(), song.file([*song.tracks()[:3], song.track(DRUMS, [(0, system)], sent=channel)])


def xg_drum_bank(song: Song) -> Twins:
    channel = song.rng.choice((2, 8, 10, 11, 15))
    bank: Track = [(0, control(channel, 0, 127)), (0, control(channel, 32, 0)), (0, bytes((0xC0 | channel, 0)))]
    return song.file(), song.file([*song.tracks()[:3], song.track(DRUMS, bank, sent=channel)])


def xg_drum_part(song: Song) -> Twins:
    channel = song.rng.choice((2, 8, 10, 11, 15))
    system = b"\xf0\x08\x43\x10\x4c\x08" + bytes((channel, 0x07, song.rng.randint(1, 4))) + b"\xf7"
    return song.file(), song.file([*song.tracks()[:3], song.track(DRUMS, [(0, system)], sent=channel)])


def channel_volume_zero(song: Song) -> Twins:
    tempo, lead, second, drums = song.tracks()
    silent = song.track(SECOND, [(0, control(SECOND, 7, 0))])
    assert second != silent
    return song.file([tempo, lead, drums]), song.file([tempo, lead, silent, drums])


KINDS: dict[str, Callable[[Song], Twins]] = {
    "program in another track": program_in_other_track,
    "program midway in another track": program_midway_in_other_track,
    "pedal in another track": pedal_in_other_track,
    "tempo in another track": tempo_in_other_track,
    "note-off in another track": off_in_other_track,
    "drums of no length": drums_of_no_length,
    "drums without an off": drums_without_off,
    "data bytes above 127": value_over_127,
    "length zero": _wrong_length(lambda song, size: 0),
    "length too short": _wrong_length(lambda song, size: song.rng.randrange(1, size)),
    "length too long": _wrong_length(lambda song, size: size + song.rng.randint(1, 300)),
    "length huge": _wrong_length(lambda song, size: song.rng.choice((0x7FFFFFFF, 0xFFFFFFFF, 100_000))),
    "count too few": count_too_few,
    "count too many": count_too_many,
    "foreign chunk counted": foreign_chunk,
    "RIFF": riff,
    "MacBinary": macbinary,
    "stray bytes before the header": stray_bytes,
    "last note without an off": last_note_without_off,
    "all notes off": _silenced(123),
    "all sound off": _silenced(120),
    "numbers of five bytes": long_number,
    "GS drum part": gs_drum_part,
    "XG drum bank": xg_drum_bank,
    "XG drum part": xg_drum_part,
    "volume zero": channel_volume_zero,
}


def twins(kind: str, seed: int) -> Twins:
    """A clean file, and the same music with a fault of a kind."""
    return KINDS[kind](Song(random.Random(seed)))
