"""What single notes sound like: the mel of every pitch of every program, and of every drum, at a few ages.

A network that knows these needs to learn no more than how notes come together, which mixtures alone teach slowly.
"""

from __future__ import annotations

import logging
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pretty_midi
from numpy.typing import NDArray

from notewave.export.material.fluidsynth import TICKS_PER_BEAT, check_fluidsynth, play_midi
from notewave.export.material.songs import pack_mel, unpack_mel
from notewave.files import atomic_file
from notewave.sound.mel import HOP, MELS, SAMPLE_RATE, FloatArray, log_mel, to_network

log = logging.getLogger(__name__)

LOWEST, HIGHEST = 21, 108  # pitches, and keys of the percussion map
DRUMS = 128  # the row of the drums, after those of the programs
SOFT, LOUD = 50, 110  # velocities between and beyond which loudness is drawn as a line over their logarithm
HELD = 25  # frames that a note is held
AGES = (0, 1, 3, 8, 20, 27, 33)  # frames since its onset
SLOT = 64  # frames from one note to the next
ALL_SOUND_OFF = 120  # a controller


class Timbres:
    """The mels of single notes, uint8 [DRUMS + 1, pitches, 2 velocities, A ages, M]."""

    def __init__(self, table: NDArray[np.uint8]) -> None:
        self.table = table

    def mel(self, program: NDArray[np.int64], pitch: NDArray[np.int64], velocity: NDArray[np.float64]) -> FloatArray:
        """Mels [K, A, M], in the networks' range, of notes of K programs (DRUMS for drums), pitches and velocities."""
        soft, loud = unpack_mel(self.table[program, pitch - LOWEST]).swapaxes(0, 1)
        louder = np.log(np.maximum(velocity, 1.0) / SOFT) / np.log(LOUD / SOFT)
        return to_network(soft + louder[:, None, None].astype(np.float32) * (loud - soft))

    @classmethod
    def load(cls, path: Path, processes: int = 1) -> Timbres:
        """Read them from a file, which is made if it is missing. Raises ToolError where FluidSynth is."""
        if not path.exists():
            check_fluidsynth()
            with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
                rows = []
                for program, row in enumerate(pool.map(timbre, range(DRUMS + 1))):
                    rows.append(row)
                    if program % 16 == 0:
                        log.info("timbres: %d of %d", program + 1, DRUMS + 1)
            with atomic_file(path) as temporary:
                np.savez_compressed(temporary, table=np.stack(rows))
        with np.load(path) as arrays:
            return cls(arrays["table"])


def timbre(program: int) -> NDArray[np.uint8]:
    """The mels [pitches, 2, A, M] of a program's notes, or of the drums."""
    midi = pretty_midi.PrettyMIDI(resolution=TICKS_PER_BEAT, initial_tempo=120.0)
    instrument = pretty_midi.Instrument(program % DRUMS, is_drum=program == DRUMS)
    slot_s, held_s = SLOT * HOP / SAMPLE_RATE, HELD * HOP / SAMPLE_RATE
    struck = [(velocity, pitch) for pitch in range(LOWEST, HIGHEST + 1) for velocity in (SOFT, LOUD)]
    for number, (velocity, pitch) in enumerate(struck):
        start = number * slot_s
        instrument.notes.append(pretty_midi.Note(velocity, pitch, start, start + held_s))
        instrument.control_changes.append(pretty_midi.ControlChange(ALL_SOUND_OFF, 0, start + slot_s - 0.04))
    midi.instruments.append(instrument)
    sound, whole = play_midi(midi), np.zeros(len(struck) * SLOT * HOP, np.float32)
    whole[: len(sound)] = sound[: len(whole)]
    frames = log_mel(whole).reshape(-1, 2, SLOT, MELS)
    return pack_mel(frames[:, :, AGES])
