"""The machinery of every training: steps, averaged weights, checkpoints, a log, a clean stop."""

from __future__ import annotations

import json
import logging
import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from notewave.errors import TrainingError
from notewave.export.training.optimiser import Optimiser
from notewave.files import atomic_file

log = logging.getLogger(__name__)

LOG = "log.jsonl"
SAID_EVERY = 20  # steps between lines of progress
# fmt: off
PLOTTED = (
    "loss", "frame_f1", "onset_f1", "part_f1", "program_f1", "mel_error", "mel_ratio", "seam",
    "mel", "pitch", "listening", "heard", "valid_stft", "valid_mel",
)
# fmt: on

Figures = Mapping[str, float]


def low_precision(device: str) -> torch.autocast:
    """Context that computes in bfloat16 where the device has instructions for it; elsewhere it would be far slower."""
    capable = device != "cpu" or torch.cpu.get_capabilities().get("avx512_bf16", False)
    return torch.autocast(device, torch.bfloat16, enabled=capable, cache_enabled=False)


class Average:
    """The exponential moving average of a module's parameters: what is kept of its training."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.module, self.decay = module, decay
        self.values = {name: value.detach().clone() for name, value in module.named_parameters()}

    def update(self, step: int) -> None:
        """Take in what the module is after so many optimiser steps; the first ones are soon forgotten."""
        decay = min(self.decay, (1 + step) / (10 + step))
        present = [parameter.detach() for parameter in self.module.parameters()]
        torch._foreach_lerp_(list(self.values.values()), present, 1 - decay)

    @contextmanager
    def inside(self) -> Iterator[None]:
        """The module has the averaged weights inside."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for name, value in self.module.named_parameters():
            value.data, self.values[name] = self.values[name], value.data

    def settle(self) -> None:
        """Give the module the averaged weights for good."""
        for name, value in self.module.named_parameters():
            value.data = self.values[name]


FALL = 0.2  # share of a stage's time in which the learning rate falls to nothing


@dataclass(frozen=True)
class Allowance:
    """The time that a stage has, where it is to end by the clock; in its last fifth the learning rate falls."""

    began: float  # of time.monotonic()
    seconds: float

    @classmethod
    def from_now(cls, seconds: float) -> Allowance:
        """So many seconds from now on."""
        return cls(time.monotonic(), max(1.0, seconds))

    @property
    def used(self) -> float:
        """The share that is over, from 0 on."""
        return (time.monotonic() - self.began) / self.seconds

    @property
    def falling(self) -> float:
        """Factor on the learning rate: 1, then down to 0 in the last part."""
        return min(1.0, max(0.0, (1 - self.used) / FALL))


