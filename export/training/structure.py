"""A structured start for the networks: ordinary weights, set so that attention already gathers notes from the tokens.

Learning notes -> mel is quick; teaching attention to find the notes is slow. So the first weights say how:

- Note encoder, layer 0: three heads copy to each token the time of the preceding shift, the preceding velocity and the
  preceding program; one tells the notes that are held from before, which the tie token follows, that they are.
- Layer 1: one head pairs each pitch with the next token of the same pitch, its note-off, and copies that one's time.
- Decoder cross-attention: *cover* heads attend to the notes that sound at a frame, *start* heads to those that begin
  there; in the later layers one head looks at the end of the context.

It is written in the slots and codes of ``notewave.export.training.codes``. All of it is trained on.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from notewave.errors import TrainingError
from notewave.export.networks import SpectrogramDiffusion
from notewave.export.training.codes import (
    CODE_POWER,
    MARK,
    ORDER_FREQUENCIES,
    PIANO_KEYS,
    PIANO_LOW,
    TIME_FREQUENCIES,
    Head,
    Slots,
    code,
    norm_gain,
    set_cross,
    set_cross_values,
    set_head,
    set_values,
    spread_codes,
)
from notewave.song.codec import STEPS_PER_SECOND
from notewave.song.dialect import EOS, PITCH, PUBLISHED, SHIFT, SLAKH_PROGRAM, VELOCITY
from notewave.sound.mel import HOP, SAMPLE_RATE
from notewave.voice.contracts import Dimensions

FRAMES_PER_STEP = SAMPLE_RATE / HOP / STEPS_PER_SECOND  # frames in one shift step
COPYING_HEADS = 4  # of the note encoder's first layer
REACH = 1300  # tokens on either side that these heads are fitted for
HELD_TIME = -6.0  # frame at which notes held from before start
MIN_WIDTH, MIN_HEADS, MIN_HEAD_WIDTH = 256, 4, 64


@torch.no_grad()
def structure(model: SpectrogramDiffusion, symbolic_layers: int = 2) -> None:
    """Set a model's weights to the structured start, the first ``symbolic_layers`` decoder layers in full.

    Raises TrainingError where the networks are too small for it.
    """
    size = model.size
    if (
        size.width < MIN_WIDTH
        or size.heads < MIN_HEADS
        or size.head_width < MIN_HEAD_WIDTH
        or size.note_encoder_layers < 2
    ):
        raise TrainingError(
            "the structured start needs width 256, 4 heads of 64 and 2 note-encoder layers, or more of each."
        )
    _plain(model)
    _embed_tokens(model)
    _encode_notes(model)
    _embed_frames(model)
    for layer in range(size.decoder_layers):
        _gather_notes(model, layer, full=layer < symbolic_layers)


def _plain(model: SpectrogramDiffusion) -> None:
    """What the structure does not set: small random weights, residual branches and FiLM starting near nothing."""
    for name, weight in model.named_parameters():
        if weight.ndim == 2 and "positions" not in name:
            weight.normal_(0.0, 1 / math.sqrt(weight.shape[1]))
        if name.endswith(("attention.out.weight", "cross_out.weight", "feed_forward.out.weight")):
            weight.mul_(0.03)
    model.time_embedding.film.weight.zero_()
    model.decoder.output.weight.mul_(0.2)


def _embed_tokens(model: SpectrogramDiffusion) -> None:
    """Every token has the same norm: order code, constant, mark of its kind, and what it says as published."""
    tie, programs, drums = PUBLISHED.tie, slice(PUBLISHED.program, PUBLISHED.drum), slice(PUBLISHED.drum, PUBLISHED.end)
    table = np.zeros((model.size.vocabulary, model.size.width))
    loud = math.sqrt(CODE_POWER)
    table[:, Slots.CONST] = MARK
    shifts = np.arange(PITCH - SHIFT)
    table[SHIFT:PITCH, Slots.TIME] = code(shifts * FRAMES_PER_STEP, TIME_FREQUENCIES)
    table[SHIFT:PITCH, Slots.IS_SHIFT] = MARK
    table[tie, Slots.TIME], table[tie, Slots.IS_TIE] = code(np.zeros(()), TIME_FREQUENCIES), MARK  # the segment's start
    key = (np.arange(128) - PIANO_LOW) % PIANO_KEYS
    table[PITCH + np.arange(128), Slots.PITCH.start + key] = loud
    table[PITCH:VELOCITY, Slots.IS_PITCH] = MARK
    table[VELOCITY, Slots.SIGN], table[VELOCITY + 1, Slots.SIGN] = -loud, loud
    table[VELOCITY:tie, Slots.IS_VELOCITY] = MARK
    table[programs, Slots.IS_PROGRAM] = MARK
    classes, own = np.unique(SLAKH_PROGRAM, return_inverse=True)  # tokens know no other programs
    table[programs, Slots.PROGRAM] = spread_codes(len(classes), 15)[own] * loud
    table[drums, Slots.PITCH] = spread_codes(128, PIANO_KEYS, seed=1) * loud
    table[drums, Slots.IS_PITCH] = MARK
    table[EOS, Slots.IS_EOS], table[EOS, Slots.TIME] = MARK, 0.5 * code(np.full((), 266.0), TIME_FREQUENCIES)
    model.note_encoder.embedding.weight.copy_(torch.from_numpy(table))
    order = np.zeros((model.size.max_tokens, model.size.width))
    order[:, Slots.ORDER] = code(np.arange(len(order)), ORDER_FREQUENCIES)
    model.note_encoder.positions.copy_(torch.from_numpy(order))


def _encode_notes(model: SpectrogramDiffusion) -> None:
    """Layer 0: preceding shift's time, velocity and program; layer 1: the note-off's time."""
    layers: Any = model.note_encoder.layers
    _copy_preceding(layers[0].attention, model.size)
    _tell_held_notes(layers[0].attention, model.size)
    _pair_notes(layers[1].attention, model.size)


def _token_gain(width: int) -> float:
    """Of the norm of a token that no layer has added to: order and content codes, constant and mark."""
    return norm_gain(width, 2 * CODE_POWER + 2 * MARK**2)


def _copy_preceding(attention: Any, size: Dimensions) -> None:
    """The first heads of layer 0 copy to each token the time, velocity and program that were said last."""
    width, gain = size.width, _token_gain(size.width)

    def preceding(slope: float) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
        return lambda d: np.where(d > 0, -slope * np.log1p(np.maximum(d - 1, 0) / 8), -60.0)

    def near(d: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.where(d == 0, 0.0, np.where(d > 0, 3 / (1 + (d / 8) ** 2), 0.5 / (1 + (d / 6) ** 2)) + 0.005)

    others = (Slots.IS_SHIFT, Slots.IS_VELOCITY, Slots.IS_PITCH, Slots.IS_PROGRAM, Slots.IS_TIE)
    copies = (
        (Slots.TIME, 40.0, {Slots.IS_SHIFT: 110.0, Slots.IS_TIE: 110.0}),
        (slice(Slots.SIGN, Slots.SIGN + 1), 40.0, {Slots.IS_VELOCITY: 110.0}),
        # of one instrument alone, only the first note has the program before it
        (Slots.PROGRAM, 20.0, {**dict.fromkeys(others, -90.0), Slots.IS_PROGRAM: 110.0}),
    )
    for head, (source, slope, marks) in enumerate(copies):
        logits = Head(width, size.head_width, gain, gain)
        logits.difference(Slots.ORDER, Slots.ORDER, ORDER_FREQUENCIES, np.arange(24), preceding(slope), REACH, near)
        logits.marks(Slots.CONST, marks)
        own = np.zeros((1, width))
        own[0, Slots.IS_EOS] = math.sqrt(150.0) / MARK
        logits.add(own, own)  # the end attends to itself
        set_head(attention, head, logits)
        values, outputs = np.zeros((size.head_width, width)), np.zeros((width, size.head_width))
        span = source.stop - source.start
        values[np.arange(span), np.arange(source.start, source.stop)] = 1.0 / gain
        outputs[np.arange(source.start, source.stop), np.arange(span)] = 1.0
        if source == Slots.PROGRAM:
            outputs *= math.sqrt(0.5)
        set_values(attention, head, values, outputs)


def _tell_held_notes(attention: Any, size: Dimensions) -> None:
    """The last of the copying heads of layer 0 tells notes that the tie follows that they are held from before.

    The times and velocities copied to them are those of notes to come, so this must be louder. All others attend to
    the end, from which they learn nothing.
    """
    width, gain = size.width, _token_gain(size.width)

    def following(d: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.where(d < 0, 0.0, -60.0)

    logits = Head(width, size.head_width, gain, gain)
    logits.difference(Slots.ORDER, Slots.ORDER, ORDER_FREQUENCIES, np.arange(24), following, REACH, _near_zero)
    logits.marks(Slots.CONST, {Slots.IS_TIE: 60.0, Slots.IS_EOS: 30.0})
    set_head(attention, COPYING_HEADS - 1, logits)
    values, outputs = np.zeros((size.head_width, width)), np.zeros((width, size.head_width))
    values[0, Slots.IS_TIE] = 2 * (1.0 / gain) / MARK
    outputs[Slots.TIME, 0] = code(np.full((), HELD_TIME), TIME_FREQUENCIES)
    outputs[Slots.SIGN, 0] = math.sqrt(CODE_POWER)
    set_values(attention, COPYING_HEADS - 1, values, outputs)


def _pair_notes(attention: Any, size: Dimensions) -> None:
    """A head of layer 1 pairs each pitch with the next token of the same pitch, and copies that one's time."""
    width = size.width
    gain = norm_gain(width, 4.5 * CODE_POWER + 2 * MARK**2)  # of a pitch that has its time, velocity and program
    end = _token_gain(width) / gain  # the end has no pitch or velocity: another norm

    def following(d: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.where(d < 0, -14 * np.log1p(np.maximum(-d - 3, 0) / 6), -60.0)

    def near_next(d: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.where((d >= -2) & (d <= -1), 0.0, 1 / (1 + ((d + 3) / 30) ** 2))

    logits = Head(width, size.head_width, gain, gain)
    logits.difference(Slots.ORDER, Slots.ORDER, ORDER_FREQUENCIES, np.arange(0, 24, 2), following, REACH, near_next)
    same = np.zeros((38, width))
    same[:, Slots.PITCH] = spread_codes(PIANO_KEYS, 38).T * math.sqrt(110 / CODE_POWER)
    logits.add(same, same)
    logits.marks(Slots.CONST, {Slots.IS_EOS: 75.0 / end})
    set_head(attention, 0, logits)
    values, outputs = np.zeros((size.head_width, width)), np.zeros((width, size.head_width))
    values[np.arange(48), np.arange(48)] = 1.0 / gain
    outputs[np.arange(Slots.OFF_TIME.start, Slots.OFF_TIME.stop), np.arange(48)] = 1.0
    set_values(attention, 0, values, outputs)


def _embed_frames(model: SpectrogramDiffusion) -> None:
    """Frames of decoder and context carry the time code, in slots that the mel does not write to."""
    frames = np.arange(model.size.frames)
    table = np.zeros((len(frames), model.size.width))
    table[:, Slots.TIME] = code(frames, TIME_FREQUENCIES)
    table[:, Slots.FRAME_CONST] = MARK
    model.decoder.positions.copy_(torch.from_numpy(table))
    model.decoder.input.weight.mul_(0.3)
    model.decoder.input.weight[: Slots.FRAME_CONST + 1] = 0.0

    if not model.size.context_frames:
        return
    table = np.zeros((len(frames), model.size.width))
    table[:, Slots.TIME] = code(frames - len(frames), TIME_FREQUENCIES)
    table[:, [Slots.CONST, Slots.IS_CONTEXT]] = MARK
    model.context_encoder.positions.copy_(torch.from_numpy(table))
    model.context_encoder.input.weight[Slots.TIME] = 0.0
    model.context_encoder.input.weight[Slots.OFF_TIME] = 0.0
    model.context_encoder.input.weight[Slots.CONST : Slots.IS_CONTEXT + 1] = 0.0


def _gather_notes(model: SpectrogramDiffusion, layer: int, full: bool) -> None:
    """Cross-attention heads of a decoder layer: two cover and two start heads, or one of each and one for context."""
    size, width = model.size, model.size.width
    frame = norm_gain(width, CODE_POWER + MARK**2 + (20.0 if layer == 0 else 40.0))
    note = norm_gain(width, 5.5 * CODE_POWER + 2 * MARK**2)
    end = _token_gain(width) / note
    cross: Any = model.decoder.layers[layer]
    kinds = ("cover", "cover", "start", "start") if full else ("cover", "start", "plain", "context")
    for head, kind in enumerate(kinds):
        if kind == "plain":
            continue
        logits = Head(width, size.head_width, frame, note)
        if kind == "cover":
            chosen = np.unique(np.round(np.linspace(0, 23, 15)).astype(int))
            for slot, target in ((Slots.TIME, _since), (Slots.OFF_TIME, _until)):
                logits.difference(Slots.TIME, slot, TIME_FREQUENCIES, chosen, target, 270, _near_zero)
        elif kind == "start":
            logits.difference(Slots.TIME, Slots.TIME, TIME_FREQUENCIES, np.arange(24), _just, 270, _near_zero)
        if kind == "context":
            logits.difference(Slots.TIME, Slots.TIME, TIME_FREQUENCIES, np.arange(4, 24), _recent, 500, np.ones_like)
            logits.marks(Slots.FRAME_CONST, {Slots.IS_CONTEXT: 20.0, Slots.IS_EOS: 14.0 / end})
        else:
            sign = MARK / math.sqrt(CODE_POWER)
            marks = {Slots.IS_PITCH: 40.0, Slots.SIGN: 20.0 * sign, Slots.IS_EOS: 90.0 / end}
            logits.marks(Slots.FRAME_CONST, marks)
            logits.soften(0.22 if kind == "cover" else 0.5)
        set_cross(model, layer, head, logits)
        if full:
            keys = np.arange(44) + 44 * (head % 2)
            values, outputs = np.zeros((size.head_width, width)), np.zeros((width, size.head_width))
            values[np.arange(44), Slots.PITCH.start + keys] = 1.0 / note
            strength = 1.0 if layer == 0 else 0.3
            pitches, programs = (
                (Slots.COVER, Slots.COVER_PROGRAM) if kind == "cover" else (Slots.START, Slots.START_PROGRAM)
            )
            outputs[pitches.start + keys, np.arange(44)] = strength
            if head % 2 == 0:
                span = np.arange(15)
                values[44 + span, Slots.PROGRAM.start + span] = 1.0 / note
                outputs[programs.start + span, 44 + span] = strength
            set_cross_values(model, layer, head, values)
            inner = slice(head * size.head_width, (head + 1) * size.head_width)
            cross.cross_out.weight[:, inner] = torch.from_numpy(outputs).float()


def _since(d: NDArray[np.float64]) -> NDArray[np.float64]:
    """Nothing from a note's onset on, far below before it."""
    return -30 / (1 + np.exp((d + 0.5) * 2))


def _until(d: NDArray[np.float64]) -> NDArray[np.float64]:
    """Nothing until a note's end, far below from there on."""
    return -30 / (1 + np.exp((-d - 0.5) * 2))


def _just(d: NDArray[np.float64]) -> NDArray[np.float64]:
    """Nothing in the frame of an onset and the next, far below elsewhere."""
    return np.where((d > -1) & (d < 2), 0.0, -30.0)


def _recent(d: NDArray[np.float64]) -> NDArray[np.float64]:
    """Falls with the age of a context frame, to nothing much after a second."""
    return 12 * np.exp(-np.maximum(d, 0) / 25)


def _near_zero(d: NDArray[np.float64]) -> NDArray[np.float64]:
    return 1 / (1 + (d / 6) ** 2) + 0.01
