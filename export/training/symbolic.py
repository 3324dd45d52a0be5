"""Symbolic pre-training: the note encoder and the first decoder layers learn which notes sound and start at each frame.

No audio is needed: note sets are made on the fly. The decoder is fed pure noise, so all it knows comes from the tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from notewave.export.material.pieces import DRUM_KEYS, PIANO, PROGRAMS, Row, as_notes, band, compose
from notewave.export.networks import RMSNorm, SpectrogramDiffusion, in_pairs, masked_bias, split_heads
from notewave.song.codec import (
    DRUM,
    PAD,
    PITCH,
    PROGRAM,
    SHIFT,
    STEPS_PER_SECOND,
    TIE,
    VELOCITY,
    Tokens,
    encode_notes,
    pad_tokens,
)
from notewave.song.notes import Notes
from notewave.sound.mel import FRAMES, SEGMENT_SECONDS

SYMBOLIC_LAYERS = 2  # decoder layers that are pre-trained
POSITIVE_WEIGHTS = (3.0, 6.0)  # of sounding and starting pitches, which are rare
PART_WEIGHT = 6.0  # of pitches that one instrument sounds, or of a drum's strokes, which are rarer still
PARTS = len(PROGRAMS) + 1  # the instruments of PROGRAMS and, last, the drums
STROKE_FRAMES = 3  # that a drum stroke counts for
FRAME_WEIGHT = 10.0  # of each kind of roll
MAX_SYMBOLIC_TOKENS = 700  # of a segment
FRAME_SECONDS = SEGMENT_SECONDS / FRAMES
PITCHES = 128
TOKEN_TARGETS = 3  # onset, offset, and whether a pitch token is a note's start
TOKEN_WEIGHT = 0.3  # of the token head's loss


@dataclass
class SymbolicBatch:
    """B segments: what sounds in them."""

    tokens: Tensor  # int64 [B, N]
    rolls: Tensor  # float32 [B, T, 2, 128]: sounding, starting
    parts: Tensor | None  # float32 [B, T, PARTS, 128]: sounding, of each instrument; None: all that sounds is a piano
    targets: Tensor  # float32 [B, N, 3]: onset and offset in segments, start or not; where the mask is true
    targets_mask: Tensor  # bool [B, N, 2]: pitch token; pitch token that starts a note


class SymbolicHeads(nn.Module):
    """Linear read-outs of pitches from frames, and of times from tokens; thrown away after the stage."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.frame_norm = RMSNorm(width)
        self.frames = nn.Linear(width, 2 * PITCHES)
        self.parts = nn.Linear(width, PARTS * PITCHES)
        self.tokens = nn.Linear(width, TOKEN_TARGETS)
        nn.init.constant_(self.frames.bias, -3.0)
        nn.init.constant_(self.parts.bias, -4.0)


def random_voices(rng: np.random.Generator, seconds: float, programs: Sequence[int] = (0,)) -> Notes:
    """One to twelve voices of random notes, of lengths from 40 ms to several segments, each of one of the programs.

    Where there are several programs, one voice may be random drums.
    """
    rows: list[Row] = []
    if len(programs) > 1 and rng.random() < 0.5:
        times = np.cumsum(rng.exponential(np.exp(rng.uniform(np.log(0.08), np.log(0.6))), int(seconds / 0.1)))
        keys = rng.choice([key for kind in DRUM_KEYS.values() for key in kind], int(rng.integers(1, 6)))
        rows += [(time, time + 0.1, int(rng.choice(keys)), 0, True) for time in times if time < seconds]
    for _ in range(int(rng.integers(1, 13))):
        program = int(rng.choice(programs))
        pace, low = np.exp(rng.uniform(np.log(0.12), np.log(2.5))), int(rng.integers(21, 97))
        high, time = min(108, low + int(rng.integers(1, 60))), rng.uniform(0, 2)
        while time < seconds:
            length = pace * np.exp(rng.normal() * 0.6)
            rows.append(
                (
                    time,
                    time + max(0.04, length * rng.uniform(0.3, 1.4)),
                    int(rng.integers(low, high + 1)),
                    program,
                    False,
                )
            )
            time += length + (pace * 4 * rng.random() if rng.random() < 0.1 else 0.0)
    return as_notes(rows)


def piano_rolls(notes: Notes, segments: int) -> NDArray[np.float32]:
    """Sounding and starting pitches [S, T, 2, 128] of each frame; drums have none."""
    roll = np.zeros((segments * FRAMES + 1, 2, PITCHES), np.float32)
    pitched = ~notes.is_drum
    first, last = _frames(notes)
    for start, stop, pitch in zip(first[pitched], last[pitched], notes.pitch[pitched], strict=True):
        roll[start:stop, 0, pitch] = 1
        roll[min(start, len(roll) - 1), 1, pitch] = 1
    return roll[:-1].reshape(segments, FRAMES, 2, PITCHES)


