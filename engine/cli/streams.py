"""Standard output and standard error: what is shown there reaches its reader as plain text, or is let go."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO, cast

from notewave.checks import shown

_PLAIN = "\n\t"
_PROGRESS = "\r\x1b"  # also moves the cursor


class _Stream:
    """A text stream that never fails: escapes stand for what its reader cannot take; one that is gone gets nothing."""

    def __init__(self, stream: TextIO, kept: str = _PLAIN) -> None:
        """kept: the control characters that are written as they are."""
        self._stream, self._kept = stream, kept

    def write(self, text: str) -> int:
        """Write a text, or nothing where none can be written."""
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        plain = "".join(char if char in self._kept else shown(char) for char in text)
        with self._forgiving():
            self._stream.write(plain.encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def flush(self) -> None:
        """Write out what was kept back."""
        with self._forgiving():
            self._stream.flush()

    @contextlib.contextmanager
    def _forgiving(self) -> Iterator[None]:
        """After a failure, send the rest nowhere: the interpreter itself would complain of it at its end."""
        try:
            yield
        except OSError:
            with contextlib.suppress(OSError), open(os.devnull, "wb") as nowhere:  # noqa: PTH123
                os.dup2(nowhere.fileno(), self._stream.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def standard_streams() -> Iterator[None]:
    """Let what is printed in the block be shown as plain text, and failures of showing it be none of the block's."""
    for number in range(3):  # a file opened in the place of a closed one would be written to as if it were standard
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    before = sys.stdout, sys.stderr
    with open(os.devnull, "w") as nowhere:  # noqa: PTH123
        sys.stdout, sys.stderr = (cast(TextIO, _Stream(stream or nowhere)) for stream in before)
        try:
            yield
        finally:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            sys.stdout, sys.stderr = before


def for_progress() -> TextIO:
    """Standard error, for a bar that moves on it."""
    return cast(TextIO, _Stream(getattr(sys.stderr, "_stream", sys.stderr), _PLAIN + _PROGRESS))


def complain(what: object) -> None:
    """Say on standard error, in one line, what went wrong."""
    print(f"notewave: {shown(what)}", file=sys.stderr)


@contextlib.contextmanager
def logged(verbose: bool) -> Iterator[None]:
    """Show warnings of the block on standard error, with ``verbose`` also what is chosen and why; one line each."""
    root, handler = logging.getLogger(), _Complaints()
    levels = {logger: logger.level for logger in (root, logging.getLogger("notewave"))}  # long commands set the second
    root.addHandler(handler)
    root.setLevel(logging.INFO if verbose else logging.WARNING)
    try:
        yield
    finally:
        root.removeHandler(handler)
        for logger, level in levels.items():
            logger.setLevel(level)


class _Complaints(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        complain(record.getMessage())
