"""Outputs appear whole or not at all: written under a temporary name beside the target, then renamed.

What cannot be replaced is filled: FIFOs and devices, which are streams, and files that are mounted.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import select
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from notewave.checks import quoted
from notewave.errors import OutputError

STANDARD_OUTPUT = "/dev/stdout"
_STANDARD = {STANDARD_OUTPUT: 1, "/dev/stderr": 2}
_DESCRIPTOR = re.compile(r"/(?:dev|proc/(?:self|thread-self))/fd/(\d{1,6})")
_LINKS = 40  # followed one after another, as Linux does
_NO_PLACE = {errno.EACCES, errno.EPERM, errno.EROFS}  # of a folder that takes no new files
_NO_RENAME = {errno.EBUSY, errno.EXDEV} | _NO_PLACE  # of a file that is mounted, or in such a folder


class ReaderGone(OutputError):
    """Whoever read an output went away: no more of it is wanted."""


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path with the target's suffix; rename it to ``path`` when the block succeeds.

    A link is followed: what it leads to is replaced, and keeps its mode. What cannot be replaced (a FIFO, a device, a
    mounted file, one in a folder that cannot be written) is filled in the end. On any exception, Ctrl-C included, the
    temporary file is removed and ``path`` is left as it was. Raises OutputError when the file cannot be written (no
    such folder, no permission, disk full, a folder or a block device stands there).
    """
    streamed = is_stream(path)
    target = Path(path) if streamed else _target(path)
    try:
        with _temporary(target, streamed) as temporary:
            yield temporary
            if streamed:
                _pour(temporary, target)
            else:
                _put(temporary, target)
    except OSError as error:
        raise _cannot_write(target, error) from error


def check_writable(path: str | os.PathLike[str]) -> None:
    """Raise the OutputError now that ``atomic_file`` would raise later; whatever stands there is not touched."""
    streamed = is_stream(path)
    target = Path(path) if streamed else _target(path)
    try:
        if not streamed:
            with _temporary(target, streamed):
                pass
        elif descriptor_of(target) is None and not os.access(target, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise _cannot_write(target, error) from error


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary folder; rename it to ``path`` when the block succeeds, replacing a folder that stands there.

    A link is followed: the folder that it leads to is replaced, and keeps its mode. On any exception, Ctrl-C included,
    the temporary folder is removed and ``path`` is left as it was. Raises OutputError when it cannot be written.
    """
    target = Path(path)
    retired = temporary = target
    try:
        target = target.resolve() if target.is_symlink() else target
        target.parent.mkdir(parents=True, exist_ok=True)
        retired, temporary = (target.with_name(f".{target.name[:64]}-{secrets.token_hex(8)}") for _ in range(2))
        temporary.mkdir(0o700)
        yield temporary
        temporary.chmod(_mode(target, 0o777))
        if target.exists():
            if not target.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, "a file stands there")
            target.replace(retired)
        temporary.replace(target)
    except OSError as error:
        raise _cannot_write(target, error) from error
    finally:
        if temporary != target:
            _clear_away(temporary, retired, target)


def is_stream(path: str | os.PathLike[str]) -> bool:
    """Whether what stands at a path takes bytes as they come: a FIFO, a character device, an open descriptor.

    Raises OutputError for what is no path, and for block devices and sockets, which nothing is written to.
    """
    try:
        if descriptor_of(path) is not None:
            return True
        mode = Path(path).stat().st_mode
    except OSError:
        return False
    except (RuntimeError, TypeError, ValueError) as error:
        raise _no_file(path, error) from error
    if stat.S_ISBLK(mode) or stat.S_ISSOCK(mode):
        kind = "block device" if stat.S_ISBLK(mode) else "socket"
        raise OutputError(f"{path} was not written: it is a {kind}. Give the path of a file.")
    return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)


def descriptor_of(path: str | os.PathLike[str]) -> int | None:
    """The number of the open descriptor that a path leads to, as /dev/stdout and /dev/fd/3 do."""
    place = Path.cwd() / path
    for _ in range(_LINKS):
        name = os.path.normpath(place)
        if name in _STANDARD:
            return _STANDARD[name]
        if found := _DESCRIPTOR.fullmatch(name):
            return int(found[1])
        if not place.is_symlink():
            break
        place = place.parent / place.readlink()
    return None


def identity(path: str | os.PathLike[str]) -> object:
    """What all paths to one file have in common, whatever links they lead by, also before it is there."""
    try:
        facts = Path(path).stat()
    except (OSError, RuntimeError, ValueError):
        return os.path.realpath(path)
    return facts.st_dev, facts.st_ino


@contextlib.contextmanager
def open_stream(path: str | os.PathLike[str]) -> Iterator[int]:
    """Yield a descriptor that writes to a stream; a FIFO is waited for until someone reads it. Raises OutputError."""
    number = descriptor_of(path)
    try:
        stream = os.open(path, os.O_WRONLY | os.O_NOCTTY) if number is None else os.dup(number)
    except OSError as error:
        raise _cannot_write(path, error) from error
    try:
        yield stream
    finally:
        os.close(stream)


def write_stream(stream: int, data: bytes, path: str | os.PathLike[str]) -> None:
    """Write all of data to a descriptor of ``open_stream``. Raises OutputError; ReaderGone where nobody reads."""
    left = memoryview(data)
    try:
        while left:
            try:
                left = left[os.write(stream, left) :]
            except BlockingIOError:
                select.select([], [stream], [])
    except BrokenPipeError as error:
        raise ReaderGone(f"{path} was not written to its end: its reader went away. Keep it reading.") from error
    except OSError as error:
        raise _cannot_write(path, error) from error


def _target(path: str | os.PathLike[str]) -> Path:
    """The file that a path means, at the end of links."""
    try:
        target = Path(path)
        target = target.resolve() if target.is_symlink() else target
        if target.is_symlink():  # from Python 3.13 on, resolving a circle is no error
            raise RuntimeError("it is a link that leads to itself")
        is_folder = target.is_dir()
    except (OSError, RuntimeError, TypeError, ValueError) as error:  # a link to itself, a name too long, no path at all
        raise _no_file(path, error) from error
    if is_folder:
        raise OutputError(f"{target} was not written: it is a folder. Give the path of a file.")
    return target


def _clear_away(temporary: Path, retired: Path, target: Path) -> None:
    """Remove the folders beside a target, of which the retired one is put back if nothing came in its place."""
    try:
        if retired.exists() and not target.exists():
            retired.replace(target)
    finally:
        try:
            shutil.rmtree(temporary, ignore_errors=True)
        finally:
            shutil.rmtree(retired, ignore_errors=True)


@contextlib.contextmanager
def _temporary(target: Path, streamed: bool) -> Iterator[Path]:
    """A new empty file of the target's suffix, in its folder where that is of use; removed if it is still there."""
    name = f".{target.stem[:16]}-{secrets.token_hex(8)}{target.suffix[:32]}"  # no longer than a file's may be
    beside, elsewhere = target.with_name(name), Path(tempfile.gettempdir(), name)
    temporary = elsewhere if streamed else beside
    try:
        try:
            _create(temporary)
        except OSError as error:
            if streamed or error.errno not in _NO_PLACE or not os.access(target, os.R_OK | os.W_OK):
                raise
            temporary = elsewhere
            _create(temporary)
        except ValueError as error:  # a zero byte
            raise _no_file(target, error) from error
        yield temporary
    finally:
        with contextlib.suppress(OSError, ValueError):
            temporary.unlink()


def _create(path: Path) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))


