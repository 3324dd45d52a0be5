"""The mel stage: noise schedule, loss and validation of a voice that predicts the clean mel (x0)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from notewave.export.material.songs import Segments
from notewave.export.networks import SpectrogramDiffusion
from notewave.export.training.config import Stage
from notewave.export.training.symbolic import token_batch
from notewave.sampling.loop import denoise
from notewave.sampling.samplers import SamplerTable, sampler_table
from notewave.sampling.schedule import NoiseSchedule, alpha_bars
from notewave.sound.mel import FRAMES, MELS, FloatArray, from_network, to_network

PREDICTION, SCHEDULE = "x0", NoiseSchedule("squaredcos_cap_v2", 1000)
SORTED = 8  # batches that are drawn together
CONTEXT_NOISE = 0.03  # largest standard deviation of noise on a true context, in network range
DRIFT = 0.1  # largest standard deviation of a drift through the end of the context, in network range
DRIFT_FRAMES = 12.0  # in which a segment returns from the drift by a factor of e
DRIFT_BINS = 4  # over which drifts are alike
FIRST_WEIGHT, FIRST_FRAMES = 8.0, 5.0  # errors at a segment's start count more, by this at first, falling like this
CONTEXT_DROP = 0.15  # share of segments that are trained as the first of a song even where context is given


@dataclass
class MelBatch:
    """B segments of the training set."""

    tokens: Tensor  # int64 [B, N]
    mel: Tensor  # float32 [B, T, M] in network range
    context: Tensor | None  # float32 [B, T, M]; None: no segment of the batch has any
    context_keep: Tensor  # bool [B]


def mel_batch(data: Segments, seed: int, step: int, phase: Stage, share: slice = slice(None)) -> MelBatch:
    """A share of a step's batch: SORTED batches are drawn at once and divided by length, so that little is padding."""
    group, position = divmod(step, SORTED)
    rng = np.random.default_rng((seed, 2, group))
    drawn = data.draw(rng, SORTED * phase.segments, phase.pianos)
    drawn = drawn[np.argsort([len(data.tokens[index]) for index in drawn], kind="stable")].reshape(SORTED, -1)
    chosen = drawn[rng.permutation(SORTED)[position]][share]
    rng = np.random.default_rng((seed, 3, step, share.start or 0))
    mel = torch.from_numpy(np.stack([to_network(data.mels[index].astype(np.float32)) for index in chosen]))
    keep = np.array([not data.first[index] for index in chosen]) & (rng.random(len(chosen)) >= CONTEXT_DROP)
    context = None
    if rng.random() < phase.context:
        before = [
            np.zeros((FRAMES, MELS), np.float32) if data.first[i] else data.mels[i - 1].astype(np.float32)
            for i in chosen
        ]
        level = rng.uniform(0, CONTEXT_NOISE, (len(chosen), 1, 1))
        noisy = np.stack([to_network(past) for past in before]) + level * rng.normal(size=mel.shape)
        past_drift, drift = drifts(rng, len(chosen))
        context = torch.from_numpy(np.clip(noisy + past_drift, -1, 1).astype(np.float32))
        context *= torch.from_numpy(keep)[:, None, None]
        mel = (mel + torch.from_numpy(drift * keep[:, None, None]).float()).clamp(-1, 1)
    return MelBatch(token_batch([data.tokens[index] for index in chosen]), mel, context, torch.from_numpy(keep))


