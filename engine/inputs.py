"""Inputs come from regular files, within bounds, and what was checked is what is read.

A FIFO would be waited for, a device may never end, a link may lead to either; a file may be replaced, rewritten or cut
short between the look at it and its use.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from notewave.errors import NotewaveError

BLOCK = 1 << 20  # bytes hashed at once
SETTLED = 0.1  # seconds after which a file system's clock surely tells a second change from the first


@dataclass(frozen=True)
class FileRecord:
    """Size and checksum of one file."""

    bytes: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> FileRecord:
        """Measure a file. Raises OSError, also for what is no regular file."""
        descriptor = open_regular(path)
        try:
            return cls._of(descriptor)
        finally:
            os.close(descriptor)

    @classmethod
    def _of(cls, descriptor: int) -> FileRecord:
        digest, size = hashlib.sha256(), 0
        while block := os.pread(descriptor, BLOCK, size):
            digest.update(block)
            size += len(block)
        return cls(size, digest.hexdigest())


def open_regular(path: str | os.PathLike[str]) -> int:
    """A descriptor to read a regular file by, at the end of links; never waits.

    Raises OSError, with a reason in ``strerror``, where there is none.
    """
    try:
        _check_regular(Path(path).stat())
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except ValueError as error:  # a zero byte, or what no file name can hold
        raise OSError(errno.EINVAL, str(error)) from error
    try:
        _check_regular(os.fstat(descriptor))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def read_regular(path: str | os.PathLike[str], most: int) -> bytes:
    """All bytes of a regular file, of which it may have so many. Raises OSError, with a reason in ``strerror``."""
    descriptor = open_regular(path)
    try:
        size = os.fstat(descriptor).st_size  # none of files in /proc, which may be waited for
        if size > most:
            raise OSError(errno.EFBIG, f"it has {size} bytes, over {most}")
        return _read_at(descriptor, 0, size)
    finally:
        os.close(descriptor)


class HeldFiles:
    """A folder's files by name: each is checked against its record when first read, and held open from then on.

    What is read of a file is what its record says, or an error: also when the folder was replaced since, or the file
    rewritten or cut short. May be read from any thread.
    """

    def __init__(
        self, folder: Path, records: Mapping[str, FileRecord], listing: str, error: type[NotewaveError], cure: str
    ) -> None:
        """listing: the file that has the records. error, cure: what is raised for a file that is not as recorded."""
        self.folder, self.records = folder, records
        self._listing, self._error, self._cure = listing, error, cure
        self._held: dict[str, _Held] = {}
        self._lock = threading.RLock()

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.folder, self.records, self._listing, self._error, self._cure)

    def check(self, name: str) -> None:
        """Open and check a file, if that was not done yet. Raises ``error``."""
        self._file(name)

    def read(self, name: str) -> bytes:
        """All bytes of a file. Raises ``error``."""
        return self.read_parts(name, [(0, self.records[name].bytes)])[0]

    def read_parts(self, name: str, spans: Sequence[tuple[int, int]]) -> list[bytes]:
        """Bytes of a file's spans (first byte, number of bytes). Raises ``error``, also for one beyond its end."""
        whole = self.records[name].bytes
        for start, size in spans:
            if start < 0 or size < 0 or start + size > whole:
                raise self._refuse(name, f"has {whole} bytes, of which {size} from {start} on are wanted")
        held = self._file(name)
        try:
            parts = [_read_at(held.descriptor, start, size) for start, size in spans]
        except OSError as error:
            raise self._refuse(name, f"cannot be read ({error.strerror or error})") from error
        if not held.is_as_checked():
            self._verify(name, held)
        return parts

    def is_in_place(self, name: str) -> bool:
        """Whether a file that was checked is still what its path leads to, as it was then."""
        held = self._file(name)
        try:
            facts, own = (self.folder / name).stat(), os.fstat(held.descriptor)
        except OSError:
            return False
        return (facts.st_dev, facts.st_ino) == (own.st_dev, own.st_ino) and held.is_as_checked()

    def _file(self, name: str) -> _Held:
        with self._lock:
            if name not in self._held:
                held = self._open(name)
                self._verify(name, held)
                self._held[name] = held
            return self._held[name]

    def _open(self, name: str) -> _Held:
        record, path = self.records[name], self.folder / name
        try:
            if Path(os.path.realpath(path)).parent != Path(os.path.realpath(self.folder)):
                raise self._refuse(name, "leads out of its folder")
            held = _Held(open_regular(path))
        except FileNotFoundError as error:
            raise self._refuse(name, f"is missing, though {self._listing} lists it") from error
        except OSError as error:
            raise self._refuse(name, f"cannot be read ({error.strerror or error})") from error
        if (size := os.fstat(held.descriptor).st_size) != record.bytes:
            raise self._refuse(
                name, f"has {size} bytes where {self._listing} says {record.bytes}: it was cut short or changed"
            )
        return held

    def _verify(self, name: str, held: _Held) -> None:
        try:
            found = held.measure()
        except OSError as error:
            raise self._refuse(name, f"cannot be read ({error.strerror or error})") from error
        if found != self.records[name]:
            raise self._refuse(name, f"does not match its SHA-256 in {self._listing}: it was changed")

    def _refuse(self, name: str, fault: str) -> NotewaveError:
        return self._error(f"{self.folder / name} {fault}. {self._cure}")


class _Held:
    """A file that is held open, and what it was when it was measured last."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._close = weakref.finalize(self, os.close, descriptor)
        self._state: tuple[int, ...] = ()
        self._settled = False

    def measure(self) -> FileRecord:
        """Size and checksum of it as it is now."""
        before, now = os.fstat(self.descriptor), time.time()
        self._state, self._settled = _state(before), now - before.st_ctime > SETTLED
        return FileRecord._of(self.descriptor)

    def is_as_checked(self) -> bool:
        """Whether nothing was written to it since; of one that was new then, nobody knows."""
        return self._settled and _state(os.fstat(self.descriptor)) == self._state


def _state(facts: os.stat_result) -> tuple[int, ...]:
    return facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns


def _read_at(descriptor: int, start: int, size: int) -> bytes:
    """So many bytes of a file, fewer where it ends before."""
    parts = []
    while size and (part := os.pread(descriptor, size, start)):
        parts.append(part)
        start, size = start + len(part), size - len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _check_regular(facts: os.stat_result) -> None:
    """Raise OSError for what is no regular file."""
    kinds = {
        stat.S_IFDIR: "a folder",
        stat.S_IFIFO: "a FIFO",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
    }
    if kind := kinds.get(stat.S_IFMT(facts.st_mode)):
        raise OSError(errno.EINVAL, f"it is {kind}, not a file")
