"""The sustain pedal: how long a note sounds after it was let go, by note_seq's rules.

Shapes: n notes and m pedal movements of an instrument.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from notewave.song.notes import Notes

SUSTAIN, SUSTAIN_ON = 64, 64  # the pedal's controller and the lowest value that presses it

_Floats = NDArray[np.float64]


class Pedal:
    """The movements of a pedal, which the instruments that it holds share."""

    def __init__(self, time_s: _Floats, value: _Floats, cut_s: _Floats | None = None) -> None:
        """time_s, value [m]: its movements, in any order. cut_s: when what sounds ends, pedal or not; in order."""
        down = value >= SUSTAIN_ON
        order = np.lexsort((~down, time_s))
        self.moves = len(time_s)
        self.last_s = float(time_s.max(initial=0.0))
        self._time_s, down = time_s[order], down[order]
        self._down = np.append(down, False)  # as it is before the first movement, too
        self._rise_s = np.append(self._time_s[~down], np.inf)
        self._cut_s = np.empty(0) if cut_s is None else cut_s

    def is_down(self, at_s: _Floats) -> NDArray[np.bool_]:
        """Whether it is down at each of these times."""
        return self._down[self._time_s.searchsorted(at_s, "right") - 1]

    def held_until(self, at_s: _Floats) -> _Floats:
        """Until when notes sound that are let go at these times, the pedal being down; infinity for no end."""
        rise_s: _Floats = self._rise_s[self._rise_s.searchsorted(at_s, "right")]
        if not len(self._cut_s):
            return rise_s
        cut = self._cut_s.searchsorted(at_s, "left")
        return np.minimum(rise_s, np.append(self._cut_s, np.inf)[cut])


NO_PEDAL = Pedal(np.empty(0), np.empty(0))


@dataclass(frozen=True, eq=False)
class Instrument:
    """Notes of one program, or drums."""

    notes: _Floats  # [n, 6], columns as in Notes
    pedal: Pedal


def held(instruments: Sequence[Instrument]) -> Notes:
    """A song of all instruments; the notes of the pitched ones held by their pedal.

    Raises ValueError where a note is no number.
    """
    ends = [0.0]
    for one in instruments:
        ends += [one.pedal.last_s, 0.0 if one.notes[:, 5].any() else one.notes[:, 1].max(initial=0.0)]
    end_s = max(ends)
    notes = np.concatenate([np.empty((0, 6)), *(_hold(one, end_s) for one in instruments)])
    if not np.isfinite(notes).all():
        raise ValueError("a note's time, pitch, velocity or program is no number")
    # A PrettyMIDI object may have fractions in the place of whole numbers: they are cut, as a file could not hold them.
    columns = *notes[:, :2].T, *np.trunc(notes[:, 2:5]).T, notes[:, 5] != 0
    return Notes(*columns)


def _hold(instrument: Instrument, end_s: float) -> _Floats:
    """An instrument's notes [n, 6] as its pedal holds them.

    note_seq's rules: a note released under the pedal sounds until the pedal rises, its pitch is struck anew under
    the pedal or the song ends (end_s); of equal pitches struck at one time under the pedal, only the last is kept.
    The pedal moves before notes of the same time, down before up.
    """
    table, pedal = instrument.notes, instrument.pedal
    if not pedal.moves or table[:, 5].any():
        return table
    table = table[np.lexsort((table[:, 0], table[:, 2]))]  # by pitch, then onset
    onset_s, offset_s, pitch = table[:, :3].T
    end = np.where(pedal.is_down(offset_s), np.minimum(pedal.held_until(offset_s), end_s), offset_s)
    under = np.append(np.where(pedal.is_down(onset_s), np.arange(len(table)), len(table)), len(table))
    again = np.minimum.accumulate(under[::-1])[::-1][1:]  # the next strike under the pedal, of whatever pitch
    same = np.append(pitch, -1.0)[again] == pitch
    again_s = np.where(same, np.append(onset_s, np.inf)[again], np.inf)
    kept = again_s > onset_s
    return np.column_stack([onset_s, np.minimum(end, again_s), table[:, 2:]])[kept]
