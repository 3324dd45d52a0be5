"""Songs played live: without a clock, to be judged; and by the clock, to see whether each hop comes in time."""

from __future__ import annotations

import gc
import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from notewave.live.live import Live, LiveStats
from notewave.song.notes import Notes
from notewave.sound.mel import FRAME_RATE, SAMPLE_RATE, FloatArray
from notewave.synthesizer import Synthesizer

PAGE = 4096  # bytes
HELD_SECONDS = 30.0
SETTLED_SECONDS = 2.0  # after a note's beginning, from when on it is steady
ENVELOPE = 80  # samples of 5 ms, of which the loudest counts
AROUND_HZ = 5.0  # of a hop's rate, within which its part of an envelope's spectrum is compared with others


@dataclass(frozen=True, order=True)
class Deed:
    """A key that is struck or let go."""

    time_s: float
    is_on: bool  # at one time keys are let go first
    pitch: int
    velocity: int
    program: int
    is_drum: bool

    def do(self, live: Live, at: float | None = None) -> None:
        """Do it, at a time of the live song or now."""
        if self.is_on:
            live.note_on(self.pitch, self.velocity, self.program, self.is_drum, at)
        else:
            live.note_off(self.pitch, self.program, self.is_drum, at)


def deeds(notes: Notes) -> list[Deed]:
    """What a player does to play a song, in order of time."""
    found = []
    for onset, offset, pitch, velocity, program, is_drum in zip(*vars(notes).values(), strict=True):
        key = int(pitch), max(int(velocity), 1), int(program), bool(is_drum)
        found.append(Deed(float(onset), True, *key))
        if not is_drum:
            found.append(Deed(float(offset), False, *key))
    return sorted(found)


def play(synthesizer: Synthesizer, notes: Notes, seconds: float, **options: Any) -> tuple[FloatArray, LiveStats]:
    """The sound of a song played live [n], as long as asked for, and how it fared; not by the clock.

    options: of ``Synthesizer.live``.
    """
    with synthesizer.live(real_time=False, **options) as live:
        coming = iter(deeds(notes))
        held_back: list[Deed] = []
        hop_s, count = live.hop_samples / live.sample_rate, round(seconds * live.sample_rate)
        sound = []
        for number in range(-(-count // live.hop_samples)):  # each hop knows of nothing that comes after it
            for deed in itertools.chain(held_back, coming):
                if deed.time_s >= (number + 1) * hop_s:
                    held_back = [deed]
                    break
                deed.do(live, deed.time_s)
            else:
                held_back = []
            sound.append(live.read().samples)
        return np.concatenate(sound)[:count], live.stats


@dataclass(frozen=True)
class Session:
    """What came of playing by the clock."""

    stats: LiveStats
    latency_s: float
    hop: int  # frames
    memory_mib: tuple[float, float]  # resident, after a tenth of the time and at the end


def play_by_the_clock(synthesizer: Synthesizer, notes: Notes, seconds: float, **options: Any) -> Session:
    """Play a song over and over, in real time: hops are taken when they are due, keys are struck at their times."""
    gc.collect()
    gc.freeze()  # as the command does: what a benchmark has loaded is much to look through while sound is due
    with synthesizer.live(**options) as live:
        hop_s = live.hop_samples / live.sample_rate
        began, coming, number = time.monotonic(), _over_and_over(notes), 0
        deed, early_mib = next(coming), 0.0
        while number * hop_s < seconds:
            due = min(deed.time_s, number * hop_s)
            time.sleep(max(began + due - time.monotonic(), 0.0))
            if due == number * hop_s:
                live.read()
                number += 1
                if number * hop_s < seconds / 10:
                    early_mib = _resident_mib()
            else:
                deed.do(live)
                deed = next(coming)
        live.check()
        return Session(live.stats, live.latency, live.hop, (early_mib, _resident_mib()))


def _over_and_over(notes: Notes) -> Iterator[Deed]:
    once = deeds(notes)
    for times in itertools.count():
        for deed in once:
            yield Deed(times * (notes.seconds + 1) + deed.time_s, *list(vars(deed).values())[1:])


def _resident_mib() -> float:
    """Resident memory of this process; 0 where that cannot be told."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE / 2**20
    except OSError:
        return 0.0


def loudness_db(sound: NDArray[np.floating]) -> NDArray[np.float64]:
    """RMS level of each whole second of a sound [n], in dB."""
    seconds = len(sound) // SAMPLE_RATE
    power = np.square(sound[: seconds * SAMPLE_RATE].astype(np.float64)).reshape(seconds, SAMPLE_RATE).mean(axis=1)
    return 10 * np.log10(power + 1e-12)


def beat(sound: NDArray[np.floating], hop: int) -> float:
    """How much the loudness of a steady sound [n] moves at the rate of hops of so many frames, over other rates nearby.

    1 where it does so no more than at those.
    """
    level = np.abs(sound[: len(sound) // ENVELOPE * ENVELOPE]).reshape(-1, ENVELOPE).max(axis=1)
    nats = np.log(level + 1e-6)
    spectrum, hertz = np.abs(np.fft.rfft(nats - nats.mean())), np.fft.rfftfreq(len(nats), ENVELOPE / SAMPLE_RATE)
    rate = FRAME_RATE / hop
    at = int(np.argmin(np.abs(hertz - rate)))
    near = np.abs(hertz - rate) < min(AROUND_HZ, 0.4 * rate)
    near[at - 1 : at + 2] = False
    return float(spectrum[at - 1 : at + 2].mean() / spectrum[near].mean())
