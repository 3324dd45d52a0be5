"""Where songs are made: one thread that works at some of them side by side, the most urgent first; others wait.

A song's work is a generator: each step makes a segment and says how many seconds of sound came of it, the last one by
its return. The next step is that of the song whose listener, hearing it from its first sound on, would run dry the
soonest. So every song begins as soon as it can, and none is made far ahead while another stutters. What a client does
with the sound does not matter here: it goes to a spool.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Generator, Iterable

from notewave.serve.metrics import Metrics
from notewave.serve.refusal import Gone, Refusal
from notewave.serve.spool import Spool
from notewave.sound.mel import FRAMES
from notewave.synthesizer import Synthesizer

SMOOTHING = 0.2  # of a new step's time, in the mean of the last ones
FIRST_GUESS_S = 1.0  # of a step, before one was made
ROOM = 768 << 20  # bytes for the keys and values of the songs that are made side by side: all else is little
LEAST, MOST = 2, 32  # songs side by side


def side_by_side(singers: Iterable[Synthesizer]) -> int:
    """How many songs are made at once: the more, the sooner each begins, and all end as soon; but each takes memory."""
    sizes = [singer.voice.dimensions for singer in singers]
    most = max(8 * size.decoder_layers * (size.max_tokens + FRAMES) * size.heads * size.head_width for size in sizes)
    return min(max(ROOM // most, LEAST), MOST)


class Song:
    """A song under way, or one that waits for it."""

    def __init__(self, steps: Generator[float, None, float], count: int, spool: Spool) -> None:
        """steps: see the module. count: how many there are. spool: where they write to."""
        self.steps, self.left, self.spool = steps, count, spool
        self.asked_s = time.monotonic()
        self.begun_s: float | None = None  # when its first sound was there
        self.made_s = 0.0  # of its sound
        self.is_wanted = True

    @property
    def dry_s(self) -> float:
        """When its listener has heard all that there is."""
        return -1.0 if self.begun_s is None else self.begun_s + self.made_s


class Workshop:
    """Makes songs; its methods are called from any thread."""

    def __init__(self, together: int, queue: int, metrics: Metrics) -> None:
        """together: songs under way at once. queue: songs that wait."""
        self._together, self._queue, self._metrics = together, queue, metrics
        self._lock = threading.Condition()  # of all below
        self._under_way: list[Song] = []
        self._waiting: deque[Song] = deque()
        self._step_s = FIRST_GUESS_S  # that a step takes
        self._is_closed = False
        self._thread = threading.Thread(target=self._work, name="notewave workshop", daemon=True)
        self._thread.start()

    def put(self, song: Song) -> None:
        """Take a song in. Raises Refusal where too many wait."""
        with self._lock:
            if self._is_closed:
                raise Refusal(503, "the server ends: it takes no more songs. Ask another, or later.", retry_s=30)
            if len(self._under_way) >= self._together and len(self._waiting) >= self._queue:
                self._metrics.refused.labels("queue").inc()
                raise self._full()
            self._waiting.append(song)
            self._admit()
            self._lock.notify_all()

    def drop(self, song: Song) -> None:
        """Nobody wants a song any more: no further step of it is made."""
        with self._lock:
            song.is_wanted = False
            if song in self._waiting:
                self._waiting.remove(song)
                self._count()
                self._metrics.cancelled.inc()
            self._lock.notify_all()

    def close(self) -> None:
        """Make nothing more; wait until the step that is being made has ended."""
        with self._lock:
            self._is_closed = True
            for song in (*self._waiting, *self._under_way):
                song.is_wanted = False
                song.spool.finish(Gone())
            self._waiting.clear()
            self._lock.notify_all()
        self._thread.join()

    @property
    def is_idle(self) -> bool:
        """Whether nothing is to be made."""
        with self._lock:
            return not self._under_way and not self._waiting

    def _full(self) -> Refusal:
        """The server's own sentence, with the time at which a place is free."""
        fewest = min(song.left for song in self._under_way)
        wait_s = self._step_s * fewest * len(self._under_way)
        return Refusal(
            503,
            f"the server is full: {len(self._under_way)} songs are being made and {len(self._waiting)} wait. "
            f"Try again in about {max(1, round(wait_s))} s.",
            retry_s=wait_s,
        )

    def _admit(self) -> None:
        """Let songs that wait begin, where there is room."""
        while self._waiting and len(self._under_way) < self._together:
            self._under_way.append(self._waiting.popleft())
        self._count()

    def _count(self) -> None:
        self._metrics.under_way.set(len(self._under_way))
        self._metrics.queue.set(len(self._waiting))

    def _next(self) -> Song | None:
        """Wait for work: the most urgent song, those that nobody wants before; or None when all is over."""
        with self._lock:
            while not self._under_way:
                if self._is_closed:
                    return None
                self._lock.wait()
            return min(self._under_way, key=lambda song: (song.is_wanted, song.dry_s))

    def _work(self) -> None:
        while (song := self._next()) is not None:
            if song.is_wanted:
                self._step(song)
            else:
                self._end(song, Gone())

    def _step(self, song: Song) -> None:
        began = time.monotonic()
        is_last = False
        try:
            seconds = next(song.steps)
        except StopIteration as end:
            seconds, is_last = end.value, True
        except Exception as error:  # told to whoever waits for the song: nobody hears it in a thread
            self._end(song, error)
            return
        now = time.monotonic()
        self._metrics.made_seconds.inc(seconds)
        self._metrics.computed_seconds.inc(now - began)
        with self._lock:
            self._step_s += SMOOTHING * (now - began - self._step_s)
            song.left -= 1
            song.made_s += seconds
            if song.begun_s is None:
                song.begun_s = now
                self._metrics.first_sound.observe(now - song.asked_s)
        if is_last:
            self._end(song, None)

    def _end(self, song: Song, failure: Exception | None) -> None:
        """A song is over. Whoever reads it is told last: by then there is room for another."""
        try:
            song.steps.close()  # gives its buffers back
        except Exception as error:
            failure = failure or error
        if isinstance(failure, Gone):
            self._metrics.cancelled.inc()
        with self._lock:
            self._under_way.remove(song)
            self._admit()
        song.spool.finish(failure)
