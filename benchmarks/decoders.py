"""The paper's comparison: a decoder that denoises a segment beside one that writes it frame by frame.

Both are judged as ``evaluate`` judges voices, and timed in turn. Hawthorne et al. (ISMIR 2022, section 4) find the
diffusion decoder better by every metric; whether it is so here is the last column. What the two were trained on, and
for how long, is for whoever names them to make equal (``notewave train`` has compare-diffusion and
compare-autoregressive).
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from notewave.benchmarks.evaluate import Report, evaluate
from notewave.benchmarks.report import (
    Case,
    Result,
    Spread,
    add_output_arguments,
    check_counts,
    finish,
    machine,
    new_figure,
    save_plot,
    text_table,
    voice_sums,
)
from notewave.benchmarks.songs import song_notes
from notewave.errors import ArgumentError
from notewave.export.material.fluidsynth import SOUNDFONT
from notewave.song.midi import tokenize
from notewave.song.notes import Notes
from notewave.sound.mel import SEGMENT_SECONDS
from notewave.synthesizer import Synthesizer

QUALITY = {  # of a report's summary: whether more is better
    "note_f1_ratio": True,
    "mel_error_ratio": False,
    "frechet": False,
    "frechet_musicnn": False,
    "seam": False,
}
SPEED = ("real_time_factor", "first_audio_s")  # less is better
DECODERS = ("diffusion", "autoregressive")  # in this order


def measure(singers: list[Synthesizer], reports: list[Report], song: Notes, segments: int, repeat: int) -> list[Case]:
    """A case for each decoder: what its report says, and what singing a song takes, one decoder after the other."""
    songs = [tokenize(song, dialect=singer.voice.dialect)[:segments] for singer in singers]
    seconds: list[dict[str, list[float]]] = [{name: [] for name in SPEED} for _ in singers]
    for number in range(repeat + 1):
        for singer, tokens, taken in zip(singers, songs, seconds, strict=True):
            start = time.perf_counter()
            stream = singer.stream(tokens)
            next(stream)
            first = time.perf_counter() - start
            for _ in stream:
                pass
            whole = time.perf_counter() - start
            if number:  # the first time, schedules and buffers are made
                taken["first_audio_s"].append(first)
                taken["real_time_factor"].append(whole / (SEGMENT_SECONDS * len(tokens)))
    cases = []
    for decoder, singer, report, taken in zip(DECODERS, singers, reports, seconds, strict=True):
        figures = {name: Spread.of([report.summary[name]]) for name in QUALITY if np.isfinite(report.summary[name])}
        settings = {"decoder": decoder, "voice": singer.voice.name, "steps": report.sampling["steps"]}
        cases.append(Case(settings, figures | {name: Spread.of(values) for name, values in taken.items()}))
    return cases


def verdict(result: Result) -> str:
    """A table of what each decoder scores, and which is better; the paper's answer is "diffusion" everywhere."""
    diffusion, frames = (case.figures for case in result.cases)
    rows = [["", *DECODERS, "better here"]]
    for name in (*QUALITY, *SPEED):
        if name in diffusion and name in frames:
            values = diffusion[name].median, frames[name].median
            leads = (values[0] > values[1]) == QUALITY.get(name, False)
            rows.append([name, *(f"{value:.3f}" for value in values), DECODERS[0 if leads else 1]])
    return text_table(rows)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give a parser the options of ``notewave bench decoders``."""
    parser.add_argument("--voice", nargs=2, required=True, metavar=("DIFFUSION", "AUTOREGRESSIVE"), help="two voices")
    parser.add_argument("--song", nargs="+", default=["piano"], help="MIDI files, or held-out sets (default piano)")
    parser.add_argument("--segments", type=int, default=8, help="of each, 5.12 s long (default 8)")
    parser.add_argument("--threads", type=int, help="of the CPU (default: all processors)")
    parser.add_argument("--backend", default="auto")
    add_output_arguments(parser)


def run(options: argparse.Namespace) -> None:
    """Run ``notewave bench decoders`` with parsed options."""
    check_counts(segments=options.segments, repeats=options.repeat)
    facts = machine()
    opened = {"backend": options.backend, "threads": options.threads}
    singers = [Synthesizer(voice, **opened) for voice in options.voice]
    if [singer.voice.is_autoregressive for singer in singers] != [False, True]:
        raise ArgumentError("the voices must be one that denoises, then one that writes frame by frame. Name them so.")
    reports = [
        evaluate(voice, options.song, soundfont=SOUNDFONT, max_segments=options.segments, **opened)
        for voice in options.voice
    ]
    song = next(iter(song_notes(options.song).values()))
    cases = measure(singers, reports, song, options.segments, options.repeat)
    result = Result("decoders", facts, voice_sums([singer.voice for singer in singers]), cases)
    finish(result, options, verdict(result), save_decoders_plot)


def save_decoders_plot(result: Result, path: str) -> None:
    """Draw what each decoder scores."""
    figure = new_figure(8, 4)
    axis = figure.subplots()
    names = [name for name in (*QUALITY, *SPEED) if all(name in case.figures for case in result.cases)]
    most = {name: max(case.figures[name].median for case in result.cases) for name in names}
    for offset, case in enumerate(result.cases):
        heights = [case.figures[name].median / most[name] for name in names]
        axis.bar(np.arange(len(names)) + 0.4 * offset, heights, 0.4, label=str(case.settings["decoder"]))
    axis.set_xticks(np.arange(len(names)) + 0.2, [name.replace("_", " ") for name in names])
    axis.tick_params(axis="x", labelrotation=20)
    axis.set_ylabel("of the larger one")
    axis.legend()
    save_plot(figure, path)
