"""Query weights as training holds them: scaled, as T5's attention does not scale its dot products."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from notewave.export.autoregressive import VoiceNetworks
from notewave.export.networks import SelfAttention


class ScaledQueries(nn.Module):
    """Trains query weights as if dot products were divided by sqrt(K), which T5's attention does not do."""

    def __init__(self, queries: int, rows: int, head_width: int) -> None:
        super().__init__()
        scale = torch.ones(rows, 1)
        scale[:queries] = 1 / math.sqrt(head_width)
        self.register_buffer("scale", scale, persistent=False)
        self.scale: Tensor

    def forward(self, weight: Tensor) -> Tensor:
        """What the optimiser holds -> what the network uses."""
        return weight * self.scale

    def right_inverse(self, weight: Tensor) -> Tensor:
        """What the network uses -> what the optimiser holds."""
        return weight / self.scale


def scale_queries(model: VoiceNetworks) -> None:
    """Let all attention of a model be trained with scaled queries, its function unchanged."""
    inner, head_width = model.size.heads * model.size.head_width, model.size.head_width
    layers: Any = model.decoder.layers
    for module in list(model.modules()):
        if isinstance(module, SelfAttention):
            parametrize.register_parametrization(module.qkv, "weight", ScaledQueries(inner, 3 * inner, head_width))
    for layer in layers:
        parametrize.register_parametrization(layer.cross_queries, "weight", ScaledQueries(inner, inner, head_width))


def plain_state(model: VoiceNetworks, trained: dict[str, Tensor]) -> dict[str, Tensor]:
    """State of a plain model from the parameters of one with scaled queries."""
    plain = {}
    scales = dict(model.named_buffers())
    for name, value in trained.items():
        if name.endswith(".parametrizations.weight.original"):
            stem = name.removesuffix(".parametrizations.weight.original")
            plain[f"{stem}.weight"] = value * scales[f"{stem}.parametrizations.weight.0.scale"]
        else:
            plain[name] = value.clone()
    return plain
