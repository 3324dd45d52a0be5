"""What an operator's rule is asked with and answers: shapes of tensors before anything is run.

Sizes and the few integers that shapes are made of are followed as polynomials (``sizes``); what cannot be followed, and
would say how large something gets, is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from notewave.voice.graph_reader import Node, Weight
from notewave.voice.sizes import Ranges, Size, minus, plus, quotient, times

MAX_CONTENT = 64  # integers of a tensor that are followed
FLOAT, UINT8, INT32, INT64, BOOL, DOUBLE = 1, 2, 6, 7, 9, 11  # keys of ELEMENTS
# The largest integers that types hold, with all that are smaller, exactly.
EXACT = {FLOAT: 1 << 24, DOUBLE: 1 << 53, INT32: (1 << 31) - 1, INT64: (1 << 63) - 1}

Shape: TypeAlias = tuple[Size, ...]
Content: TypeAlias = tuple[Size, ...] | None  # a tensor's integers in order, where they are few and known


@dataclass(frozen=True)
class Value:
    """What is known of a tensor without running the graph."""

    shape: Shape
    element: int  # a key of ELEMENTS
    content: Content = None
    is_constant: bool = False  # made of the graph's own weights alone


@dataclass(frozen=True)
class Made:
    """What an operator makes."""

    shapes: tuple[Shape, ...]  # of its outputs
    content: Content = None  # of its only output
    elements: tuple[int, ...] = ()  # keys of ELEMENTS, for each output; without any, all are as the first input's
    multiplications: Size = 0
    hidden: Size = 0  # numbers that it holds meanwhile, beside what it takes and gives


class Inputs:
    """A node's inputs and attributes, as rules ask for them; what is not as the operator has it is a ValueError."""

    def __init__(self, node: Node, values: Sequence[Value | None], ranges: Ranges) -> None:
        self.node, self.values, self.ranges = node, values, ranges

    def has(self, place: int) -> bool:
        """Whether an input is given."""
        return place < len(self.values) and self.values[place] is not None

    def value(self, place: int) -> Value:
        """An input that must be there."""
        value = self.values[place] if place < len(self.values) else None
        if value is None:
            raise ValueError("an input is missing")
        return value

    def shape(self, place: int) -> Shape:
        """The shape of an input."""
        return self.value(place).shape

    def shapes(self) -> list[Shape]:
        """The shapes of all inputs that are given."""
        return [value.shape for value in self.values if value is not None]

    def content(self, place: int, attribute: str = "") -> Content:
        """An input's integers, or those of the attribute that older forms have in its place; None where neither is."""
        if attribute in self.node.attributes:
            return tuple(self.integers(attribute))
        if not self.has(place):
            return None
        if (content := self.value(place).content) is None:
            raise ValueError("how large its result gets hangs on what is computed")
        return content

    def plain(self, place: int, attribute: str = "") -> tuple[int, ...] | None:
        """As ``content``, where it is the same for all songs."""
        content = self.content(place, attribute)
        return None if content is None else tuple(map(plain, content))

    def needed(self, place: int, attribute: str = "") -> tuple[Size, ...]:
        """As ``content``, where it must be given."""
        if (content := self.content(place, attribute)) is None:
            raise ValueError("an input is missing")
        return content

    def element(self, place: int) -> int:
        """The type of an input, a key of ELEMENTS."""
        return self.value(place).element

    def integer(self, name: str, default: int) -> int:
        """An attribute that is an integer."""
        value = self.node.attributes.get(name, default)
        if not isinstance(value, int):
            raise ValueError(f"{name} is no integer")
        return value

    def flag(self, name: str, default: int) -> bool:
        """An attribute that says yes by 1; what is neither 0 nor 1 says no."""
        return self.integer(name, default) == 1

    def integers(self, name: str, default: Sequence[int] = ()) -> list[int]:
        """An attribute that is a list of integers."""
        value = self.node.attributes.get(name, default)
        if isinstance(value, (bytes, int, float, Weight)) or not all(isinstance(one, int) for one in value):
            raise ValueError(f"{name} is no list of integers")
        return list(value)

    def text(self, name: str, default: bytes) -> bytes:
        """An attribute that is text."""
        value = self.node.attributes.get(name, default)
        if not isinstance(value, bytes):
            raise ValueError(f"{name} is no text")
        return value

    def axis(self, default: int, rank: int, name: str = "axis") -> int:
        """The attribute that names an axis, counted from the beginning."""
        return axis_of(self.integer(name, default), rank)


Rule: TypeAlias = Callable[[Inputs], Made]


def plain(size: Size) -> int:
    """A size that is the same for all songs. Raises ValueError for another."""
    if not isinstance(size, int):
        raise ValueError("what should be one number hangs on the song")
    return size


def axis_of(axis: int, rank: int) -> int:
    """An axis, counted from the end where it is negative. Raises ValueError where there is none."""
    if not -rank <= axis < rank:
        raise ValueError(f"there is no axis {axis} of {rank}")
    return axis % rank


def broadcast(shapes: Sequence[Shape], ranges: Ranges) -> Shape:
    """The shape that tensors of these have side by side, by NumPy's rules."""
    rank = max(map(len, shapes), default=0)
    aligned = [(1,) * (rank - len(shape)) + tuple(shape) for shape in shapes]
    return tuple(_common(sizes, ranges) for sizes in zip(*aligned, strict=True))


def _common(sizes: Sequence[Size], ranges: Ranges) -> Size:
    """The size of an axis that all have, or have it once."""
    found: Size = 1
    for size in sizes:
        if found == 1 or size == 1 or size == found:
            found = size if found == 1 else found
        elif isinstance(size, int) and isinstance(found, int):
            raise ValueError(f"sizes {found} and {size} do not fit")
        elif isinstance(size, int):  # the other is as large, or 1
            found = size
        elif not isinstance(found, int):
            found = ranges.new(0, max(ranges.most(found), ranges.most(size)))
    return found


def alike(sizes: Sequence[Size], ranges: Ranges) -> Size:
    """The size of an axis that tensors which are joined have in common; a tensor of no numbers may have another."""
    if all(size == sizes[0] for size in sizes):
        return sizes[0]
    if all(isinstance(size, int) for size in sizes):
        raise ValueError(f"sizes {list(sizes)} do not fit")
    return ranges.new(0, max(map(ranges.most, sizes)))


def divided(size: Size, part: int, ranges: Ranges) -> Size:
    """A size divided by a number, rounded down. Raises ValueError where the number is not positive."""
    if part < 1:
        raise ValueError(f"a size is divided by {part}")
    if isinstance(size, int):
        return size // part
    constant = size.terms.get((), 0)
    rest = quotient(minus(size, constant), part)
    if rest is not None:
        return plus(rest, constant // part)
    return ranges.new(ranges.least(size) // part, ranges.most(size) // part)


def held(content: Content, element: int, ranges: Ranges) -> Content:
    """Integers, where a type holds them all as they are."""
    most = EXACT.get(element, 0)
    fits = content is not None and all(-most <= ranges.least(size) and ranges.most(size) <= most for size in content)
    return content if fits else None


def not_negative(size: Size, ranges: Ranges) -> Size:
    """A size, or 0 where it would be less."""
    if ranges.least(size) >= 0:
        return size
    return ranges.new(0, max(0, ranges.most(size)))


def volume(shape: Shape) -> Size:
    """How many numbers a tensor has."""
    return times(*shape)
