"""The machinery of a training run: optimiser, averaged weights, checkpoints, a log, a clean stop."""

from __future__ import annotations

import json
import logging
import math
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from notewave.errors import TrainingError
from notewave.export.training.config import Config, Stage
from notewave.files import atomic_file
from notewave.voice.contracts import Dimensions

log = logging.getLogger(__name__)

BETAS = (0.9, 0.98)
WARM_UP = 100  # steps
CLIP = 1.0  # norm of the gradient
WEIGHT_DECAY = 0.2  # of what feed-forwards and attention add to the residual streams, which would outgrow one another
SLOW_RATE = 0.03  # factor on the learning rate of what runs away at 1: the time embedding, whose wide layers multiply
# every stream, and the context encoder, which few frames need and give a direction to
LOG_EVERY = 20  # steps


def low_precision(device: str) -> torch.autocast:
    """Context that computes in bfloat16 where the device has instructions for it; elsewhere it would be far slower."""
    capable = device != "cpu" or torch.cpu.get_capabilities().get("avx512_bf16", False)
    return torch.autocast(device, torch.bfloat16, enabled=capable, cache_enabled=False)


def parameter_groups(model: nn.Module, kind_of: Callable[[str], str]) -> list[dict[str, Any]]:
    """The parameters by their kind, which says their learning rate, and by whether their weights decay."""
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        decays = any(part in name for part in (".feed_forward.", ".out.", ".cross_out."))
        groups.setdefault((kind_of(name), decays), []).append(parameter)
    return [
        {"params": parameters, "kind": kind, "weight_decay": WEIGHT_DECAY * decays}
        for (kind, decays), parameters in groups.items()
    ]


