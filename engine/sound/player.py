"""The sound card: sound that is heard while more of it is made; needs sounddevice, which rendering does not."""

from __future__ import annotations

import contextlib
import queue
import threading
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from notewave.errors import ToolError
from notewave.sound.card import Output, open_output
from notewave.sound.resample import check_rate

BLOCK_SECONDS = 0.1  # given to the sound card at once: so soon it stops when told to
BLOCKS_AHEAD = 300  # that may wait to be heard, half a minute: who makes sound faster than that waits, too


class Player:
    """Plays mono sound on a sound card, in a thread of its own, so that its maker need not wait for it.

    A context: its end waits until all is heard, an exception in it, Ctrl-C included, stops the sound at once.
    """

    def __init__(self, sample_rate: int, output: Output | None = None) -> None:
        """Open a sound card, by default the system's default, at a rate in Hz.

        Raises ArgumentError when the rate is none, ToolError when there is no sound card, it does not take the rate, or
        what it needs is not installed.
        """
        check_rate(sample_rate)
        self._stream = open_output(output, sample_rate, channels=1, latency="high")
        self._block = max(1, round(sample_rate * BLOCK_SECONDS))  # samples
        self._waiting: queue.Queue[NDArray[np.float32] | None] = queue.Queue(BLOCKS_AHEAD)  # None is the end
        self._stopped = threading.Event()
        self._ended = threading.Event()  # waited for, since a join that Ctrl-C broke into takes the thread for dead
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._play, name="notewave player", daemon=True)

    def __enter__(self) -> Player:
        self._thread.start()
        return self

    def write(self, samples: NDArray[np.float32]) -> None:
        """Let samples [n] in [-1, 1] be heard after those before; waits while half a minute is yet to be heard.

        Raises ToolError when the sound card fails.
        """
        samples = np.array(samples, np.float32)
        for start in range(0, len(samples), self._block):
            self._put(samples[start : start + self._block])

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._put(None)
                while not self._ended.wait(BLOCK_SECONDS):  # a wait without an end takes no Ctrl-C on Windows
                    pass
                self._check()
        finally:
            self._stopped.set()
            with contextlib.suppress(queue.Full):  # the thread may wait for a block; when full it does not
                self._waiting.put_nowait(None)
            self._ended.wait()
            self._stream.close()

    def _put(self, block: NDArray[np.float32] | None) -> None:
        while True:
            self._check()
            with contextlib.suppress(queue.Full):
                return self._waiting.put(block, timeout=BLOCK_SECONDS)

    def _check(self) -> None:
        if self._failure is not None:
            raise ToolError(
                f"The sound stopped: the sound card failed ({self._failure}). Check that it is still connected."
            ) from self._failure

    def _play(self) -> None:
        try:
            block = self._waiting.get()
            if block is not None:
                self._stream.start()
            while block is not None and not self._stopped.is_set():
                self._stream.write(block)
                block = self._waiting.get()
            if self._stopped.is_set():
                self._stream.abort()
            else:
                self._stream.stop()  # waits until the last block is heard
        except Exception as error:  # PortAudio's, told to whoever writes
            self._failure = error
        finally:
            self._ended.set()
