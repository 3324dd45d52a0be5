"""``notewave bench peer --gpu``: one denoising step on a GPU, by our engines and by our PyTorch modules.

All sides have the same weights and inputs, and are timed in turn, round after round, by CUDA's events. A side that
fails is logged by its name and left out. The sampler's update, which PyTorch's sides lack, is not part of the step.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from notewave.backends.choose import AUTO, open_backend
from notewave.backends.gpu.backend import GpuBackend
from notewave.benchmarks.peer import exported
from notewave.benchmarks.report import (
    Case,
    Result,
    Setting,
    Spread,
    check_counts,
    finish,
    machine,
    new_figure,
    save_plot,
    voice_sums,
)
from notewave.errors import ArgumentError, BackendError, ToolError
from notewave.voice.folder import Voice
from notewave.voice.library import DESCRIPTION, bundled_voices

if TYPE_CHECKING:
    from notewave.benchmarks.gpu_sides import Meter, Ready, Step
    from notewave.export.networks import Decoder

log = logging.getLogger(__name__)
Found = TypeVar("Found")

ENGINES = tuple(name for name in AUTO if name != "cpu")  # backends on a GPU
PRECISION = "fp16"  # of the engines' products, as of PyTorch's
BATCHES = (1, 4, 16)
ROUND_S = 0.1  # that a side is timed for in a round
FEWEST, MOST = 5, 2000  # calls in a round
REASON = 500  # characters of why a side is left out
WRONG = 0.1  # largest error, as a share of the largest number due, beyond which a side does not compute the step


@dataclass
class Entry:
    """A side under way: how often it is called in a round, and what was seen of it."""

    ready: Ready
    repeats: int
    ready_s: float  # that it took to be made ready: compiled, captured, warmed up
    error: float | None  # largest, of its largest number; None where it predicts nothing
    seconds: list[float] = field(default_factory=list)  # by round

    @property
    def is_wrong(self) -> bool:
        """Whether it computes something else."""
        return self.error is not None and self.error > WRONG

    def time(self, meter: Meter) -> float:
        """Seconds of a step, or of what else it does, in another round."""
        return meter.seconds(self.ready.call, self.repeats, self.ready.stream) / self.ready.times


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give the parser of ``notewave bench peer`` the options for a GPU."""
    parser.add_argument(
        "--gpu",
        dest="run",
        action="store_const",
        const=run,
        help="instead: a denoising step on a GPU by our engines and our PyTorch modules, of --checkpoint (or a voice; "
        "random weights are made if need be), --tokens and --batch",
    )
    parser.add_argument("--batch", nargs="+", type=int, default=list(BATCHES), help="songs side by side, with --gpu")


def run(options: argparse.Namespace) -> None:
    """Run ``notewave bench peer --gpu`` with parsed options."""
    check_counts(repeats=options.repeat, tokens=options.tokens, songs_side_by_side=min(options.batch))
    meter = cuda_meter()
    from notewave.benchmarks.gpu_sides import Step

    voice = given_voice(options.checkpoint)
    if options.tokens > (most := voice.dimensions.max_tokens):
        raise ArgumentError(f"--tokens is {options.tokens}; voice {voice.name!r} takes {most}. Ask for fewer.")
    decoder = restored_decoder(voice)
    result = Result("peer --gpu", machine() | {"PyTorch": f"for {meter.runtime}"}, voice_sums([voice]), [])
    left_out = LeftOut()
    with contextlib.ExitStack() as stack:
        engines = open_engines(voice, stack, left_out)
        for batch in options.batch:
            step = Step.of(decoder, voice.dimensions, options.tokens, batch)
            result.cases.extend(measure(engines, decoder, step, options.repeat, meter, left_out))
            if options.json:
                result.save(options.json)  # what follows may take minutes
    if not result.cases:
        raise ToolError(f"no side made a step. {' '.join(left_out.lines)} See what `notewave bench` says of the GPU.")
    finish(result, options, "\n".join([result.table(), *left_out.lines]), save_step_plot)


def cuda_meter() -> Meter:
    """What times on the GPU. Raises ToolError where PyTorch has none."""
    try:
        import torch
    except ImportError as error:
        raise ToolError(
            f"PyTorch does not import ({error}), and a step by it is to be timed. Install it with CUDA: pip install "
            "torch."
        ) from error
    if not torch.cuda.is_available():
        reason = f"CUDA {torch.version.cuda} of it sees none here" if torch.version.cuda else "it is made without CUDA"
        raise ToolError(
            f"PyTorch {torch.__version__} finds no GPU: {reason}. Run this on a machine with an NVIDIA GPU, its "
            "driver, and PyTorch made for a CUDA that the driver knows."
        )
    from notewave.benchmarks.gpu_sides import CudaMeter

    return CudaMeter()


def given_voice(source: Path) -> Voice:
    """A voice by folder or bundled name, that of a checkpoint, or where there is nothing, one of random weights.

    The latter two are made if need be, and kept beside ``source``.
    """
    if str(source) in bundled_voices() or (source / DESCRIPTION).is_file():
        return Voice.load(source)
    if source.is_dir():
        return exported(source, "fp32")
    made = source.with_name(f"{source.name}-voice")
    if not (made / DESCRIPTION).is_file():
        from notewave.export.convert import export_checkpoint

        log.warning("there is no %s: making a voice of random weights of the published size in %s", source, made)
        made.parent.mkdir(parents=True, exist_ok=True)
        return export_checkpoint(None, made, random="base")
    return Voice.load(made)


