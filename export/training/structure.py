"""A structured start for the networks: ordinary weights, set so that attention already gathers notes from the tokens.

Learning notes -> mel is quick; teaching attention to find the notes is slow. So the first weights say how:

- Note encoder, layer 0: three heads copy to each token the time of the preceding shift, the preceding velocity and the
  preceding program; one tells the notes that are held from before, which the tie token follows, that they are.
- Layer 1: one head pairs each pitch with the next token of the same pitch, its note-off, and copies that one's time.
- Decoder cross-attention: *cover* heads attend to the notes that sound at a frame, *start* heads to those that begin
  there; in the later layers one head looks at the end of the context.

The residual streams are divided into slots for it (``Slots``). Times and token order are codes of sinusoids, so that
any smooth function of a difference is a dot product, its coefficients found by least squares. All of it is trained on.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from notewave.errors import TrainingError
from notewave.export.networks import SpectrogramDiffusion, masked_bias, modulate
from notewave.song.codec import (
    DRUM,
    EOS,
    PAD,
    PITCH,
    PROGRAM,
    SHIFT,
    SLAKH_PROGRAM,
    STEPS_PER_SECOND,
    TIE,
    VELOCITY,
)
from notewave.sound.mel import HOP, SAMPLE_RATE

FRAMES_PER_STEP = SAMPLE_RATE / HOP / STEPS_PER_SECOND  # frames in one shift step
EOS_LOGIT, NOTES_LOGIT, CONTEXT_LOGIT = 8.0, -12.0, -14.0  # of a context head: late in a segment it rests on EOS,
END_LOGIT, END_FRAMES, EARLY_FRAMES = 50.0, 4.0, 16.0  # early, this comes on top at the context's end
EARLY_WEIGHT = 30.0  # of the first frames when their query is fitted
MEL_GAIN = 16.0  # of the mel in a context head's values: loud, so that small weights, soon learned, make use of it
END_WEIGHT, NOTES_WEIGHT = 50.0, 0.005  # in their fit: EOS must bring no mel, while no head rests on other tokens
AWAY_LOGIT = -20.0  # of context frames, for all other heads
COPYING_HEADS = 4  # of the note encoder's first layer
REACH = 1300  # tokens on either side that these heads are fitted for
HELD_TIME = -6.0  # frame at which notes held from before start
PIANO_LOW, PIANO_KEYS = 21, 88  # pitches fold into the 88 keys of a piano
MIN_WIDTH, MIN_HEADS, MIN_HEAD_WIDTH = 256, 4, 64


class Slots:
    """Where the streams keep what: ranges of their first 256 dimensions."""

    TIME, OFF_TIME, ORDER = slice(0, 48), slice(48, 96), slice(96, 144)
    PITCH = slice(144, 144 + PIANO_KEYS)
    CONST, IS_SHIFT, IS_VELOCITY, SIGN, IS_PITCH, IS_EOS, IS_PROGRAM, IS_CONTEXT = range(232, 240)
    IS_TIE, PROGRAM = 240, slice(241, 256)
    # the decoder's stream: TIME as above, then
    FRAME_CONST = 48
    COVER, START = slice(49, 49 + PIANO_KEYS), slice(137, 137 + PIANO_KEYS)
    COVER_PROGRAM, START_PROGRAM = slice(225, 240), slice(240, 255)


TIME_FREQUENCIES = 2 * np.pi / np.geomspace(2.5, 700, 24)  # radians a frame
ORDER_FREQUENCIES = 2 * np.pi / np.geomspace(2.3, 3000, 24)  # radians a token
CODE_POWER = 24.0  # squared norm of a time or order code, and of whatever else marks a token
MARK = 4.0  # constant and kind-of-token marks


def code(values: NDArray[np.floating | np.integer], frequencies: NDArray[np.floating]) -> NDArray[np.float64]:
    """Sines, then cosines [..., 2 F] of values [...]."""
    angles = np.asarray(values, np.float64)[..., None] * frequencies
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=-1)


class _Head:
    """Collects the terms of one attention head's logits: a sum of products of a query and a key function."""

    def __init__(self, width: int, head_width: int, query_gain: float, key_gain: float) -> None:
        self.query, self.key = np.zeros((head_width, width)), np.zeros((head_width, width))
        self.gains, self.used = (query_gain, key_gain), 0
        self.constant = 0.0  # of the targets, which no code can give

    def add(self, query: NDArray[np.float64], key: NDArray[np.float64]) -> None:
        """Rows [R, D] of query and key weights, for streams that the norm multiplied by the gains."""
        rows = slice(self.used, self.used + len(query))
        scale = np.sqrt((np.linalg.norm(query, axis=1) + 1e-9) / (np.linalg.norm(key, axis=1) + 1e-9))[:, None]
        self.query[rows], self.key[rows] = query / scale / self.gains[0], key * scale / self.gains[1]
        self.used += len(query)

    def difference(
        self,
        query_slot: slice,
        key_slot: slice,
        frequencies: NDArray[np.floating],
        chosen: NDArray[np.integer],
        target: Callable[[NDArray[np.float64]], NDArray[np.float64]],
        reach: int,
        weight: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    ) -> None:
        """Logits target(query value - key value), from the chosen frequencies of two codes."""
        cosine, sine, constant = _difference(frequencies[chosen], target, reach, weight)
        self.constant += constant
        count, width = len(chosen), self.query.shape[1]
        query, key = np.zeros((2 * count, width)), np.zeros((2 * count, width))
        rows, half = np.arange(count), (query_slot.stop - query_slot.start) // 2
        q_sin, q_cos = query_slot.start + chosen, query_slot.start + half + chosen
        key[rows, key_slot.start + chosen] = 1.0  # sin m: A sin n - B cos n
        query[rows, q_sin], query[rows, q_cos] = cosine, -sine
        key[count + rows, key_slot.start + half + chosen] = 1.0  # cos m: A cos n + B sin n
        query[count + rows, q_cos], query[count + rows, q_sin] = cosine, sine
        self.add(query, key)

    def soften(self, factor: float) -> None:
        """Multiply all logits by a factor."""
        self.query *= factor

    def marks(self, const: int, weights: dict[int, float]) -> None:
        """Logits that depend on the key alone: a weight for each of its mark dimensions (at their full value MARK)."""
        query, key = np.zeros((1, self.query.shape[1])), np.zeros((1, self.key.shape[1]))
        query[0, const] = 1 / MARK
        key[0, Slots.CONST] = self.constant / MARK
        for dimension, logits in weights.items():
            key[0, dimension] = logits / MARK
        self.add(query, key)


