"""What every benchmark shares: the machine it ran on, medians with their spread, tables, and results on disk.

A benchmark is a list of cases; a case is what was set and the figures found. A figure's name ends in its unit: ``_s``
seconds, ``_mib`` MiB, ``_gflops`` 10^9 operations a second, ``_gbps`` 10^9 bytes a second; without one it is a ratio, a
count or a score.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from notewave.backends.processors import processors
from notewave.benchmarks.clock import CLOCK
from notewave.checks import is_number, quoted
from notewave.errors import ArgumentError, OutputError
from notewave.files import atomic_file
from notewave.inputs import FileRecord, read_regular
from notewave.voice.folder import Voice
from notewave.voice.library import DESCRIPTION

FORMAT = 1  # of a result on disk
MAX_BYTES = 64 << 20  # of a result on disk
VERSIONS = ("notewave", "numpy", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx", "torch")
FLOAT_MAX = sys.float_info.max
UNITS = {"_s": "s", "_mib": "MiB", "_gflops": "GFLOP/s", "_gbps": "GB/s"}

Setting: TypeAlias = "str | int | float | None"


@dataclass(frozen=True)
class Spread:
    """Repeats of one measurement."""

    median: float
    low: float  # first quartile
    high: float  # third quartile
    repeats: int

    @classmethod
    def of(cls, values: Sequence[float] | np.ndarray[Any, Any]) -> Spread:
        """Median and quartiles of repeats; at least one."""
        low, median, high = np.percentile(values, [25, 50, 75]).tolist()
        return cls(median, low, high, int(np.size(values)))

    @classmethod
    def load(cls, figure: dict[str, Any]) -> Spread:
        """From JSON. Raises TypeError or ValueError for what is none."""
        if not all(is_number(value, -FLOAT_MAX, FLOAT_MAX) for value in figure.values()):
            raise ValueError(f"it has the figure {quoted(figure)}")
        return cls(**figure)


@dataclass(frozen=True)
class Case:
    """One thing measured."""

    settings: dict[str, Setting]  # what tells this case from the others
    figures: dict[str, Spread]


@dataclass(frozen=True)
class Result:
    """A benchmark that ran."""

    benchmark: str
    machine: dict[str, Any]
    voices: dict[str, str]  # SHA-256 of voice.json, which lists its files' own, by the voice's name and precision
    cases: list[Case]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write as JSON. Raises OutputError."""
        text = json.dumps({"format": FORMAT, **dataclasses.asdict(self)}, indent=1, allow_nan=False)
        with atomic_file(path) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Result:
        """Read what ``save`` wrote. Raises ArgumentError when the file is not that."""
        try:
            content = json.loads(read_regular(path, MAX_BYTES))
            if content.pop("format") != FORMAT:
                raise ValueError(f"it is not of format {FORMAT}")
            cases = [
                Case(_facts(case["settings"]), {name: Spread.load(figure) for name, figure in case["figures"].items()})
                for case in content.pop("cases")
            ]
            facts, voices = (_facts(content.pop(name)) for name in ("machine", "voices"))
            return cls(str(content.pop("benchmark")), facts, voices, cases, **content)
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise ArgumentError(
                f"{path} is no result of a benchmark ({error}). Name a file written by --json."
            ) from error

    def table(self, columns: Sequence[str] | None = None) -> str:
        """Text: for each case the settings that differ between cases, then the figures, all or those named."""
        names = columns or list(dict.fromkeys(name for case in self.cases for name in case.figures))
        names = [name for name in names if any(name in case.figures for case in self.cases)]
        varying = self._varying()
        rows = [[*(varying or [self.benchmark]), *map(heading, names)]]
        for case in self.cases:
            settings = ["-" if (value := case.settings.get(key)) is None else str(value) for key in varying]
            rows.append([*(settings or [""]), *(show(name, case.figures.get(name)) for name in names)])
        return text_table(rows if len(self.cases) > len(names) else [*zip(*rows, strict=True)])

    def label(self, case: Case) -> str:
        """The settings that tell a case from the others."""
        return ", ".join(f"{key} {case.settings.get(key)}" for key in self._varying()) or self.benchmark

    def _varying(self) -> list[str]:
        keys = list(dict.fromkeys(key for case in self.cases for key in case.settings))
        return [key for key in keys if len({str(case.settings.get(key)) for case in self.cases}) > 1]