class Run:
    """One stage of a training and its folder.

    A checkpoint holds everything but the data, and whatever is random depends on (seed, stage, step) alone: killed and
    started again, a run goes on from its last checkpoint as if nothing had happened.
    """

    def __init__(
        self,
        folder: Path,
        stage: str,
        trained: nn.Module,
        optimiser: torch.optim.Optimizer | Optimiser,
        average: Average,
        *,
        about: dict[str, Any],
        checkpoint_seconds: float,
        allowance: Allowance | None = None,
    ) -> None:
        """Begin, or go on from the folder's checkpoint of the stage. Raises TrainingError if it isn't of this run.

        about: what a checkpoint must agree with, the sizes of what is trained. allowance: the time to end in; the
        last checkpoint is written where the rate begins to fall, so that a later run goes on from there.
        """
        self.allowance, self.fell = allowance, False
        self.folder, self.stage, self.about = folder, stage, about
        self.trained, self.optimiser, self.average = trained, optimiser, average
        self.checkpoint_seconds = checkpoint_seconds
        self.step, self.seconds = 0, 0.0
        self.started = self.saved = self.validated = time.monotonic()
        self.stopping = False
        if self.checkpoint.exists():
            self._load()

    @property
    def checkpoint(self) -> Path:
        """Where this stage's state lies."""
        return self.folder / f"{self.stage}.pt"

    @property
    def falling(self) -> float:
        """Factor on the learning rate, 1 or less."""
        return self.allowance.falling if self.allowance else 1.0

    @property
    def is_over(self) -> bool:
        """Whether the stage's time is."""
        return self.allowance is not None and self.allowance.used >= 1

    @property
    def validation_age(self) -> float:
        """Seconds since the last validation, or since the run began."""
        return time.monotonic() - self.validated

    def train(
        self,
        steps: int,
        advance: Callable[[], Figures],
        validate: Callable[[], Figures],
        *,
        due: Callable[[], bool],
        log_every: int,
    ) -> bool:
        """Go on to that many steps or the end of the time (True), or until SIGTERM or SIGINT (False).

        advance: one step, which ends with ``update``; its losses. validate: figures of the averaged weights, which the
        module then has; when it is due, and after the last step. The log has the mean losses of every ``log_every``
        steps.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.step >= steps:
            return True
        self._forget_later_records()
        losses: list[Figures] = []
        with self._stopping_on_signals():
            ended = False
            while not (ended or self.stopping):
                losses.append(advance())
                figures: Figures = {}
                ended = self.step == steps or self.is_over
                if ended or due():
                    with self.average.inside():
                        figures = validate()
                    self.validated = time.monotonic()
                if figures or ended or self.step % log_every == 0:
                    self._record({**_means(losses), **figures}, said=bool(figures) or self.step % SAID_EVERY == 0)
                    losses.clear()
                if time.monotonic() - self.saved > self.checkpoint_seconds or (self.falling < 1 and not self.fell):
                    self.save()
            self.save()
        return not self.stopping

    def update(self, clip: float) -> float:
        """One optimiser step on the gradients there are, clipped to a norm, if they are finite; returns their norm."""
        norm = float(torch.nn.utils.clip_grad_norm_(self.trained.parameters(), clip))
        if math.isfinite(norm):
            self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.step += 1
        self.average.update(self.step)
        return norm

    def save(self) -> None:
        """Write the checkpoint, whole or not at all; none once the learning rate falls by the clock."""
        now = time.monotonic()
        self.seconds += now - self.started
        self.started = self.saved = now
        if self.fell:
            return
        self.fell = self.falling < 1
        state = {
            "about": self.about,
            "step": self.step,
            "seconds": self.seconds,
            "trained": self.trained.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "average": self.average.values,
        }
        with atomic_file(self.checkpoint) as temporary:
            torch.save(state, temporary)

    def _load(self) -> None:
        try:
            state: dict[str, Any] = torch.load(self.checkpoint, weights_only=True)
            same = state["about"] == self.about
        except Exception as error:  # torch raises whatever a broken archive runs into
            reason = str(error).partition("\n")[0]
            raise TrainingError(
                f"{self.checkpoint} is damaged, or another version's ({reason}). Remove it to begin its stage anew."
            ) from error
        if not same:
            raise TrainingError(
                f"{self.checkpoint} holds networks of other dimensions; remove it or use its configuration."
            )
        self.trained.load_state_dict(state["trained"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.average.values = state["average"]
        self.step, self.seconds = state["step"], state["seconds"]
        log.info("%s resumes at step %d", self.stage, self.step)

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

    def _record(self, figures: Figures, said: bool) -> None:
        """Append one line to the log."""
        seconds = self.seconds + time.monotonic() - self.started
        with (self.folder / LOG).open("a") as file:
            entry = {"stage": self.stage, "step": self.step, "seconds": round(seconds, 1), **figures}
            file.write(json.dumps(entry) + "\n")
        if said:
            listed = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
            log.info("%s step %d, %.0f s: %s", self.stage, self.step, seconds, listed)

    def _forget_later_records(self) -> None:
        """Drop the records of steps that were made after the last checkpoint and are about to be made again."""
        if (self.folder / LOG).exists():
            with atomic_file(self.folder / LOG) as temporary:
                kept = [entry for entry in read_log(self.folder) if not self._is_ahead(entry)]
                temporary.write_text("".join(json.dumps(entry) + "\n" for entry in kept))

    def _is_ahead(self, entry: dict[str, Any]) -> bool:
        return entry["stage"] == self.stage and entry["step"] > self.step


def _means(losses: Sequence[Figures]) -> dict[str, float]:
    """The mean of each figure over the steps that have it."""
    names = dict.fromkeys(name for step in losses for name in step)
    return {name: float(np.mean([step[name] for step in losses if name in step])) for name in names}


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The records of a folder's log, each with its stage, step and seconds. Raises TrainingError for another's log."""
    try:
        entries = [json.loads(line) for line in (folder / LOG).read_text().splitlines()]
        if not all({"stage", "step"} <= entry.keys() for entry in entries):
            raise ValueError("a line has no stage or no step")
    except (ValueError, AttributeError) as error:
        raise TrainingError(f"{folder / LOG} is damaged, or another version's ({error}). Remove it.") from error
    return entries


def plot_log(folder: Path) -> None:
    """Draw a folder's log as ``curve.png``: losses and validation figures over steps, one panel a stage.

    Without a log there is nothing to draw.
    """
    if not (folder / LOG).exists():
        return
    import matplotlib.figure

    entries = read_log(folder)
    stages = list(dict.fromkeys(entry["stage"] for entry in entries))
    figure = matplotlib.figure.Figure(figsize=(5 * len(stages), 4), layout="tight")
    for axes, stage in zip(figure.subplots(1, len(stages), squeeze=False)[0], stages, strict=True):
        own = [entry for entry in entries if entry["stage"] == stage]
        for name in PLOTTED:
            points = [(entry["step"], entry[name]) for entry in own if name in entry]
            if points:
                marker = "." if len(points) < 100 else ""
                axes.plot(*zip(*points, strict=True), label=name, linewidth=0.8, marker=marker)
        axes.set(title=stage, xlabel="step", yscale="log")
        if axes.lines:
            axes.legend()
    with atomic_file(folder / "curve.png") as temporary:
        figure.savefig(temporary)