def _difference(
    frequencies: NDArray[np.floating],
    target: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    reach: int,
    weight: Callable[[NDArray[np.float64]], NDArray[np.float64]],
) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """A, B and c of sum A cos(w d) + B sin(w d) + c nearest to target(d) for |d| <= reach."""
    d = np.arange(-reach, reach + 1, dtype=np.float64)
    angles = d[:, None] * frequencies
    basis = np.concatenate([np.cos(angles), np.sin(angles), np.ones((len(d), 1))], axis=1)
    scale = np.sqrt(weight(d))[:, None]
    ridge = 0.02 * np.eye(basis.shape[1])
    solution = np.linalg.lstsq(
        np.concatenate([basis * scale, ridge]), np.append(target(d) * scale[:, 0], np.zeros(len(ridge)))
    )[0]
    cosine, sine = solution[:-1].reshape(2, -1)
    return cosine, sine, float(solution[-1])


def spread_codes(count: int, width: int, seed: int = 0) -> NDArray[np.float64]:
    """Unit vectors [count, width] with small dot products among them, by repelling one another."""
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(count, width))
    for _ in range(300):
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        overlap = vectors @ vectors.T - np.eye(count)
        vectors -= 2.0 * width / count * (overlap**3) @ vectors
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@torch.no_grad()
def structure(model: SpectrogramDiffusion, symbolic_layers: int = 2) -> None:
    """Set a model's weights to the structured start, the first ``symbolic_layers`` decoder layers in full."""
    _plain(model)
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
    """Every token has the same norm: order code, constant, mark of its kind, and what it says."""
    table = np.zeros((model.size.vocabulary, model.size.width))
    loud = math.sqrt(CODE_POWER)
    table[:, Slots.CONST] = MARK
    shifts = np.arange(PITCH - SHIFT)
    table[SHIFT:PITCH, Slots.TIME] = code(shifts * FRAMES_PER_STEP, TIME_FREQUENCIES)
    table[SHIFT:PITCH, Slots.IS_SHIFT] = MARK
    table[TIE, Slots.TIME], table[TIE, Slots.IS_TIE] = code(np.zeros(()), TIME_FREQUENCIES), MARK  # the segment's start
    key = (np.arange(128) - PIANO_LOW) % PIANO_KEYS
    table[PITCH + np.arange(128), Slots.PITCH.start + key] = loud
    table[PITCH:VELOCITY, Slots.IS_PITCH] = MARK
    table[VELOCITY, Slots.SIGN], table[VELOCITY + 1, Slots.SIGN] = -loud, loud
    table[VELOCITY:TIE, Slots.IS_VELOCITY] = MARK
    table[PROGRAM:DRUM, Slots.IS_PROGRAM] = MARK
    classes, own = np.unique(SLAKH_PROGRAM, return_inverse=True)  # tokens know no other programs
    table[PROGRAM:DRUM, Slots.PROGRAM] = spread_codes(len(classes), 15)[own] * loud
    table[DRUM : DRUM + 128, Slots.PITCH] = spread_codes(128, PIANO_KEYS, seed=1) * loud
    table[DRUM : DRUM + 128, Slots.IS_PITCH] = MARK
    table[EOS, Slots.IS_EOS], table[EOS, Slots.TIME] = MARK, 0.5 * code(np.full((), 266.0), TIME_FREQUENCIES)
    model.note_encoder.embedding.weight.copy_(torch.from_numpy(table))
    order = np.zeros((model.size.max_tokens, model.size.width))
    order[:, Slots.ORDER] = code(np.arange(len(order)), ORDER_FREQUENCIES)
    model.note_encoder.positions.copy_(torch.from_numpy(order))


