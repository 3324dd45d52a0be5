"""The token language of voices: notes to the note encoder's tokens, one sequence a segment of 5.12 s, and back.

A segment reads: the notes that sound on from before, each as program and pitch, and between them, in dialects of
several velocities, its velocity (which MT3 leaves out); a tie token; the events in order of time, each as shift (10 ms
steps from the segment's start), program, velocity (0 is off) and pitch, or for drums as shift, velocity and drum; EOS.
A shift, program or velocity equal to the one before is left out.
Vocabulary (``dialect``) and rules are MT3's (Gardner et al. 2022), as music-spectrogram-diffusion and diffusers'
MidiProcessor have them. The codec "pytorch" is that of music-spectrogram-diffusion-pytorch (preprocessor/): velocity is
told as on or off only, there is no EOS, and the rest of what it does otherwise is in ``dialect.Rules``.

Shapes: N tokens; E events; R rows: events, tied notes, tie tokens and EOS, each of one to four tokens.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from notewave.errors import MidiError
from notewave.song.dialect import MAX_VELOCITY, PAD, PUBLISHED, Dialect, Rules, Tokens, dialect_of
from notewave.song.notes import Notes
from notewave.sound.mel import FRAMES, HOP, SAMPLE_RATE, SEGMENT_SECONDS

log = logging.getLogger(__name__)

MAX_TOKENS = PUBLISHED.max_tokens  # that the published note encoder takes for a segment, EOS included
STEPS_PER_SECOND = 100
STEPS_PER_FRAME = STEPS_PER_SECOND * HOP // SAMPLE_RATE
SEGMENT_STEPS = round(SEGMENT_SECONDS * STEPS_PER_SECOND)
MOST_ROWS = 1 << 16  # written at once, or those of one segment: a few hundred bytes each

_Floats = NDArray[np.float64]
_Ints = NDArray[np.int64]
_Bools = NDArray[np.bool_]


def encode_notes(notes: Notes, dialect: Dialect = PUBLISHED, *, most_ties: int | None = None) -> list[Tokens]:
    """Encode a song: int32 [N] for each segment, unpadded and of any length, ending as the dialect's do.

    The song's last frame is the one in which its last note ends; by codec "pytorch" its last segment is that of its
    last event. Programs become those that the dialect has. Of a segment in which more than most_ties notes sound on
    from before, the others are not written.
    """
    events = _events(notes, dialect)
    if dialect.rules.by_step:
        count = int(events.step.max(initial=0)) // SEGMENT_STEPS + 1
    else:
        count = int(to_frames(np.array(notes.seconds))) // FRAMES + 1
    # A last step rounded up past the last frame still belongs to the last segment.
    segment = np.minimum(events.step // SEGMENT_STEPS, count - 1)
    # As in the reference, segments after the last event's step tie what sounded just before that step.
    start = np.minimum(np.arange(count) * SEGMENT_STEPS, events.step.max(initial=0))
    return _segments(events, segment, np.arange(count) * SEGMENT_STEPS, _Ties(events, start), dialect, most_ties)


def to_steps(seconds: _Floats) -> _Ints:
    """The step of each time."""
    return np.rint(seconds * STEPS_PER_SECOND).astype(np.int64)


def to_frames(seconds: _Floats) -> _Ints:
    """The frame in which each time lies."""
    return (seconds * SAMPLE_RATE).astype(np.int64) // HOP


def encode_window(notes: Notes, start: int, dialect: Dialect = PUBLISHED) -> Tokens:
    """Encode what a song has in the segment's length from any step on: tokens [N] of any length, as a segment's.

    A note that is to end later than that may end whenever.
    """
    events = _events(notes, dialect)
    ties = _Ties(events, np.array([start]))
    within = events.rows((events.step >= start) & (events.step < start + SEGMENT_STEPS))
    (tokens,) = _segments(within, np.zeros_like(within.step), np.array([start]), ties, dialect, None)
    return tokens


def _segments(
    events: _Events, segment: _Ints, start: _Ints, ties: _Ties, dialect: Dialect, most_ties: int | None
) -> list[Tokens]:
    """Write S segments, of which each event [E] belongs to one and which begin at steps [S], with their ties."""
    tie_count = ties.count if most_ties is None else np.minimum(ties.count, most_ties)
    rows = tie_count + np.bincount(segment, minlength=len(start)) + len(dialect.silence)
    columns = (
        segment,
        np.full_like(segment, 2),
        events.step - start[segment],
        np.where(events.is_drum, -1, events.program),
        events.velocity,
        np.where(events.is_drum, dialect.drum, dialect.pitch) + events.pitch,
    )
    written: list[Tokens] = []
    for first, end in _groups(rows):
        at = slice(*segment.searchsorted([first, end]))
        every = np.arange(first, end)
        tied, tied_program, tied_pitch, tied_velocity = ties.of(first, end, most_ties)
        parts: list[Sequence[ArrayLike]] = [  # the columns of _write; -1 stands for none
            (tied, 0, -1, tied_program, tied_velocity if dialect.velocities > 1 else -1, dialect.pitch + tied_pitch),
            (every, 1, -1, -1, -1, dialect.tie),
            [column[at] for column in columns],
            *((every, 3, -1, -1, -1, end) for end in dialect.rules.ends),
        ]
        joined = zip(*(np.broadcast_arrays(*part) for part in parts), strict=True)
        written += _write(dialect, *map(np.concatenate, joined))
    return [dialect.tokens(ids) for ids in written]


def _groups(rows: _Ints) -> Iterator[tuple[int, int]]:
    """Segments to write at once, from one to before another: of so many rows each, as few as need much memory."""
    group = np.cumsum(rows) // MOST_ROWS
    ends = [*(np.flatnonzero(np.diff(group)) + 1).tolist(), len(rows)]
    return zip([0, *ends[:-1]], ends, strict=True)


class _Events(NamedTuple):
    """Note-ons and note-offs [E] in order of time."""

    step: _Ints
    program: _Ints
    pitch: _Ints
    velocity: _Ints  # its bin; 0 is off
    is_drum: _Bools

    def rows(self, chosen: _Bools) -> _Events:
        """Those events only."""
        step, program, pitch, velocity, is_drum = self
        return _Events(step[chosen], program[chosen], pitch[chosen], velocity[chosen], is_drum[chosen])


def _events(notes: Notes, dialect: Dialect) -> _Events:
    program = np.where(notes.is_drum, notes.program, dialect.sung_program(notes.program))
    on = np.lexsort((notes.pitch, program, notes.is_drum))
    off = on[~notes.is_drum[on]]  # drums are struck and not let go
    note = np.concatenate([off, on])
    program, pitch, is_drum = program[note], notes.pitch[note], notes.is_drum[note]
    velocity = np.concatenate([np.zeros_like(off), dialect.velocity_bin(notes.velocity[on])])
    seconds = np.concatenate([notes.offset_s[off], notes.onset_s[on]])
    step = to_steps(seconds)
    if dialect.rules.by_step:
        ends = step[: len(off)]
        np.maximum(ends, to_steps(notes.onset_s[off]) + 1, out=ends)
        order = np.lexsort((pitch, velocity, program, is_drum, step))
    else:
        order = np.argsort(seconds, kind="stable")  # at one time, offs come before ons
    return _Events(step[order], program[order], pitch[order], velocity[order], is_drum[order])


class _Ties:
    """What sounds just before each segment's start (a step).

    A program's pitch sounds from a note-on to its next event, however many notes overlap on it. The events [E]
    come in order of time, the starts too.
    """

    def __init__(self, events: _Events, start: _Ints) -> None:
        step, program, pitch, velocity, _ = events.rows(~events.is_drum)
        by_key = np.lexsort((pitch, program))  # stable: a key's events stay in order of time
        step, program, pitch, velocity = (x[by_key] for x in (step, program, pitch, velocity))
        until = np.full_like(step, np.iinfo(np.int64).max)
        continues = (program[1:] == program[:-1]) & (pitch[1:] == pitch[:-1])
        until[:-1][continues] = step[1:][continues]
        first, end = start.searchsorted(step, "right"), start.searchsorted(until, "right")
        tied = np.flatnonzero((velocity > 0) & (end > first))
        self._first, self._end = first[tied], end[tied]  # segments that tie it, from one to before another
        self._what = program[tied], pitch[tied], velocity[tied]
        begins, ends = (np.bincount(x, minlength=len(start) + 1) for x in (self._first, self._end))
        self.count = np.cumsum(begins - ends)[: len(start)]  # of each segment

    def of(self, first: int, end: int, most: int | None) -> tuple[_Ints, ...]:
        """Segment, program, pitch and velocity, in that order, of the first so many ties of some segments."""
        here = np.flatnonzero((self._first < end) & (self._end > first))
        if most is None or self.count[first:end].max() <= most:
            begin = np.maximum(self._first[here], first)
            count = np.minimum(self._end[here], end) - begin
            which = np.repeat(here, count)
            segment = np.repeat(begin - np.cumsum(count) + count, count) + np.arange(len(which))
            order = np.argsort(segment, kind="stable")  # programs and pitches stay in order
            segment, which = segment[order], which[order]
        else:  # what is not written is not made, for it may be eight times as much
            begin, until = self._first[here], self._end[here]
            each = [here[(begin <= one) & (until > one)][:most] for one in range(first, end)]
            segment, which = np.repeat(np.arange(first, end), [len(ties) for ties in each]), np.concatenate(each)
        return segment, *(column[which] for column in self._what)


def _write(
    dialect: Dialect, segment: _Ints, part: _Ints, shift: _Ints, program: _Ints, velocity: _Ints, last: _Ints
) -> list[Tokens]:
    """Write rows [R] out, ordered by segment and part; -1 stands for no shift, program or velocity."""
    order = np.argsort(4 * segment + part, kind="stable")  # within a part, rows keep their order
    segment, shift, program, velocity, last = (x[order] for x in (segment, shift, program, velocity, last))
    values = dialect.shift + shift, dialect.program + program, dialect.velocity + velocity, last
    said = _said(dialect.rules, segment, last == dialect.tie, shift, program, velocity)
    written = np.stack([*said, np.ones_like(said[0])], axis=1)
    ends = np.cumsum(written.sum(axis=1))[np.flatnonzero(np.diff(segment))]
    return np.split(np.stack(values, axis=1).astype(np.int32)[written], ends)


def _said(
    rules: Rules, segment: _Ints, is_tie: _Bools, shift: _Ints, program: _Ints, velocity: _Ints
) -> tuple[_Bools, _Bools, _Bools]:
    """Which shifts, programs and velocities of rows [R] are written: those that what was said does not tell."""
    shifts = _changes(shift, segment) & (shift > 0)
    if not rules.says_anew:
        return shifts, _changes(program, segment), _changes(velocity, segment)
    since = segment + np.cumsum(shifts | is_tie)
    programs = _changes(program, since)
    return shifts, programs, _changes(velocity, since + np.cumsum(programs))


def _changes(value: _Ints, within: _Ints) -> _Bools:
    """Which values [R] differ from the one before of rows with the same number; the first does, and -1 is no value."""
    rows = np.flatnonzero(value >= 0)
    new = np.ones(len(rows), np.bool_)
    new[1:] = (np.diff(value[rows]) != 0) | (np.diff(within[rows]) != 0)
    changes = np.zeros(len(value), np.bool_)
    changes[rows[new]] = True
    return changes


def decode_tokens(segments: Iterable[Iterable[int]]) -> Notes:
    """Decode a song's segments of tokens [N], the inverse of ``encode_notes`` as far as tokens tell.

    Times are multiples of 10 ms, programs those of the tokens' dialect, velocities the highest of their bins (127 as
    published); a drum ends as it starts, and a note where its pitch sounds anew, where a segment does not tie it or at
    the song's last event. Raises MidiError for tokens without a meaning.
    """
    sounding: dict[tuple[int, int], tuple[int, int]] = {}  # by program and pitch: step of the note-on, velocity
    notes: list[tuple[int, int, int, int, int, bool]] = []  # as the columns of Notes, times in steps
    step = 0
    for index, tokens in enumerate(segments):
        step = start = index * SEGMENT_STEPS
        dialect = dialect_of(tokens)
        stops = PAD, *dialect.rules.ends
        program = velocity = 0
        tied: dict[tuple[int, int], tuple[int, int]] | None = {}  # none after the tie token
        for token in tokens:
            if token in stops:
                break
            kind, value = dialect.decode_event(int(token))
            ended: list[tuple[int, int]] = []
            if kind == "shift":
                step = start + value
            elif kind == "program":
                program = value
            elif kind == "velocity":
                velocity = dialect.bin_velocity(value)
            elif kind == "drum":
                notes.append((step, step, value, velocity or MAX_VELOCITY, 0, True))
            elif kind == "pitch" and tied is not None:
                tied[program, value] = step, velocity or MAX_VELOCITY
            elif kind == "pitch":
                ended = [(program, value)]
            elif tied is not None:
                ended = [key for key in sounding if key not in tied]
                sounding, tied = {**tied, **sounding}, None
            notes += [_ended(key, sounding.pop(key), step) for key in ended if key in sounding]
            if kind == "pitch" and tied is None and velocity:
                sounding[program, value] = step, velocity
    notes += [_ended(key, began, step) for key, began in sounding.items()]
    onsets, offsets, pitches, velocities, programs, are_drums = np.array(notes, np.int64).reshape(-1, 6).T
    times = onsets / STEPS_PER_SECOND, offsets / STEPS_PER_SECOND
    return Notes(*times, pitches, velocities, programs, are_drums.astype(bool))


def _ended(key: tuple[int, int], began: tuple[int, int], step: int) -> tuple[int, int, int, int, int, bool]:
    """The row of a note of this program and pitch, which began at a step with a velocity and ends at another."""
    return began[0], step, key[1], began[1], key[0], False


def limit_tokens(segments: Sequence[Tokens], *, strict: bool = False) -> list[Tokens]:
    """Cut longer segments to the dialect's most tokens, with one warning for all; with ``strict``, raise MidiError.

    They are 2047 and EOS in the published dialect, and by codec "pytorch" 3000, which no EOS ends.
    """
    long = [index for index, tokens in enumerate(segments) if len(tokens) > dialect_of(tokens).max_tokens]
    if long:
        worst = max(long, key=lambda index: len(segments[index]))
        tokens, dialect = segments[worst], dialect_of(segments[worst])
        most = dialect.max_tokens
        of_ties_alone = dialect.tie not in tokens[:most]  # of which not all may have been written
        count = f"more than {most}" if of_ties_alone else f"{len(tokens)}"
        others = f" ({len(long) - 1} more have too many)" if len(long) > 1 else ""
        fact = (
            f"Segment {worst}, from {worst * SEGMENT_SECONDS:.2f} s, has {count} tokens{others}: "
            f"the note encoder takes {most}."
        )
        if strict:
            raise MidiError(f"{fact} Thin out its notes, or pass strict=False to lose the last ones.")
        log.warning("%s Its last notes are lost; thin them out to choose which.", fact)
    return [_cut(tokens) for tokens in segments]


def _cut(tokens: Tokens) -> Tokens:
    dialect = dialect_of(tokens)
    most = dialect.max_tokens
    return tokens if len(tokens) <= most else dialect.segment(tokens[: most - len(dialect.rules.ends)])


def pad_tokens(tokens: Sequence[Tokens], length: int | None = None) -> NDArray[np.int32]:
    """Token arrays of B songs -> int32 [B, N], padded to the longest or to ``length``."""
    padded = np.full((len(tokens), length or max(map(len, tokens))), PAD, np.int32)
    for row, sequence in zip(padded, tokens, strict=True):
        row[: len(sequence)] = sequence
    return padded