def restored_decoder(voice: Voice) -> Decoder:
    """A voice's decoder in PyTorch. Raises VoiceError for one with 8-bit weights."""
    from notewave.export.graphs.restore import family_of, restore_module
    from notewave.export.networks import Decoder

    decoder = restore_module(Decoder(voice.dimensions, family_of(voice)), voice, "decoder")
    return decoder.requires_grad_(False).eval()


class LeftOut:
    """What failed, for whatever reason, and leaves the rest to run."""

    def __init__(self) -> None:
        self.lines: list[str] = []  # a side's name, and why

    def attempt(self, name: str, call: Callable[[], Found]) -> Found | None:
        """What a call gives, or None where it fails, which is logged."""
        try:
            return call()
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:REASON]
            self.lines.append(f"{name} is left out: {reason}")
            log.warning("%s", self.lines[-1])
            log.debug("%s", name, exc_info=True)
            return None


def open_engines(voice: Voice, stack: contextlib.ExitStack, left_out: LeftOut) -> dict[str, GpuBackend]:
    """Those of ENGINES that open, in the GPU's context, until the stack unwinds. Raises BackendError if none does."""
    opened = {}
    for name in ENGINES:
        options = {"precision": PRECISION}
        backend = left_out.attempt(f"notewave {name}", functools.partial(open_backend, name, voice, None, options))
        if backend is not None:
            assert isinstance(backend, GpuBackend)
            stack.callback(backend.close)
            stack.enter_context(backend.shared.device)
            opened[name] = backend
    if not opened:
        raise BackendError(f"none of our engines opens here. {' '.join(left_out.lines)}")
    return opened


def measure(
    engines: Mapping[str, GpuBackend], decoder: Decoder, step: Step, repeat: int, meter: Meter, left_out: LeftOut
) -> list[Case]:
    """Every side that runs, timed in turn ``repeat`` times."""
    from notewave.benchmarks.gpu_sides import sides

    batch = len(step.x)
    entries: dict[str, Entry] = {}
    with contextlib.ExitStack() as stack:
        for name, prepare in sides(engines, decoder, step, meter, stack).items():
            entry = left_out.attempt(
                f"{name}, batch {batch}", functools.partial(made_ready, name, prepare, step, meter)
            )
            if entry is not None:
                entries[name] = entry
        for _ in range(repeat):
            for name, entry in list(entries.items()):
                seconds = left_out.attempt(f"{name}, batch {batch}", functools.partial(entry.time, meter))
                if seconds is None:
                    del entries[name]
                else:
                    entry.seconds.append(seconds)
        return cases(entries, batch)


def made_ready(name: str, prepare: Callable[[], Ready], step: Step, meter: Meter) -> Entry:
    """A side made ready and its prediction compared. Raises ToolError for one that gives what are no numbers."""
    start = time.perf_counter()
    ready = prepare()
    meter.seconds(ready.call, FEWEST, ready.stream)
    ready_s = time.perf_counter() - start
    error = None
    if ready.predict is not None:
        error = float(np.abs(ready.predict() - step.due).max() / np.abs(step.due).max())
        if not np.isfinite(error):
            raise ToolError("it predicts what are no numbers: these weights leave the range of its data type.")
        if error > WRONG:
            log.warning("%s is wrong by %.2g of the largest number due: its time means nothing", name, error)
    once = meter.seconds(ready.call, FEWEST, ready.stream)
    log.info("%s: %.3g ms, ready after %.1f s", name, once / ready.times * 1e3, ready_s)
    return Entry(ready, int(np.clip(ROUND_S / once, FEWEST, MOST)), ready_s, error)


def cases(entries: Mapping[str, Entry], batch: int) -> list[Case]:
    """Figures of each side, and how many times as fast as the fastest of PyTorch's it is, round by round."""
    pytorch = [entry for entry in entries.values() if entry.ready.pytorch and not entry.is_wrong]
    best = min(pytorch, key=lambda entry: float(np.median(entry.seconds)), default=None)
    found = []
    for name, entry in entries.items():
        seconds, ready = np.array(entry.seconds), entry.ready
        figures = {ready.figure: Spread.of(seconds)}
        if best is not None and ready.figure == "step_s":
            figures["speedup_over_pytorch"] = Spread.of(np.array(best.seconds) / seconds)
        for figure, value in (
            ("relative_error", entry.error),
            ("launches", ready.launches),
            ("ready_s", entry.ready_s),
        ):
            if value is not None:
                figures[figure] = Spread.of([value])
        settings: dict[str, Setting] = {"side": name, "batch": batch, "keys": ready.keys}
        found.append(Case(settings, figures))
    return found


def save_step_plot(result: Result, path: str) -> None:
    """Draw what a step takes by each side, a panel for each batch."""
    batches = list(dict.fromkeys(case.settings["batch"] for case in result.cases))
    figure = new_figure(5 + 4 * len(batches), 5)
    for axis, batch in zip(figure.subplots(1, len(batches), squeeze=False)[0], batches, strict=True):
        shown = [case for case in result.cases if case.settings["batch"] == batch and "step_s" in case.figures]
        names = [str(case.settings["side"]) for case in shown]
        axis.barh(names, [case.figures["step_s"].median * 1e3 for case in shown])
        axis.invert_yaxis()
        axis.set(xlabel="ms a step", title=f"batch {batch}")
    save_plot(figure, path)
