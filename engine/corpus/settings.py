"""What a corpus is made of, which every run of it is held to, and what a run is made by, which is free."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from notewave.checks import is_integer, is_number, quoted
from notewave.corpus.takes import SPLITS
from notewave.errors import ArgumentError
from notewave.sampling.options import Sampling, check_options
from notewave.song.editing import Edits
from notewave.song.midi import MAX_BYTES, MAX_SECONDS
from notewave.sound.mel import SAMPLE_RATE
from notewave.sound.resample import check_rate

NEEDS: dict[str, tuple[str, ...]] = {  # layouts, and what their readers cannot do without
    "plain": (),
    "slakh": ("stems", "midi"),
    "maestro": ("midi",),
    "huggingface": (),
}
FORMS = ("wav", "flac", "ogg")
MOST_WORKERS = 4096

Words = tuple[tuple[str, tuple[str, ...]], ...]


@dataclass(frozen=True)
class Making:
    """What all takes of a corpus are made with; ``corpus.json`` keeps it. Raises ArgumentError for what cannot be."""

    form: str = "flac"  # the suffix of sounds
    rate: int = SAMPLE_RATE  # Hz
    sampler: str | None = None  # None: what the voice recommends, as for the next two
    steps: int | None = None
    guidance: float | None = None
    vocoder: str | None = None  # "griffin-lim", or None for the voice's own
    layout: str = "plain"  # a name in NEEDS, what its readers need is made, too
    mels: bool = False
    stems: bool = False
    midi: bool = False
    strict: bool = False  # songs of which something is lost are refused, not mended
    max_seconds: float = MAX_SECONDS  # of a song
    max_bytes: int = MAX_BYTES  # of its file
    splits: tuple[int, int, int] = (100, 0, 0)  # per cent of the songs, in the order of SPLITS
    edits: Words = ()  # of ``Edits.parse``

    def __post_init__(self) -> None:
        """Refuse what cannot be, and add what the layout's readers cannot do without."""
        if self.form not in FORMS:
            raise ArgumentError(f"there is no format {quoted(self.form)} of a corpus. Choose {', '.join(FORMS)}.")
        if self.layout not in NEEDS:
            raise ArgumentError(f"there is no layout {quoted(self.layout)}. Choose one of {', '.join(NEEDS)}.")
        check_rate(self.rate)
        check_options({"guidance": self.guidance})
        Sampling(**{name: value for name in ("sampler", "steps") if (value := getattr(self, name)) is not None})
        if not is_number(self.max_seconds, 0, math.inf) or not is_integer(self.max_bytes, 0, 1 << 40):
            raise ArgumentError("max_seconds and max_bytes must be numbers from 0 on.")
        if (
            len(self.splits) != len(SPLITS)
            or not all(is_integer(part, 0, 100) for part in self.splits)
            or sum(self.splits) != 100
        ):
            raise ArgumentError(
                f"splits are {quoted(self.splits)}; they must be per cent of {', '.join(SPLITS)}, 100 in all, as "
                "80:10:10."
            )
        Edits.parse(dict(self.edits))
        for need in NEEDS[self.layout]:
            object.__setattr__(self, need, True)

    def as_json(self) -> dict[str, Any]:
        """For ``corpus.json``."""
        return dataclasses.asdict(self)

    @classmethod
    def of_json(cls, said: Mapping[str, Any]) -> Making:
        """What ``as_json`` gave, read back from a file. Raises ArgumentError for anything else."""
        try:
            edits = tuple((str(name), tuple(map(str, words))) for name, words in said["edits"])
            return cls(**{**said, "splits": tuple(said["splits"]), "edits": edits})
        except (KeyError, TypeError, ValueError) as error:
            raise ArgumentError(f"{quoted(said)} says no making of a corpus ({error}).") from error


@dataclass(frozen=True)
class Machine:
    """What takes are made by: it changes how soon they are there, not what they are. Raises ArgumentError."""

    backend: str = "auto"
    workers: int | None = None  # None: as many as pay, which is measured; 0: none, the caller's process sings
    threads: int | None = None  # of each worker; None: as many as pay
    together: int | None = None  # songs side by side in a worker; None: as many as its backend takes
    provider_options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse numbers that cannot be."""
        for name, low in (("workers", 0), ("threads", 1), ("together", 1)):
            value = getattr(self, name)
            if value is not None and not is_integer(value, low, MOST_WORKERS):
                raise ArgumentError(f"{name} is {quoted(value)}; it must be a whole number from {low} on.")