def _frames(notes: Notes) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First frame of each note, and the first after it."""
    first = np.floor(notes.onset_s / FRAME_SECONDS + 1e-6).astype(np.int64)
    return first, np.ceil(notes.offset_s / FRAME_SECONDS - 1e-6).astype(np.int64)


def part_rolls(notes: Notes, segments: int) -> NDArray[np.float32]:
    """What each instrument sounds [S, T, PARTS, 128] in each frame; drums at their strokes."""
    roll = np.zeros((segments * FRAMES, PARTS, PITCHES), np.float32)
    part = np.where(notes.is_drum, PARTS - 1, np.searchsorted(PROGRAMS, notes.program))
    first, last = _frames(notes)
    last = np.where(notes.is_drum, first + STROKE_FRAMES, last)
    for start, stop, own, pitch in zip(first, last, part, notes.pitch, strict=True):
        roll[start:stop, own, pitch] = 1
    return roll.reshape(segments, FRAMES, PARTS, PITCHES)


def token_targets(tokens: NDArray[np.int32]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Targets [N, 3] and masks [N, 2] of ``SymbolicBatch`` for one segment, read from the tokens alone."""
    targets, mask = np.zeros((len(tokens), TOKEN_TARGETS), np.float32), np.zeros((len(tokens), 2), bool)
    time, velocity, program = -0.05, 1, 0
    started: dict[tuple[int, int], int] = {}  # (program, pitch token) to index
    for index, token in enumerate(tokens.tolist()):
        if SHIFT <= token < PITCH:
            time = (token - SHIFT) / STEPS_PER_SECOND / SEGMENT_SECONDS
        elif VELOCITY <= token < TIE:
            velocity = token - VELOCITY
        elif PROGRAM <= token < DRUM:
            program = token
        elif PITCH <= token < VELOCITY:
            mask[index] = True, velocity == 1
            targets[index] = time, 1.05, velocity
            if velocity:
                started[program, token] = index
            elif (program, token) in started:
                targets[started.pop((program, token)), 1] = time
        elif token == TIE:  # from here on, events
            time = 0.0
    return targets, mask


def symbolic_batch(rng: np.random.Generator, segments: int, token_budget: int, bands: float = 0.0) -> SymbolicBatch:
    """Random segments of similar token counts, some composed, some random voices, within a budget of padded tokens.

    A share ``bands`` of the batches is of bands, the others of a piano.
    """
    ensemble, programs = (band(rng), PROGRAMS) if rng.random() < bands else (PIANO, (0,))
    seconds = SEGMENT_SECONDS * segments
    pool: list[tuple[NDArray[np.int32], NDArray[np.float32], NDArray[np.float32]]] = []
    for notes in (compose(rng, ensemble, seconds), random_voices(rng, seconds, programs)):
        tokens = encode_notes(notes)
        pool += zip(tokens, piano_rolls(notes, len(tokens)), part_rolls(notes, len(tokens)), strict=True)
    pool = sorted(pool, key=lambda drawn: len(drawn[0]))
    pool = pool[: max(1, sum(len(drawn[0]) <= MAX_SYMBOLIC_TOKENS for drawn in pool))]
    start = int(rng.integers(0, len(pool)))
    stop = start + 1
    while stop < len(pool) and stop - start < segments and len(pool[stop][0]) * (stop + 1 - start) <= token_budget:
        stop += 1
    chosen, rolls, parts = zip(*pool[start:stop], strict=True)
    return collate(list(chosen), np.stack(rolls), np.stack(parts) if bands else None)


def token_batch(tokens: Sequence[Tokens]) -> Tensor:
    """Tokens int64 [B, N], padded to the longest."""
    return torch.from_numpy(pad_tokens(tokens)).long()


def collate(
    tokens: list[NDArray[np.int32]], rolls: NDArray[np.float32], parts: NDArray[np.float32] | None = None
) -> SymbolicBatch:
    """A batch of segments, their rolls [B, T, 2, 128] and those of each instrument [B, T, PARTS, 128]."""
    padded = token_batch(tokens)
    targets = torch.zeros(*padded.shape, TOKEN_TARGETS)
    mask = torch.zeros(*padded.shape, 2, dtype=torch.bool)
    for index, segment in enumerate(tokens):
        values, where = token_targets(segment)
        targets[index, : len(segment)], mask[index, : len(segment)] = torch.from_numpy(values), torch.from_numpy(where)
    by_part = None if parts is None else torch.from_numpy(parts)
    return SymbolicBatch(padded, torch.from_numpy(rolls), by_part, targets, mask)


