"""What networks in training make of songs, and how near it comes: the denoising loop in PyTorch, and its scores."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from notewave.export.autoregressive import SpectrogramAutoregression, VoiceNetworks
from notewave.export.networks import SpectrogramDiffusion
from notewave.export.training.diffusion import PREDICTION, SCHEDULE
from notewave.export.training.frames import write_frames
from notewave.export.training.symbolic import token_batch
from notewave.sampling.loop import denoise
from notewave.sampling.samplers import SamplerTable, sampler_table
from notewave.song.dialect import Tokens
from notewave.sound.mel import FRAMES, MELS, FloatArray, from_network


@torch.no_grad()
def generate(model: VoiceNetworks, songs: list[list[Tokens]], steps: int = 20, seed: int = 0) -> list[FloatArray]:
    """Log-mels [S, T, M] of songs given as tokens of their segments; all songs at once, segment after segment.

    Of a diffusion decoder in so many steps, with noise of a seed.
    """
    device, table = model.decoder.positions.device, sampler_table("dpmpp-2m", steps, SCHEDULE, PREDICTION)
    generator = torch.Generator().manual_seed(seed)
    done: list[list[FloatArray]] = [[] for _ in songs]
    for index in range(max(map(len, songs))):
        going = [song for song, segments in enumerate(songs) if index < len(segments)]
        tokens = token_batch([songs[song][index] for song in going]).to(device)
        if isinstance(model, SpectrogramAutoregression):
            for song, segment in zip(going, write_frames(model, tokens).float().cpu().numpy(), strict=True):
                done[song].append(np.clip(segment, -1, 1))
            continue
        before = torch.from_numpy(np.stack([done[song][-1] for song in going])).to(device) if index else None
        x = torch.randn(len(going), FRAMES, MELS, generator=generator).numpy()
        keep = torch.ones(len(x), dtype=torch.bool, device=device)
        denoise_segments(model, table, x, tokens, before, keep)
        for song, segment in zip(going, x, strict=True):
            done[song].append(np.clip(segment, -1, 1))
    return [from_network(np.stack(mels)) for mels in done]


@torch.no_grad()
def denoise_segments(
    model: SpectrogramDiffusion,
    table: SamplerTable,
    x: FloatArray,
    tokens: Tensor,
    context: Tensor | None,
    context_keep: Tensor,
    guidance: float = 1.0,
) -> None:
    """Denoise x [B, T, M], in place, to the mels of segments with tokens [B, N] after context mels [B, T, M] if any.

    context_keep: bool [B], false where there is no segment before.
    """
    keys_values, mask = model.condition(tokens, context, context_keep)

    def predict(step: int) -> tuple[FloatArray, FloatArray | None]:
        film = model.time_embedding(torch.full((1,), float(table.time[step]), device=tokens.device))
        mel = torch.from_numpy(x).to(tokens.device)
        conditional = model.decoder(mel, film, mask, *keys_values).float().cpu().numpy()
        return conditional, None if guidance == 1 else model.decoder(mel, film).float().cpu().numpy()

    denoise(table, x, predict, guidance=guidance)


def mel_scores(
    model: VoiceNetworks, data: list[tuple[list[Tokens], FloatArray]], mean: FloatArray, steps: int = 20
) -> dict[str, float]:
    """Log-mel error in nats on held-out songs, its ratio to the error of the mean mel [M], and the seam score.

    The seam score is the mean change from frame to frame at segment joins over that elsewhere.
    """
    made = generate(model, [tokens for tokens, _ in data], steps)
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
