"""Inputs made of other inputs: changes that know a format where one is recognised, and changes of plain bytes.

All are pure functions of the inputs and a random generator, so that a seed tells an input.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from fuzz_mutators import archives, json_text, midi, plain, protobuf
from fuzz_mutators.chance import Chance, Unfit

FORMATS = (archives, midi, json_text, protobuf)  # each has ``FORMS``: (recognises, changes)
STRUCTURED = 0.8  # how often a change knows the format
MOST = 1 << 20  # bytes of an input


class Mutator(Chance):
    """Makes inputs of a pool of them."""

    def __init__(self, rng: random.Random, pool: Sequence[bytes], words: Sequence[bytes]) -> None:
        super().__init__(rng, pool, words)
        self.forms = [form for module in FORMATS for form in module.FORMS]

    def make(self) -> bytes:
        """A new input: one of the pool after one change to five."""
        content = self.rng.choice(self.pool)
        for _ in range(self.rng.choice((1, 1, 1, 2, 3, 5))):
            content = self.change(content)[:MOST]
        return content

    def within(self, pool: Sequence[bytes]) -> Mutator:
        """The same chances, of other inputs."""
        return Mutator(self.rng, pool, self.words)

    def change(self, content: bytes) -> bytes:
        """One change: of a part of it, where its format is known."""
        if self.rng.random() < STRUCTURED:
            for recognises, change in self.forms:
                if recognises(content):
                    try:
                        return change(content, self)
                    except (Unfit, RecursionError):
                        break
        return plain.change(content, self)
