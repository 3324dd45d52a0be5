"""``notewave bench``: real-time factor, time to first audio, every stage, cold start and memory of voices on backends.

Cases are played in turn, round after round, so that a machine that slows down slows all of them; figures are medians
over the rounds. What a GPU holds is told where a single case is on it: all of its memory that is taken, by whomever.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from notewave.backends.choose import BACKENDS
from notewave.benchmarks.clock import CLOCK, add_clock_arguments, set_clock
from notewave.benchmarks.report import (
    Case,
    Result,
    add_output_arguments,
    check_counts,
    compare,
    finish,
    machine,
    new_figure,
    save_plot,
    voice_sums,
)
from notewave.benchmarks.trial import STEPWISE, TYPICAL_TOKENS, Settings, Trial
from notewave.errors import ArgumentError, ToolError
from notewave.song.dialect import PAD, PUBLISHED, Dialect, Tokens
from notewave.song.midi import tokenize
from notewave.sound.mel import SEGMENT_SECONDS
from notewave.synthesizer import DEFAULT_VOICE
from notewave.voice.folder import Voice

COLUMNS = (
    "real_time_factor",
    "first_audio_s",
    "tokenise_s",
    "note_encoder_s",
    "context_encoder_s",
    "cross_attention_s",
    "encoders_s",
    "time_embedding_s",
    "step_s",
    "eager_step_s",
    "launches_a_step",
    "decoder_s",
    "unconditional_decoder_s",
    "overhead_s",
    "overhead_share",
    "vocoder_s",
    "load_s",
    "cold_start_s",
    "peak_memory_mib",
    "gpu_memory_mib",
)


def synthetic_song(tokens: int, segments: int, dialect: Dialect = PUBLISHED, seed: int = 0) -> list[Tokens]:
    """Segments of exactly this many random tokens, what ends them included: speed depends on how many there are alone.

    Raises ArgumentError for a number that no segment has.
    """
    most = dialect.max_tokens
    if not 1 <= tokens <= most or segments < 1:
        raise ArgumentError(f"{segments} segments of {tokens} tokens cannot be: a segment has 1 to {most}.")
    random, least = np.random.default_rng(seed), max(dialect.shift, PAD + 1)
    events: NDArray[np.int32] = random.integers(
        least, dialect.end, (segments, tokens - len(dialect.rules.ends)), np.int32
    )
    return [dialect.segment(segment) for segment in events]


def launch(
    settings: Settings, song: str | Sequence[Tokens], times: int = 1, whole: bool = False
) -> tuple[float, float]:
    """Start a process that sings: seconds from its launch to the first audio, and its peak memory in MiB.

    The song is sung ``times`` over, to its end only if ``whole``. Raises ToolError when the process fails.
    """
    request = {
        "voice": settings.voice,
        "song": song if isinstance(song, str) else [segment.tolist() for segment in song],
        "times": times,
        "open": settings.open,
        "sampling": settings.sampling,
        "whole": whole,
    }
    start = time.perf_counter()
    command = [sys.executable, "-m", "notewave.benchmarks.process"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        json.dump(request, process.stdin)
        process.stdin.close()
        first = process.stdout.readline()
        first_s = time.perf_counter() - start
        peak = process.stdout.readline()
    if process.returncode or not first:
        raise ToolError(
            f"A render in a process of its own failed (exit code {process.returncode}). Its error is above."
        )
    return first_s, float(peak)


def benchmark(
    cases: Sequence[Settings],
    song: str | None = None,
    segments: int = 3,
    repeat: int = 5,
    launches: int = 0,
    minutes: Sequence[float] = (),
) -> Result:
    """Measure every case ``repeat`` times in turn, after a warm-up.

    song: a MIDI file, of which the first ``segments`` segments are sung; otherwise they are synthetic. launches: how
    many processes to start for the cold start. minutes: lengths of songs whose peak memory is measured. Raises
    ArgumentError for counts that measure nothing, and what ``Synthesizer`` and its ``stream`` raise.
    """
    check_counts(repeats=repeat, segments=segments)
    facts = machine()
    trials = []
    for case in cases:
        dialect = Voice.load(case.voice).dialect
        own = tokenize(song, dialect=dialect)[:segments] if song else synthetic_song(case.tokens, segments, dialect)
        trials.append(Trial(case, own))
    for round_ in range(repeat + 1):
        for trial in trials:
            trial.play()
            if round_ == 0:  # the warm-up
                trial.values = defaultdict(list, load_s=trial.values["load_s"])
    on_gpu = sum(trial.synthesizer.device is not None for trial in trials)
    for case, trial in zip(cases, trials, strict=True):
        trial.note_device(repeat, alone=on_gpu == 1)
        for _ in range(launches):
            first_s, peak_mib = launch(case, song or trial.song)
            trial.values["cold_start_s"].append(first_s)
            trial.values["peak_memory_mib"].append(peak_mib)
        for length in minutes:
            times = max(round(length * 60 / SEGMENT_SECONDS / len(trial.song)), 1)
            short = dataclasses.replace(case, steps=1)  # memory does not depend on the steps
            trial.values[f"peak_memory_{length:g}_min_mib"].append(launch(short, trial.song, times, whole=True)[1])
        if song:
            full = len(tokenize(song))  # of any dialect
            trial.values["tokenise_s"] += [CLOCK.seconds(lambda: tokenize(song)) / full for _ in range(repeat)]
    voices = voice_sums(trial.voice for trial in trials)
    return Result("bench", facts, voices, [trial.case() for trial in trials])


def save_stage_plot(result: Result, path: str) -> None:
    """Draw where the time of each case goes, as seconds of work for a second of audio."""
    stages = ("note_encoder", "context_encoder", "cross_attention", *STEPWISE, "vocoder")
    figure = new_figure(10, 1.5 + 0.5 * len(result.cases))
    axis = figure.subplots()
    labels = [result.label(case) for case in result.cases]
    left = np.zeros(len(labels))
    for stage in stages:
        widths = np.array([_share(case, stage) for case in result.cases])
        axis.barh(labels, widths, left=left, label=stage.replace("_", " "))
        left += widths
    totals = [case.figures["real_time_factor"].median for case in result.cases]
    axis.plot(totals, labels, "k|", markersize=18, label="end to end")
    axis.set(xlabel="seconds of work for a second of audio", title=result.machine["processor"])
    axis.legend(fontsize="small")
    save_plot(figure, path)


def _share(case: Case, stage: str) -> float:
    figure = case.figures.get(f"{stage}_s")
    if figure is None:
        return 0.0
    steps, batch = case.settings["steps"], case.settings["batch"]
    times = steps if stage in STEPWISE else batch if stage == "vocoder" else 1
    assert isinstance(times, int) and isinstance(batch, int)
    return figure.median * times / (SEGMENT_SECONDS * batch)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give a parser the options of ``notewave bench``."""
    parser.add_argument(
        "--compare", nargs=2, metavar=("A.json", "B.json"), help="print ratios of two results and leave"
    )
    parser.add_argument("--voice", nargs="+", default=[DEFAULT_VOICE], help="bundled names or folders")
    parser.add_argument("--song", metavar="S.mid", help="what to sing (default: random tokens)")
    parser.add_argument("--tokens", nargs="+", type=int, default=[TYPICAL_TOKENS], help="of a segment of random tokens")
    parser.add_argument("--segments", type=int, default=3, help="of the song to sing (default 3)")
    parser.add_argument("--sampler", nargs="+", default=[None])
    parser.add_argument("--steps", nargs="+", type=int, default=[None])
    parser.add_argument("--guidance", nargs="+", type=float, default=[None])
    add_clock_arguments(parser, nargs="+", default=[None])
    parser.add_argument("--batch", nargs="+", type=int, default=[1], help="songs side by side")
    parser.add_argument("--backend", nargs="+", default=["auto"], choices=BACKENDS)
    parser.add_argument(
        "--option", nargs="+", type=_option, default=[], metavar="NAME=VALUE", help="of the backend, as precision=bf16"
    )
    parser.add_argument("--launches", type=int, default=3, help="processes to start for the cold start (default 3)")
    parser.add_argument("--minutes", nargs="+", type=float, default=[], help="lengths of songs to take peak memory of")
    add_output_arguments(parser)


def _option(text: str) -> tuple[str, Any]:
    """An option of the command line; its value is read as JSON where it is some."""
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} has no value: say NAME=VALUE")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def run(options: argparse.Namespace) -> None:
    """Run ``notewave bench`` with parsed options."""
    if options.compare:
        print(compare(*map(Result.load, options.compare)))
        return
    set_clock(options)
    axes = (
        options.voice,
        options.backend,
        options.threads,
        options.sampler,
        options.steps,
        options.guidance,
        options.batch,
        options.tokens,
    )
    cases = [Settings(*values, options=tuple(options.option)) for values in itertools.product(*axes)]
    result = benchmark(cases, options.song, options.segments, options.repeat, options.launches, options.minutes)
    memory = [f"peak_memory_{length:g}_min_mib" for length in options.minutes]
    finish(result, options, result.table([*COLUMNS, *memory]), save_stage_plot)
