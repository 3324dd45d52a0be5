"""The mel stage: noise schedule, batches and loss of a voice that predicts the clean mel (x0)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from notewave.export.material.segments import Segments
from notewave.export.networks import SpectrogramDiffusion
from notewave.export.training.config import Stage
from notewave.export.training.symbolic import token_batch
from notewave.sampling.schedule import NoiseSchedule, alpha_bars
from notewave.sampling.windows import BACK
from notewave.song.codec import STEPS_PER_FRAME
from notewave.song.dialect import Tokens, dialect_of
from notewave.sound.mel import FRAMES, LOG_SCALE, MELS

PREDICTION, SCHEDULE = "x0", NoiseSchedule("squaredcos_cap_v2", 1000)
SORTED = 8  # batches that are drawn together
CONTEXT_NOISE = 0.03  # largest standard deviation of noise on a true context, in network range
DRIFT = 0.1  # largest standard deviation of a drift through the end of the context, in network range
DRIFT_FRAMES = 12.0  # in which a segment returns from the drift by a factor of e
DRIFT_BINS = 4  # over which drifts are alike
ASTRAY, ASTRAYS = 0.035, 0.3  # standard deviation (2.4 dB) of how far a whole context's level is off; share that are so
ASTRAY_FRAMES = 30.0  # in which a segment returns from that by a factor of e
LOUDNESS_WEIGHT = 0.3  # of the error of a frame's loudness beside that of its bins
FIRST_WEIGHT, FIRST_FRAMES = 8.0, 5.0  # errors at a segment's start count more, by this at first, falling like this
HEARD, UNHEARD_WEIGHT = 9.5 / LOG_SCALE, 0.3  # what is so far (83 dB) below the loudest of its crop counts less
AHEAD = 28  # frames past what is known that the vocoder sees in live play
NEW = 16  # frames before that which a hop may add, and which count as a segment's first do
USUAL, HOPS = 0.5, 32  # share of live examples in which what is known ends a hop of up to so many frames after BACK
AT_ONCE = 0.6  # share of live examples at the time where one step begins, which is all that live play takes
AT_START, START_FROM = 0.1, 0.5  # share of the other crops that are noise alone, and from which time on: ddim and
# ddpm begin so in few steps, and a silent mel must not be taken for a loud one since its own share is missing
CONTEXT_DROP = 0.15  # share of segments that are trained as the first of a song even where context is given


@dataclass
class MelBatch:
    """B segments of the training set."""

    tokens: Tensor  # int64 [B, N]
    mel: Tensor  # float32 [B, T, M] in network range
    context: Tensor | None  # float32 [B, T, M]; None: no segment of the batch has any
    context_keep: Tensor  # bool [B]
    known: Tensor  # int64 [B]: frames up to which notes are known; T but for live play


def mel_batch(data: Segments, seed: int, step: int, phase: Stage, share: slice = slice(None)) -> MelBatch:
    """A share of a step's batch: SORTED batches are drawn at once and divided by length, so that little is padding."""
    group, position = divmod(step, SORTED)
    rng = np.random.default_rng((seed, 2, group))
    drawn = data.draw(rng, SORTED * phase.segments)
    drawn = drawn[np.argsort([len(data.tokens[index]) for index in drawn], kind="stable")].reshape(SORTED, -1)
    chosen = drawn[rng.permutation(SORTED)[position]][share]
    rng = np.random.default_rng((seed, 3, step, share.start or 0))
    mel = torch.from_numpy(np.stack([data.mel(index) for index in chosen]))
    keep = np.array([not data.first[index] for index in chosen]) & (rng.random(len(chosen)) >= CONTEXT_DROP)
    context = None
    if rng.random() < phase.context:
        before = [np.zeros((FRAMES, MELS), np.float32) if data.first[i] else data.mel(i - 1) for i in chosen]
        level = rng.uniform(0, CONTEXT_NOISE, (len(chosen), 1, 1)).astype(np.float32)
        noisy = np.stack(before) + level * rng.standard_normal(mel.shape, np.float32)
        past_drift, drift = drifts(rng, len(chosen))
        context = torch.from_numpy(np.clip(noisy + past_drift, -1, 1).astype(np.float32))
        context *= torch.from_numpy(keep)[:, None, None]
        mel = (mel + torch.from_numpy(drift * keep[:, None, None]).float()).clamp(-1, 1)
    tokens = [data.tokens[index] for index in chosen]
    known = np.full(len(chosen), FRAMES)
    for row in np.flatnonzero(rng.random(len(chosen)) < phase.live):
        known[row] = rng.integers(BACK, BACK + HOPS) if rng.random() < USUAL else rng.integers(NEW, FRAMES)
        tokens[row] = until(tokens[row], int(known[row]))
    return MelBatch(token_batch(tokens), mel, context, torch.from_numpy(keep), torch.from_numpy(known))


def until(tokens: Tokens, frames: int) -> Tokens:
    """The tokens of what is known of a segment when so many frames are over; notes that sound then have no end."""
    dialect = dialect_of(tokens)
    later = (tokens >= dialect.shift + frames * STEPS_PER_FRAME) & (tokens < dialect.pitch)
    known = tokens[: np.argmax(later) if later.any() else len(tokens) - len(dialect.rules.ends)]
    return dialect.segment(known)


