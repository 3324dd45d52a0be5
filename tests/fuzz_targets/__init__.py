"""What is fuzzed: each target takes bytes, and ends well or in an error of the family that it names.

A target is a class of a module here, ``Fuzzed`` if nothing else is said; only its own process imports it.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from pathlib import Path

DATA = Path(__file__).parents[1] / "data"
CORPUS = DATA / "fuzz"  # a folder for each target that has inputs which no code makes

TARGETS = {  # name: module
    "midi": "fuzz_targets.midi",
    "sound": "fuzz_targets.sound",
    "description": "fuzz_targets.description",
    "graph": "fuzz_targets.graph",
    "shapes": "fuzz_targets.shapes",
    "sung": "fuzz_targets.sung",
    "diffusers": "fuzz_targets.diffusers",
    "t5x": "fuzz_targets.t5x",
    "plans": "fuzz_targets.plans",
    "vocoder": "fuzz_targets.vocoder",
}
PLANTED = {  # targets with faults, which must be found
    f"planted-{fault.lower()}": f"fuzz_targets.planted:{fault}"
    for fault in ("Error", "Family", "Hang", "Wait", "Flood", "Shortage", "Abort", "Fault")
} | {"planted-walker": "fuzz_targets.planted_walker"}


class Target(ABC):
    """One kind of input and what is done with it."""

    expected: type[Exception] | tuple[type[Exception], ...] = ()  # errors that an input may end in
    words: Sequence[bytes] = ()  # what such inputs are made of: mutations put them in

    def __init__(self, name: str, scratch: Path) -> None:
        """scratch: a folder of the target's own; files of an earlier process may lie in it."""
        self.name, self.scratch = name, scratch

    def corpus(self) -> list[bytes]:
        """Inputs to begin with: by default the files kept for this target."""
        return kept(CORPUS / self.name)

    @abstractmethod
    def run(self, content: bytes) -> Hashable:
        """Do it. What is returned tells inputs apart that end well: those that do in a new way are worth keeping."""


def kept(folder: Path) -> list[bytes]:
    """The files of a folder, in order of their names; none where there is no folder."""
    return [path.read_bytes() for path in sorted(folder.iterdir())] if folder.is_dir() else []


def load(name: str, scratch: Path) -> Target:
    """A target by its name."""
    module, _, kind = (TARGETS | PLANTED)[name].partition(":")
    target: Target = getattr(importlib.import_module(module), kind or "Fuzzed")(name, scratch)
    return target
