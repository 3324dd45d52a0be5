"""What every mutation draws from."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TypeVar

Item = TypeVar("Item")

INTEGERS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 1 << 20, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32)
INTEGERS += ((1 << 63) - 1, 1 << 63, (1 << 64) - 1)


class Unfit(Exception):
    """A change that knows a format cannot be made here."""


class Chance(ABC):
    """A random generator, other inputs, and words that such inputs are made of."""

    def __init__(self, rng: random.Random, pool: Sequence[bytes], words: Sequence[bytes]) -> None:
        self.rng, self.pool, self.words = rng, pool, words

    @abstractmethod
    def change(self, content: bytes) -> bytes:
        """One change of bytes of any format."""

    @abstractmethod
    def within(self, pool: Sequence[bytes]) -> Chance:
        """The same chances, of other inputs."""

    def span(self, size: int) -> slice:
        """A piece of a sequence of this size, more often a short one."""
        start = self.rng.randrange(size + 1)
        length = min(size - start, int(self.rng.paretovariate(0.6)))
        return slice(start, start + length)

    def integer(self, near: int = 0) -> int:
        """An integer that programs trip over, or one near another."""
        if self.rng.random() < 0.4:
            return near + self.rng.choice((-1, 1)) * self.rng.choice((1, 1, 1, 2, 4, 8, 16, 256))
        return self.rng.choice(INTEGERS) + self.rng.choice((0, 0, 0, -1, 1))

    def word(self) -> bytes:
        """A word of the target's, or a few bytes."""
        if self.words and self.rng.random() < 0.7:
            return self.rng.choice(self.words)
        return self.rng.randbytes(self.rng.randint(1, 8))

    def rearranged(self, items: Sequence[Item], others: Sequence[Item] = ()) -> list[Item]:
        """Items with one or a few of them left out, repeated, moved, exchanged, or one of others put in."""
        changed = list(items)
        if not changed:
            return [self.rng.choice(others)] if others else changed
        at, piece = self.rng.randrange(len(changed)), self.span(len(changed))
        kind = self.rng.choice(("drop", "drop", "double", "many", "move", "swap", "shuffle", "foreign"))
        if kind == "drop":
            del changed[piece if self.rng.random() < 0.5 else slice(at, at + 1)]
        elif kind == "double":
            changed.insert(self.rng.randrange(len(changed) + 1), changed[at])
        elif kind == "many":
            changed[at:at] = [changed[at]] * self.rng.choice((2, 8, 64, 300))
        elif kind == "move":
            changed.insert(self.rng.randrange(len(changed)), changed.pop(at))
        elif kind == "swap":
            other = self.rng.randrange(len(changed))
            changed[at], changed[other] = changed[other], changed[at]
        elif kind == "shuffle":
            self.rng.shuffle(changed)
        elif others:
            changed.insert(at, self.rng.choice(others))
        return changed
