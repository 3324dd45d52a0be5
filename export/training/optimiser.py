"""The optimiser of a voice's networks: AdamW, or Muon for the matrices within them and AdamW for all else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

BETAS = (0.9, 0.98)
MOMENTUM = 0.95  # of Muon
WEIGHT_DECAY = 0.2  # of what feed-forwards and attention add to the residual streams, which would outgrow one another
OUTER = ("embedding", "positions", "decoder.input", "decoder.output", "heads.")  # matrices that are no maps of streams


class Optimiser:
    """Some of PyTorch's optimisers as one; each parameter group says its ``kind``, for the learning rate."""

    def __init__(self, *parts: torch.optim.Optimizer) -> None:
        self.parts = parts

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Groups of all parts."""
        return [group for part in self.parts for group in part.param_groups]

    def step(self) -> None:
        """Update all parameters."""
        for part in self.parts:
            part.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget all gradients."""
        for part in self.parts:
            part.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """State of each part."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take what ``state_dict`` gave. Raises ValueError for the state of other parts."""
        for part, own in zip(self.parts, state["parts"], strict=True):
            part.load_state_dict(own)


def make_optimiser(model: nn.Module, kind_of: Callable[[str], str], muon: bool) -> Optimiser:
    """The optimiser of a model's parameters, whose kinds their names say; kind "slow" stays with AdamW.

    Muon (Jordan et al. 2024) turns the momentum of a matrix to the nearest orthogonal one; its steps are scaled to the
    size of AdamW's (Liu et al. 2025), so that one learning rate serves both.
    """
    groups: dict[tuple[str, bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        kind, decays = kind_of(name), any(part in name for part in (".feed_forward.", ".out.", ".cross_out."))
        turned = muon and parameter.ndim == 2 and kind != "slow" and not any(part in name for part in OUTER)
        groups.setdefault((kind, decays, turned), []).append(parameter)
    by_part: dict[bool, list[dict[str, Any]]] = {False: [], True: []}
    for (kind, decays, turned), parameters in groups.items():
        by_part[turned].append({"params": parameters, "kind": kind, "weight_decay": WEIGHT_DECAY * decays})
    parts: list[torch.optim.Optimizer] = [torch.optim.AdamW(by_part[False], lr=1.0, betas=BETAS, fused=True)]
    if by_part[True]:
        parts.append(torch.optim.Muon(by_part[True], lr=1.0, momentum=MOMENTUM, adjust_lr_fn="match_rms_adamw"))
    return Optimiser(*parts)
