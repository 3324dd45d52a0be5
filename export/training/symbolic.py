"""Symbolic pre-training: the note encoder and the first decoder layers learn which notes sound and start at each frame.

No audio is needed: note sets are made on the fly. The decoder is fed pure noise, so all it knows comes from the tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from notewave.export.material.dynamics import with_dynamics
from notewave.export.material.ensembles import FIRST_KEY, LAST_KEY
from notewave.export.material.pieces import Row, as_notes, compose
from notewave.export.material.songs import ENSEMBLES, Data
from notewave.export.material.timbres import AGES, DRUMS, HIGHEST, LOWEST, Timbres
from notewave.export.networks import RMSNorm, SpectrogramDiffusion, in_pairs, masked_bias, split_heads
from notewave.song.codec import MAX_TOKENS, STEPS_PER_SECOND, encode_notes, pad_tokens
from notewave.song.dialect import (
    MAX_VELOCITY,
    PAD,
    PITCH,
    PITCHES,
    PROGRAMS,
    SHIFT,
    VELOCITY,
    Dialect,
    Tokens,
    dialect_of,
)
from notewave.song.notes import Notes
from notewave.sound.mel import FRAMES, MELS, SEGMENT_SECONDS

SYMBOLIC_LAYERS = 2  # decoder layers that are pre-trained
POSITIVE_WEIGHTS = (3.0, 6.0)  # of sounding and starting pitches, which are rare
PART_WEIGHT = 6.0  # of pitches that one instrument sounds, or of a drum's strokes, which are rarer still
FAMILY = 8  # programs
PARTS = PROGRAMS // FAMILY + 1  # General MIDI's families of instruments and, last, the drums
STROKE_FRAMES = 3  # that a drum stroke counts for
FRAME_WEIGHT = 10.0  # of each kind of roll
MAX_SYMBOLIC_TOKENS = 700  # of a segment
FRAME_SECONDS = SEGMENT_SECONDS / FRAMES
TOKEN_TARGETS = 4  # onset, offset, whether a pitch token is a note's start, and its velocity
TOKEN_WEIGHT = 0.3  # of the token heads' loss
PROGRAM_WEIGHT = 0.1  # of the cross-entropy of tokens' programs in it
TIMBRE_WEIGHT = 20.0  # of the error of single notes' mels
LOUDNESS_WEIGHT = 3.0  # of the error of velocities of what sounds, beside the rolls


@dataclass
class SymbolicBatch:
    """B segments: what sounds in them."""

    tokens: Tensor  # int64 [B, N]
    rolls: Tensor  # float32 [B, T, 2, 128]: sounding, starting
    parts: Tensor | None  # float32 [B, T, PARTS, 128]: velocity (1 is 127) of what sounds; None: it is all a piano's
    programs: Tensor | None  # float32 [B, T, 128]: which programs sound
    targets: Tensor  # float32 [B, N, 6]: onset, offset, whether it starts; velocity, program, pitch; where masked
    targets_mask: Tensor  # bool [B, N, 3]: pitch token; pitch token that starts a note; or a drum


class SymbolicHeads(nn.Module):
    """Linear read-outs of pitches from frames, and of times from tokens; thrown away after the stage."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.frame_norm = RMSNorm(width)
        self.frames = nn.Linear(width, 2 * PITCHES)
        self.parts = nn.Linear(width, PARTS * PITCHES)
        self.programs = nn.Linear(width, PROGRAMS)
        self.loudness = nn.Linear(width, 2 * PITCHES)
        self.tokens = nn.Linear(width, TOKEN_TARGETS)
        self.token_programs = nn.Linear(width, PROGRAMS)
        self.timbres = nn.Linear(width, len(AGES) * MELS)
        nn.init.constant_(self.frames.bias, -3.0)
        nn.init.constant_(self.parts.bias, -4.0)
        nn.init.constant_(self.programs.bias, -3.0)