def _norm_gain(width: int, power: float) -> float:
    return math.sqrt(width / power)


def _encode_notes(model: SpectrogramDiffusion) -> None:
    """Layer 0: preceding shift's time, velocity and program; layer 1: the note-off's time."""
    size, width = model.size, model.size.width
    first = _norm_gain(width, 2 * CODE_POWER + 2 * MARK**2)  # order and content codes, constant and mark
    second = _norm_gain(width, 4.5 * CODE_POWER + 2 * MARK**2)  # a pitch that has its time, velocity and program
    every = np.arange(24)

    def preceding(slope: float) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
        return lambda d: np.where(d > 0, -slope * np.log1p(np.maximum(d - 1, 0) / 8), -60.0)

    def near(d: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.where(d == 0, 0.0, np.where(d > 0, 3 / (1 + (d / 8) ** 2), 0.5 / (1 + (d / 6) ** 2)) + 0.005)

    layers: Any = model.note_encoder.layers
    attention = layers[0].attention
    others = (Slots.IS_SHIFT, Slots.IS_VELOCITY, Slots.IS_PITCH, Slots.IS_PROGRAM, Slots.IS_TIE)
    copies = (
        (Slots.TIME, 40.0, {Slots.IS_SHIFT: 110.0, Slots.IS_TIE: 110.0}),
        (slice(Slots.SIGN, Slots.SIGN + 1), 40.0, {Slots.IS_VELOCITY: 110.0}),
        # of one instrument alone, only the first note has the program before it
        (Slots.PROGRAM, 20.0, {**dict.fromkeys(others, -90.0), Slots.IS_PROGRAM: 110.0}),
    )
    gain = 1.0 / first
    for head, (source, slope, marks) in enumerate(copies):
        logits = _Head(width, size.head_width, first, first)
        logits.difference(Slots.ORDER, Slots.ORDER, ORDER_FREQUENCIES, every, preceding(slope), REACH, near)
        logits.marks(Slots.CONST, marks)
        own = np.zeros((1, width))
        own[0, Slots.IS_EOS] = math.sqrt(150.0) / MARK
        logits.add(own, own)  # the end attends to itself
        _set_head(attention, head, logits)
        values, outputs = np.zeros((size.head_width, width)), np.zeros((width, size.head_width))
        span = source.stop - source.start
        values[np.arange(span), np.arange(source.start, source.stop)] = gain
        outputs[np.arange(source.start, source.stop), np.arange(span)] = 1.0
        if source == Slots.PROGRAM:
            outputs *= math.sqrt(0.5)
        _set_values(attention, head, values, outputs)

    # A note that the tie follows is held from before; the times and velocities copied to it are those of notes to come,
    # so this must be louder. All others attend to the end, from which they learn nothing.
    logits = _Head(width, size.head_width, first, first)
    logits.difference(
        Slots.ORDER, Slots.ORDER, ORDER_FREQUENCIES, every, lambda d: np.where(d < 0, 0.0, -60.0), REACH, _near_zero
    )
    logits.marks(Slots.CONST, {Slots.IS_TIE: 60.0, Slots.IS_EOS: 30.0})
    _set_head(attention, COPYING_HEADS - 1, logits)
    values, outputs = np.zeros((size.head_width, width)), np.zeros((width, size.head_width))
    values[0, Slots.IS_TIE] = 2 * gain / MARK
    outputs[Slots.TIME, 0] = code(np.full((), HELD_TIME), TIME_FREQUENCIES)
    outputs[Slots.SIGN, 0] = math.sqrt(CODE_POWER)
    _set_values(attention, COPYING_HEADS - 1, values, outputs)

    def following(d: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.where(d < 0, -14 * np.log1p(np.maximum(-d - 3, 0) / 6), -60.0)

    def near_next(d: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.where((d >= -2) & (d <= -1), 0.0, 1 / (1 + ((d + 3) / 30) ** 2))

    attention = layers[1].attention
    logits = _Head(width, size.head_width, second, second)
    logits.difference(Slots.ORDER, Slots.ORDER, ORDER_FREQUENCIES, np.arange(0, 24, 2), following, REACH, near_next)
    same = np.zeros((38, width))
    same[:, Slots.PITCH] = spread_codes(PIANO_KEYS, 38).T * math.sqrt(110 / CODE_POWER)
    logits.add(same, same)
    end_power = (
        _norm_gain(width, 2 * CODE_POWER + 2 * MARK**2) / second
    )  # the end has no pitch or velocity: another norm
    logits.marks(Slots.CONST, {Slots.IS_EOS: 75.0 / end_power})
    _set_head(attention, 0, logits)
    values, outputs = np.zeros((size.head_width, width)), np.zeros((width, size.head_width))
    values[np.arange(48), np.arange(48)] = 1.0 / second
    outputs[np.arange(Slots.OFF_TIME.start, Slots.OFF_TIME.stop), np.arange(48)] = 1.0
    _set_values(attention, 0, values, outputs)


def _embed_frames(model: SpectrogramDiffusion) -> None:
    """Frames of decoder and context carry the time code, in slots that the mel does not write to."""
    frames = np.arange(model.size.frames)
    table = np.zeros((len(frames), model.size.width))
    table[:, Slots.TIME] = code(frames, TIME_FREQUENCIES)
    table[:, Slots.FRAME_CONST] = MARK
    model.decoder.positions.copy_(torch.from_numpy(table))
    model.decoder.input.weight.mul_(0.3)
    model.decoder.input.weight[: Slots.FRAME_CONST + 1] = 0.0

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
    frame = _norm_gain(width, CODE_POWER + MARK**2 + (20.0 if layer == 0 else 40.0))
    note = _norm_gain(width, 5.5 * CODE_POWER + 2 * MARK**2)
    end = _norm_gain(width, 2 * CODE_POWER + 2 * MARK**2) / note
    cross: Any = model.decoder.layers[layer]
    kinds = ("cover", "cover", "start", "start") if full else ("cover", "start", "plain", "context")
    for head, kind in enumerate(kinds):
        if kind == "plain":
            continue
        logits = _Head(width, size.head_width, frame, note)
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
        _set_cross(model, layer, head, logits)
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
            _set_cross_values(model, layer, head, values)
            inner = slice(head * size.head_width, (head + 1) * size.head_width)
            cross.cross_out.weight[:, inner] = torch.from_numpy(outputs).float()


@torch.no_grad()
def pass_on_heads(model: SpectrogramDiffusion, trained_layers: int) -> None:
    """Give the later decoder layers the cover and the start head that the last trained layer has learned."""
    count, source = model.size.head_width, trained_layers - 1
    layers: Any = model.decoder.layers
    queries = [_trained_weight(layer.cross_queries) for layer in layers]
    keys = model.cross_attention.projection.weight.chunk(2 * model.size.decoder_layers)[::2]
    for layer in range(trained_layers, model.size.decoder_layers):
        for head, learned in ((0, 0), (1, 2)):
            rows, from_rows = slice(head * count, (head + 1) * count), slice(learned * count, (learned + 1) * count)
            queries[layer][rows] = queries[source][from_rows]
            keys[layer][rows] = keys[source][from_rows]


@torch.no_grad()
def attend_to_context(model: SpectrogramDiffusion, tokens: Tensor, context: Tensor, first_layer: int) -> None:
    """Let one head of each later decoder layer carry the context's end to a segment's first frames, and no other head.

    tokens int64 [B, N], context mel [B, T, M] in network range: segments to fit the logits on, whatever the residual
    streams hold by now. Left to themselves, the heads that were trained on notes alone find some context frames more
    alluring than any note; a head that brings the context to all frames, of which most can't use it, is as bad, and so
    is one that adds it in some random way. Each time training rids them of the context for good. So it is brought to
    the frames that need it, and adds nothing until training has learned how.
    """
    size, head = model.size, model.size.heads - 1
    rows = slice(head * size.head_width, (head + 1) * size.head_width)
    notes, frames = model.note_encoder(tokens), model.context_encoder(context)
    age = torch.arange(size.frames - 1, -1, -1, device=tokens.device)
    early = torch.exp(-torch.arange(size.frames, device=tokens.device) / EARLY_FRAMES)
    memory = torch.cat([notes, frames], dim=1)
    seen = torch.cat([tokens != PAD, torch.ones_like(context[..., 0], dtype=torch.bool)], dim=1)

    def key(of_tokens: Tensor, of_frames: Tensor) -> Tensor:
        """Weights that give each token and each context frame its logit."""
        return _least_squares(memory[seen], torch.cat([of_tokens, of_frames.expand(len(tokens), -1)], dim=1)[seen])

    nothing, ones = torch.zeros_like(tokens, dtype=frames.dtype), torch.ones_like(early)
    always = key(torch.where(tokens == EOS, EOS_LOGIT, NOTES_LOGIT), CONTEXT_LOGIT * ones)
    at_first = key(nothing, END_LOGIT * torch.exp(-age / END_FRAMES))
    away = key(nothing, AWAY_LOGIT * ones)
    ends, others = notes[tokens == EOS], notes[(tokens != PAD) & (tokens != EOS)]
    end = ends.mean(dim=0)
    mel = _principal_components(context.flatten(0, 1), size.head_width - 1) * MEL_GAIN
    vectors = torch.cat([frames.flatten(0, 1), END_WEIGHT * ends, NOTES_WEIGHT * others])
    brought = _least_squares(vectors, F.pad(mel, (0, 0, 0, len(ends) + len(others))), ridge=1e-9).T
    parts = model.cross_attention.projection.weight.chunk(2 * size.decoder_layers)
    mask = masked_bias(seen)
    hidden = model.decoder.input(torch.randn_like(context)) + model.decoder.positions
    film = model.time_embedding(torch.ones(1, device=tokens.device))
    layers: Any = model.decoder.layers
    for index, layer in enumerate(layers):
        attended = hidden + layer.attention(modulate(layer.attention_norm(hidden), film[:, index, 0]))
        normed = layer.cross_norm(attended)
        keys = parts[2 * index].unflatten(0, (size.heads, -1))
        mean_query = layer.cross_queries(normed).mean(dim=(0, 1)).unflatten(0, (size.heads, -1))
        keys += (mean_query / mean_query.square().sum(dim=1, keepdim=True))[..., None] * away
        if index >= first_layer:
            queries = torch.randn(size.head_width, size.width, device=normed.device) * 0.02
            weight = (1 + EARLY_WEIGHT * early).sqrt().expand(len(tokens), -1)
            rated = (normed * weight[..., None]).flatten(0, 1)
            queries[:2] = torch.stack([_least_squares(rated, (wanted * weight).flatten()) for wanted in (ones, early)])
            unscale = math.sqrt(size.head_width) if hasattr(layer.cross_queries, "parametrizations") else 1.0
            _trained_weight(layer.cross_queries)[rows] = queries * unscale
            keys[head] = torch.randn_like(queries) * 0.02
            keys[head, :2] = torch.stack([always, at_first])
            rest = layer.cross_out.weight[:, rows] @ (parts[2 * index + 1][rows] @ end)
            parts[2 * index + 1][rows] = torch.cat([brought, end[None] / end.square().sum()])
            layer.cross_out.weight[:, rows] = 0.0  # the mel is at hand, but says nothing yet
            layer.cross_out.weight[:, rows][:, -1] = rest  # resting on EOS adds what it did
        pair = model.cross_attention(notes, frames)[2 * index : 2 * index + 2]
        hidden = layer(hidden, film[:, index], pair, mask)


def _least_squares(vectors: Tensor, wanted: Tensor, ridge: float = 1e-4) -> Tensor:
    """Weights [D, ...] whose products with vectors [n, D] come near the wanted numbers [n, ...]."""
    rows = vectors.double()
    small = ridge * rows.square().sum() / rows.shape[1] * torch.eye(rows.shape[1], device=rows.device).double()
    return torch.linalg.solve(rows.T @ rows + small, rows.T @ wanted.double()).float()


def _principal_components(rows: Tensor, count: int) -> Tensor:
    """The first principal components [n, count] of rows [n, M], each of variance 1."""
    centred = rows.double() - rows.double().mean(dim=0)
    directions = torch.linalg.eigh(centred.T @ centred).eigenvectors[:, -count:]
    components = centred @ directions
    return (components / components.std(dim=0)).float()


@torch.no_grad()
def hold_film(model: SpectrogramDiffusion) -> None:
    """Start the time embedding afresh: at every noise time it gives the FiLM of time 1, all that was seen so far."""
    embedding = model.time_embedding
    film = embedding(torch.ones(1, device=embedding.film.weight.device)).flatten()
    for linear in (embedding.hidden, embedding.out):
        linear.weight.normal_(0.0, 1 / math.sqrt(linear.in_features))
    features: list[Tensor] = []
    handle = embedding.film.register_forward_pre_hook(lambda module, inputs: features.append(inputs[0]))
    embedding(torch.linspace(0, 1, 1001, device=film.device))
    handle.remove()
    seen = features[0].cpu().double().numpy()  # double precision rounds to the same weights every time
    constant = np.linalg.solve(seen.T @ seen + 0.01 * np.eye(seen.shape[1]), seen.sum(axis=0))
    embedding.film.weight.copy_(torch.outer(film, torch.from_numpy(constant).float().to(film.device)))


def _trained_weight(linear: Any) -> Tensor:
    """The tensor that the optimiser holds for a weight, parametrised or not."""
    trained: Tensor = linear.parametrizations.weight.original if hasattr(linear, "parametrizations") else linear.weight
    return trained


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


def _set_head(attention: Any, head: int, logits: _Head) -> None:
    """Query and key rows of one head of a self-attention."""
    weight = attention.qkv.weight
    inner, (count, _) = weight.shape[0] // 3, logits.query.shape
    rows = slice(head * count, (head + 1) * count)
    weight[:inner][rows] = torch.from_numpy(logits.query).float()
    weight[inner : 2 * inner][rows] = torch.from_numpy(logits.key).float()


def _set_values(attention: Any, head: int, values: NDArray[np.float64], outputs: NDArray[np.float64]) -> None:
    """Value rows and output columns of one head of a self-attention."""
    inner, count = attention.qkv.weight.shape[0] // 3, len(values)
    rows = slice(head * count, (head + 1) * count)
    attention.qkv.weight[2 * inner :][rows] = torch.from_numpy(values).float()
    attention.out.weight[:, rows] = torch.from_numpy(outputs).float()


def _set_cross(model: SpectrogramDiffusion, layer: int, head: int, logits: _Head) -> None:
    """Query and key rows of one head of a decoder layer's cross-attention."""
    rows = slice(head * model.size.head_width, (head + 1) * model.size.head_width)
    cross: Any = model.decoder.layers[layer]
    cross.cross_queries.weight[rows] = torch.from_numpy(logits.query).float()
    keys = model.cross_attention.projection.weight.chunk(2 * model.size.decoder_layers)[2 * layer]
    keys[rows] = torch.from_numpy(logits.key).float()


def _set_cross_values(model: SpectrogramDiffusion, layer: int, head: int, values: NDArray[np.float64]) -> None:
    rows = slice(head * model.size.head_width, (head + 1) * model.size.head_width)
    model.cross_attention.projection.weight.chunk(2 * model.size.decoder_layers)[2 * layer + 1][rows] = (
        torch.from_numpy(values).float()
    )
