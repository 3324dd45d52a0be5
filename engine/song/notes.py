"""A song as a table of its notes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from notewave.checks import as_array, quoted
from notewave.errors import MidiError

_DTYPES = (np.float64, np.float64, np.int64, np.int64, np.int64, np.bool_)  # of the columns in their order


@dataclass(frozen=True, eq=False)
class Notes:
    """A song as a table, one row a note, in any order; each column has one number of each note.

    Columns may be given as any sequences of numbers: they are copied, converted to the types below, and cannot be
    written to. Raises MidiError where they differ in length, or a value is no number, out of range, or a fraction
    where only whole numbers are.
    """

    onset_s: NDArray[np.float64]  # seconds from the start of the song, from 0 on
    offset_s: NDArray[np.float64]  # seconds from there, too; not before the onset
    pitch: NDArray[np.int64]  # 0..127; for drums the key of General MIDI's percussion map
    velocity: NDArray[np.int64]  # 0..127; 0 makes no sound and ends what sounds on its pitch: no file has such notes
    program: NDArray[np.int64]  # 0..127, General MIDI
    is_drum: NDArray[np.bool_]  # or 0 and 1

    def __post_init__(self) -> None:
        """Convert the columns to their types and check them."""
        for name, dtype in zip(vars(self), _DTYPES, strict=True):
            object.__setattr__(self, name, _column(name, getattr(self, name), dtype))
        if len({len(column) for column in vars(self).values()}) > 1:
            raise MidiError("A note table's columns differ in length: a note has a value in each. Align them.")
        if not ((self.onset_s >= 0) & (self.offset_s >= self.onset_s)).all():
            raise MidiError("A note starts before 0 s or ends before it starts: no time is left for it. Mend it.")

    def __len__(self) -> int:
        """How many notes there are."""
        return len(self.onset_s)

    def rows(self, chosen: NDArray[np.integer] | NDArray[np.bool_]) -> Notes:
        """Those notes only: a mask [len(self)], or row numbers in any order."""
        return Notes(*(column[chosen] for column in vars(self).values()))

    @property
    def seconds(self) -> float:
        """When the last note ends, in seconds from the start of the song; 0 without notes."""
        return float(self.offset_s.max(initial=0.0))


def _column(name: str, value: Any, dtype: type[np.generic]) -> NDArray[Any]:
    """A column of its type and no longer writable, or MidiError."""
    array = as_array(value)
    if array.ndim != 1 or array.dtype.kind not in ("biuf" if dtype is np.bool_ else "iuf"):
        raise MidiError(f"A note table's {name} is {quoted(value)}: a column has one number of each note. Convert it.")
    with np.errstate(over="ignore"):  # a float of more than 64 bits becomes infinite, and is refused as such
        numbers = array.astype(np.float64)
    if not np.isfinite(numbers).all():
        raise MidiError(f"A note has a {name} that is no finite number. Mend or drop it.")
    if dtype is not np.float64:
        high = 1 if dtype is np.bool_ else 127
        if ((numbers < 0) | (numbers > high)).any():
            raise MidiError(f"A note has a {name} outside 0 to {high}: MIDI has none such. Mend or drop it.")
        if (numbers % 1 != 0).any():
            raise MidiError(f"A note has a {name} between two whole numbers: MIDI has none such. Round it.")
    column = numbers.astype(dtype)
    column.flags.writeable = False
    return column