def random_voices(rng: np.random.Generator, seconds: float, programs: Sequence[int] = (0,)) -> Notes:
    """One to twelve voices of random notes, of lengths from 40 ms to several segments, each of one of the programs.

    Where there are several programs, one voice may be random drums.
    """
    rows: list[Row] = []
    if len(programs) > 1 and rng.random() < 0.5:
        times = np.cumsum(rng.exponential(np.exp(rng.uniform(np.log(0.08), np.log(0.6))), int(seconds / 0.1)))
        keys = rng.integers(FIRST_KEY, LAST_KEY + 1, int(rng.integers(1, 6)))
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
    """Velocity, of 127, of what each family sounds [S, T, PARTS, 128] in each frame; drums at their strokes."""
    roll = np.zeros((segments * FRAMES, PARTS, PITCHES), np.float32)
    part = np.where(notes.is_drum, PARTS - 1, notes.program // FAMILY)
    first, last = _frames(notes)
    last = np.where(notes.is_drum, first + STROKE_FRAMES, last)
    for start, stop, own, pitch, velocity in zip(first, last, part, notes.pitch, notes.velocity, strict=True):
        roll[start:stop, own, pitch] = np.maximum(roll[start:stop, own, pitch], velocity / MAX_VELOCITY)
    return roll.reshape(segments, FRAMES, PARTS, PITCHES)


def program_rolls(notes: Notes, segments: int) -> NDArray[np.float32]:
    """Which programs sound [S, T, 128] in each frame; drums have none."""
    roll = np.zeros((segments * FRAMES, PROGRAMS), np.float32)
    for start, stop, program, is_drum in zip(*_frames(notes), notes.program, notes.is_drum, strict=True):
        if not is_drum:
            roll[start:stop, program] = 1
    return roll.reshape(segments, FRAMES, PROGRAMS)


def token_targets(tokens: NDArray[np.int32]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Targets [N, 6] and masks [N, 3] of ``SymbolicBatch`` for one segment, read from the tokens alone."""
    targets, mask = np.zeros((len(tokens), TOKEN_TARGETS + 2), np.float32), np.zeros((len(tokens), 3), bool)
    dialect = dialect_of(tokens)
    time, velocity, program = -0.05, dialect.velocities, dialect.program
    started: dict[tuple[int, int], int] = {}  # (program, pitch token) to index
    for index, token in enumerate(tokens.tolist()):
        if SHIFT <= token < PITCH:
            time = (token - SHIFT) / STEPS_PER_SECOND / SEGMENT_SECONDS
        elif VELOCITY <= token < dialect.tie:
            velocity = token - VELOCITY
        elif dialect.program <= token < dialect.drum:
            program = token
        elif PITCH <= token < VELOCITY:
            mask[index] = True, velocity > 0, velocity > 0
            loudness, pitch = velocity / dialect.velocities, token - PITCH
            targets[index] = time, 1.05, velocity > 0, loudness, program - dialect.program, pitch
            if velocity:
                started[program, token] = index
            elif (program, token) in started:
                targets[started.pop((program, token)), 1] = time
        elif dialect.drum <= token < dialect.end:
            mask[index] = False, False, True
            targets[index, 3:] = velocity / dialect.velocities, DRUMS, token - dialect.drum
        elif token == dialect.tie:  # from here on, events
            time = 0.0
    return targets, mask


def symbolic_batch(
    rng: np.random.Generator, segments: int, token_budget: int, data: Data, dialect: Dialect
) -> SymbolicBatch:
    """Random segments of similar token counts, some composed, some random voices, within a budget of padded tokens."""
    alone = data.ensemble == "piano"
    programs = (0,) if alone else tuple(rng.integers(0, PROGRAMS, 6).tolist())
    seconds = SEGMENT_SECONDS * segments
    pool: list[tuple[Any, ...]] = []  # tokens of a segment, its rolls of pitches, families and programs
    players = ENSEMBLES[data.ensemble](rng)
    for composed in (compose(rng, players, seconds), random_voices(rng, seconds, programs)):
        notes = with_dynamics(composed, rng)
        tokens = [own[:MAX_TOKENS] for own in encode_notes(notes, dialect)]
        count = len(tokens)
        rolls = piano_rolls(notes, count), part_rolls(notes, count), program_rolls(notes, count)
        pool += zip(tokens, *rolls, strict=True)
    pool = sorted(pool, key=lambda drawn: len(drawn[0]))
    pool = pool[: max(1, sum(len(drawn[0]) <= MAX_SYMBOLIC_TOKENS for drawn in pool))]
    start = int(rng.integers(0, len(pool)))
    stop = start + 1
    while stop < len(pool) and stop - start < segments and len(pool[stop][0]) * (stop + 1 - start) <= token_budget:
        stop += 1
    chosen, sounding, parts, sung = zip(*pool[start:stop], strict=True)
    others = () if alone else (np.stack(parts), np.stack(sung))
    return collate(list(chosen), np.stack(sounding), *others)


def token_batch(tokens: Sequence[Tokens]) -> Tensor:
    """Tokens int64 [B, N], padded to the longest."""
    return torch.from_numpy(pad_tokens(tokens)).long()


def collate(
    tokens: list[Tokens],
    rolls: NDArray[np.float32],
    parts: NDArray[np.float32] | None = None,
    programs: NDArray[np.float32] | None = None,
) -> SymbolicBatch:
    """A batch of segments, with rolls of pitches [B, T, 2, 128], families [B, T, PARTS, 128], programs [B, T, 128]."""
    padded = token_batch(tokens)
    targets = torch.zeros(*padded.shape, TOKEN_TARGETS + 2)
    mask = torch.zeros(*padded.shape, 3, dtype=torch.bool)
    for index, segment in enumerate(tokens):
        values, where = token_targets(segment)
        targets[index, : len(segment)], mask[index, : len(segment)] = torch.from_numpy(values), torch.from_numpy(where)
    by_part, by_program = (None if roll is None else torch.from_numpy(roll) for roll in (parts, programs))
    return SymbolicBatch(padded, torch.from_numpy(rolls), by_part, by_program, targets, mask)


@dataclass
class ReadOut:
    """What the heads read from F frames of B segments and from their N tokens; logits but for loudness and times."""

    pitches: Tensor  # [B, F, 2, 128]: sounding, starting
    parts: Tensor  # [B, F, PARTS, 128]
    programs: Tensor  # [B, F, 128]
    loudness: Tensor  # [B, F, 2, 128]: velocity, of 127, at each pitch and each drum
    times: Tensor  # [B, N, TOKEN_TARGETS]
    token_programs: Tensor  # [B, N, 128]
    timbres: Tensor  # [B, N, A, M]: the mel of the token's note by itself, in the networks' range


def symbolic_forward(
    model: SpectrogramDiffusion, heads: SymbolicHeads, tokens: Tensor, noise: Tensor, offsets: Tensor
) -> ReadOut:
    """Read-outs of as many frames as there is noise [B, F, M], from each offset [B] on, and of tokens [B, N]."""
    notes = model.note_encoder(tokens)
    size = model.size
    rows = model.cross_attention.projection.weight.chunk(2 * size.decoder_layers)[: 2 * SYMBOLIC_LAYERS]
    keys_values = [split_heads(F.linear(notes, weight), size.heads) for weight in rows]
    film = model.time_embedding(torch.ones(1, device=noise.device))
    frames = offsets[:, None] + torch.arange(noise.shape[1], device=noise.device)
    mask = masked_bias(tokens != PAD)
    x = heads.frame_norm(model.decoder.walk(noise, film, mask, in_pairs(keys_values), frames, SYMBOLIC_LAYERS))
    return ReadOut(
        heads.frames(x).unflatten(-1, (2, PITCHES)),
        heads.parts(x).unflatten(-1, (PARTS, PITCHES)),
        heads.programs(x),
        heads.loudness(x).unflatten(-1, (2, PITCHES)),
        heads.tokens(notes),
        heads.token_programs(notes),
        heads.timbres(notes).unflatten(-1, (len(AGES), MELS)),
    )


def pitch_loss(logits: Tensor, rolls: Tensor) -> Tensor:
    """Weighted cross-entropy of sounding and starting pitches [..., 2, 128]."""
    positive = torch.tensor(POSITIVE_WEIGHTS, device=logits.device)[:, None]
    return F.binary_cross_entropy_with_logits(logits, rolls, pos_weight=positive)


def part_loss(read: ReadOut, parts: Tensor, programs: Tensor) -> Tensor:
    """Weighted cross-entropy of families' pitches [..., PARTS, 128] and programs [..., 128]; error of velocities."""
    positive = torch.tensor(PART_WEIGHT, device=parts.device)
    present = (parts > 0).float()
    of_parts = PARTS * F.binary_cross_entropy_with_logits(read.parts.float(), present, pos_weight=positive)
    of_programs = F.binary_cross_entropy_with_logits(read.programs.float(), programs, pos_weight=positive)
    loudest = torch.stack([parts[..., :-1, :].amax(dim=-2), parts[..., -1, :]], dim=-2)
    error = (read.loudness.float() - loudest).abs()[loudest > 0]
    return of_parts + of_programs + LOUDNESS_WEIGHT / FRAME_WEIGHT * _mean(error)


def _mean(errors: Tensor) -> Tensor:
    """Mean, which is 0 of nothing: drums alone have no pitches."""
    return errors.sum() / max(1, errors.numel())


def symbolic_loss(
    model: SpectrogramDiffusion,
    heads: SymbolicHeads,
    batch: SymbolicBatch,
    frames: int,
    generator: torch.Generator,
    timbres: Timbres | None = None,
) -> Tensor:
    """Weighted cross-entropy of pitches at a random crop of each segment, plus the token heads' errors."""
    count, device = len(batch.tokens), batch.tokens.device
    offsets = torch.randint(0, FRAMES - frames + 1, (count,), generator=generator).to(device)
    noise = torch.randn(count, frames, model.size.mels, generator=generator).to(device)
    read = symbolic_forward(model, heads, batch.tokens, noise, offsets)
    row, window = torch.arange(count, device=device)[:, None], offsets[:, None] + torch.arange(frames, device=device)
    frame_loss = 2 * pitch_loss(read.pitches.float(), batch.rolls[row, window])
    error = (read.times.float() - batch.targets[..., :TOKEN_TARGETS]).abs()
    pitch, start, struck = batch.targets_mask.unbind(-1)
    token_loss = _mean(error[..., (0, 2)][pitch]) + _mean(error[..., 1][start])
    if batch.parts is not None and batch.programs is not None:
        frame_loss = frame_loss + part_loss(read, batch.parts[row, window], batch.programs[row, window])
        programs = batch.targets[..., 4][pitch].long()
        named = F.cross_entropy(read.token_programs[pitch].float(), programs, reduction="none")
        token_loss = token_loss + _mean(error[..., 3][start]) + PROGRAM_WEIGHT * _mean(named)
    loss = FRAME_WEIGHT * frame_loss + TOKEN_WEIGHT * token_loss
    return loss if timbres is None else loss + TIMBRE_WEIGHT * timbre_loss(read.timbres, batch, struck, timbres)


def timbre_loss(read: Tensor, batch: SymbolicBatch, struck: Tensor, timbres: Timbres) -> Tensor:
    """Mean error of the mels [B, N, A, M] that struck tokens are read to have by themselves."""
    velocity, program, pitch = batch.targets[..., 3:].unbind(-1)
    known = struck & (pitch >= LOWEST) & (pitch <= HIGHEST)
    asked = (values[known].cpu().numpy() for values in (program.long(), pitch.long(), MAX_VELOCITY * velocity))
    true = torch.from_numpy(timbres.mel(*asked)).to(read.device)
    return _mean((read[known].float() - true).abs())


@torch.no_grad()
def symbolic_scores(
    model: SpectrogramDiffusion, heads: SymbolicHeads, songs: list[Notes], dialect: Dialect
) -> dict[str, float]:
    """F1 of sounding and of starting pitches over all frames of the songs, at whichever threshold suits best.

    Of songs that are not all for a piano, also that of each family's sounding pitches, and of sounding programs.
    """
    alone = not any(notes.program.any() or notes.is_drum.any() for notes in songs)
    names = ("frame_f1", "onset_f1", "part_f1", "program_f1")
    found: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in names}
    generator = torch.Generator().manual_seed(0)
    for notes in songs:
        tokens = [own[:MAX_TOKENS] for own in encode_notes(notes, dialect)]
        count = len(tokens)
        rolls = piano_rolls(notes, count), part_rolls(notes, count), program_rolls(notes, count)
        batch = collate(tokens, *rolls)
        noise = torch.randn(count, FRAMES, model.size.mels, generator=generator)
        device = model.decoder.positions.device
        offsets = torch.zeros(count, dtype=torch.long, device=device)
        read = symbolic_forward(model, heads, batch.tokens.to(device), noise.to(device), offsets)
        found["frame_f1"].append((read.pitches[:, :, 0].float().cpu(), batch.rolls[:, :, 0] > 0))
        found["onset_f1"].append((read.pitches[:, :, 1].float().cpu(), batch.rolls[:, :, 1] > 0))
        if not alone:
            found["part_f1"].append((read.parts.float().cpu(), torch.from_numpy(rolls[1]) > 0))
            found["program_f1"].append((read.programs.float().cpu(), torch.from_numpy(rolls[2]) > 0))
    scores = {}
    for name, pairs in found.items():
        if pairs:
            logits, truth = (torch.cat([part.flatten() for part in parts]) for parts in zip(*pairs, strict=True))
            scores[name] = max(_f1(logits > threshold, truth) for threshold in (-2.0, -1.0, 0.0, 1.0, 2.0))
    return scores


def _f1(found: Tensor, truth: Tensor) -> float:
    return 2.0 * float((found & truth).sum()) / max(1.0, float(found.sum() + truth.sum()))