def drifts(rng: np.random.Generator, count: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Errors [B, T, M] of contexts, most at their end, and their fading [B, T, M] in the segment that goes on from it.

    A voice's own contexts have errors. Trained on true ones alone, it starts each segment where the truth would be,
    and the mel jumps at every join; so it is taught to start where its context ends. And taught on true levels alone,
    it would hand on a wrong one for as long as a note is held; so it is taught to return from that, too.
    """
    kernel = np.hanning(2 * DRIFT_BINS + 1)
    raw = rng.normal(size=(count, MELS + 2 * DRIFT_BINS))
    smooth = np.lib.stride_tricks.sliding_window_view(raw, 2 * DRIFT_BINS + 1, axis=1) @ (
        kernel / np.linalg.norm(kernel)
    )
    shape = smooth[:, None] * rng.uniform(0, DRIFT, (count, 1, 1))
    frames = np.arange(FRAMES)[:, None]
    past = np.exp((frames + 1 - FRAMES) / rng.uniform(4, 80, (count, 1, 1)))
    astray = rng.normal(0, ASTRAY, (count, 1, 1)) * (rng.random((count, 1, 1)) < ASTRAYS)
    fading = shape * np.exp(-(frames + 1) / DRIFT_FRAMES) + astray * np.exp(-(frames + 1) / ASTRAY_FRAMES)
    return shape * past + astray, fading


def predict_crops(
    model: SpectrogramDiffusion, batch: MelBatch, x: Tensor, time: Tensor, offsets: Tensor, conditioned: Tensor
) -> Tensor:
    """The networks' prediction [B, C, F, M] for C crops of each segment.

    x [B, C, F, M]; noise times and first frames of the crops [B, C]; conditioned bool [B].
    """
    flat = (x.flatten(0, 1), time.flatten(), batch.tokens, batch.context, batch.context_keep, conditioned)
    return model(*flat, offsets.flatten()).unflatten(0, time.shape)


def mel_loss(model: SpectrogramDiffusion, batch: MelBatch, phase: Stage, generator: torch.Generator) -> Tensor:
    """``weighted_error`` of the predicted clean mel at random crops and noise times."""
    shape, device = (len(batch.mel), phase.crops), batch.mel.device
    level, is_start = noise_levels(shape, phase, batch.known < FRAMES, generator)
    times, bars = alpha_bars(SCHEDULE)
    offsets = torch.randint(0, FRAMES - phase.frames + 1, shape, generator=generator)
    if phase.starts:
        offsets *= torch.rand(shape, generator=generator) >= phase.starts
    conditioned = torch.rand(shape[0], generator=generator) >= phase.unconditioned
    noise = normals((*shape, phase.frames, MELS), generator, device)
    window = offsets[..., None] + torch.arange(phase.frames)
    clean = batch.mel[torch.arange(shape[0])[:, None, None], window.to(device)]
    bar = torch.from_numpy(bars).float().to(device)[level].masked_fill(is_start, 0.0)[..., None, None]
    x = bar.sqrt() * clean + (1 - bar).sqrt() * noise
    window = window.to(device)
    fed = torch.from_numpy(times).float().to(device)[level]
    predicted = predict_crops(model, batch, x, fed, offsets.to(device), conditioned.to(device))
    return weighted_error(predicted, clean, batch, window)


def noise_levels(
    shape: tuple[int, int], phase: Stage, is_live: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Training times int64 [B, C] of B segments' crops, and which of them are noise alone, bool [B, C].

    is_live [B]: segments of live play, on the device where both are made; the generator is the CPU's.
    """

    def drawn(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator).to(is_live.device)

    uniform, high = drawn(*shape), drawn(*shape) < phase.high_noise
    time = torch.where(high, phase.high_noise_from + (1 - phase.high_noise_from) * uniform, uniform)
    at_once = is_live[:, None] & (drawn(shape[0], 1) < AT_ONCE)
    is_start = (drawn(*shape) < AT_START) & ~at_once
    time = torch.where(is_start, START_FROM + (1 - START_FROM) * uniform, time).masked_fill(at_once, 1.0)
    return (time * SCHEDULE.train_steps).long().clamp(max=SCHEDULE.train_steps - 1), is_start


def normals(shape: Sequence[int], generator: torch.Generator, device: torch.device) -> Tensor:
    """Normal noise, drawn on the device; the generator is the CPU's."""
    if device.type == "cpu":
        return torch.randn(*shape, generator=generator)
    own = torch.Generator(device).manual_seed(int(torch.randint(1 << 31, (), generator=generator)))
    return torch.randn(*shape, generator=own, device=device)


def weighted_error(predicted: Tensor, clean: Tensor, batch: MelBatch, window: Tensor) -> Tensor:
    """L1 + L2 of mels [B, C, F, M], whose frames in their segments are window [B, C, F], by how much each counts.

    A segment's first frames count more, and the last that live play knows; what is inaudible less, and nothing what it
    can't know. The loudness of frames counts beside that of their bins, of which a held note has few.
    """
    known, predicted = batch.known[:, None, None], predicted.float()
    error = predicted - clean
    is_new = (window < known) & (window >= known - NEW) & (known < FRAMES)
    weight = 1 + FIRST_WEIGHT * (torch.exp(-window / FIRST_FRAMES) + is_new / FIRST_FRAMES)[..., None]
    weight = weight * (window < known + AHEAD)[..., None]
    unheard = clean < clean.amax(dim=(2, 3), keepdim=True) - HEARD
    weight = torch.where(unheard, UNHEARD_WEIGHT * weight, weight)
    of_frame = weight.amax(dim=-1)
    louder = (loudness(predicted) - loudness(clean)).abs()
    bins = (weight * (error.abs() + error**2)).sum() / weight.sum().clamp(min=1)
    return bins + LOUDNESS_WEIGHT * (of_frame * louder).sum() / of_frame.sum().clamp(min=1)


def loudness(mel: Tensor) -> Tensor:
    """The logarithm [...] of the root of all bins' power, of mels [..., M], in units of the networks' range."""
    return torch.logsumexp(2 * LOG_SCALE * mel, dim=-1) / (2 * LOG_SCALE)
