"""The token language of voices: notes to the note encoder's tokens, one sequence a segment of 5.12 s, and back.

A segment reads: the notes that sound on from before, each as program and pitch; a tie token; the events in
order of time, each as shift (10 ms steps from the segment's start), program, velocity (on or off) and pitch, or
for drums as shift, velocity and drum; EOS. A shift, program or velocity equal to the one before is left out.
Vocabulary and rules are MT3's (Gardner et al. 2022), as music-spectrogram-diffusion and diffusers'
MidiProcessor have them.

Shapes: N tokens; E events; R rows: events, tied notes, tie tokens and EOS, each of one to four tokens.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from notewave.errors import MidiError
from notewave.song.notes import Notes
from notewave.sound.mel import FRAMES, HOP, SAMPLE_RATE, SEGMENT_SECONDS

log = logging.getLogger(__name__)

PAD, EOS, UNK = 0, 1, 2
SPECIAL = 3  # the lowest id of an event
VOCABULARY = 1536  # rows of the embedding table; events use the ids 3 to 1390
MAX_TOKENS = 2048  # that the note encoder takes for a segment, EOS included
STEPS_PER_SECOND = 100
SEGMENT_STEPS = round(SEGMENT_SECONDS * STEPS_PER_SECOND)

# Kinds of events and how many values each has, from 0; ids count on from one kind to the next.
KINDS = {"shift": 1001, "pitch": 128, "velocity": 2, "tie": 1, "program": 128, "drum": 128}
_EVENTS = [(kind, value) for kind, count in KINDS.items() for value in range(count)]
EVENT_END = SPECIAL + len(_EVENTS)  # one past the highest id of an event
_IDS = {event: SPECIAL + index for index, event in enumerate(_EVENTS)}
SHIFT, PITCH, VELOCITY, TIE, PROGRAM, DRUM = (_IDS[kind, 0] for kind in KINDS)

# Each class of instruments in Slakh by its first General MIDI program; it sings all programs up to the next.
# fmt: off
_CLASSES = (
    0, 4, 8, 16, 24, 26, 29, 32, 33, 40, 41, 42, 43, 46, 47, 48, 50,
    52, 55, 56, 57, 58, 60, 61, 64, 66, 67, 68, 69, 70, 71, 73, 80, 88,
)
# fmt: on
SLAKH_PROGRAM = np.array([max(c for c in _CLASSES if c <= program) for program in range(128)])

Tokens = NDArray[np.int32]
_Ints = NDArray[np.int64]
_Bools = NDArray[np.bool_]


def encode_event(kind: str, value: int = 0) -> int:
    """The id of an event, as ("shift", 25) for 250 ms. Raises MidiError if the vocabulary has no such event."""
    if (kind, value) not in _IDS:
        raise MidiError(f"There is no event {kind} {value}: the vocabulary counts, from 0, {KINDS}. Use one of these.")
    return _IDS[kind, value]


def decode_event(token: int) -> tuple[str, int]:
    """The event of an id, the inverse of ``encode_event``. Raises MidiError for an id that is no event."""
    if not SPECIAL <= token < EVENT_END:
        raise MidiError(f"Token {token} is no event: they have the ids {SPECIAL} to {EVENT_END - 1}.")
    return _EVENTS[token - SPECIAL]


def encode_notes(notes: Notes) -> list[Tokens]:
    """Encode a song: int32 [N] for each segment, unpadded and of any length, ending in EOS.

    The song's last frame is the one in which its last note ends. Programs become those of their Slakh class.
    """
    note_program = np.where(notes.is_drum, notes.program, SLAKH_PROGRAM[notes.program])
    note, velocity, step = _events(notes, note_program)
    pitch, program, drum = notes.pitch[note], note_program[note], notes.is_drum[note]
    frames = int(notes.seconds * SAMPLE_RATE) // HOP + 1
    every = np.arange(-(-frames // FRAMES))
    # A last step rounded up past the last frame still belongs to the last segment.
    segment = np.minimum(step // SEGMENT_STEPS, every[-1])
    # As in the reference, segments after the last event's step tie what sounded just before that step.
    start = np.minimum(every * SEGMENT_STEPS, step.max(initial=0))
    tied, tied_program, tied_pitch = _ties(step[~drum], program[~drum], pitch[~drum], velocity[~drum], start)
    last = np.where(drum, DRUM, PITCH) + pitch
    parts: list[tuple[ArrayLike, ...]] = [  # the columns of _write; -1 stands for none
        (tied, 0, -1, tied_program, -1, PITCH + tied_pitch),
        (every, 1, -1, -1, -1, TIE),
        (segment, 2, step - segment * SEGMENT_STEPS, np.where(drum, -1, program), velocity, last),
        (every, 3, -1, -1, -1, EOS),
    ]
    columns = zip(*(np.broadcast_arrays(*part) for part in parts), strict=True)
    return _write(*(np.concatenate(column) for column in columns))


def _events(notes: Notes, program: _Ints) -> tuple[_Ints, _Ints, _Ints]:
    """Note-ons and note-offs in order of time: the note's index, velocity (1 on, 0 off) and step [E] of each."""
    on = np.lexsort((notes.pitch, program, notes.is_drum))
    off = on[~notes.is_drum[on]]  # drums are struck and not let go
    seconds = np.concatenate([notes.offset_s[off], notes.onset_s[on]])
    order = np.argsort(seconds, kind="stable")  # at one time, offs come before ons
    velocity = np.concatenate([np.zeros_like(off), np.minimum(notes.velocity[on], 1)])
    step = np.rint(seconds * STEPS_PER_SECOND).astype(np.int64)
    return np.concatenate([off, on])[order], velocity[order], step[order]


