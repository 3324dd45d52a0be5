"""``notewave corpus``: a folder of songs into a folder of music, with a manifest."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from types import TracebackType

from notewave.checks import counted, quoted, shown
from notewave.cli.streams import complain, for_progress
from notewave.corpus.corpus import Summary, make_corpus
from notewave.corpus.ledger import MANIFEST
from notewave.corpus.rows import FAILED, Row
from notewave.corpus.settings import FORMS, NEEDS, Machine, Making
from notewave.errors import ArgumentError
from notewave.song.editing import EDITS
from notewave.synthesizer import DEFAULT_VOICE

TOLD = 20  # failures that are shown one by one; the manifest has all
MOST_SEEDS = 100_000
_MAKING = (  # of the options, those that ``Making`` has by the same name
    *("form", "rate", "sampler", "steps", "guidance", "vocoder", "layout"),
    *("mels", "stems", "midi", "strict", "max_seconds", "max_bytes"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give a parser the options of ``notewave corpus``, but for those that rendering has too."""
    usual = Making()
    parser.add_argument(
        "songs", metavar="SONGS", nargs="+", help="folders, patterns as 'songs/**/*.mid', MIDI files, lists (.txt) or -"
    )
    parser.add_argument("--out", metavar="FOLDER", required=True, help="or a URL, as s3://bucket/folder")
    parser.add_argument(
        "--voice", action="append", help=f"a voice's name or folder; may be repeated (default {DEFAULT_VOICE})"
    )
    parser.add_argument("--seeds", metavar="N,N", default="0", help="each song once by each: 0,1 or 0-9 (default 0)")
    parser.add_argument("--format", dest="form", choices=FORMS, default=usual.form, help=f"(default {usual.form})")
    parser.add_argument(
        "--rate", metavar="HZ", type=int, default=usual.rate, help=f"of the sound (default {usual.rate})"
    )
    parser.add_argument("--mels", action="store_true", help="also the log-mel of each song, as NumPy's .npy")
    parser.add_argument("--stems", action="store_true", help="also each part alone")
    parser.add_argument("--midi", action="store_true", help="also the notes as they were sung; with stems, each one's")
    parser.add_argument(
        "--layout", choices=list(NEEDS), default=usual.layout, help="whose loaders are to read it (default plain)"
    )
    parser.add_argument(
        "--splits",
        metavar="P:P:P",
        help="per cent of the songs for training, validation and test, by their content (default 100:0:0)",
    )
    parser.add_argument("--dedupe", action="store_true", help="leave out songs that are nearly the same as another")
    parser.add_argument("--verify", action="store_true", help="read what is there again and compare its checksums")
    parser.add_argument("--workers", metavar="N", type=int, help="processes (default: what is fastest; 0: this one)")
    parser.add_argument("--together", metavar="N", type=int, help="songs side by side in each (default: what suits it)")
    parser.add_argument("--ray", metavar="ADDRESS", help="sing on a Ray cluster: auto, or its address")


def corpus(options: argparse.Namespace) -> int:
    """Make or go on with a corpus; 1 where some of the songs could not be sung, which does not stop the others."""
    words = {name: tuple(given) for name in EDITS if (given := getattr(options, name))}
    making = Making(
        **{name: getattr(options, name) for name in _MAKING},
        splits=_splits(options.splits),
        edits=tuple(words.items()),
    )
    machine = Machine(options.backend, options.workers, options.threads, options.together)
    start = time.perf_counter()
    with _Progress() as progress:
        summary = make_corpus(
            options.songs,
            options.out,
            voices=options.voice or [DEFAULT_VOICE],
            seeds=list(_seeds(options.seeds)),
            making=making,
            machine=machine,
            ray=options.ray,
            dedupe=options.dedupe,
            verify=options.verify,
            on_plan=progress.begin,
            on_take=progress.take,
        )
    print(f"{shown(options.out)}: {_told(summary, time.perf_counter() - start)}")
    return 1 if summary.failed else 0


class _Progress:
    """A bar, on a terminal, and the first failures."""

    def __init__(self) -> None:
        from tqdm import tqdm

        self._bar = tqdm(unit="song", file=for_progress(), disable=not sys.stderr.isatty())
        self._failures = 0

    def __enter__(self) -> _Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()
        if self._failures > TOLD:
            complain(f"and {self._failures - TOLD} more; {MANIFEST} says why.")

    def begin(self, total: int) -> None:
        """There are so many takes."""
        self._bar.total = total
        self._bar.refresh()

    def take(self, row: Row | None) -> None:
        """One of them is settled."""
        self._bar.update()
        if row is not None and row["status"] == FAILED:
            self._failures += 1
            if self._failures <= TOLD:
                self._bar.clear()
                complain(f"{row['source']}: {row['error']}")


def _told(summary: Summary, seconds: float) -> str:
    """What a run came to, in words."""
    said = [f"{counted(summary.sung, 'song')} sung, {summary.seconds:.0f} s of music in {seconds:.0f} s"]
    said += [f"{summary.kept} there before"] * (summary.kept > 0)
    said += [f"{summary.duplicates} left out, each nearly the same as another"] * (summary.duplicates > 0)
    said += [f"{summary.failed} that cannot be sung"] * (summary.failed > 0)
    said += [f"a worker lost {summary.lost} times"] * (summary.lost > 0)
    return "; ".join(said)


def _seeds(text: str) -> Iterator[int]:
    """Seeds as 0,1 or 0-9. Raises ArgumentError."""
    count = 0
    for part in text.split(","):
        first, found, last = part.partition("-")
        try:
            numbers = range(int(first), int(last if found else first) + 1)
        except ValueError:
            numbers = range(0)
        count += len(numbers)
        if not numbers or count > MOST_SEEDS:
            raise ArgumentError(f"the seeds are {quoted(text)}; they must be whole numbers, as 0,1 or 0-9.")
        yield from numbers


def _splits(text: str | None) -> tuple[int, int, int]:
    if text is None:
        return Making.splits
    try:
        first, second, third = (int(part) for part in text.split(":"))
    except ValueError:
        raise ArgumentError(f"the splits are {quoted(text)}; they must be per cent, 100 in all, as 80:10:10.") from None
    return first, second, third
