"""A file of what is heard, written beside it: whoever plays never waits for the disk."""

from __future__ import annotations

import contextlib
import os
import queue
import threading
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from notewave.errors import OutputError
from notewave.files import not_written
from notewave.sound.audio import AudioWriter, audio_file

BLOCKS_AHEAD = 1500  # that may wait for the disk: half a minute of blocks of 20 ms
POLL_SECONDS = 0.1  # a wait without an end takes no Ctrl-C on Windows
PATIENCE_SECONDS = 2.0  # for a write that may hang, where nothing of it is kept


class Recording:
    """A sound file under way, that another thread writes."""

    def __init__(self, path: str | os.PathLike[str], file: AudioWriter) -> None:
        self._path, self._file = path, file
        self.failure: OutputError | None = None  # after which no more is written
        self._is_wanted = True
        self._waiting: queue.Queue[NDArray[np.float32] | None] = queue.Queue(BLOCKS_AHEAD)  # None is the end
        self._thread = threading.Thread(target=self._write, name="notewave recording", daemon=True)
        self._thread.start()

    def put(self, samples: NDArray[np.float32]) -> None:
        """Take the next samples [n] in [-1, 1]. Never waits and never raises: what fails is its ``failure``."""
        try:
            self._waiting.put_nowait(np.array(samples, np.float32))
        except queue.Full:
            self.failure = self.failure or not_written(
                self._path, "the disk took sound slower than it was made. Record to a faster one."
            )

    def finish(self) -> None:
        """Wait until all is written."""
        while self._thread.is_alive():
            with contextlib.suppress(queue.Full):
                self._waiting.put(None, timeout=POLL_SECONDS)
                break
        while self._thread.is_alive():
            self._thread.join(POLL_SECONDS)

    def give_up(self) -> None:
        """Write no more."""
        self._is_wanted = False
        with contextlib.suppress(queue.Full):
            self._waiting.put_nowait(None)
        self._thread.join(PATIENCE_SECONDS)

    def _write(self) -> None:
        while (block := self._waiting.get()) is not None and self._is_wanted and self.failure is None:
            try:
                self._file.write(block)
            except OutputError as error:
                self.failure = error


@contextlib.contextmanager
def recording(path: str | os.PathLike[str], sample_rate: int) -> Iterator[Recording]:
    """Yield a sound file that is written beside the block; it appears at ``path`` at the end, or not at all.

    Raises OutputError as ``audio_file``, in the end also for what failed on the way.
    """
    with audio_file(path, sample_rate) as file:
        under_way = Recording(path, file)
        try:
            yield under_way
            under_way.finish()
        except BaseException:
            under_way.give_up()
            raise
        if under_way.failure is not None:
            raise under_way.failure
