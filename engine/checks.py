"""What an argument is, asked in one place, and how an error quotes one that is something else."""

from __future__ import annotations

import numbers
import reprlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from notewave.errors import VoiceError

_QUOTE = reprlib.Repr()
_QUOTE.maxstring = _QUOTE.maxother = 120  # characters


def is_integer(value: Any, low: int, high: int) -> bool:
    """Whether a value is an integer of Python or NumPy from low to high, and no boolean."""
    return isinstance(value, numbers.Integral) and is_number(value, low, high)


def is_number(value: Any, low: float, high: float) -> bool:
    """Whether a value is a real number of Python or NumPy from low to high, and neither a boolean nor NaN."""
    number: Any = value  # compared as it is: an integer of 400 digits has no float
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and bool(low <= number <= high)


def quoted(value: object) -> str:
    """A value in one short line, whatever it is; an array by its type and shape."""
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {list(value.shape)}"
    try:
        return " ".join(_QUOTE.repr(value).split())
    except ValueError:  # Python writes no integer of more than 4300 digits
        return f"a huge {type(value).__name__}"


def counted(count: int, what: str) -> str:
    """So many of something, as a phrase."""
    return f"{count} {what}{'s' * (count != 1)}"


def shown(text: object) -> str:
    """A text, or the path of a file, for a terminal: one line, in which escapes stand for what no line shows.

    Those are control characters, whatever a terminal obeys, and bytes of file names that are no text.
    """
    return "".join(char if char.isprintable() else _escape(char) for char in str(text))


def _escape(char: str) -> str:
    """Python's escape of a character; of a byte that a file name had and no encoding has, the byte's."""
    is_byte = "\udc80" <= char <= "\udcff"
    return f"\\x{ord(char) - 0xDC00:02x}" if is_byte else char.encode("unicode_escape").decode()


def as_array(value: Any) -> NDArray[Any]:
    """A value as an array: an empty one of objects if it is none, as when its rows differ in length."""
    try:
        return np.asarray(value)
    except (OverflowError, TypeError, ValueError):
        return np.empty(0, object)


def require(holds: bool, what: str, value: Any, rule: str) -> None:
    """Raise VoiceError where something that a voice says of itself does not hold."""
    if not holds:
        raise VoiceError(f"{what} is {quoted(value)}, but it {rule}.")
