"""Hours of random work on one voice: every song keeps its hash, memory stays flat, nothing is left open.

python tests/soak.py --minutes 60, or ``make soak``; on Linux, whose /proc it reads.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import faulthandler
import gc
import hashlib
import itertools
import os
import pickle
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import numpy as np

import notewave
from notewave import Synthesizer
from notewave.song.dialect import Tokens

SONG = Path(__file__).parents[1] / "engine" / "bundled" / "songs" / "band.mid"
OPTIONS = (  # as few steps as make each sampler's loop turn; one without guidance
    {"steps": 1},
    {"steps": 2, "guidance": 1.0},
    {"sampler": "ddim", "steps": 2},
    {"sampler": "ancestral", "steps": 2, "guidance": 1.5},
)
SEEDS = (0, 1, 2**31)
GROWTH = 0.02  # of the memory after warm-up
THREADS = 3
HANG_S = 100  # no single piece of work takes that long
JUDGED_ROUNDS = 60  # of every kind of work; fewer say nothing of memory
PR_SET_THP_DISABLE = 41
SETTLE_S = 5  # for threads that have ended to be gone


@dataclass(frozen=True)
class Key:
    """What a sound hangs on: a song, by its place, a seed, and options, by their place."""

    song: int
    seed: int
    options: int


@dataclass(frozen=True)
class Held:
    """What this process holds: memory in bytes, after what is free was given back; threads; open files."""

    memory: int
    threads: int
    files: int

    @classmethod
    def now(cls) -> Held:
        """As things stand."""
        gc.collect()
        with contextlib.suppress(AttributeError):  # of a C library that is not GNU's
            ctypes.CDLL(None).malloc_trim(0)
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        threads = len(list(Path("/proc/self/task").iterdir()))
        return cls(pages * os.sysconf("SC_PAGE_SIZE"), threads, len(list(Path("/proc/self/fd").iterdir())) - 1)


class Stop(Exception):
    """Raised by a caller in the midst of a stream."""


@dataclass
class Soak:
    """Random work on ``synth`` with the segments of ``songs``; every sound is held against the first of its key."""

    synth: Synthesizer
    songs: Sequence[Sequence[Tokens]]
    seed: int = 0
    done: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._known: dict[Key, str] = {}
        self._next: list[str] = []

    @property
    def rounds(self) -> int:
        """How often every kind of work was done."""
        return min(self.done[kind] for kind in self._kinds())

    def work(self) -> None:
        """One piece of work: of every kind one in turn, in random order."""
        if not self._next:
            self._next = self._kinds()
            self._random.shuffle(self._next)
        kind = self._next.pop()
        faulthandler.dump_traceback_later(HANG_S, exit=True)
        getattr(self, f"do_{kind}")()
        faulthandler.cancel_dump_traceback_later()
        self.done[kind] += 1

    def sing_all(self) -> None:
        """Render every key, so that its hash is known: as many side by side as ever are."""
        self._sing_side_by_side(self._keys())

    def held(self, begun: Held | None = None) -> Held:
        """What is held where work has come to rest, and threads that have ended are gone: no more than at ``begun``.

        Of the buffers that are kept for the next songs, the last kind of work left larger or smaller ones; so every
        song is sung on as many as are kept.
        """
        whole = [tokens for song in self.songs for tokens in song]
        for _ in itertools.zip_longest(*(self.synth.stream(whole, **OPTIONS[0]) for _ in range(2))):
            pass
        for _ in range(SETTLE_S * 10):
            now = Held.now()
            if begun is None or (now.threads <= begun.threads and now.files <= begun.files):
                break
            time.sleep(0.1)
        return now

    def do_render(self) -> None:
        self._render(self.synth, self._key())

    def do_stream(self) -> None:
        key = self._key()
        self._check(key, "stream", (chunk.samples for chunk in self._stream(key)))

    def do_abandon(self) -> None:
        tuple(itertools.islice(self._stream(self._key()), self._random.randint(1, 2)))

    def do_raise(self) -> None:
        with contextlib.suppress(Stop):
            for _ in self._stream(self._key()):
                raise Stop

    def do_raise_in_step(self) -> None:
        steps = Counter[str]()

        def on_step() -> None:
            steps["all"] += 1
            if steps["all"] == 2:
                raise Stop

        key = self._key()
        with contextlib.suppress(Stop):
            self.synth.render(self.songs[key.song], seed=key.seed, on_step=on_step, **OPTIONS[key.options])

    def do_refuse(self) -> None:
        for song, options in ((b"MThd", {}), ([], {}), (self.songs[0], {"steps": 0})):
            with contextlib.suppress(notewave.NotewaveError):
                self.synth.render(song, **options)
                self.wrong.append(f"{song!r:.40} with {options} was sung")

    def do_batch(self) -> None:
        first = self._key()
        keys = [self._key(first.options) for _ in range(3)]
        songs, seeds = [self.songs[key.song] for key in keys], [key.seed for key in keys]
        for key, audio in zip(keys, self.synth.render_batch(songs, seeds=seeds, **OPTIONS[first.options]), strict=True):
            self._check(key, "render_batch", [audio.samples])

    def do_session(self) -> None:
        key = self._key()
        song = self.songs[key.song]
        with self.synth.session(seeds=(key.seed,), **OPTIONS[key.options]) as session:
            made = []
            for index, tokens in enumerate(song):
                session.feed([tokens], last=index == len(song) - 1)
                made.append(session.take().samples)
        self._check(key, "session", (samples[0] for samples in made))

    def do_session_left(self) -> None:
        with self.synth.session(seeds=SEEDS[:2], **OPTIONS[0]) as session:
            session.feed([self.songs[0][0]] * 2)
            if self._random.random() < 0.5:
                session.take()

    def do_threads(self) -> None:
        self._sing_side_by_side([self._key() for _ in range(4)])

    def do_fork(self) -> None:
        key = self._key()
        self._fork(lambda: self._render(self._random.choice((self.synth, self._again())), key))

    def do_reopen(self) -> None:
        self._render(self._again(), self._key())

    def do_pickle(self) -> None:
        self._render(pickle.loads(pickle.dumps(self.synth)), self._key())

    def _fork(self, work: Callable[[], None]) -> None:
        """Do work in a forked process, which ends there: with 0 if all was right."""
        known = len(self.wrong)
        child = os.fork()
        if child == 0:
            faulthandler.register(signal.SIGALRM, chain=True)  # and ends it, as an alarm does by itself
            signal.alarm(HANG_S // 2)
            try:
                work()
                os._exit(len(self.wrong) > known)
            finally:
                os._exit(2)
        if status := os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
            self.wrong.append(f"a forked process ended with {status}")

    def _kinds(self) -> list[str]:
        return [name.removeprefix("do_") for name in dir(self) if name.startswith("do_")]

    def _sing_side_by_side(self, keys: Sequence[Key]) -> None:
        with ThreadPoolExecutor(THREADS) as pool:
            tuple(pool.map(lambda key: self._render(self.synth, key), keys))

    def _again(self) -> Synthesizer:
        return Synthesizer(self.synth.voice.folder, backend=self.synth.backend)

    def _keys(self) -> list[Key]:
        return [Key(s, seed, o) for s in range(len(self.songs)) for seed in SEEDS for o in range(len(OPTIONS))]

    def _key(self, options: int | None = None) -> Key:
        return self._random.choice([key for key in self._keys() if options in (None, key.options)])

    def _stream(self, key: Key) -> Iterable[notewave.Audio]:
        return self.synth.stream(self.songs[key.song], seed=key.seed, **OPTIONS[key.options])

    def _render(self, synth: Synthesizer, key: Key) -> None:
        audio = synth.render(self.songs[key.song], seed=key.seed, **OPTIONS[key.options])
        self._check(key, "render", [audio.samples])

    def _check(self, key: Key, how: str, samples: Iterable[np.ndarray]) -> None:
        made = hashlib.sha256(b"".join(part.tobytes() for part in samples)).hexdigest()
        if made != self._known.setdefault(key, made):
            self.wrong.append(f"{key}: {how} gave {made[:12]}, not {self._known[key][:12]}")


def _soak(synth: Synthesizer, song: Path, options: argparse.Namespace) -> list[str]:
    """Work for so many minutes, a line a minute; -> what was wrong."""
    whole = notewave.tokenize(song, dialect=synth.voice.dialect)
    soak = Soak(synth, [part for part in (whole[:1], whole[1:3], whole[3:6]) if part], options.seed)
    soak.sing_all()
    begun, said_min, started = soak.held(), 0.0, time.monotonic()
    held: list[Held] = []  # after each round
    while (elapsed_min := (time.monotonic() - started) / 60) < options.minutes or len(held) < options.rounds:
        soak.work()
        if soak.rounds > len(held):
            held.append(soak.held(begun))
            if elapsed_min >= said_min:
                _report(soak, elapsed_min, held[-1])
                said_min += 1
    _report(soak, elapsed_min, held[-1])
    return soak.wrong + _left(begun, held)


def _left(begun: Held, held: Sequence[Held]) -> list[str]:
    """Says how memory went; -> what is held that should not be.

    Single readings differ by some per cent, by which songs came side by side; a leak lifts all of them.
    """
    wrong = []
    for what in ("threads", "files"):
        before, after = getattr(begun, what), getattr(held[-1], what)
        wrong += [f"{after} {what}, {before} at the beginning"] if after > before else []
    if len(held) < JUDGED_ROUNDS:
        print(f"{len(held)} rounds are too few to judge memory by")
        return wrong
    third = len(held) // 3  # the first is warm-up: until as many songs came side by side as ever will
    early, late = (median(one.memory for one in part) for part in (held[third : 2 * third], held[-third:]))
    change = f"{late / early - 1:+.2%}"
    memory = f"memory after warm-up {early / 2**20:.1f} MiB, at the end {late / 2**20:.1f} MiB ({change})"
    print(memory)
    return wrong + ([memory] if late > (1 + GROWTH) * early else [])


def _report(soak: Soak, elapsed_min: float, held: Held) -> None:
    facts = f"{held.memory / 2**20:.1f} MiB, {held.threads} threads, {held.files} files, {len(soak.wrong)} wrong"
    print(f"{elapsed_min:.1f} min: {soak.rounds} rounds of {len(soak.done)} kinds of work; {facts}", flush=True)


def main() -> int:
    """The command; its status is 0 when all was right."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--rounds", type=int, default=JUDGED_ROUNDS, help="of every kind of work, at least")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--voice", default="band")
    parser.add_argument("--song", type=Path, default=SONG)
    options = parser.parse_args()
    ctypes.CDLL(None).prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0)  # what is touched of a buffer counts, not 2 MiB around it
    wrong = _soak(Synthesizer(options.voice, backend="cpu"), options.song, options)
    print("\n".join(wrong) or "all was right")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
