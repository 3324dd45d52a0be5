"""Stems: how near the sum of a song's parts, each sung alone, comes to the mix, and what each costs.

Both are judged as heard, by the song's notes: note-F1 of the sum beside the mix's; and by how far they are apart.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from notewave.benchmarks.quality import Judge
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
    voice_sums,
)
from notewave.benchmarks.scores import pitched_f1
from notewave.song.codec import decode_tokens
from notewave.song.parts import parts
from notewave.synthesizer import DEFAULT_VOICE, Synthesizer


def measure(singer: Synthesizer, judge: Judge) -> list[Case]:
    """A case for each of a judge's songs of several parts, and their means."""
    cases = []
    for name, song in zip(judge.names, judge.songs, strict=True):
        notes = decode_tokens(song.tokens)
        if len(parts(notes)) < 2:
            continue
        start = time.perf_counter()
        stems = singer.stems(notes)
        seconds = time.perf_counter() - start
        total = np.sum([stem.samples for stem in stems.values()], axis=0)
        figures = {
            "note_f1_mix": pitched_f1(judge.transcriber(stems.mix.samples), song),
            "note_f1_sum": pitched_f1(judge.transcriber(total), song),
            "sum_error": stems.error,
            "real_time_factor": seconds / stems.mix.duration,
        }
        cases.append(
            Case({"song": name, "parts": len(stems)}, {key: Spread.of([value]) for key, value in figures.items()})
        )
    if cases:
        every = {key: [case.figures[key].median for case in cases] for key in cases[0].figures}
        means = {key: Spread.of([float(np.mean(values))]) for key, values in every.items()}
        cases.append(Case({"song": "mean", "parts": None}, means))
    return cases


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give a parser the options of ``notewave bench stems``."""
    parser.add_argument("--voice", default=DEFAULT_VOICE, help="a bundled name or a folder")
    parser.add_argument("--song", nargs="+", default=["band"], help="MIDI files, or held-out sets (default band)")
    parser.add_argument("--songs", type=int, default=5, help="how many of them at most (default 5)")
    parser.add_argument("--segments", type=int, default=4, help="of each, 5.12 s long (default 4)")
    parser.add_argument("--threads", type=int, help="of the CPU (default: all processors)")
    parser.add_argument("--backend", default="auto")
    add_output_arguments(parser, repeats=False)


def run(options: argparse.Namespace) -> None:
    """Run ``notewave bench stems`` with parsed options."""
    check_counts(songs=options.songs, segments=options.segments)
    facts = machine()
    singer = Synthesizer(options.voice, backend=options.backend, threads=options.threads)
    judge = Judge(options.song, options.songs, options.segments, singer.voice.dialect)
    result = Result("stems", facts, voice_sums([singer.voice]), measure(singer, judge))
    finish(result, options, result.table(), save_stems_plot)


def save_stems_plot(result: Result, path: str) -> None:
    """Draw the note-F1 of each song's mix and of the sum of its parts."""
    figure = new_figure(8, 4)
    axis = figure.subplots()
    for offset, name in enumerate(("note_f1_mix", "note_f1_sum")):
        heights = [case.figures[name].median for case in result.cases]
        axis.bar(np.arange(len(heights)) + 0.4 * offset, heights, 0.4, label=name.replace("_", " "))
    axis.set_xticks(np.arange(len(result.cases)) + 0.2, [str(case.settings["song"]) for case in result.cases])
    axis.tick_params(axis="x", labelrotation=20)
    axis.legend()
    save_plot(figure, path)