def compare(before: Result, after: Result) -> str:
    """Table of figure by figure, case by case: before, after and after / before; "~" where the quartiles overlap.

    Cases are paired by their settings, or as they are when each result has one. Raises ArgumentError when none pairs.
    """
    single = len(before.cases) == len(after.cases) == 1
    rows = [["", "figure", "before", "after", "ratio", ""]]
    for case in after.cases:
        other = before.cases[0] if single else next((b for b in before.cases if b.settings == case.settings), None)
        for name, figure in case.figures.items():
            old = other.figures.get(name) if other else None
            if old is not None:
                ratio = f"{figure.median / old.median:.3f}" if old.median else "-"
                overlap = "~" if figure.low <= old.high and old.low <= figure.high else ""
                rows.append([after.label(case), heading(name), show(name, old), show(name, figure), ratio, overlap])
    if len(rows) == 1:
        raise ArgumentError(
            "No case of one result has the settings of one of the other. Measure both with the same options."
        )
    old_facts, new_facts = ({**result.machine, **result.voices} for result in (before, after))
    differences = [
        f"{key}: {old_facts.get(key)} -> {new_facts.get(key)}"
        for key in dict.fromkeys([*old_facts, *new_facts])
        if old_facts.get(key) != new_facts.get(key)
    ]
    return "\n".join([text_table(rows), *differences])


def check_counts(**counts: int) -> None:
    """Raise ArgumentError where there would be none of something, by name, to measure."""
    for name, count in counts.items():
        if count < 1:
            raise ArgumentError(f"{count} {name.replace('_', ' ')} measure nothing. Ask for at least one.")


def machine() -> dict[str, Any]:
    """Processor, GPU, operating system, versions and load of this machine; nothing that tells whose it is."""
    versions = {}
    for package in VERSIONS:
        with contextlib.suppress(PackageNotFoundError):
            versions[package] = version(package)
    return {
        "processor": _processor(),
        "cores": processors(),
        "gpu": _gpu(),
        "platform": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **versions,
        "clock": CLOCK.name,
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,  # at the start
    }


def voice_sha256(voice: Voice) -> str:
    """SHA-256 of the description of a voice, which lists its files' own."""
    return FileRecord.of(voice.folder / DESCRIPTION).sha256


def voice_sums(voices: Iterable[Voice]) -> dict[str, str]:
    """What ``Result.voices`` keeps of these."""
    return {f"{voice.name} {voice.precision}": voice_sha256(voice) for voice in voices}


def text_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells as aligned text; the first row is the heading."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def heading(name: str) -> str:
    """A figure's name for eyes, without its unit."""
    return name.removesuffix(_suffix(name)).replace("_", " ")


def show(name: str, figure: Spread | None) -> str:
    """A figure for eyes: its median, after "±" half its interquartile range, and its unit."""
    if figure is None:
        return "-"
    unit, scale = UNITS.get(_suffix(name), ""), 1.0
    if unit == "s" and abs(figure.median) < 1.0:
        unit, scale = ("ms", 1e3) if abs(figure.median) >= 1e-4 else ("µs", 1e6)
    spread = f" ±{(figure.high - figure.low) / 2 * scale:.2g}" if figure.repeats > 1 else ""
    return f"{figure.median * scale:.4g}{spread} {unit}".rstrip()


def _suffix(name: str) -> str:
    return next((suffix for suffix in UNITS if name.endswith(suffix)), "")


def add_output_arguments(parser: argparse.ArgumentParser, repeats: bool = True) -> None:
    """Options that every benchmark has."""
    if repeats:
        parser.add_argument("--repeat", type=int, default=5, help="rounds to take medians over (default 5)")
    parser.add_argument("--json", metavar="OUT.json", type=Path, help="write the result")
    parser.add_argument("--plot", metavar="OUT.png", help="draw the result")


def finish(result: Result, options: argparse.Namespace, text: str, plot: Callable[[Result, str], None]) -> None:
    """Print a result, and write and draw it where the options say."""
    print(", ".join(f"{key} {value}" for key, value in result.machine.items() if value is not None))
    for name, sha256 in result.voices.items():
        print(f"voice {name}, {sha256[:12]}")
    print(text)
    if options.json:
        result.save(options.json)
    if options.plot:
        plot(result, options.plot)


def save_plot(figure: Any, path: str | os.PathLike[str]) -> None:
    """Write a matplotlib figure as its suffix says. Raises OutputError."""
    with atomic_file(path) as temporary:
        try:
            figure.savefig(temporary, dpi=100)
        except ValueError as error:  # a suffix that matplotlib does not know
            raise OutputError(f"{path} was not drawn: {error}. Use .png, .svg or .pdf.") from error


def new_figure(width: float, height: float) -> Any:
    """An empty matplotlib figure, of this size in inches. Raises OutputError when matplotlib is missing."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise OutputError("The plot was not drawn: matplotlib is not installed. Install notewave[plot].") from error
    matplotlib.rcParams["text.parse_math"] = False  # in a voice's name $ is a letter
    return Figure(figsize=(width, height), layout="constrained")


def _facts(content: Any) -> dict[str, Any]:
    """What must be an object of JSON with nothing nested in it. Raises ValueError if it is not."""
    if not isinstance(content, dict) or any(isinstance(value, dict | list) for value in content.values()):
        raise ValueError(f"it has {quoted(content)}, where facts by their names are due")
    return content


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _gpu() -> str | None:
    if shutil.which("nvidia-smi") is None:
        return None
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    found = subprocess.run(query, capture_output=True, text=True, check=False)
    return found.stdout.strip() or None
