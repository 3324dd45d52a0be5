"""Training of a voice's networks in phases: learning rates, and batches whose shares are computed side by side."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from notewave.export.training.config import Config, Stage
from notewave.export.training.loop import Allowance, Average, Figures, Run
from notewave.export.training.optimiser import make_optimiser

WARM_UP = 100  # steps
CLIP = 1.0  # norm of the gradient
SLOW_RATE = 0.03  # factor on the learning rate of what runs away at 1: the time embedding, whose wide layers multiply
# every stream, and the context encoder, which few frames need and give a direction to
STAGES = ("symbolic", "mel", "distil")
LOG_EVERY = 20  # steps


class PhasedRun(Run):
    """One stage of the networks. A parameter's kind, by its name, is "new", "pretrained" or "slow"."""

    def __init__(
        self,
        folder: Path,
        stage: str,
        config: Config,
        model: nn.Module,
        kind_of: Callable[[str], str],
        allowance: Allowance | None = None,
    ) -> None:
        self.config = config
        self.phases = {"symbolic": config.symbolic, "mel": config.mel, "distil": config.distil}[stage]
        optimiser = make_optimiser(model, kind_of, config.muon)
        super().__init__(
            folder,
            stage,
            model,
            optimiser,
            Average(model, config.ema),
            about=asdict(config.dimensions),
            checkpoint_seconds=config.checkpoint_seconds,
            allowance=allowance,
        )

    def phase(self, step: int | None = None) -> tuple[Stage, float] | None:
        """The phase that a step, or the present one, belongs to, and how far it is in it, 0 to 1; None at the end."""
        asked, before = self.step if step is None else step, 0
        for phase in self.phases:
            if asked < before + phase.steps:
                return phase, (asked - before) / phase.steps
            before += phase.steps
        return None

    @property
    def pinned(self) -> bool:
        """Whether the present phase keeps the copying heads as they were set."""
        current = self.phase()
        return current is not None and self.step < current[0].pinned

    def generator(self, share: int) -> torch.Generator:
        """Randomness of one share of the present step."""
        identity = np.random.SeedSequence((self.config.seed, STAGES.index(self.stage), self.step, share))
        return torch.Generator().manual_seed(int(identity.generate_state(1)[0]))

    def train_phases(self, loss: Callable[[Stage, int], Tensor], validate: Callable[[], Figures]) -> bool:
        """Go on until the last phase or the time ends (True), or until SIGTERM or SIGINT (False).

        loss: of one share of the present step's batch; config.threads shares are computed side by side, which
        suits a busy machine better than threads inside each operation. validate: figures of the averaged weights.
        """
        with ThreadPoolExecutor(self.config.threads) as pool:
            return self.train(
                sum(phase.steps for phase in self.phases),
                lambda: self._advance(loss, pool),
                validate,
                due=lambda: self.validation_age > self.config.validate_seconds,
                log_every=LOG_EVERY,
            )

    def _advance(self, loss: Callable[[Stage, int], Tensor], pool: ThreadPoolExecutor) -> Figures:
        current = self.phase()
        assert current is not None
        phase, progress = current
        value = self._differentiate(partial(loss, phase), pool)
        rate = phase.learning_rate_end + 0.5 * (phase.learning_rate - phase.learning_rate_end) * (
            1 + math.cos(math.pi * progress)
        )
        rate *= min(1.0, (self.step + 1) / WARM_UP) * self.falling
        for group in self.optimiser.param_groups:
            group["lr"] = rate * {"new": 1.0, "pretrained": phase.pretrained_rate, "slow": SLOW_RATE}[group["kind"]]
        return {"loss": value, "norm": self.update(CLIP)}

    def _differentiate(self, loss: Callable[[int], Tensor], pool: ThreadPoolExecutor) -> float:
        """Set the gradients to the mean over the shares; returns the mean loss."""
        parameters, shares = list(self.trained.parameters()), self.config.threads

        def work(share: int) -> tuple[float, tuple[Tensor | None, ...]]:
            torch.set_num_threads(1)
            value = loss(share)
            return float(value.detach()), torch.autograd.grad(value, parameters, allow_unused=True)

        values, gradients = zip(*pool.map(work, range(shares)), strict=True)
        for parameter, *parts in zip(parameters, *gradients, strict=True):
            present = [part for part in parts if part is not None]
            parameter.grad = torch.stack(present).sum(dim=0).div_(shares) if present else None
        return sum(values) / shares
