"""Songs to train on: procedural pieces for any ensemble.

Every song is a ``Notes`` table on the codec's 10 ms grid, so that audio rendered from it and tokens made of it agree
exactly. No two notes of one program and pitch overlap. All have one velocity; ``dynamics`` gives them others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from notewave.export.material.ensembles import FIRST_KEY, LAST_KEY, Instrument
from notewave.song.codec import STEPS_PER_SECOND
from notewave.song.notes import Notes

VELOCITY = 90
SCALES = ((0, 2, 4, 5, 7, 9, 11), (0, 2, 3, 5, 7, 8, 10), (0, 2, 3, 5, 7, 8, 11), (0, 2, 4, 7, 9), tuple(range(12)))
CHORDS = ((0, 4, 7), (0, 3, 7), (0, 4, 7, 10), (0, 3, 7, 10), (0, 4, 7, 11), (0, 3, 6, 9), (0, 5, 7), (0, 4, 8))
DRUM_KEYS = {
    "low": (35, 36),
    "back": (38, 40, 39),
    "cymbal": (42, 44, 46, 51, 59),
    "fill": (41, 43, 45, 47, 48, 50, 49, 57),
}

Row = tuple[float, float, int, int, bool]  # of a song: onset and offset in s, pitch, program, is drum
Event = tuple[float, float, int]  # of a bar: onset and duration in beats, pitch


@dataclass(frozen=True)
class Bars:
    """The frame that the textures of a section fill."""

    beats: int
    scale: tuple[int, ...]  # all pitches of the key
    chords: tuple[tuple[int, ...], ...]  # pitch classes of the chord under each beat
    low: int
    high: int


Texture = Callable[[np.random.Generator, Bars], list[Event]]


def compose(rng: np.random.Generator, ensemble: Sequence[Instrument], seconds: float, rests: float = 0.0) -> Notes:
    """A procedural piece of about the given length: sections of 8 to 30 s in changing keys, tempi and textures.

    Each player sits out a section with the chance ``rests``, and with half of it a longer silence follows a section.
    """
    rows: list[Row] = []
    start = 0.0
    while start < seconds:
        beat_s = 60.0 / rng.uniform(50, 190)
        beats = max(8, round(rng.uniform(8, 30) / beat_s))
        tonic, scale = int(rng.integers(12)), SCALES[rng.integers(len(SCALES))]
        chords = _progression(rng, beats, tonic, scale)
        human_s = rng.choice([0.0, 0.008, 0.025])
        for instrument in ensemble:
            if rests and rng.random() < rests:
                continue
            low, high = instrument.low, instrument.high
            bars = Bars(beats, tuple(p for p in range(low, high + 1) if (p - tonic) % 12 in scale), chords, low, high)
            for onset, duration, pitch in _play(rng, instrument, bars):
                onset_s = max(0.0, start + onset * beat_s + rng.normal() * human_s)
                rows.append(
                    (onset_s, onset_s + max(0.04, duration * beat_s), pitch, instrument.program, instrument.is_drum)
                )
        start += beats * beat_s + rng.choice([0.0, 0.0, 0.5, 2.0])
        if rests and rng.random() < rests / 2:
            start += rng.uniform(2.0, 9.0)
    return as_notes([row for row in rows if row[0] < seconds])


def sustain(rng: np.random.Generator, ensemble: Sequence[Instrument], seconds: float) -> Notes:
    """A piece of notes and chords held for 3 to 45 s, alone and over one another, by the pitched of the ensemble.

    What sounds for longer than a segment is known to it by a tie and its context alone, and other pieces have little
    of it.
    """
    pitched = [player for player in ensemble if not player.is_drum] or [Instrument(int(rng.integers(128)))]
    rows: list[Row] = []
    start = 0.0
    while start < seconds:
        player = pitched[rng.integers(len(pitched))]
        held_s = float(np.exp(rng.uniform(np.log(3), np.log(45))))
        spread_s = rng.choice([0.0, 0.0, 1.5])
        keys, count = np.arange(player.low, player.high + 1), int(rng.choice([1, 2, 3, 4], p=[0.5, 0.2, 0.2, 0.1]))
        for pitch in rng.choice(keys, count, replace=False).tolist():
            onset_s = start + rng.uniform(0, spread_s)
            rows.append((onset_s, onset_s + held_s, pitch, player.program, False))
        start += held_s * (rng.uniform(0.4, 1.0) if rng.random() < 0.3 else rng.uniform(1.0, 1.2))
    return as_notes([row for row in rows if row[0] < seconds])


def one_after_another(make: Callable[[float], Notes], rng: np.random.Generator, seconds: float) -> Notes:
    """Pieces of 12 to 45 s, each made for its length, until the time is full; sometimes a silence parts them."""
    pieces: list[Notes] = []
    start = 0.0
    while start < seconds:
        piece = make(float(rng.uniform(12, 45)))
        pieces.append(replace(piece, onset_s=piece.onset_s + start, offset_s=piece.offset_s + start))
        start = round(piece.seconds + start + rng.choice([0.05, 0.5, rng.uniform(1, 8)], p=[0.6, 0.25, 0.15]), 2)
    columns = zip(*(vars(piece).values() for piece in pieces), strict=True)
    notes = Notes(*(np.concatenate(column) for column in columns))
    return notes.rows(notes.onset_s < seconds)


def as_notes(rows: Sequence[Row]) -> Notes:
    """Rows as a table on the 10 ms grid, each note cut where its key sounds anew."""
    steps = sorted((round(on * STEPS_PER_SECOND), round(off * STEPS_PER_SECOND), *key) for on, off, *key in rows)
    last: dict[tuple[object, ...], int] = {}  # key to index of its latest note
    kept: list[list[float]] = []
    for onset, offset, pitch, program, is_drum in steps:
        key = (pitch, program, is_drum)
        if key in last:
            before = kept[last[key]]
            if onset - before[0] < 4:  # struck again within 40 ms: one note
                before[1] = max(before[1], offset)
                continue
            before[1] = min(before[1], onset)
        last[key] = len(kept)
        kept.append([onset, max(offset, onset + 3), pitch, program, is_drum])
    table = np.array(kept, np.float64).reshape(-1, 5)
    onsets, offsets, pitches, programs, are_drums = table.T
    return Notes(
        onsets / STEPS_PER_SECOND,
        offsets / STEPS_PER_SECOND,
        pitches.astype(np.int64),
        np.full(len(table), VELOCITY),
        programs.astype(np.int64),
        are_drums.astype(bool),
    )


def _progression(
    rng: np.random.Generator, beats: int, tonic: int, scale: tuple[int, ...]
) -> tuple[tuple[int, ...], ...]:
    """Pitch classes under each beat, changing every one to eight beats."""
    chords: list[tuple[int, ...]] = []
    length = int(rng.choice([1, 2, 4, 8]))
    while len(chords) < beats:
        root = tonic + scale[rng.integers(len(scale))]
        shape = CHORDS[rng.integers(len(CHORDS))] if rng.random() < 0.5 else _triad(root, tonic, scale)
        chords += [tuple((root + interval) % 12 for interval in shape)] * length
    return tuple(chords[:beats])


def _triad(root: int, tonic: int, scale: tuple[int, ...]) -> tuple[int, ...]:
    """Every other degree of the scale above the root."""
    degrees = sorted((tonic + degree - root) % 12 for degree in scale)
    return tuple(degrees[: 2 * 3 : 2])


def _play(rng: np.random.Generator, instrument: Instrument, bars: Bars) -> list[Event]:
    """One to three textures at once for a soloist, each in a register of its own; one for a member of a band."""
    if instrument.role != "solo":
        texture = ROLES[instrument.role][rng.integers(len(ROLES[instrument.role]))]
        return texture(rng, bars)
    events: list[Event] = []
    for _ in range(rng.choice([1, 2, 3], p=[0.3, 0.5, 0.2])):
        width = int(rng.integers(14, 50))
        low = int(rng.integers(bars.low, max(bars.low + 1, bars.high - width)))
        if rng.random() < 0.6:  # the middle of the keyboard sounds most
            low = int(np.clip(rng.normal(60 - width / 2, 10), bars.low, bars.high - width))
        high = low + width
        register = replace(bars, low=low, high=high, scale=tuple(p for p in bars.scale if low <= p <= high) or (low,))
        texture = ROLES["solo"][rng.integers(len(ROLES["solo"]))]
        events += texture(rng, register)
    return events


def _grid(rng: np.random.Generator) -> float:
    """Note value in beats."""
    return float(rng.choice([0.125, 0.25, 1 / 3, 0.5, 1.0, 2.0], p=[0.06, 0.26, 0.14, 0.3, 0.18, 0.06]))


def _length(rng: np.random.Generator) -> float:
    """Articulation: sounding part of a note value, staccato to overlapping."""
    return float(rng.choice([0.3, 0.6, 0.9, 1.0, 1.5, 3.0], p=[0.12, 0.15, 0.25, 0.28, 0.12, 0.08]))


def _chord_pitches(bars: Bars, beat: float, low: int, high: int) -> list[int]:
    classes = bars.chords[min(int(beat), bars.beats - 1)]
    return [pitch for pitch in range(low, high + 1) if pitch % 12 in classes] or [low]


def _melody(rng: np.random.Generator, bars: Bars) -> list[Event]:
    """A walk over the scale in mixed note values with rests; sometimes in thirds, sixths or octaves."""
    events: list[Event] = []
    legato, doubling, rest = _length(rng), int(rng.choice([0, 0, 0, 2, 5, 7])), rng.uniform(0, 0.25)
    values = [_grid(rng) for _ in range(3)]
    beat, degree = 0.0, len(bars.scale) // 2
    while beat < bars.beats:
        value = values[rng.integers(3)]
        if rng.random() > rest:
            degree = int(np.clip(degree + np.rint(rng.normal() * 2), 0, len(bars.scale) - 1))
            events.append((beat, value * legato, bars.scale[degree]))
            if doubling and degree + doubling < len(bars.scale):
                events.append((beat, value * legato, bars.scale[degree + doubling]))
        beat += value
    return events


def _chords(rng: np.random.Generator, bars: Bars) -> list[Event]:
    """Blocks of two to six notes, held or struck again, sometimes broken upwards."""
    value, legato, size = max(0.5, _grid(rng)) * rng.choice([1, 2]), _length(rng), int(rng.integers(2, 7))
    broken = rng.choice([0.0, 0.0, 0.04, 0.1])
    events: list[Event] = []
    for beat in np.arange(0, bars.beats, value):
        if rng.random() < 0.9:
            pool = _chord_pitches(bars, beat, bars.low, bars.high)
            chosen = sorted(rng.choice(pool, min(size, len(pool)), replace=False))
            events += [(beat + broken * index, value * legato, int(pitch)) for index, pitch in enumerate(chosen)]
    return events


def _arpeggio(rng: np.random.Generator, bars: Bars) -> list[Event]:
    """Chord notes one after the other: up, down, both ways or mixed; sometimes held as if pedalled."""
    value = min(0.5, _grid(rng))
    held, shape = rng.choice([0.0, 1.0, 2.0, 4.0], p=[0.4, 0.3, 0.2, 0.1]), rng.integers(4)
    legato, span = _length(rng), int(rng.integers(12, 37))
    low = int(rng.integers(bars.low, max(bars.low + 1, bars.high - span)))
    events: list[Event] = []
    for index, beat in enumerate(np.arange(0, bars.beats, value)):
        pool = _chord_pitches(bars, beat, low, min(low + span, bars.high))
        cycle = (pool, pool[::-1], pool + pool[-2:0:-1], list(rng.permutation(pool)))[shape]
        events.append((beat, max(value * legato, held), int(cycle[index % len(cycle)])))
    return events


def _bass(rng: np.random.Generator, bars: Bars) -> list[Event]:
    """Chord roots and fifths low down, in steady values."""
    value, legato = float(rng.choice([0.5, 1.0, 2.0, 4.0])), _length(rng)
    octave = rng.random() < 0.3
    events: list[Event] = []
    for beat in np.arange(0, bars.beats, value):
        pool = _chord_pitches(bars, beat, bars.low, min(bars.low + 19, bars.high))
        pitch = int(pool[0] if rng.random() < 0.6 else rng.choice(pool))
        events.append((beat, value * legato, pitch))
        if octave and pitch + 12 <= bars.high:
            events.append((beat, value * legato, pitch + 12))
    return events


def _runs(rng: np.random.Generator, bars: Bars) -> list[Event]:
    """Scales up and down at an even pace, in one or two voices, chromatic at times."""
    value, legato = min(0.5, _grid(rng)), _length(rng)
    pitches = bars.scale if rng.random() < 0.7 else tuple(range(bars.low, bars.high + 1))
    apart, degree, step = int(rng.choice([0, 0, 2, 5, 7])), int(rng.integers(len(pitches))), 1
    events: list[Event] = []
    for beat in np.arange(0, bars.beats, value):
        if not 0 <= degree + step < len(pitches) or rng.random() < 0.06:
            step = -step
        degree = int(np.clip(degree + step, 0, len(pitches) - 1))
        events.append((beat, value * legato, pitches[degree]))
        if apart and degree + apart < len(pitches):
            events.append((beat, value * legato, pitches[degree + apart]))
    return events


def _repeats(rng: np.random.Generator, bars: Bars) -> list[Event]:
    """One pitch or a small chord struck again and again, trills and tremolos."""
    value, legato = min(0.5, _grid(rng)), min(1.0, _length(rng))
    events: list[Event] = []
    beat, group = 0.0, [bars.low]
    while beat < bars.beats:
        size, count = int(rng.choice([1, 1, 2, 3])), int(rng.integers(3, 13))
        pool = _chord_pitches(bars, beat, bars.low, bars.high)
        group = [int(pitch) for pitch in rng.choice(pool, min(size, len(pool)), replace=False)]
        alternate = size > 1 and rng.random() < 0.5
        for index in range(count):
            struck = [group[index % len(group)]] if alternate else group
            events += [(beat + index * value, value * legato, pitch) for pitch in struck]
        beat += count * value + rng.choice([0.0, value])
    return events


def _scatter(rng: np.random.Generator, bars: Bars) -> list[Event]:
    """Unrelated pitches at unrelated times, of unrelated lengths."""
    count = int(bars.beats * rng.choice([0.5, 1, 2, 4]))
    onsets = np.sort(rng.uniform(0, bars.beats, count))
    durations = np.exp(rng.uniform(np.log(0.15), np.log(6.0), count))
    pitches = rng.integers(bars.low, bars.high + 1, count)
    return [
        (float(on), float(length), int(pitch)) for on, length, pitch in zip(onsets, durations, pitches, strict=True)
    ]


def _voices(rng: np.random.Generator, bars: Bars) -> list[Event]:
    """Two to four voices that move by step, each in its own rhythm, as in a chorale or fugue."""
    count = int(rng.integers(2, 5))
    size = max(1, len(bars.scale) // count)
    parts = [bars.scale[index * size : (index + 1) * size] for index in range(count)]
    return [event for part in parts if part for event in _melody(rng, replace(bars, scale=part))]


def _drums(rng: np.random.Generator, bars: Bars) -> list[Event]:
    """A beat: low drum, back beat, cymbals on a grid, fills before changes."""
    low, back, cymbal = (int(rng.choice(DRUM_KEYS[kind])) for kind in ("low", "back", "cymbal"))
    grid = float(rng.choice([0.25, 0.5, 0.5, 1.0]))
    pattern = rng.random(8) < 0.35
    events: list[Event] = []
    for index, beat in enumerate(np.arange(0, bars.beats, 0.5)):
        if index % 4 == 0 or pattern[index % 8]:
            events.append((beat, 0.2, low))
        if index % 4 == 2 or rng.random() < 0.05:
            events.append((beat, 0.2, back))
        if index % 16 >= 14 and rng.random() < 0.6:
            events.append((beat, 0.2, int(rng.choice(DRUM_KEYS["fill"]))))
    return events + [(float(beat), 0.2, cymbal) for beat in np.arange(0, bars.beats, grid)]


def _kit(rng: np.random.Generator, bars: Bars) -> list[Event]:
    """Any drums of the percussion map: patterns of one or two bars that come again, rolls, single strokes."""
    if rng.random() < 0.35:
        return _drums(rng, bars)
    keys = np.arange(FIRST_KEY, LAST_KEY + 1)
    often = np.where(np.isin(keys, [key for kind in DRUM_KEYS.values() for key in kind]), 4.0, 1.0)
    events: list[Event] = []
    for key in rng.choice(keys, int(rng.integers(2, 9)), replace=False, p=often / often.sum()):
        grid = float(rng.choice([0.25, 0.5, 0.5, 1.0, 1 / 3]))
        length = round(rng.choice([4, 8]) / grid)
        pattern = rng.random(length) < rng.choice([0.08, 0.25, 0.5, 1.0], p=[0.35, 0.35, 0.2, 0.1])
        times = np.arange(0, bars.beats, grid)
        events += [(float(beat), 0.2, int(key)) for index, beat in enumerate(times) if pattern[index % length]]
        if rng.random() < 0.15:  # a roll
            start, pace = rng.uniform(0, bars.beats), rng.choice([0.125, 1 / 6, 0.25])
            events += [(start + index * pace, 0.2, int(key)) for index in range(int(rng.integers(4, 24)))]
    return events


def _sparse(rng: np.random.Generator, bars: Bars) -> list[Event]:
    """Single long notes now and then."""
    onsets = rng.uniform(0, bars.beats, max(1, round(bars.beats / rng.uniform(4, 24))))
    pitches = rng.integers(bars.low, bars.high + 1, len(onsets))
    lengths = np.exp(rng.uniform(np.log(0.3), np.log(12.0), len(onsets)))
    return [(float(on), float(length), int(pitch)) for on, length, pitch in zip(onsets, lengths, pitches, strict=True)]


ROLES: dict[str, tuple[Texture, ...]] = {
    "solo": (_melody, _chords, _chords, _arpeggio, _bass, _runs, _repeats, _scatter, _voices),
    "melody": (_melody, _melody, _runs, _repeats),
    "harmony": (_chords, _arpeggio, _voices),
    "bass": (_bass, _melody),
    "drums": (_drums,),
    "kit": (_kit,),
    "sparse": (_sparse,),
}