def _ties(step: _Ints, program: _Ints, pitch: _Ints, velocity: _Ints, start: _Ints) -> tuple[_Ints, _Ints, _Ints]:
    """What sounds just before each segment's start (a step), as segment, program and pitch in that order.

    A program's pitch sounds from a note-on to its next event, however many notes overlap on it. The events [E]
    come in order of time.
    """
    by_key = np.lexsort((pitch, program))  # stable: a key's events stay in order of time
    step, program, pitch, velocity = (x[by_key] for x in (step, program, pitch, velocity))
    until = np.full_like(step, np.iinfo(np.int64).max)
    continues = (program[1:] == program[:-1]) & (pitch[1:] == pitch[:-1])
    until[:-1][continues] = step[1:][continues]
    first, end = start.searchsorted(step, "right"), start.searchsorted(until, "right")
    count = np.where(velocity > 0, end - first, 0)
    event = np.repeat(np.arange(len(step)), count)
    segment = first[event] + np.arange(len(event)) - np.repeat(np.cumsum(count) - count, count)
    order = np.lexsort((pitch[event], program[event], segment))
    return segment[order], program[event][order], pitch[event][order]


def _write(segment: _Ints, part: _Ints, shift: _Ints, program: _Ints, velocity: _Ints, last: _Ints) -> list[Tokens]:
    """Write rows [R] out, ordered by segment and part; -1 stands for no shift, program or velocity."""
    order = np.lexsort((part, segment))  # stable: within a part, rows keep their order
    segment, shift, program, velocity, last = (x[order] for x in (segment, shift, program, velocity, last))
    tokens = np.stack([SHIFT + shift, PROGRAM + program, VELOCITY + velocity, last], axis=1).astype(np.int32)
    shifts = _changes(shift, segment) & (shift > 0)
    written = np.stack([shifts, _changes(program, segment), _changes(velocity, segment), np.ones_like(shifts)], axis=1)
    ends = np.cumsum(written.sum(axis=1))[np.flatnonzero(np.diff(segment))]
    return np.split(tokens[written], ends)


