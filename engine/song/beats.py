"""Where a song's beats are: between seconds, as notes have them, and quarter notes, as its file counts."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

_Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Beats:
    """A song's tempos [m], in order of time; the first also holds before it begins, the last to the end."""

    start_s: _Floats  # [m], when each begins; the first at 0
    quarter_s: _Floats  # [m], seconds to the quarter note from then on, above 0

    @cached_property
    def _start(self) -> _Floats:
        """When each begins, in quarter notes [m]."""
        return np.concatenate([[0.0], np.cumsum(np.diff(self.start_s) / self.quarter_s[:-1])])

    def quarters(self, seconds: _Floats) -> _Floats:
        """Times in seconds, from 0 on, in quarter notes."""
        at = np.maximum(self.start_s.searchsorted(seconds, "right") - 1, 0)
        result: _Floats = self._start[at] + (seconds - self.start_s[at]) / self.quarter_s[at]
        return result

    def seconds(self, quarters: _Floats) -> _Floats:
        """Times in quarter notes, from 0 on, in seconds: the inverse of ``quarters``."""
        at = np.maximum(self._start.searchsorted(quarters, "right") - 1, 0)
        result: _Floats = self.start_s[at] + (quarters - self._start[at]) * self.quarter_s[at]
        return result
