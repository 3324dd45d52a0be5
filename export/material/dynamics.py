"""How loud each note of a song to train on is struck: accents, phrases, soft and loud songs, unequal players."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from notewave.song.notes import Notes

USUAL = (64, 80, 90, 100, 110, 127)  # velocities of songs that have one for all notes


def with_dynamics(notes: Notes, rng: np.random.Generator) -> Notes:
    """The same notes, their velocities drawn anew, 1 to 127."""
    if rng.random() < 0.08:  # as many files of sequencers have it
        return replace(notes, velocity=np.full(len(notes), rng.choice(USUAL)))
    loudness = rng.uniform(45, 112)
    spread = rng.choice([0.0, 4.0, 10.0, 20.0], p=[0.15, 0.35, 0.35, 0.15])
    swell = _swell(rng, notes.onset_s) * rng.choice([0.0, 10.0, 25.0], p=[0.4, 0.4, 0.2])  # of all players
    velocity = np.zeros(len(notes))
    player = np.where(notes.is_drum, 128, notes.program)
    for one in np.unique(player):
        own = player == one
        _, chord = np.unique(notes.onset_s[own].round(2), return_inverse=True)
        struck = rng.normal(0, spread, chord.max() + 1)
        struck += (rng.random(len(struck)) < 0.15) * rng.uniform(0, 30)  # accents
        base = loudness + rng.normal(0, 14) + swell[own] + _swell(rng, notes.onset_s[own]) * rng.uniform(0, 12)
        if one == 128:  # each drum has its own loudness
            base = base + rng.normal(0, 14, 128)[notes.pitch[own]]
        velocity[own] = base + struck[chord] + rng.normal(0, spread / 3 + 1e-9, own.sum())
    return replace(notes, velocity=np.clip(np.rint(velocity), 1, 127).astype(np.int64))


def _swell(rng: np.random.Generator, time_s: NDArray[np.float64]) -> NDArray[np.float64]:
    """A slow rise and fall over the times [n], about -1 to 1."""
    periods, phases = np.exp(rng.uniform(np.log(3), np.log(60), 2)), rng.uniform(0, 2 * np.pi, 2)
    return np.asarray(np.sin(2 * np.pi * time_s[:, None] / periods + phases).mean(axis=1))
