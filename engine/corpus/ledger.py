"""What is known of a corpus: its manifest, which grows by a line for each take, and is its journal too.

A run that ends in any way, kill -9 included, leaves whole lines and at most one broken at the end, which is cut off
when the next run begins. ``manifest.parquet`` and the layout's own files are made of it when a run ends.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from notewave.checks import quoted, shown
from notewave.corpus.rows import Row, line, of_line
from notewave.errors import OutputError
from notewave.files import atomic_file, cannot_write, not_written
from notewave.inputs import read_regular

log = logging.getLogger(__name__)

MANIFEST, TABLE, ABOUT, LOCK = "manifest.jsonl", "manifest.parquet", "corpus.json", ".lock"
ABOUT_MOST = 1 << 20  # bytes
SYNC_EVERY = 5.0  # seconds between the times at which what was written is surely on the disk


class Key(NamedTuple):
    """Which take a row is of."""

    source: str  # as rows have it
    voice: str  # its name
    seed: int

    @classmethod
    def of(cls, row: Row) -> Key:
        """A row's."""
        return cls(row["source"], row["voice"], row["seed"])


class Ledger:
    """The manifest in a folder, held by one run; use in a with statement. Errors are OutputError."""

    def __init__(self, folder: Path) -> None:
        """folder: where it is, made if need be. Refused where another run holds it."""
        self._folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise cannot_write(folder, error) from error
        try:
            self._take_lock()
            self._journal = self._open()
        except BaseException:
            os.close(self._lock)
            raise
        self._synced, self._told = time.monotonic(), set[int]()  # lines that are no rows
        self._is_compact = False  # whether each take has one line, in the order of names

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):  # what was refused was said when it was written
            self._journal.close()
        os.close(self._lock)

    def about(self) -> dict[str, Any] | None:
        """What the corpus' first run said of it; None where this is the first."""
        path = self._folder / ABOUT
        try:
            held: object = json.loads(read_regular(path, ABOUT_MOST))
            if isinstance(held, dict):
                return held
            reason = f"it holds {quoted(held)}"
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError) as error:
            reason = str(error)
        raise OutputError(
            f"{shown(path)} says no corpus: {shown(reason)}. Choose another folder, or remove that file with all that "
            "was made here."
        )

    def say(self, about: Mapping[str, Any]) -> None:
        """Write what later runs are held to."""
        with atomic_file(self._folder / ABOUT) as temporary:
            temporary.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")

    def take_over(self, name: str, content: Iterator[bytes]) -> None:
        """Begin with a manifest, or what is said of a corpus, that was kept elsewhere."""
        with atomic_file(self._folder / name) as temporary, temporary.open("wb") as file:
            file.writelines(content)
        if name == MANIFEST:
            self._journal.close()
            self._journal, self._is_compact = self._open(), False

    def rows(self) -> Iterator[Row]:
        """The last row of each take, in the order of their names; what is no row is left out with a warning."""
        if self._is_compact:
            yield from (row for _, row in self._lines())
            return
        places: dict[Key, tuple[str, int]] = {}
        for place, row in self._lines():
            places[Key.of(row)] = row["name"], place
        ordered = [place for _, place in sorted(places.values())]
        del places
        with (self._folder / MANIFEST).open("rb") as file:
            for place in ordered:
                file.seek(place)
                last = of_line(file.readline())
                assert last is not None, "nobody else writes here"
                yield last

    def append(self, row: Row) -> None:
        """Add a row, whole or not at all."""
        self._is_compact = False
        try:
            end = os.lseek(self._journal.fileno(), 0, os.SEEK_END)
            try:
                _write(self._journal.fileno(), line(row))
            except BaseException:
                os.ftruncate(self._journal.fileno(), end)
                raise
            if time.monotonic() - self._synced > SYNC_EVERY:
                os.fsync(self._journal.fileno())
                self._synced = time.monotonic()
        except OSError as error:
            raise cannot_write(self._folder / MANIFEST, error) from error

    def compact(self) -> list[str]:
        """Write the manifest anew, a line for each take, in the order of their names.

        Returns the paths of files that takes had before and have no more.
        """
        path, left = self._folder / MANIFEST, self._left_behind()
        with atomic_file(path) as temporary, temporary.open("wb") as file:
            for row in self.rows():
                file.write(line(row))
            file.flush()
            os.fsync(file.fileno())
        self._journal.close()
        self._journal, self._is_compact = self._open(), True
        return left

    def _left_behind(self) -> list[str]:
        """The paths of files that only rows have which others have taken the place of."""
        counts = Counter(Key.of(row) for _, row in self._lines())
        several = {key for key, count in counts.items() if count > 1}
        had: dict[Key, set[str]] = {key: set() for key in several}
        has: dict[Key, set[str]] = {}
        for _, row in self._lines():
            if (key := Key.of(row)) in several:
                has[key] = {file["path"] for file in row["files"]}
                had[key] |= has[key]
        return sorted(path for key in several for path in had[key] - has[key])

    def _lines(self) -> Iterator[tuple[int, Row]]:
        """Where each line begins, and its row."""
        place = 0
        with (self._folder / MANIFEST).open("rb") as file:
            for number, text in enumerate(file):
                row = of_line(text)
                if row is not None:
                    yield place, row
                elif number not in self._told:
                    self._told.add(number)
                    log.warning("line %d of %s is no row: its song is sung again.", number + 1, shown(file.name))
                place += len(text)

    def _open(self) -> BinaryIO:
        """The journal, to add to; a line that was not written to its end is cut off."""
        path = self._folder / MANIFEST
        try:
            journal = path.open("ab+", buffering=0)
            end = journal.seek(0, os.SEEK_END)
            whole = end
            while whole:
                start = max(0, whole - (1 << 16))
                journal.seek(start)
                found = journal.read(whole - start).rfind(b"\n")
                whole = start if found < 0 else start + found + 1
                if found >= 0:
                    break
            if whole != end:
                journal.truncate(whole)
        except OSError as error:
            raise cannot_write(path, error) from error
        return journal

    def _take_lock(self) -> None:
        try:
            _lock_file(self._lock)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise cannot_write(self._folder / LOCK, error) from error
            holder = os.pread(self._lock, 200, 0).decode(errors="replace") or "another process"
            raise not_written(
                self._folder, f"{shown(holder)} is making it. Wait for its end, or choose another folder."
            ) from error
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)


def _write(descriptor: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(descriptor, left) :]


def _lock_file(descriptor: int) -> None:
    """Hold a file for this process alone. Raises OSError where another holds it."""
    if sys.platform == "win32":  # only on Windows
        import msvcrt

        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
