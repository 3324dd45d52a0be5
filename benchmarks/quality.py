"""Quality against speed: what each sampler, step count, guidance weight and precision costs, and what it gives.

Two distances are told apart. From the true rendering (FluidSynth's, as ``notewave.benchmarks.evaluate`` has it):
note-F1 and mel error. From what the voice would sing with unlimited steps, which is the original's ancestral sampler
with the reference step count: mel difference. Its floor is the reference with another seed, as every run draws noise.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from notewave.benchmarks.bench import voice_sha256
from notewave.benchmarks.report import (
    Case,
    Result,
    Setting,
    Spread,
    add_output_arguments,
    finish,
    machine,
    new_figure,
    save_plot,
)
from notewave.midi import tokenize
from notewave.samplers import SAMPLERS
from notewave.synthesizer import DEFAULT_VOICE, GRIFFIN_LIM, SamplingOptions, Synthesizer

STEPS = (2, 4, 6, 8, 12, 20, 50)
SCORES = ("note_f1", "note_f1_ratio", "drum_f1", "mel_error", "mel_error_audio", "frechet", "seam")


def measure(
    voices: Sequence[str],
    samplers: Sequence[SamplingOptions],
    songs: Sequence[str] = ("piano",),
    *,
    segments: int = 8,
    reference_steps: int = 1000,
    reference_segments: int = 2,
    backend: str = "auto",
    threads: int | None = None,
    vocoder: str | None = None,
) -> Result:
    """Judge every voice with every way of sampling on the first ``segments`` segments of each song.

    songs: MIDI files, or names of held-out sets. The reference is made of the first voice, and of the first
    ``reference_segments`` segments of the first song. Raises what ``evaluate`` raises.
    """
    from notewave.benchmarks.evaluate import evaluate
    from notewave.benchmarks.songs import HELD_OUT, held_out_tokens

    facts = machine()
    first = songs[0]
    tokens = (held_out_tokens(HELD_OUT[first][0]) if first in HELD_OUT else tokenize(first))[:reference_segments]
    singers = [Synthesizer(voice, backend=backend, threads=threads) for voice in voices]
    guidance = singers[0].voice.sampling.guidance
    full: SamplingOptions = {"sampler": "ancestral", "steps": reference_steps, "guidance": guidance}
    reference = singers[0].spectrogram(tokens, **full)
    reseeded: SamplingOptions = {**full, "seed": 1}
    floor = mel_difference(singers[0].spectrogram(tokens, **reseeded), reference)
    facts["reference"] = (
        f"ancestral, {reference_steps} steps, guidance {guidance:g}; with another seed {floor:.3f} nats"
    )
    cases = []
    for (path, singer), sampling in itertools.product(zip(voices, singers, strict=True), samplers):
        report = evaluate(
            path, songs, max_segments=segments, backend=backend, threads=threads, vocoder=vocoder, **sampling
        )
        settings: dict[str, Setting] = {"voice": singer.voice.name, "precision": singer.voice.precision}
        settings |= {key: report.sampling[key] for key in ("sampler", "steps", "guidance")}
        figures = {name: Spread.of([report.summary[name]]) for name in SCORES if np.isfinite(report.summary[name])}
        difference = mel_difference(singer.spectrogram(tokens, **sampling), reference)
        figures["mel_difference"] = Spread.of([difference])
        figures["real_time_factor"] = Spread.of([song["real_time_factor"] for song in report.songs.values()])
        cases.append(Case(settings, figures))
    return Result(
        "quality", facts, {f"{s.voice.name} {s.voice.precision}": voice_sha256(s.voice) for s in singers}, cases
    )


def mel_difference(mel: NDArray[np.float32], reference: NDArray[np.float32]) -> float:
    """Mean absolute difference of two log-mels of one shape, in nats."""
    return float(np.abs(mel - reference).mean(dtype=np.float64))


def save_quality_plot(result: Result, path: str) -> None:
    """Draw note-F1 and both mel distances over the step count, a line for each voice, sampler and guidance weight."""
    figure = new_figure(15, 4.5)
    panels = {
        "note_f1": "note-F1",
        "mel_error": "from the true rendering (nats)",
        "mel_difference": "from the reference (nats)",
    }
    lines: dict[str, list[Case]] = {}
    for case in result.cases:
        keys = ("voice", "precision", "sampler", "guidance")
        lines.setdefault(" ".join(str(case.settings[key]) for key in keys), []).append(case)
    for axis, (name, title) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        for label, cases in lines.items():
            points = sorted(
                (case.settings["steps"], case.figures[name].median) for case in cases if name in case.figures
            )
            if points:
                axis.plot(*zip(*points, strict=True), marker="o", label=label)
        axis.set(title=title, xlabel="denoising steps", xscale="log")
        axis.grid(alpha=0.3)
    axis.legend(fontsize="x-small")
    save_plot(figure, path)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give a parser the options of ``notewave bench quality``."""
    parser.add_argument("--voice", nargs="+", default=[DEFAULT_VOICE], help="bundled names or folders")
    parser.add_argument("--song", nargs="+", default=["piano"], help="MIDI files, or the held-out sets piano and band")
    parser.add_argument("--segments", type=int, default=8, help="of each song (default 8)")
    parser.add_argument("--sampler", nargs="+", default=list(SAMPLERS))
    parser.add_argument("--steps", nargs="+", type=int, default=list(STEPS))
    parser.add_argument("--guidance", nargs="+", type=float, default=[None])
    parser.add_argument("--reference-steps", type=int, default=1000, help="of the reference (default 1000)")
    parser.add_argument("--reference-segments", type=int, default=2, help="of the first song (default 2)")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--vocoder", choices=[GRIFFIN_LIM], help="in the place of the voice's own")
    add_output_arguments(parser)


def run(options: argparse.Namespace) -> None:
    """Run ``notewave bench quality`` with parsed options."""
    ways = itertools.product(options.sampler, options.steps, options.guidance)
    result = measure(
        options.voice,
        [{"sampler": sampler, "steps": steps, "guidance": guidance} for sampler, steps, guidance in ways],
        options.song,
        segments=options.segments,
        reference_steps=options.reference_steps,
        reference_segments=options.reference_segments,
        backend=options.backend,
        threads=options.threads,
        vocoder=options.vocoder,
    )
    finish(result, options, f"reference: {result.machine['reference']}\n{result.table()}", save_quality_plot)