def _put(temporary: Path, target: Path) -> None:
    """Put a file in the place of another, or of none."""
    temporary.chmod(_mode(target, 0o666))
    try:
        temporary.replace(target)
    except OSError as error:
        if error.errno not in _NO_RENAME or not target.is_file():
            raise
        _fill(temporary, target)


def _fill(temporary: Path, target: Path) -> None:
    """Copy a file into another, whose old content is put back if that fails."""
    with temporary.open("rb") as new, tempfile.TemporaryFile() as old, target.open("r+b") as file:
        shutil.copyfileobj(file, old)
        try:
            _rewrite(file, new)
        except BaseException:
            _rewrite(file, old)
            raise


def _rewrite(file: BinaryIO, content: BinaryIO) -> None:
    for one in (file, content):
        one.seek(0)
    shutil.copyfileobj(content, file)
    file.truncate()
    file.flush()


def _pour(temporary: Path, target: Path) -> None:
    """Write a file's content to a stream."""
    with temporary.open("rb") as content, open_stream(target) as stream:
        while block := content.read(1 << 16):
            write_stream(stream, block, target)


def _mode(target: Path, new: int) -> int:
    """The mode of what stands at a path; what the umask leaves of that for new ones where nothing does."""
    try:
        return stat.S_IMODE(target.stat().st_mode)
    except FileNotFoundError:
        mask = os.umask(0)
        os.umask(mask)
        return new & ~mask


def _no_file(path: object, error: Exception) -> OutputError:
    return OutputError(f"{quoted(path)} was not written: {error}. Give the path of a file.")


def _cannot_write(target: str | os.PathLike[str], error: OSError) -> OutputError:
    reason = error.strerror or error
    return OutputError(f"{target} was not written: {reason}. Check that its folder exists, is writable and has room.")
