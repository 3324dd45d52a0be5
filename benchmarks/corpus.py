"""``notewave bench corpus``: songs an hour by several workers, what the driver costs, and a finished corpus again.

Songs are sung by workers as ``notewave corpus`` has them, round after round, one way to share the processors out after
another. The driver is measured by workers that sing nothing. From both follows, by simulation, how many workers a
driver can keep busy. ``--trial`` makes a corpus of good and broken files instead, under all kinds of trouble; the exit
code is 1 where something was wrong.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, median

import numpy as np

from notewave.backends.processors import processors
from notewave.benchmarks.corpus_driver import drive
from notewave.benchmarks.corpus_mute import mute_row
from notewave.benchmarks.corpus_scale import Costs, efficiency
from notewave.benchmarks.corpus_songs import write_numbered, write_varied
from notewave.benchmarks.corpus_trial import try_corpus
from notewave.benchmarks.report import (
    Case,
    Result,
    Setting,
    Spread,
    add_output_arguments,
    check_counts,
    finish,
    machine,
    new_figure,
    save_plot,
    voice_sums,
)
from notewave.corpus.corpus import make_corpus
from notewave.corpus.fit import open_pool, splits_of
from notewave.corpus.layouts import LAYOUTS
from notewave.corpus.processes import Processes
from notewave.corpus.rows import Row
from notewave.corpus.settings import Machine, Making
from notewave.corpus.songs import find_songs
from notewave.corpus.takes import Take
from notewave.errors import ToolError
from notewave.synthesizer import DEFAULT_VOICE
from notewave.voice.folder import Voice

PARTS = ("singing", "driver")
WARM_S = 1.0  # for which workers sing before they are measured
MUTE_WORKERS = 2
WORKERS = (1, 2, 4, 8, 16, 32, 64, 100)  # that are simulated
ROUNDS = 20  # songs for each of the most of them, which are measured asleep
SIMULATED = 10_000  # songs
DISK_BYTES = 64 << 20  # written to see how fast a disk is
SHOWN = 20  # of what was wrong


@dataclass
class Way:
    """A way to share processors out, and what was found in each round."""

    workers: int
    threads: int
    songs_an_hour: list[float] = field(default_factory=list)
    audio_a_core: list[float] = field(default_factory=list)  # seconds, a second
    own_mib: list[float] = field(default_factory=list)  # memory of a worker that it shares with nobody
    rows: list[Row] = field(default_factory=list)

    def sing(self, songs: Sequence[str], voice: str, making: Making) -> None:
        """Make a corpus, in a folder that is removed again."""
        ends, rows = list[float](), list[Row]()

        def note(row: Row | None) -> None:
            ends.append(time.perf_counter())
            rows.extend([row] if row is not None and row["audio"] else [])

        with tempfile.TemporaryDirectory() as out:
            shared = Machine("cpu", self.workers, self.threads)
            pool = open_pool(making, out, shared, [voice], len(songs))
            if not isinstance(pool, Processes):
                raise ToolError("there are no worker processes here to be measured. Use Linux or macOS.")
            try:
                pool.speed(WARM_S)
                self.workers = pool.workers  # there may be no memory for all
                began = time.perf_counter()
                make_corpus(songs, out, voices=[voice], making=making, pool=lambda _: pool, on_take=note)
            finally:
                pool.close()
        if not rows:
            raise ToolError("none of the songs can be sung. Give others.")
        seconds = ends[-1] - began
        self.own_mib.append(pool.own_bytes / 2**20)
        self.songs_an_hour.append(3600 * len(rows) / seconds)
        self.audio_a_core.append(sum(row["seconds"] for row in rows) / seconds / (self.workers * self.threads))
        self.rows += rows


def sing(songs: Sequence[str], voice: str, making: Making, repeat: int) -> list[Way]:
    """Sing the same songs in every way that uses all processors, and by one worker of one thread, in turn."""
    cpus = processors()
    ways = [Way(*split) for split in dict.fromkeys([(1, 1), *splits_of(cpus, Machine())])]
    for _ in range(repeat):
        for way in ways:
            way.sing(songs, voice, making)
    return ways


def singing_cases(ways: Sequence[Way]) -> list[Case]:
    """A case for each way: by one worker, by many, by one that has all processors."""
    alone, together = ways[0], ways[-1]
    cases = []
    for way in ways:
        over_one = [ours / theirs for ours, theirs in zip(way.songs_an_hour, alone.songs_an_hour, strict=True)]
        figures = {
            "songs_an_hour": way.songs_an_hour,
            "audio_a_core": way.audio_a_core,
            "own_memory_mib": way.own_mib,
            "efficiency": [ratio / (way.workers * way.threads) for ratio in over_one],
            "over_one_process": [
                ours / theirs for ours, theirs in zip(way.songs_an_hour, together.songs_an_hour, strict=True)
            ],
        }
        settings: dict[str, Setting] = {"part": "singing", "workers": way.workers, "threads": way.threads}
        cases.append(Case(settings, {name: Spread.of(values) for name, values in figures.items()}))
    return cases


def drive_all(folder: Path, takes: int, voice: str) -> tuple[list[Case], float]:
    """What so many takes cost a driver whose workers sing nothing, and again when all are there -> and CPU s a take."""
    songs, out = folder / "numbered", folder / "mute"
    songs.mkdir()
    write_numbered(songs, takes)
    told = drive(songs, out, voice, MUTE_WORKERS, [0.0])
    kept = ("planning_s", "finishing_s", "memory_first_tenth_mib", "memory_last_tenth_mib", "memory_peak_mib")
    a_take = {"cpu_a_take_s": told["takes_cpu_s"] / takes, "wall_a_take_s": told["takes_s"] / takes}
    cases = [_case("driver", {"takes": takes}, a_take | {name: told[name] for name in kept})]
    for verify in (False, True):
        again = drive(songs, out, voice, MUTE_WORKERS, [0.0], verify)
        cases.append(_case("resume", {"takes": takes, "verify": str(verify)}, {"call_s": again["call_s"]}))
    for name in LAYOUTS:
        figures = {"finish_s": _layout_s(folder, name, takes, voice)}
        cases.append(_case("layout", {"takes": takes, "layout": name}, figures))
    return cases, a_take["cpu_a_take_s"]


def _layout_s(folder: Path, name: str, takes: int, voice: str) -> float:
    """How long a layout's files of the whole corpus take for so many rows."""
    making = Making(layout=name, mels=True)
    forms = (LAYOUTS[name].numbered or "{}").format
    rows = (
        mute_row(Take(f"songs/{number}.mid", "0" * 64, b"", forms(number), "train", voice, 0), making)
        for number in range(takes)
    )
    made = list(rows)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=folder) as staged:
        LAYOUTS[name].finish(iter(made), lambda path, file: None, Path(staged), making)
    return time.perf_counter() - start