def drifts(rng: np.random.Generator, count: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Errors [B, T, M] that a context ends with, and their fading [B, T, M] in the segment that goes on from it.

    A voice's own contexts have errors. Trained on true ones alone, it starts each segment where the truth would be,
    and the mel jumps at every join; so it is taught to start where its context ends.
    """
    kernel = np.hanning(2 * DRIFT_BINS + 1)
    raw = rng.normal(size=(count, MELS + 2 * DRIFT_BINS))
    smooth = np.lib.stride_tricks.sliding_window_view(raw, 2 * DRIFT_BINS + 1, axis=1) @ (
        kernel / np.linalg.norm(kernel)
    )
    shape = smooth[:, None] * rng.uniform(0, DRIFT, (count, 1, 1))
    frames = np.arange(FRAMES)[:, None]
    past = np.exp((frames + 1 - FRAMES) / rng.uniform(4, 80, (count, 1, 1)))
    return shape * past, shape * np.exp(-(frames + 1) / DRIFT_FRAMES)


def predict_crops(
    model: SpectrogramDiffusion, batch: MelBatch, x: Tensor, time: Tensor, offsets: Tensor, conditioned: Tensor
) -> Tensor:
    """The networks' prediction [B, C, F, M] for C crops of each segment.

    x [B, C, F, M]; noise times and first frames of the crops [B, C]; conditioned bool [B].
    """
    flat = (x.flatten(0, 1), time.flatten(), batch.tokens, batch.context, batch.context_keep, conditioned)
    return model(*flat, offsets.flatten()).unflatten(0, time.shape)


def mel_loss(model: SpectrogramDiffusion, batch: MelBatch, phase: Stage, generator: torch.Generator) -> Tensor:
    """L1 + L2 of the predicted clean mel at random crops and noise times."""
    shape, device = (len(batch.mel), phase.crops), batch.mel.device
    uniform = torch.rand(shape, generator=generator)
    high = torch.rand(shape, generator=generator) < phase.high_noise
    time = torch.where(high, phase.high_noise_from + (1 - phase.high_noise_from) * uniform, uniform)
    times, bars = alpha_bars(SCHEDULE)
    level = (time * SCHEDULE.train_steps).long().clamp(max=SCHEDULE.train_steps - 1)
    offsets = torch.randint(0, FRAMES - phase.frames + 1, shape, generator=generator)
    if phase.starts:
        offsets *= torch.rand(shape, generator=generator) >= phase.starts
    conditioned = torch.rand(shape[0], generator=generator) >= phase.unconditioned
    noise = torch.randn(*shape, phase.frames, MELS, generator=generator).to(device)
    window = offsets[..., None] + torch.arange(phase.frames)
    clean = batch.mel[torch.arange(shape[0])[:, None, None], window.to(device)]
    bar = torch.from_numpy(bars)[level].float().to(device)[..., None, None]
    x = bar.sqrt() * clean + (1 - bar).sqrt() * noise
    fed = torch.from_numpy(times)[level].float().to(device)
    predicted = predict_crops(model, batch, x, fed, offsets.to(device), conditioned.to(device))
    error = predicted.float() - clean
    weight = 1 + FIRST_WEIGHT * torch.exp(-window.to(device)[..., None] / FIRST_FRAMES)
    return (weight * (error.abs() + error**2)).mean() / weight.mean()


@torch.no_grad()
def generate(
    model: SpectrogramDiffusion, songs: list[list[NDArray[np.int32]]], steps: int = 20, seed: int = 0
) -> list[FloatArray]:
    """Log-mels [S, T, M] of songs given as tokens of their segments; all songs at once, segment after segment."""
    device, table = model.decoder.positions.device, sampler_table("dpmpp-2m", steps, SCHEDULE, PREDICTION)
    generator = torch.Generator().manual_seed(seed)
    done: list[list[FloatArray]] = [[] for _ in songs]
    for index in range(max(map(len, songs))):
        going = [song for song, segments in enumerate(songs) if index < len(segments)]
        before = torch.from_numpy(np.stack([done[song][-1] for song in going])).to(device) if index else None
        tokens = token_batch([songs[song][index] for song in going]).to(device)
        x = torch.randn(len(going), FRAMES, MELS, generator=generator).numpy()
        _denoise(model, table, x, tokens, before)
        for song, segment in zip(going, x, strict=True):
            done[song].append(np.clip(segment, -1, 1))
    return [from_network(np.stack(mels)) for mels in done]


def _denoise(
    model: SpectrogramDiffusion, table: SamplerTable, x: FloatArray, tokens: Tensor, context: Tensor | None
) -> None:
    """Denoise x [B, T, M], in place, to the mels of segments with tokens [B, N] after context mels [B, T, M] if any."""
    keys_values, mask = model.condition(tokens, context, torch.ones(len(x), dtype=torch.bool, device=tokens.device))

    def predict(step: int) -> tuple[FloatArray, None]:
        film = model.time_embedding(torch.full((len(x),), float(table.time[step]), device=tokens.device))
        mel = torch.from_numpy(x).to(tokens.device)
        return model.decoder(mel, film, mask, *keys_values).float().cpu().numpy(), None

    denoise(table, x, predict)


def mel_scores(
    model: SpectrogramDiffusion,
    data: list[tuple[list[NDArray[np.int32]], FloatArray]],
    mean: FloatArray,
) -> dict[str, float]:
    """Log-mel error in nats on held-out songs, its ratio to the error of the mean mel [M], and the seam score.

    The seam score is the mean change from frame to frame at segment joins over that elsewhere.
    """
    made = generate(model, [tokens for tokens, _ in data])
    error = float(np.mean([np.abs(mel - truth).mean() for mel, (_, truth) in zip(made, data, strict=True)]))
    control = float(np.mean([np.abs(mean - truth).mean() for _, truth in data]))
    seams, true_seams = (_seam(mels) for mels in (made, [truth for _, truth in data]))
    return {"mel_error": error, "mel_ratio": error / control, "seam": seams, "seam_of_truth": true_seams}


def _seam(mels: list[FloatArray]) -> float:
    """Mean absolute change from frame to frame at segment joins over that elsewhere."""
    jumps = [np.abs(np.diff(mel.reshape(-1, MELS), axis=0)).mean(axis=1) for mel in mels]
    at_join = [(np.arange(1, len(jump) + 1) % FRAMES) == 0 for jump in jumps]
    joins, others = np.concatenate(jumps)[np.concatenate(at_join)], np.concatenate(jumps)[~np.concatenate(at_join)]
    return float(joins.mean() / others.mean())
