"""Who plays a song to train on: players of all of General MIDI, and the ensembles that they make."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Instrument:
    """One member of an ensemble: what it plays on, and which textures (``pieces.ROLES``) it may play."""

    program: int
    is_drum: bool = False
    role: str = "solo"
    low: int = 21  # lowest and highest pitch it plays
    high: int = 108


Ensemble = Callable[[np.random.Generator], Sequence[Instrument]]  # draws the players of one song

PIANO = (Instrument(0),)
DRUMS = Instrument(0, is_drum=True, role="kit")
FIRST_KEY, LAST_KEY = 27, 87  # of the percussion map, with the keys that General MIDI 2 added

# Families of eight programs: their usual middle, how far they reach from it, and how often they take which role.
_FAMILIES = (
    (60, 26, {"harmony": 0.6, "melody": 0.4}),  # pianos
    (72, 18, {"melody": 0.6, "harmony": 0.4}),  # chromatic percussion
    (60, 22, {"harmony": 0.8, "melody": 0.2}),  # organs
    (57, 19, {"harmony": 0.6, "melody": 0.4}),  # guitars
    (40, 14, {"bass": 0.9, "melody": 0.1}),  # basses
    (60, 22, {"melody": 0.5, "harmony": 0.5}),  # solo strings, harp, timpani
    (60, 22, {"harmony": 0.8, "melody": 0.2}),  # string ensembles, choirs, hits
    (58, 18, {"melody": 0.6, "harmony": 0.4}),  # brass
    (64, 18, {"melody": 0.8, "harmony": 0.2}),  # reeds
    (74, 16, {"melody": 0.9, "harmony": 0.1}),  # pipes
    (66, 20, {"melody": 0.7, "harmony": 0.2, "bass": 0.1}),  # leads
    (60, 22, {"harmony": 0.9, "melody": 0.1}),  # pads
    (62, 22, {"harmony": 0.6, "melody": 0.4}),  # effects of synthesizers
    (60, 20, {"melody": 0.6, "harmony": 0.4}),  # of many countries
    (58, 18, {"melody": 0.7, "harmony": 0.3}),  # pitched percussion
    (60, 20, {"sparse": 1.0}),  # noises
)
_TIMPANI, _BASSOON, _TUBA, _CONTRABASS = 47, 70, 58, 43
_LOW = {_TIMPANI: 45, _BASSOON: 48, _TUBA: 41, _CONTRABASS: 42}  # the middle of those far below their family
# Programs that real files name often, by how much more often than the others; judged by ear and memory, not counted.
# fmt: off
_OFTEN = {
    0: 12, 1: 4, 2: 2, 4: 3, 5: 3, 6: 2, 9: 2, 11: 3, 12: 2, 13: 1, 14: 2, 16: 3, 17: 2, 18: 3, 19: 2, 21: 1, 22: 1,
    24: 5, 25: 6, 26: 3, 27: 5, 28: 4, 29: 4, 30: 5, 32: 4, 33: 8, 34: 4, 35: 5, 36: 2, 38: 3, 39: 2, 40: 3, 42: 2,
    44: 1, 45: 3, 46: 3, 47: 3, 48: 10, 49: 5, 50: 4, 51: 2, 52: 5, 53: 2, 55: 1, 56: 5, 57: 4, 58: 2, 60: 4, 61: 5,
    62: 3, 63: 1, 65: 3, 66: 3, 67: 1, 68: 3, 69: 1, 70: 2, 71: 3, 73: 5, 74: 1, 75: 2, 79: 1, 80: 4, 81: 5, 82: 2,
    87: 2, 88: 2, 89: 4, 90: 2, 91: 2, 94: 1, 95: 2, 99: 1, 100: 2, 104: 1, 105: 1, 107: 1, 108: 1, 114: 1, 116: 1,
    119: 1,
}
# fmt: on
_COMMON = np.array([0.5 + _OFTEN.get(program, 0) for program in range(128)])


def piano_alone(rng: np.random.Generator) -> Sequence[Instrument]:
    """The piano."""
    return PIANO


def general_midi(rng: np.random.Generator) -> Sequence[Instrument]:
    """One to eight players of any kind: soloists, drums alone, bands with and without drums."""
    kind = rng.choice(["soloist", "drums", "band"], p=[0.22, 0.08, 0.7])
    if kind == "drums":
        return (DRUMS,)
    if kind == "soloist":
        return (Instrument(_program(rng, uniform=0.8)),)
    pitched = int(rng.integers(1, 8))
    players = [_player(rng, _program(rng, uniform=0.5)) for _ in range(pitched)]
    if pitched == 1 or rng.random() < 0.65:
        players.append(DRUMS)
    return tuple(players)


def _program(rng: np.random.Generator, uniform: float) -> int:
    """A program: with this chance any, otherwise as real files have them."""
    return int(rng.integers(128) if rng.random() < uniform else rng.choice(128, p=_COMMON / _COMMON.sum()))


def _player(rng: np.random.Generator, program: int) -> Instrument:
    """A member of a band, in its usual register or, now and then, anywhere."""
    middle, reach, roles = _FAMILIES[program // 8]
    middle = _LOW.get(program, middle)
    if rng.random() < 0.15:
        middle, reach = int(rng.integers(36, 90)), 24
    role = str(rng.choice(list(roles), p=list(roles.values())))
    middle += int(rng.integers(-5, 6))
    return Instrument(program, role=role, low=max(21, middle - reach), high=min(108, middle + reach))