def scale(folder: Path, ways: Sequence[Way], cpu_s: float, voice: str) -> list[Case]:
    """How many workers a driver keeps busy: the most of them asleep for as long as songs take, and all simulated.

    cpu_s: the driver's for a take, with MUTE_WORKERS; it grows by as much with each more.
    """
    rows, most, songs = ways[0].rows, max(WORKERS), folder / "few"
    sing_s = [row["taken"] for row in rows]
    songs.mkdir()
    write_numbered(songs, ROUNDS * most)
    told = drive(songs, folder / "asleep", voice, most, sing_s)
    most_cpu_s = told["takes_cpu_s"] / told["takes"]
    write_s = mean(file["bytes"] for row in rows for file in row["files"]) / _disk_speed(folder)

    def simulated(workers: int, takes: int) -> float:
        cost_s = float(np.interp(workers, (MUTE_WORKERS, most), (cpu_s, most_cpu_s)))
        return efficiency(workers, Costs(cost_s / 2, cost_s / 2, write_s, sing_s), takes)

    figures = {
        "efficiency": told["taken_s"] / (most * told["takes_s"]),
        "simulated_efficiency": simulated(most, told["takes"]),
        "cpu_a_take_s": most_cpu_s,
        "song_s": median(sing_s),
        "write_s": write_s,
    }
    cases = [_case("asleep", {"workers": most}, figures)]
    return cases + [
        _case("simulated", {"workers": workers, "takes": SIMULATED}, {"efficiency": simulated(workers, SIMULATED)})
        for workers in WORKERS
    ]


