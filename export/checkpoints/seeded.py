"""Seeded random weights of published sizes: voices that make noise, for benchmarks and tests."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from notewave.errors import VoiceError
from notewave.export.autoregressive import SpectrogramAutoregression, VoiceNetworks
from notewave.export.checkpoints.assemble import Checkpoint
from notewave.export.networks import DecoderLayer, RMSNorm, SelfAttention, SpectrogramDiffusion
from notewave.sampling.options import FRAME_BY_FRAME
from notewave.sampling.samplers import AUTOREGRESSIVE
from notewave.voice.contracts import Dimensions

_SIZES = {
    "base": Dimensions(768, 12, 64, 2048, 12, 12, 12),
    "small": Dimensions(512, 6, 64, 1024, 8, 8, 8),
    "tiny": Dimensions(64, 4, 16, 128, 2, 2, 2),
}
FRAME_BY_FRAME_SUFFIX = "-frames"  # of a size with the other decoder, which knows no context
RANDOM_SIZES = _SIZES | {
    name + FRAME_BY_FRAME_SUFFIX: replace(size, context_encoder_layers=0) for name, size in _SIZES.items()
}


def random_checkpoint(name: str, seed: int = 0) -> Checkpoint:
    """Seeded random weights of a published size ("base", "small") or a "tiny" one, at T5's initial scales.

    "base-frames" and so on have the autoregressive decoder.
    """
    if name not in RANDOM_SIZES:
        raise VoiceError(f"there is no random voice {name!r}. Choose one of {', '.join(RANDOM_SIZES)}.")
    is_autoregressive = name.endswith(FRAME_BY_FRAME_SUFFIX)
    with torch.device("meta"):
        model: VoiceNetworks = (SpectrogramAutoregression if is_autoregressive else SpectrogramDiffusion)(
            RANDOM_SIZES[name]
        )
    model.to_empty(device="cpu").requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    scale_down = RANDOM_SIZES[name].head_width ** -0.5  # of queries: T5 has no scaling of the dot products
    for module in model.modules():
        for weight in module.parameters(recurse=False):
            if isinstance(module, RMSNorm):
                weight.fill_(1.0)
            else:
                deviation = weight.shape[1] ** -0.5 if isinstance(module, nn.Linear) else 1.0
                weight.normal_(0.0, deviation, generator=generator)
    for module in model.modules():
        if isinstance(module, SelfAttention):
            module.qkv.weight[: module.qkv.out_features // 3] *= scale_down
        if isinstance(module, DecoderLayer):
            module.cross_queries.weight *= scale_down
    return Checkpoint(model, AUTOREGRESSIVE, sampling=FRAME_BY_FRAME) if is_autoregressive else Checkpoint(model)
