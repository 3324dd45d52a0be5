"""Sizes of a graph's axes as polynomials in the letters of its contract, and how large they can get.

A size is an integer, or a polynomial where it depends on the song: 64 N + 64 C. What is no polynomial (a rounded
quotient, the larger of two) gets a letter of its own, with its bounds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

MAX_TERMS = 24  # of a polynomial
MAX_DEGREE = 8
MAX_NUMBER = 1 << 62  # beyond it nothing is a size

Monomial: TypeAlias = tuple[str, ...]  # letters in order, each as often as its power


@dataclass(frozen=True)
class Polynomial:
    """A sum of monomials, each times a number that is not zero; it is no mere number."""

    terms: Mapping[Monomial, int]


Size: TypeAlias = int | Polynomial


def plus(*sizes: Size) -> Size:
    """Their sum. Raises ValueError where it is beyond all bounds."""
    if all(isinstance(size, int) for size in sizes):
        return _number(sum(size for size in sizes if isinstance(size, int)))
    terms: dict[Monomial, int] = {}
    for size in sizes:
        for monomial, factor in _terms(size):
            terms[monomial] = terms.get(monomial, 0) + factor
    return _size(terms)


def times(*sizes: Size) -> Size:
    """Their product; errors as in ``plus``."""
    product: Size = 1
    for size in sizes:
        if isinstance(product, int) and isinstance(size, int):
            product = _number(product * size)
            continue
        terms: dict[Monomial, int] = {}
        for one, factor in _terms(product):
            for other, second in _terms(size):
                monomial = tuple(sorted(one + other))
                terms[monomial] = terms.get(monomial, 0) + factor * second
        product = _size(terms)
    return product


def minus(one: Size, other: Size) -> Size:
    """Their difference; errors as in ``plus``."""
    return plus(one, times(-1, other))


def quotient(whole: Size, part: Size) -> Size | None:
    """What gives the whole when taken times the part, if it is a polynomial."""
    if isinstance(whole, int) and isinstance(part, int):
        return whole // part if part and not whole % part else None
    if whole == 0 or part == 0:
        return None
    leading, factor = max(_terms(part), key=_order)
    found: Size = 0
    while whole != 0:
        monomial, have = max(_terms(whole), key=_order)
        rest = _without(monomial, leading)
        if rest is None or have % factor:
            return None
        step = _size({rest: have // factor})
        found = plus(found, step)
        whole = minus(whole, times(step, part))
    return found


@dataclass
class Ranges:
    """The least and the most that each letter can be."""

    of: dict[str, tuple[int, int]] = field(default_factory=dict)

    def least(self, size: Size) -> int:
        """The least that a size can be, or less."""
        return self._bound(size, 0)

    def most(self, size: Size) -> int:
        """The most that a size can be, or more."""
        return self._bound(size, 1)

    def most_each(self, size: Size, letter: str) -> int:
        """The most that a size can be for each of the things that a letter counts, of which there is one or more."""
        if isinstance(size, int):
            return size
        _, count = self.of[letter]
        total = 0
        for monomial, factor in size.terms.items():
            power = monomial.count(letter)
            share = count ** (power - 1) if power else 1
            if factor > 0:
                others = math.prod(self.of[other][1] for other in monomial if other != letter)
                total += factor * others * share
            elif power:
                total += factor * math.prod(self.of[other][0] for other in monomial if other != letter)
        return total

    def new(self, least: int, most: int) -> Size:
        """A size between these."""
        if least == most:
            return least
        letter = f"?{len(self.of)}"
        self.of[letter] = (least, most)
        return Polynomial({(letter,): 1})

    def _bound(self, size: Size, side: int) -> int:
        if isinstance(size, int):
            return size
        return sum(
            factor * math.prod(self.of[letter][side if factor > 0 else 1 - side] for letter in monomial)
            for monomial, factor in size.terms.items()
        )


def _terms(size: Size) -> Iterable[tuple[Monomial, int]]:
    return size.terms.items() if isinstance(size, Polynomial) else [((), size)] if size else []


def _size(terms: dict[Monomial, int]) -> Size:
    terms = {monomial: _number(factor) for monomial, factor in terms.items() if factor}
    if not terms.keys() - {()}:
        return terms.get((), 0)
    if len(terms) > MAX_TERMS or max(map(len, terms)) > MAX_DEGREE:
        raise ValueError("a size depends on too much")
    return Polynomial(terms)


def _number(number: int) -> int:
    if not -MAX_NUMBER < number < MAX_NUMBER:
        raise ValueError("a size is beyond all bounds")
    return number


def _order(term: tuple[Monomial, int]) -> tuple[int, Monomial]:
    """By degree, then by letters: an order that products keep."""
    return len(term[0]), term[0]


def _without(monomial: Monomial, part: Monomial) -> Monomial | None:
    """What is left of a monomial without the letters of another, if it has them all."""
    rest = list(monomial)
    for letter in part:
        if letter not in rest:
            return None
        rest.remove(letter)
    return tuple(rest)