def _disk_speed(folder: Path) -> float:
    """Bytes a second that a disk takes."""
    block = os.urandom(1 << 20)
    start = time.perf_counter()
    with (folder / "written").open("wb") as file:
        for _ in range(DISK_BYTES // len(block)):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
    return DISK_BYTES / (time.perf_counter() - start)


def _case(part: str, settings: dict[str, Setting], figures: dict[str, float]) -> Case:
    return Case({"part": part, **settings}, {name: Spread.of([value]) for name, value in figures.items()})


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give a parser the options of ``notewave bench corpus``."""
    parser.add_argument(
        "songs", metavar="SONGS", nargs="*", help="folders, patterns, MIDI files, lists (default: a bundled song)"
    )
    parser.add_argument("--only", choices=PARTS, help="measure nothing else (default: both, and what follows of them)")
    parser.add_argument("--songs", dest="count", metavar="N", type=int, default=8, help="to sing a round (default 8)")
    parser.add_argument(
        "--takes", metavar="N", type=int, default=10_000, help="of workers that sing nothing (default 10000)"
    )
    parser.add_argument(
        "--trial",
        metavar="N",
        type=int,
        nargs="?",
        const=300,
        help="instead: a corpus of so many files, good and broken, made under all kinds of trouble (default 300); of "
        "excerpts of music21's scores where no SONGS are given",
    )
    parser.add_argument("--voice", default=DEFAULT_VOICE, help=f"a voice's name or folder (default {DEFAULT_VOICE})")
    parser.add_argument("--steps", type=int, help="(default: what the voice recommends)")
    parser.add_argument("--seed", type=int, default=0, help="of the trial (default 0)")
    add_output_arguments(parser)


def run(options: argparse.Namespace) -> int:
    """Run ``notewave bench corpus`` with parsed options; 1 where a trial found something wrong."""
    check_counts(songs=options.count, takes=options.takes, repeat=options.repeat, trial_files=options.trial or 1)
    facts, sums = machine(), voice_sums([Voice.load(options.voice)])
    if options.trial is not None:
        trial = try_corpus(options.songs, options.trial, options.voice, options.steps, options.seed)
        result = Result("corpus", facts, sums, [_case("trial", {"disk": trial.disk}, trial.figures)])
        finish(result, options, result.table(), _save_plot)
        for line in trial.wrong[:SHOWN]:
            print(f"wrong: {line}")
        print(f"{len(trial.wrong)} wrong" if trial.wrong else "all was right")
        return 1 if trial.wrong else 0
    result = Result("corpus", facts, sums, list(_measure(options)))
    parts = {str(case.settings["part"]): list[Case]() for case in result.cases}
    for case in result.cases:
        parts[str(case.settings["part"])].append(case)
    tables = [f"{part}\n{Result(part, {}, {}, cases).table()}" for part, cases in parts.items()]
    finish(result, options, "\n\n".join(tables), _save_plot)
    return 0


def _measure(options: argparse.Namespace) -> Iterator[Case]:
    """All that is asked for."""
    ways, cpu_s = list[Way](), 0.0
    with tempfile.TemporaryDirectory() as top:
        folder = Path(top)
        if options.only != "driver":
            songs = [song.path for song in find_songs(options.songs)][: options.count] if options.songs else []
            if not songs:
                (folder / "varied").mkdir()
                write_varied(folder / "varied", options.count)
                songs = sorted(map(str, (folder / "varied").iterdir()))
            ways = sing(songs, options.voice, Making(steps=options.steps), options.repeat)
            yield from singing_cases(ways)
        if options.only != "singing":
            cases, cpu_s = drive_all(folder, options.takes, options.voice)
            yield from cases
        if options.only is None:
            yield from scale(folder, ways, cpu_s, options.voice)


def _save_plot(result: Result, path: str) -> None:
    """Draw the efficiency of workers, simulated and measured."""
    figure = new_figure(6, 4)
    axis = figure.subplots()
    for part, mark in (("simulated", "o-"), ("singing", "s"), ("asleep", "x")):
        cases = [case for case in result.cases if case.settings["part"] == part]
        if cases:
            points = [(case.settings["workers"], case.figures["efficiency"].median) for case in cases]
            axis.plot(*zip(*points, strict=True), mark, label=part)
            axis.legend()
    axis.set(xlabel="workers", ylabel="share of one worker's speed", xscale="log", ylim=(0, None))
    axis.set_xticks(WORKERS, labels=map(str, WORKERS))
    axis.minorticks_off()
    axis.grid(alpha=0.3)
    save_plot(figure, path)
