"""Songs that are nearly the same: which, of all seen so far, a song is like, by MinHash (Broder 1997).

Two songs are alike as far as they share runs of notes of a part, by their keys and by which are struck together. So
another tempo, other velocities or lengths, silence before it, a few notes more or less make no other song; another key
or other instruments do. A song of few runs is only like one with the same notes at the same times.

It is NumPy and a few lines: datasketch's sketches take twice the room, its index four times as much, and its hash
functions have changed between releases, which sketches that are kept must outlive.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from notewave.song.notes import Notes
from notewave.song.parts import part_keys

RUN = 4  # notes
FEW = 20  # runs: a song of fewer is like an equal one only
ALIKE = 0.8  # of the runs of two songs together those that both have
VALUES = 128  # of a sketch, 16 bits each: they tell likeness within 0.035 (a standard deviation)
BANDS, ROWS = 8, 6  # songs that agree in all rows of a band are compared: of those as alike as that 91 in 100
MOST_IN_BAND = 200  # songs that agree in a band and are compared: bounds time

_BAND = ROWS * 2  # bytes
_SEEDS = np.arange(1, VALUES + 1, dtype=np.uint64)


def sketch(notes: Notes) -> bytes:
    """What a song is compared by: 256 bytes; 32 of a song that is like an equal one only. The same everywhere."""
    runs = np.unique(_runs(notes))
    if len(runs) < FEW:
        return _digest(notes)
    least = [_mixed(runs ^ seed).min() for seed in _mixed(_SEEDS)]
    return np.array(least).astype("<u2").tobytes()  # their lowest bits: the highest of what is least are 0


class Seen:
    """Songs seen so far, found again by what is like them. A song takes 1.2 kB beside its label."""

    def __init__(self) -> None:
        self._labels: list[str] = []
        self._sketches: list[bytes] = []
        self._equal: dict[bytes, int] = {}  # songs that are like equal ones only
        self._bands: list[dict[int, int]] = [{} for _ in range(BANDS)]  # one song at a key; the next at the key after

    def like(self, sketch: bytes) -> str | None:
        """The label of the song seen that one is most like, if it is as good as the same."""
        if len(sketch) != VALUES * 2:
            index = self._equal.get(sketch)
            return None if index is None else self._labels[index]
        found = {index for band in range(BANDS) for index in self._agreeing(band, sketch)}
        likeness, index = max(((_likeness(sketch, self._sketches[index]), -index) for index in found), default=(0.0, 0))
        return self._labels[-index] if likeness >= ALIKE else None

    def add(self, label: str, sketch: bytes) -> None:
        """See a song."""
        index = len(self._labels)
        self._labels.append(label)
        self._sketches.append(sketch)
        if len(sketch) != VALUES * 2:
            self._equal.setdefault(sketch, index)
            return
        for band, table in enumerate(self._bands):
            others = sum(1 for _ in self._agreeing(band, sketch))
            if others < MOST_IN_BAND:
                table[_key(band, sketch) + others] = index

    def _agreeing(self, band: int, sketch: bytes) -> Iterator[int]:
        """The songs that agree with a sketch in a band."""
        key, table = _key(band, sketch), self._bands[band]
        while (index := table.get(key)) is not None:
            yield index
            key += 1


def _runs(notes: Notes) -> NDArray[np.uint64]:
    """A number of each run of notes of a part in order; notes on the same key at the same time are one."""
    part, onset, pitch = part_keys(notes), notes.onset_s, notes.pitch
    order = np.lexsort([pitch, onset, part])
    part, onset, pitch = part[order], onset[order], pitch[order]
    together = (np.diff(onset, prepend=-1.0) == 0) & (np.diff(part, prepend=-1) == 0)
    again = together & (np.diff(pitch, prepend=-1) == 0)
    part, keys = part[~again], (pitch + 128 * together)[~again].astype(np.uint64)
    count = max(len(keys) - RUN + 1, 0)
    runs = part[:count].astype(np.uint64)
    for index in range(RUN):
        runs = _mixed(runs + keys[index : index + count])
    return runs[part[:count] == part[RUN - 1 :][:count]]


def _digest(notes: Notes) -> bytes:
    """What songs with the same notes at the same times since their first have in common."""
    time_us = np.rint((notes.onset_s - notes.onset_s.min(initial=np.inf)) * 1e6).astype(np.int64)
    rows = np.unique(np.stack([time_us, part_keys(notes), notes.pitch], axis=1), axis=0)
    return hashlib.sha256(rows.astype("<i8").tobytes()).digest()


def _likeness(one: bytes, other: bytes) -> float:
    """How alike two songs are by their sketches: the share of values that agree."""
    return float(np.mean(np.frombuffer(one, np.uint16) == np.frombuffer(other, np.uint16)))


def _key(band: int, sketch: bytes) -> int:
    return hash(sketch[band * _BAND : (band + 1) * _BAND])


def _mixed(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Numbers that seem drawn at random, of each number another (the finalizer of SplitMix64)."""
    numbers = numbers + np.uint64(0x9E3779B97F4A7C15)
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))