class Run:
    """One stage of a training run and its folder. Whatever is random depends on (seed, stage, step) alone."""

    def __init__(
        self, folder: Path, stage: str, config: Config, model: nn.Module, groups: list[dict[str, Any]]
    ) -> None:
        self.folder, self.stage, self.config, self.model = folder, stage, config, model
        self.step, self.seconds = 0, 0.0
        self.optimiser = torch.optim.AdamW(groups, lr=1.0, betas=BETAS, fused=True)
        self.ema = {name: value.detach().clone() for name, value in model.named_parameters()}
        self.started = self.saved = self.validated = time.monotonic()
        self.stopping = False
        folder.mkdir(parents=True, exist_ok=True)
        if self.checkpoint.exists():
            self._load()

    @property
    def checkpoint(self) -> Path:
        """Where this stage's state lies."""
        return self.folder / f"{self.stage}.pt"

    @property
    def phases(self) -> tuple[Stage, ...]:
        """Phases of this stage."""
        return self.config.symbolic if self.stage == "symbolic" else self.config.mel

    def phase(self) -> tuple[Stage, float] | None:
        """The phase that the present step belongs to and how far it is in it, 0 to 1; None at the end."""
        before = 0
        for phase in self.phases:
            if self.step < before + phase.steps:
                return phase, (self.step - before) / phase.steps
            before += phase.steps
        return None

    @property
    def pinned(self) -> bool:
        """Whether the present phase keeps the copying heads as they were set."""
        current = self.phase()
        return current is not None and self.step < current[0].pinned

    def train(self, loss: Callable[[Stage, int], Tensor], validate: Callable[[], dict[str, float]]) -> bool:
        """Step until the last phase ends (True) or until SIGTERM or SIGINT (False), then write a checkpoint.

        loss: of one share of the present step's batch; config.threads shares are computed side by side, which
        suits a busy machine better than threads inside each operation. validate: figures of the averaged weights.
        """
        losses: list[float] = []
        with self._stopping_on_signals(), ThreadPoolExecutor(self.config.threads) as pool:
            while (current := self.phase()) is not None and not self.stopping:
                losses.append(self._differentiate(partial(loss, current[0]), pool))
                norm = self.update()
                if self.step % LOG_EVERY == 0:
                    self.record(loss=float(np.mean(losses)), norm=norm)
                    losses.clear()
                now = time.monotonic()
                if now - self.validated > self.config.validate_seconds or self.phase() is None:
                    with self.averaged():
                        self.record(**validate())
                    self.validated = time.monotonic()
                if now - self.saved > self.config.checkpoint_seconds:
                    self.save()
            self.save()
        return not self.stopping

    def _differentiate(self, loss: Callable[[int], Tensor], pool: ThreadPoolExecutor) -> float:
        """Set the gradients to the mean over the shares; returns the mean loss."""
        parameters, shares = list(self.model.parameters()), self.config.threads

        def work(share: int) -> tuple[float, tuple[Tensor | None, ...]]:
            torch.set_num_threads(1)
            value = loss(share)
            return float(value.detach()), torch.autograd.grad(value, parameters, allow_unused=True)

        values, gradients = zip(*pool.map(work, range(shares)), strict=True)
        for parameter, *parts in zip(parameters, *gradients, strict=True):
            present = [part for part in parts if part is not None]
            parameter.grad = torch.stack(present).sum(dim=0).div_(shares) if present else None
        return sum(values) / shares

    @contextmanager
    def _stopping_on_signals(self) -> Iterator[None]:
        """SIGTERM and SIGINT end the run after the step in hand."""

        def stop(number: int, frame: object) -> None:
            self.stopping = True

        before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def generator(self, share: int) -> torch.Generator:
        """Randomness of one share of the present step."""
        identity = np.random.SeedSequence((self.config.seed, self.stage == "mel", self.step, share))
        return torch.Generator().manual_seed(int(identity.generate_state(1)[0]))

    def update(self) -> float:
        """One optimiser step on the gradients there are; returns their norm."""
        phase, progress = self.phase() or (self.phases[-1], 1.0)
        rate = phase.learning_rate_end + 0.5 * (phase.learning_rate - phase.learning_rate_end) * (
            1 + math.cos(math.pi * progress)
        )
        rate *= min(1.0, (self.step + 1) / WARM_UP)
        for group in self.optimiser.param_groups:
            group["lr"] = rate * {"new": 1.0, "pretrained": phase.pretrained_rate, "slow": SLOW_RATE}[group["kind"]]
        norm = float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP))
        if math.isfinite(norm):
            self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.step += 1
        decay = min(self.config.ema, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(list(self.ema.values()), [p.detach() for p in self.model.parameters()], 1 - decay)
        return norm

    def save(self) -> None:
        """Write the checkpoint, whole or not at all."""
        now = time.monotonic()
        self.seconds += now - self.started
        self.started = self.saved = now
        state = {
            "config": asdict(self.config),
            "step": self.step,
            "seconds": self.seconds,
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "ema": self.ema,
        }
        with atomic_file(self.checkpoint) as temporary:
            torch.save(state, temporary)

    def _load(self) -> None:
        state = torch.load(self.checkpoint, weights_only=True)
        if Dimensions(**state["config"]["dimensions"]) != self.config.dimensions:
            raise TrainingError(
                f"{self.checkpoint} holds networks of other dimensions; remove it or use its configuration."
            )
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.ema = state["ema"]
        self.step, self.seconds = state["step"], state["seconds"]
        log.info("%s resumes at step %d", self.stage, self.step)

    def record(self, **values: float) -> None:
        """Append one line to the run's log."""
        seconds = self.seconds + time.monotonic() - self.started
        entry = {"stage": self.stage, "step": self.step, "seconds": round(seconds, 1), **values}
        with (self.folder / "log.jsonl").open("a") as file:
            file.write(json.dumps(entry) + "\n")
        figures = ", ".join(f"{key} {value:.4g}" for key, value in values.items())
        log.info("%s step %d, %.0f s: %s", self.stage, self.step, seconds, figures)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The model has the averaged weights inside."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for name, value in self.model.named_parameters():
            value.data, self.ema[name] = self.ema[name], value.data
