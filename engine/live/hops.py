"""The sound of what is played, hop by hop: the one place where live play computes."""

from __future__ import annotations

import contextlib
from typing import NamedTuple

import numpy as np

from notewave.backends.protocol import Backend, LiveRun
from notewave.sampling.job import Job
from notewave.sampling.windows import LEAD, Place
from notewave.session import check_numbers
from notewave.song.codec import STEPS_PER_FRAME
from notewave.song.playing import Playing
from notewave.sound.mel import FRAMES, HOP, FloatArray
from notewave.voice.folder import Voice

QUIET = 1e-3  # what is nowhere louder is silence: -60 dB


class Hop(NamedTuple):
    """A hop's sound, and what follows it if nothing happens."""

    number: int
    lead: FloatArray  # [LEAD * HOP], the last samples before it, made once more
    samples: FloatArray  # [hop * HOP], in [-1, 1]
    ahead: FloatArray  # [right * HOP]; empty where there is only silence


class Hops:
    """Makes hops, one after another. For one thread; what happens meanwhile is told to ``playing``."""

    def __init__(self, backend: Backend, voice: Voice, job: Job, playing: Playing) -> None:
        assert job.windows is not None
        self._backend, self._voice, self._job = backend, voice, job
        self._playing, self._windows = playing, job.windows
        self._open = contextlib.ExitStack()
        self._run: LiveRun | None = None  # none when all is over
        self._first = 0  # hop of the run's first window
        self._made = -1  # the hop made last
        self._is_resting = True
        self._rest()

    def make(self, number: int) -> Hop:
        """The sound of a hop, after the one before or after a gap. Raises VoiceError, BackendError."""
        windows, playing = self._windows, self._playing
        steps = STEPS_PER_FRAME * windows.hop
        happened = playing.advance(number * steps, (number + 1) * steps)
        if self._is_resting and not happened and not playing.held:
            self._made = number
            return self._silence(number)
        if self._is_resting:
            self._first, self._is_resting = number, False
        elif (number - self._made) * windows.hop > windows.length:
            self._rest()
            self._first, self._is_resting = number, False
        place = self._place(number, number - self._made if number > self._first else 1)
        assert self._run is not None
        self._run.submit(playing.tokens(number * steps - STEPS_PER_FRAME * windows.back), place)
        self._made = number
        sound = check_numbers(self._run.sound().result(), self._voice, f"hop {number}")
        lead, samples, ahead = np.split(sound, [LEAD * HOP, (LEAD + windows.hop) * HOP])
        if not playing.held and np.abs(sound[LEAD * HOP :]).max() < QUIET:
            playing.forget()
            self._rest()
            return self._silence(number)
        return Hop(number, lead, samples, ahead)

    def prepare(self) -> None:
        """Do of the next hop what can be done before it is known what is played in it."""
        if not self._is_resting:
            assert self._run is not None
            self._run.prepare(self._place(self._made + 1, 1))

    def close(self) -> None:
        """Give the run back."""
        self._open.close()
        self._run = None

    def _rest(self) -> None:
        """Begin anew after silence: nothing is computed until something is played."""
        self._open.close()
        self._is_resting = True
        self._run = self._open.enter_context(self._backend.live(self._job))
        self._run.prepare(self._place(self._first, 1))

    def _place(self, number: int, moved: int) -> Place:
        """Where a hop's window lies: a run's own frames are counted, so that all of it is ready before it begins."""
        windows = self._windows
        return Place(FRAMES - windows.back + (number - self._first) * windows.hop, moved * windows.hop)

    def _silence(self, number: int) -> Hop:
        return Hop(number, _ZEROS[: LEAD * HOP], _ZEROS[: self._windows.hop * HOP], _ZEROS[:0])


_ZEROS = np.zeros(FRAMES * HOP, np.float32)
_ZEROS.flags.writeable = False
