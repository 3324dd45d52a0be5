"""What a run on the CPU was asked for: work that is done when it is waited for."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol

from notewave.backends.ort.failures import on_cpu
from notewave.backends.protocol import OVER
from notewave.errors import BackendError
from notewave.sound.mel import FloatArray


class Asked(Protocol):
    """A run under way."""

    asked: deque[Later]  # what was asked of it and not done yet, in order

    def end(self) -> None:
        """Do no more of it."""


class Later:
    """Work that the host does when it is first waited for, after all that was asked of the run before it."""

    def __init__(self, run: Asked, work: Callable[[], FloatArray]) -> None:
        self._run, self._work = run, work
        self._value: FloatArray | None = None
        run.asked.append(self)

    def result(self) -> FloatArray:
        """See ``notewave.backends.protocol.Pending.result``."""
        while self._value is None and self._run.asked:
            self._run.asked.popleft()._do()
        if self._value is None:
            raise BackendError(OVER)
        return self._value

    def _do(self) -> None:
        try:
            with on_cpu():
                self._value = self._work()
        except BaseException:
            self._run.end()  # what follows would stand on what is not there
            raise
