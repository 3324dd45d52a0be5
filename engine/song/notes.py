"""A song as a table of its notes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from notewave.errors import MidiError


@dataclass(eq=False)
class Notes:
    """A song as a table, one row a note, in any order. Raises MidiError where a value is out of range."""

    onset_s: NDArray[np.float64]  # seconds from the start of the song
    offset_s: NDArray[np.float64]
    pitch: NDArray[np.int64]  # 0..127; for drums the key of General MIDI's percussion map
    velocity: NDArray[np.int64]  # 0..127
    program: NDArray[np.int64]  # 0..127, General MIDI
    is_drum: NDArray[np.bool_]

    def __post_init__(self) -> None:
        """Convert the columns to their types and check them."""
        dtypes = (np.float64, np.float64, np.int64, np.int64, np.int64, np.bool_)
        for name, dtype in zip(vars(self), dtypes, strict=True):
            setattr(self, name, np.asarray(getattr(self, name), dtype))
        if {column.shape for column in vars(self).values()} != {(self.onset_s.size,)}:
            raise MidiError("A note table's columns differ in length: a note has a value in each. Align them.")
        if not ((self.onset_s >= 0) & (self.offset_s >= self.onset_s) & (self.offset_s < np.inf)).all():
            raise MidiError("A note starts before 0 s or ends before it starts: no time is left for it. Mend it.")
        for name in ("pitch", "velocity", "program"):
            column = getattr(self, name)
            if ((column < 0) | (column > 127)).any():
                raise MidiError(f"A note has a {name} outside 0 to 127: MIDI has none such. Mend or drop it.")

    def __len__(self) -> int:
        """How many notes there are."""
        return len(self.onset_s)

    @property
    def seconds(self) -> float:
        """When the last note ends."""
        return float(self.offset_s.max(initial=0.0))
