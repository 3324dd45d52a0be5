"""Signals that end the command: each unwinds it, so that nothing is left half-written."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import FrameType

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")  # the last one is not everywhere


class Ended(KeyboardInterrupt):
    """A signal that ends the command, taken as Ctrl-C is."""


@dataclass
class Ending:
    """What signals came, and whether the command is past what they could end."""

    given: list[int] = field(default_factory=list)
    is_over: bool = False


@contextlib.contextmanager
def ending_on_signals(for_good: bool) -> Iterator[Ending]:
    """Let signals raise Ended in the block, but those that are ignored here, as under nohup.

    A second one does not break into the unwinding that the first began, nor into the end of the process where the block
    is its last (``for_good``). Where whatever ran lost the first, as an import may, the second raises again.
    """
    ending = Ending()

    def end(number: int, frame: FrameType | None) -> None:
        ending.given.append(number)
        if not ending.is_over and not _is_unwinding(sys.exc_info()[1]):
            raise Ended

    before = {}
    if threading.current_thread() is threading.main_thread():  # no other may have handlers
        numbers = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]
        before = {number: handler for number in numbers if (handler := signal.getsignal(number)) != signal.SIG_IGN}
    for number in before:
        signal.signal(number, end)
    try:
        yield ending
    finally:
        for number, handler in before.items():
            ignored = signal.SIG_IGN if ending.given and for_good else None
            signal.signal(number, ignored or handler or signal.SIG_DFL)


def _is_unwinding(error: BaseException | None) -> bool:
    """Whether an exception that is being handled came of a signal."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None
