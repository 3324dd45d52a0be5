"""Sound between who makes it and who takes it: in memory as long as it is little, else on the disk."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import threading
from collections.abc import AsyncIterator

from notewave.serve.refusal import Gone

IN_MEMORY = 256 << 10  # bytes of a spool; more go to the disk
PART = 64 << 10  # bytes that are taken at once


class Spool:
    """Bytes that one thread writes and the event loop reads, each at its own pace."""

    def __init__(self) -> None:
        """To be made in the event loop that reads it."""
        self._loop, self._news = asyncio.get_running_loop(), asyncio.Event()
        self._lock = threading.Lock()  # of all below
        self._file = tempfile.SpooledTemporaryFile(IN_MEMORY)  # noqa: SIM115  # closed by ``close``
        self._written = 0  # bytes
        self._is_over = False
        self._failure: BaseException | None = None

    def write(self, data: bytes) -> None:
        """Add bytes. Raises OSError where the disk takes no more; after ``close`` they are let go."""
        with self._lock:
            if self._file.closed:
                return
            self._file.seek(self._written)
            self._file.write(data)
            self._written += len(data)
        self._tell()

    def check(self) -> None:
        """Raise Gone after ``close``: nobody wants what is made."""
        if self._file.closed:
            raise Gone

    def finish(self, failure: BaseException | None = None) -> None:
        """Nothing more comes: all is there, or something failed, which is raised to the reader after what is there."""
        with self._lock:
            if not self._is_over:
                self._is_over, self._failure = True, failure
        self._tell()

    def close(self) -> None:
        """Let go of the bytes."""
        with self._lock:
            self._file.close()

    async def parts(self) -> AsyncIterator[bytes]:
        """The bytes in parts, as they come. Raises what failed."""
        at = 0
        while True:
            self._news.clear()  # before the look: what comes after it is news
            with self._lock:
                is_over, failure = self._is_over, self._failure
                self._file.seek(at)
                part = self._file.read(min(PART, self._written - at))
            if part:
                at += len(part)
                yield part
                await asyncio.sleep(0)  # where all is there and taken at once, others have their turn
            elif not is_over:
                await self._news.wait()
            elif failure is not None:
                raise failure
            else:
                return

    def _tell(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody reads
            self._loop.call_soon_threadsafe(self._news.set)


class Budget:
    """Bytes that may be held at once, by all together; to be used in one thread."""

    def __init__(self, most: int) -> None:
        self._left = most

    def take(self, count: int) -> bool:
        """Whether so many bytes more may be held; then they are until ``give``."""
        if count > self._left:
            return False
        self._left -= count
        return True

    def give(self, count: int) -> None:
        """They are held no longer."""
        self._left += count