def _changes(value: _Ints, segment: _Ints) -> _Bools:
    """Which values [R] differ from the one before in their segment; its first does, and -1 is no value."""
    rows = np.flatnonzero(value >= 0)
    new = np.ones(len(rows), np.bool_)
    new[1:] = (np.diff(value[rows]) != 0) | (np.diff(segment[rows]) != 0)
    changes = np.zeros(len(value), np.bool_)
    changes[rows[new]] = True
    return changes


def decode_tokens(segments: Iterable[Iterable[int]]) -> Notes:
    """Decode a song's segments of tokens [N], the inverse of ``encode_notes`` as far as tokens tell.

    Times are multiples of 10 ms, programs those of Slakh classes, velocities 127; a drum ends as it starts, and
    a note where its pitch sounds anew, where a segment does not tie it or at the song's last event. Raises
    MidiError for tokens without a meaning.
    """
    sounding: dict[tuple[int, int], int] = {}  # by program and pitch: the step of the note-on
    notes: list[tuple[int, int, int, int, bool]] = []  # steps of onset and offset, pitch, program, is drum
    step = 0
    for index, tokens in enumerate(segments):
        step = start = index * SEGMENT_STEPS
        program = velocity = 0
        tied: dict[tuple[int, int], int] | None = {}  # none after the tie token
        for token in tokens:
            if token in (PAD, EOS):
                break
            kind, value = decode_event(int(token))
            ended: list[tuple[int, int]] = []
            if kind == "shift":
                step = start + value
            elif kind == "program":
                program = value
            elif kind == "velocity":
                velocity = value
            elif kind == "drum":
                notes.append((step, step, value, 0, True))
            elif kind == "pitch" and tied is not None:
                tied[program, value] = step
            elif kind == "pitch":
                ended = [(program, value)]
            elif tied is not None:
                ended = [key for key in sounding if key not in tied]
                sounding, tied = {**tied, **sounding}, None
            notes += [(sounding.pop(key), step, key[1], key[0], False) for key in ended if key in sounding]
            if kind == "pitch" and tied is None and velocity:
                sounding[program, value] = step
    notes += [(onset, step, pitch, program, False) for (program, pitch), onset in sounding.items()]
    onset, offset, pitch, program, drum = np.array(notes, np.int64).reshape(-1, 5).T
    return Notes(onset / STEPS_PER_SECOND, offset / STEPS_PER_SECOND, pitch, np.full_like(pitch, 127), program, drum)


def limit_tokens(segments: Sequence[Tokens], *, strict: bool = False) -> list[Tokens]:
    """Cut longer segments to 2047 tokens and EOS, with one warning for all; with ``strict``, raise MidiError."""
    long = [index for index, tokens in enumerate(segments) if len(tokens) > MAX_TOKENS]
    if long:
        worst = max(long, key=lambda index: len(segments[index]))
        others = f" ({len(long) - 1} more have too many)" if len(long) > 1 else ""
        fact = (
            f"Segment {worst}, from {worst * SEGMENT_SECONDS:.2f} s, has {len(segments[worst])} tokens{others}: "
            f"the note encoder takes {MAX_TOKENS}."
        )
        if strict:
            raise MidiError(f"{fact} Thin out its notes, or pass strict=False to lose the last ones.")
        log.warning("%s Its last notes are lost; thin them out to choose which.", fact)
    cut = MAX_TOKENS - 1
    return [np.append(x[:cut], np.int32(EOS)) if len(x) > MAX_TOKENS else x for x in segments]


def pad_tokens(tokens: Sequence[Tokens], length: int | None = None) -> NDArray[np.int32]:
    """Token arrays of B songs -> int32 [B, N], padded to the longest or to ``length``."""
    padded = np.full((len(tokens), length or max(map(len, tokens))), PAD, np.int32)
    for row, sequence in zip(padded, tokens, strict=True):
        row[: len(sequence)] = sequence
    return padded
