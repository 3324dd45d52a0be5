"""Fuzzing one target: inputs made, run and counted; what is found made small and written down."""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from fuzz_mutators import Mutator
from fuzz_smaller import smaller
from fuzz_worker import MIB, Limits, Outcome, Worker

POOL = 2000  # inputs that mutations start from, at most
TRIALS, TRIAL_SECONDS = 1000, 60.0  # that making one finding smaller may take


@dataclass(frozen=True)
class Finding:
    """What a target must not do, and the smallest input that makes it."""

    kind: str
    text: str
    content: bytes
    path: Path  # of the input; the text lies beside it


@dataclass
class Tally:
    """What a campaign came to."""

    inputs: int = 0
    slowest: float = 0.0  # seconds
    memory: int = 0  # bytes
    endings: set[Hashable] = field(default_factory=set)
    findings: list[Finding] = field(default_factory=list)

    def count(self, outcome: Outcome) -> bool:
        """Take an outcome in; whether it ended in a new way."""
        self.inputs += 1
        self.slowest, self.memory = max(self.slowest, outcome.seconds), max(self.memory, outcome.memory)
        is_new = outcome.ending not in self.endings
        self.endings.add(outcome.ending)
        return is_new

    def __str__(self) -> str:
        return (
            f"{self.inputs} inputs, {len(self.endings)} endings, slowest {self.slowest:.2f} s, most memory "
            f"{self.memory / MIB:.0f} MiB, findings {len(self.findings)}"
        )


class Campaign:
    """A target under fuzzing."""

    def __init__(
        self,
        name: str,
        out: Path,
        *,
        seed: int = 0,
        limits: Limits | None = None,
        learns: bool = True,
        trials: int = TRIALS,
    ) -> None:
        """name: of the target. out: the folder that findings are written into. trials: to make one finding smaller.

        learns: whether inputs that end in a new way are built on, too; else all hang on the seed and corpus alone.
        """
        self.name, self.tally = name, Tally()
        self._out, self._seed, self._learns = out, seed, learns
        self._limits, self._trials = limits or Limits(), trials

    def run(self, *, inputs: int | None = None, seconds: float | None = None) -> Tally:
        """Run the whole corpus, then so many inputs made of it, or as many as there is time for."""
        with Worker(self.name, self._limits) as worker:
            ready = worker.start()
            end = None if seconds is None else time.monotonic() + seconds
            pool = list(ready.corpus)
            for content in ready.corpus:
                self._try(worker, content)
            for content in self._made(pool, ready.words):
                if inputs == 0 or (end is not None and time.monotonic() > end):
                    return self.tally
                inputs = None if inputs is None else inputs - 1
                if self._try(worker, content) and self._learns:
                    self._keep(pool, content, len(ready.corpus))
        raise AssertionError("inputs never end")

    def replay(self, content: bytes) -> Outcome:
        """What comes of one input; a finding is written."""
        with Worker(self.name, self._limits) as worker:
            outcome = worker.run(content)
            if outcome.finding:
                self._write(outcome, content)
            return outcome

    def _made(self, pool: list[bytes], words: tuple[bytes, ...]) -> Iterator[bytes]:
        number = 0
        while True:
            rng = random.Random(f"{self._seed} {self.name} {number}")
            yield Mutator(rng, pool, words).make()
            number += 1

    def _keep(self, pool: list[bytes], content: bytes, corpus: int) -> None:
        """Let mutations start from this input too; of those made, an older one gives way."""
        if len(pool) >= POOL:
            del pool[corpus]
        pool.append(content)

    def _try(self, worker: Worker, content: bytes) -> bool:
        """Run an input; whether it is worth to be built on. The first of each finding is made small and written."""
        outcome = worker.run(content)
        is_new = self.tally.count(outcome)
        if outcome.finding and is_new:
            smallest = _smallest(worker, content, outcome, self._trials)
            self.tally.findings.append(self._write(outcome, smallest))
        return is_new and not outcome.finding

    def _write(self, outcome: Outcome, content: bytes) -> Finding:
        self._out.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256(content).hexdigest()[:12]
        path = self._out / f"{self.name}-{outcome.finding}-{digest}.bin"
        path.write_bytes(content)
        again = f"Again: .venv/bin/python tests/fuzz.py --target {self.name} --input {path}"
        path.with_suffix(".txt").write_text(f"{outcome.text}\n{again}\n", encoding="utf-8", errors="backslashreplace")
        return Finding(outcome.finding, outcome.text, content, path)


def _smallest(worker: Worker, content: bytes, found: Outcome, trials: int) -> bytes:
    """The input without what the finding does not need, as far as so many trials show."""
    end = time.monotonic() + TRIAL_SECONDS

    def holds(smaller: bytes) -> bool:
        nonlocal trials
        trials -= 1
        if trials < 0 or time.monotonic() > end:
            return False
        outcome = worker.run(smaller)
        return (outcome.finding, outcome.ending) == (found.finding, found.ending)

    return smaller(content, holds)