def symbolic_forward(
    model: SpectrogramDiffusion, heads: SymbolicHeads, tokens: Tensor, noise: Tensor, offsets: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Read-outs of F frames from each offset [B], and of tokens.

    Logits of pitches [B, F, 2, 128], those of each instrument [B, F, PARTS, 128], and token targets [B, N, 3].
    """
    notes = model.note_encoder(tokens)
    size = model.size
    rows = model.cross_attention.projection.weight.chunk(2 * size.decoder_layers)[: 2 * SYMBOLIC_LAYERS]
    keys_values = [split_heads(F.linear(notes, weight), size.heads) for weight in rows]
    film = model.time_embedding(torch.ones(1, device=noise.device))
    frames = offsets[:, None] + torch.arange(noise.shape[1], device=noise.device)
    mask = masked_bias(tokens != PAD)
    x = heads.frame_norm(model.decoder.walk(noise, film, mask, in_pairs(keys_values), frames, SYMBOLIC_LAYERS))
    pitches, parts = heads.frames(x).unflatten(-1, (2, PITCHES)), heads.parts(x).unflatten(-1, (PARTS, PITCHES))
    return pitches, parts, heads.tokens(notes)


def pitch_loss(logits: Tensor, rolls: Tensor) -> Tensor:
    """Weighted cross-entropy of sounding and starting pitches [..., 2, 128]."""
    positive = torch.tensor(POSITIVE_WEIGHTS, device=logits.device)[:, None]
    return F.binary_cross_entropy_with_logits(logits, rolls, pos_weight=positive)


def part_loss(logits: Tensor, rolls: Tensor) -> Tensor:
    """Weighted cross-entropy of each instrument's pitches [..., PARTS, 128], summed over the instruments."""
    positive = torch.tensor(PART_WEIGHT, device=logits.device)
    return PARTS * F.binary_cross_entropy_with_logits(logits, rolls, pos_weight=positive)


def symbolic_loss(
    model: SpectrogramDiffusion, heads: SymbolicHeads, batch: SymbolicBatch, frames: int, generator: torch.Generator
) -> Tensor:
    """Weighted cross-entropy of pitches at a random crop of each segment, plus the token head's error."""
    count, device = len(batch.tokens), batch.tokens.device
    offsets = torch.randint(0, FRAMES - frames + 1, (count,), generator=generator).to(device)
    noise = torch.randn(count, frames, model.size.mels, generator=generator).to(device)
    logits, by_part, times = symbolic_forward(model, heads, batch.tokens, noise, offsets)
    row, window = torch.arange(count, device=device)[:, None], offsets[:, None] + torch.arange(frames, device=device)
    frame_loss = 2 * pitch_loss(logits.float(), batch.rolls[row, window])
    if batch.parts is not None:
        frame_loss = frame_loss + part_loss(by_part.float(), batch.parts[row, window])
    error = (times.float() - batch.targets).abs()
    pitch, start = batch.targets_mask.unbind(-1)
    token_loss = error[..., (0, 2)][pitch].mean() + error[..., 1][start].mean()
    return FRAME_WEIGHT * frame_loss + TOKEN_WEIGHT * token_loss


@torch.no_grad()
def symbolic_scores(
    model: SpectrogramDiffusion, heads: SymbolicHeads, songs: list[Notes], bands: bool = False
) -> dict[str, float]:
    """F1 of sounding and of starting pitches over all frames of the songs, at whichever threshold suits best.

    Of bands, also that of each instrument's sounding pitches.
    """
    found: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in ("frame_f1", "onset_f1", "part_f1")}
    generator = torch.Generator().manual_seed(0)
    for notes in songs:
        tokens = encode_notes(notes)
        batch = collate(tokens, piano_rolls(notes, len(tokens)), part_rolls(notes, len(tokens)))
        noise = torch.randn(len(tokens), FRAMES, model.size.mels, generator=generator)
        device = model.decoder.positions.device
        offsets = torch.zeros(len(tokens), dtype=torch.long, device=device)
        logits, by_part, _ = symbolic_forward(model, heads, batch.tokens.to(device), noise.to(device), offsets)
        found["frame_f1"].append((logits[:, :, 0].float().cpu(), batch.rolls[:, :, 0] > 0))
        found["onset_f1"].append((logits[:, :, 1].float().cpu(), batch.rolls[:, :, 1] > 0))
        if bands and batch.parts is not None:
            found["part_f1"].append((by_part.float().cpu(), batch.parts > 0))
    scores = {}
    for name, pairs in found.items():
        if pairs:
            logits, truth = (torch.cat([part.flatten() for part in parts]) for parts in zip(*pairs, strict=True))
            scores[name] = max(_f1(logits > threshold, truth) for threshold in (-2.0, -1.0, 0.0, 1.0, 2.0))
    return scores


def _f1(found: Tensor, truth: Tensor) -> float:
    return 2.0 * float((found & truth).sum()) / max(1.0, float(found.sum() + truth.sum()))
