"""The mel stage of an autoregressive decoder, which foretells each frame from the true ones before it."""

from __future__ import annotations

import torch
from torch import Tensor

from notewave.export.autoregressive import SpectrogramAutoregression
from notewave.export.networks import SpectrogramDiffusion
from notewave.export.training.config import Stage
from notewave.export.training.diffusion import MelBatch, normals, weighted_error
from notewave.export.training.queries import plain_state, scale_queries
from notewave.sound.mel import FRAMES, MELS


def frames_of(model: SpectrogramDiffusion) -> SpectrogramAutoregression:
    """The other decoder with a diffusion decoder's weights, as far as it has them: what the symbolic stage taught.

    Both with scaled queries, and without a context encoder.
    """
    own = SpectrogramAutoregression(model.size)
    known = plain_state(model, dict(model.named_parameters()))
    own.load_state_dict({name: known[name] for name in own.state_dict()})
    scale_queries(own)
    return own


def frame_loss(model: SpectrogramAutoregression, batch: MelBatch, phase: Stage, generator: torch.Generator) -> Tensor:
    """``weighted_error`` of every frame as foretold from the true ones before it, with as much noise as asked for."""
    mel = batch.mel
    level = phase.past_noise * torch.rand(len(mel), 1, 1, generator=generator).to(mel.device)
    past = (mel + level * normals(mel.shape, generator, mel.device)).clamp(-1, 1) if phase.past_noise else mel
    predicted = model(past, batch.tokens)
    window = torch.arange(FRAMES, device=mel.device).expand(len(mel), 1, FRAMES)
    return weighted_error(predicted[:, None], mel[:, None], batch, window)


@torch.no_grad()
def write_frames(model: SpectrogramAutoregression, tokens: Tensor) -> Tensor:
    """Mels [B, T, M] of segments with tokens [B, N], frame by frame."""
    size, count = model.size, len(tokens)
    notes, mask = model.condition(tokens)
    shape = (2 * size.decoder_layers, count, size.heads, FRAMES, size.head_width)
    own, before = torch.zeros(shape, device=tokens.device), torch.zeros(count, 1, MELS, device=tokens.device)
    mels = []
    for frame in range(FRAMES):
        before, *new = model.decoder(before, torch.tensor([frame], device=tokens.device), mask, *own, *notes)
        own[:, :, :, frame] = torch.stack(new)[:, :, :, 0]
        mels.append(before)
    return torch.cat(mels, dim=1)
