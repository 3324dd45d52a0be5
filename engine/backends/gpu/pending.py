"""What comes back of a segment, once the device has put it into page-locked memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from notewave.backends.device.driver import CudaDevice
from notewave.backends.protocol import OVER
from notewave.errors import BackendError
from notewave.sound.mel import FloatArray

Copy = Callable[[FloatArray], FloatArray]


class Copied:
    """See ``notewave.backends.protocol.Pending``. The memory is used again, so what is there is copied when taken.

    What it refers to of the device is let go of within the device's context only.
    """

    def __init__(
        self, device: CudaDevice, ready: Any, memory: FloatArray, copy: Copy, taken: Callable[[], None]
    ) -> None:
        """ready: the event after which ``memory`` holds it. taken: called once it was waited for."""
        self._device, self._copy, self._taken = device, copy, taken
        self._held: tuple[Any, FloatArray] | None = (ready, memory)
        self._value: FloatArray | None = None

    def result(self) -> FloatArray:
        """Wait for it."""
        self.collect()
        if self._value is None:
            raise BackendError(OVER)
        return self._value

    def collect(self) -> None:
        """Wait for it and free its memory for the next, unless that was done."""
        if self._held is None:
            return
        with self._device:
            ready, memory = self._held
            try:
                ready.synchronize()
                self._value = self._copy(memory)
            finally:
                del ready, memory  # or an exception's traceback would hold them for longer than the context
            self._held = None
        self._taken()

    def abandon(self) -> None:
        """Free its memory without a value, unless it was taken; to be called within the device's context."""
        self._held = None
