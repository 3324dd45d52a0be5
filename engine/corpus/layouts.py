"""How a corpus lies in its folder: as its songs did, or as the loaders that people have look for it.

Where others' loaders read, outputs are numbered: no name that a stranger gave a file comes into their paths.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

from notewave.corpus.layout_huggingface import HuggingFace
from notewave.corpus.layout_maestro import Maestro
from notewave.corpus.layout_slakh import Slakh
from notewave.corpus.rows import Row
from notewave.corpus.settings import Making

PLAIN = {"audio": "audio", "mel": "mels", "midi": "midi"}  # folders, by the kind of what they hold


class Layout(Protocol):
    """Where files lie, and what lies beside them. Paths are relative to the corpus, with slashes."""

    name: str
    numbered: str | None  # how names of outputs are made of numbers from 1 on; None where they are the sources' own

    def path(self, kind: str, name: str, split: str, part: str | None, index: int, suffix: str) -> str:
        """Where a file goes.

        kind: as a row's files have it. part, index: of a stem and its MIDI, which part, and its place among the
        song's, from 0 on. suffix: with its dot.
        """
        ...

    def beside(self, row: Row, programs: Mapping[str, int | None]) -> Mapping[str, bytes]:
        """Further files of a take, by their paths. programs: of each part, in order; None for drums."""
        ...

    def finish(self, rows: Iterator[Row], put: Callable[[str, Path], None], folder: Path, making: Making) -> None:
        """Write files of the whole corpus under a temporary folder, and put each to its path.

        rows: of takes that were sung, in the order of their names. They are read once, and not held.
        """
        ...


class Plain:
    """``audio/NAME.wav``, ``mels/NAME.npy``, ``midi/NAME.mid`` and ``stems/NAME/PART.wav``."""

    name = "plain"
    numbered: str | None = None

    def path(self, kind: str, name: str, split: str, part: str | None, index: int, suffix: str) -> str:
        """See ``Layout``."""
        return f"stems/{name}/{part}{suffix}" if part else f"{PLAIN[kind]}/{name}{suffix}"

    def beside(self, row: Row, programs: Mapping[str, int | None]) -> Mapping[str, bytes]:
        """Nothing."""
        return {}

    def finish(self, rows: Iterator[Row], put: Callable[[str, Path], None], folder: Path, making: Making) -> None:
        """Nothing: the manifest says it all."""


LAYOUTS: dict[str, Layout] = {layout.name: layout for layout in (Plain(), Slakh(), Maestro(), HuggingFace())}
