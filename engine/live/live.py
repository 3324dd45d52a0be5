"""A synthesizer that is played while it sounds: events in from any thread, the sound out hop by hop."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections import deque
from dataclasses import dataclass
from types import TracebackType

import numpy as np

from notewave.backends.protocol import Backend
from notewave.checks import is_integer, is_number, quoted
from notewave.errors import ArgumentError
from notewave.live.fit import Fit, fit
from notewave.live.hops import Hops
from notewave.live.pace import Pace
from notewave.live.stitch import Stitch, check_live_rate
from notewave.sampling.job import Job
from notewave.sampling.windows import Windows
from notewave.song.codec import STEPS_PER_SECOND
from notewave.song.playing import NO_KEY, Deed, Event, Key, Playing
from notewave.sound.audio import Audio
from notewave.sound.mel import FloatArray
from notewave.voice.folder import Voice

DEFAULT_HOP = 4  # frames, where no clock asks for fewer or more
MAX_SECONDS = 1e9  # on a live song's clock: 30 years
SOONER = 1.1  # times that a hop is begun before it is due, after one that was late
REMEMBERED = 10_000  # hops whose times are kept
WAIT_SECONDS = 0.5  # at most, before it is seen whether there is still something to wait for


@dataclass(frozen=True)
class LiveStats:
    """How live play fares."""

    hops: int  # that were taken
    late: int  # of them, that were not there in time
    load: float  # median share of a hop's length that its making took, of the last ones that were computed
    load_99: float  # the 99th percentile of those
    worst: float  # the most of those
    held: int  # notes that sound
    thinned: int  # notes that were left out, since too many were held


class Live:
    """A voice that is played: ``notewave.Synthesizer.live`` opens it; a context, at whose end it is closed.

    In real time a thread makes each hop a little before it is taken, so that ``read`` never waits; what happens sounds
    ``latency`` later, always as late, so that rhythm stays what it was. Otherwise ``read`` makes the hop itself, and
    what is told before it is read sounds in it at its own time.
    """

    def __init__(
        self, hops: Hops, playing: Playing, stitch: Stitch, windows: Windows, budget_s: float | None = None
    ) -> None:
        """budget_s: how long before a hop is taken it is begun, in real time; None without."""
        self.hop, self.back = windows.hop, windows.back  # frames
        self.sample_rate, self.hop_samples = stitch.sample_rate, stitch.length
        self._hop_s = stitch.length / stitch.sample_rate
        self._hops, self._playing, self._stitch = hops, playing, stitch
        self._budget_s, self._pace = budget_s, Pace(self._hop_s)
        self._lock = threading.Condition()  # of all below
        self._ready: tuple[FloatArray, FloatArray] | None = None  # the next hop, if it is there
        self._late, self._took = 0, deque[float](maxlen=REMEMBERED)
        self._failure: Exception | None = None
        self._closed = False
        self._reading = threading.Lock()  # held by who makes a hop as it is read
        self._worker = threading.Thread(target=self._work, name="notewave live", daemon=True)
        if self.is_real_time:
            self._make(0)  # silence, that whoever reads at once finds there
            self._worker.start()

    def __enter__(self) -> Live:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop, and give the voice's buffers back; nothing can be read any more but silence."""
        with self._lock:
            self._closed = True
            self._lock.notify_all()
        if self.is_real_time:
            self._worker.join()
        else:
            self._hops.close()

    @property
    def is_real_time(self) -> bool:
        """Whether hops are made by the clock, and not when they are read."""
        return self._budget_s is not None

    @property
    def latency(self) -> float:
        """Seconds from what happens to the sample of it that ``read`` gives: a hop, and the time to make one.

        Whoever plays the samples adds his own buffer's.
        """
        return 0.0 if self._budget_s is None else self._hop_s + self._budget_s

    @property
    def now(self) -> float:
        """Seconds on the clock of ``at``: of the song that were read, and in real time those since the last read."""
        with self._lock:
            return self._pace.position(time.monotonic()) if self.is_real_time else self._pace.count * self._hop_s

    @property
    def stats(self) -> LiveStats:
        """How it fares."""
        with self._lock:  # briefly: who takes hops waits for it
            hops, late, took = self._pace.count, self._late, list(self._took)
        load, load_99, worst = (np.percentile(took or [0.0], (50, 99, 100)) / self._hop_s).tolist()
        return LiveStats(hops, late, load, load_99, worst, self._playing.held, self._playing.thinned)

    def note_on(
        self, pitch: int, velocity: int = 80, program: int = 0, drum: bool = False, at: float | None = None
    ) -> None:
        """Strike a key: 0 to 127 each; velocity 0 lets it go. at: seconds on ``now``'s clock, now if None.

        What comes too late for its time sounds as soon as it can. Raises ArgumentError for what is out of range.
        """
        key = _key(pitch, program, drum)
        if _checked("velocity", velocity):
            self._put(Deed.ON, at, key, velocity=int(velocity))
        else:
            self._put(Deed.OFF, at, key)

    def note_off(self, pitch: int, program: int = 0, drum: bool = False, at: float | None = None) -> None:
        """Let a key go; nothing happens where it does not sound. Arguments and errors as in ``note_on``."""
        self._put(Deed.OFF, at, _key(pitch, program, drum))

    def pedal(self, down: bool, program: int | None = None, at: float | None = None) -> None:
        """Press or lift the sustain pedal of a program, or of all. Errors as in ``note_on``."""
        which = None if program is None else _checked("program", program)
        self._put(Deed.PEDAL_DOWN if down else Deed.PEDAL_UP, at, program=which)

    def all_off(self, at: float | None = None) -> None:
        """End all notes, and lift the pedals. Errors as in ``note_on``."""
        self._put(Deed.ALL_OFF, at)

    def read(self) -> Audio:
        """The next hop, always ``hop_samples`` long.

        In real time it raises nothing and never waits: a hop that is not there is counted and covered; after a failure,
        which ``check`` raises, there is silence. Otherwise raises VoiceError or BackendError where it cannot be made.
        """
        if not self.is_real_time:
            return self._read_now()
        with self._lock:
            self._pace.take(time.monotonic())
            ready, self._ready = self._ready, None
            self._lock.notify_all()
            if ready is not None:
                heard = self._stitch.come(*ready)
            else:
                self._miss()
                heard = self._stitch.cover()
        return Audio(heard, self.sample_rate)

    def check(self) -> None:
        """Raise what made the sound stop, if something did: VoiceError, BackendError."""
        if self._failure is not None:
            raise self._failure

    def _put(
        self, deed: Deed, at: float | None, key: Key = NO_KEY, *, velocity: int = 0, program: int | None = None
    ) -> None:
        if at is not None and not is_number(at, -MAX_SECONDS, MAX_SECONDS):
            raise ArgumentError(f"at is {quoted(at)}; it must be seconds on the clock of now, or None for now.")
        seconds = (self.now if at is None else float(at)) + self.latency
        self._playing.put(Event(round(seconds * STEPS_PER_SECOND), deed, key, velocity, program))

    def _read_now(self) -> Audio:
        with self._reading:
            if self._closed:
                return Audio(self._stitch.cover(), self.sample_rate)
            made = self._make(self._pace.count)
            with self._lock:
                self._pace.take(self._pace.count * self._hop_s)
                return Audio(self._stitch.come(*made), self.sample_rate)

    def _make(self, number: int) -> tuple[FloatArray, FloatArray]:
        began = time.monotonic()
        hop = self._hops.make(number)
        made = self._stitch.fit(hop)
        with self._lock:
            self._ready = made if self.is_real_time and number == self._pace.count else None  # else it came too late
            self._lock.notify_all()
        self._hops.prepare()
        if len(hop.ahead):  # what is silent takes no time
            with self._lock:
                self._took.append(time.monotonic() - began)
        return made

    def _miss(self) -> None:
        """A hop is late: the next ones are begun a little earlier."""
        if self._budget_s is not None and not self._closed and self._failure is None:
            self._late += 1
            self._budget_s = min(self._budget_s * SOONER, self._hop_s)

    def _work(self) -> None:
        try:
            while (number := self._next()) is not None:
                self._make(number)
        except Exception as error:  # told to whoever asks: nobody hears it in a thread
            self._failure = error
        finally:
            self._hops.close()

    def _next(self) -> int | None:
        """Wait until a hop is to be begun; which one, or None when all is over."""
        assert self._budget_s is not None
        with self._lock:
            while not self._closed:
                wait = WAIT_SECONDS
                if self._ready is None:
                    wait = self._pace.due - self._budget_s - time.monotonic()
                if wait <= 0:
                    return self._pace.count
                self._lock.wait(min(wait, WAIT_SECONDS))
            return None


def open_live(
    backend: Backend, voice: Voice, job: Job, hop: int | None, back: int | None, rate: int, real_time: bool
) -> Live:
    """Live play of a voice that has a vocoder, as a job says: see ``notewave.Synthesizer.live``."""
    check_live_rate(rate)  # before anything is measured
    if real_time:
        chosen = fit(backend, voice, job, hop, back)
    else:
        assert voice.vocoder is not None
        chosen = Fit(Windows.of(voice.vocoder, DEFAULT_HOP if hop is None else hop, back), voice.dimensions.max_tokens)
    stitch = Stitch(chosen.windows.hop, rate)
    playing = Playing(voice.dialect, chosen.most_tokens)
    hops = Hops(backend, voice, dataclasses.replace(job, windows=chosen.windows), playing)
    return Live(hops, playing, stitch, chosen.windows, chosen.budget_s if real_time else None)


def _key(pitch: int, program: int, drum: bool) -> Key:
    return Key(_checked("program", program), _checked("pitch", pitch), bool(drum))


def _checked(name: str, value: int) -> int:
    if not is_integer(value, 0, 127):
        raise ArgumentError(f"{name} is {quoted(value)}; it must be a whole number from 0 to 127.")
    return int(value)
