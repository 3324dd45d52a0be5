"""Outputs appear whole or not at all: written under a temporary name beside the target, then renamed.

What cannot be replaced is filled: FIFOs and devices, which are streams, and files that are mounted.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import os
import re
import secrets
import select
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from notewave.checks import quoted, shown
from notewave.errors import OutputError

STANDARD_OUTPUT = "/dev/stdout"
_STANDARD = {"/dev/stdin": 0, STANDARD_OUTPUT: 1, "/dev/stderr": 2}
_DESCRIPTOR = re.compile(r"/(?:dev|proc/(?:self|thread-self))/fd/(\d{1,6})")
_LINKS = 40  # followed one after another, as Linux does
_NO_PLACE = {errno.EACCES, errno.EPERM, errno.EROFS}  # of a folder that takes no new files
_NO_RENAME = {errno.EBUSY, errno.EXDEV} | _NO_PLACE  # of a file that is mounted, or in such a folder
_NO_EXCHANGE = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EPERM}  # of systems and file systems without one
_FULL = {errno.ENOTEMPTY, errno.EEXIST}  # of a folder that no other is renamed onto
_HERE = -100  # AT_FDCWD, and
_EXCHANGE = 2  # RENAME_EXCHANGE of Linux, RENAME_SWAP of macOS


class ReaderGone(OutputError):
    """Whoever read an output went away: no more of it is wanted."""


def not_written(path: object, reason: str) -> OutputError:
    """The error of an output that could not be written; the reason names the cure, too."""
    return OutputError(f"{shown(path)} was not written: {reason}")


def cannot_write(target: str | os.PathLike[str], error: OSError) -> OutputError:
    """The error of an output that the system refused."""
    reason = error.strerror or error
    return not_written(target, f"{reason}. Check that its folder exists, is writable and has room.")


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path with the target's suffix; rename it to ``path`` when the block succeeds.

    A link is followed: what it leads to is replaced, and keeps its mode. What cannot be replaced (a FIFO, a device, a
    mounted file, one in a folder that cannot be written) is filled in the end. On any exception, Ctrl-C included, the
    temporary file is removed and ``path`` is left as it was. Raises OutputError when the file cannot be written (no
    such folder, no permission, disk full, a folder or a block device stands there).
    """
    streamed = is_stream(path)
    target = Path(path) if streamed else _file(path)
    try:
        with _temporary(target, streamed) as (temporary, mode):
            yield temporary
            if streamed:
                _pour(temporary, target)
            elif mode is None:
                _fill(temporary, target)
            else:
                _put(temporary, target, mode)
    except OSError as error:
        raise cannot_write(target, error) from error


def check_writable(path: str | os.PathLike[str]) -> None:
    """Raise the OutputError now that ``atomic_file`` would raise later; whatever stands there is not touched."""
    streamed = is_stream(path)
    target = Path(path) if streamed else _file(path)
    try:
        if not streamed:
            with _temporary(target, streamed):
                pass
        elif descriptor_of(target) is None and not os.access(target, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise cannot_write(target, error) from error


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary folder that takes the place of ``path`` when the block succeeds, and of a folder there.

    That is one step where the system has it (Linux, macOS): whoever looks finds a whole folder there, the old or the
    new one, and of several processes that replace it at once the last one's stays. A link is followed: the folder that
    it leads to is replaced, and keeps its mode. On any exception, Ctrl-C included, the temporary folder is removed and
    ``path`` is left as it was. Raises OutputError when it cannot be written.
    """
    target = _folder(path)
    temporary = target.with_name(f".{target.name[:48]}-{secrets.token_hex(8)}")  # no longer than a name may be
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        mode = _make(temporary, target, os.mkdir, 0o700)
        yield temporary
        _set_mode(temporary, _mode_to_keep(target, mode))
        _take_place(temporary, target)
    except OSError as error:
        raise cannot_write(target, error) from error
    finally:
        _remove(temporary)  # or what stood there


def check_folder(path: str | os.PathLike[str]) -> None:
    """Raise the OutputError now that ``atomic_folder`` would raise later for a path that can be no folder's."""
    _folder(path)


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
        raise _no_place(path, error, "file") from error
    if stat.S_ISBLK(mode) or stat.S_ISSOCK(mode):
        kind = "block device" if stat.S_ISBLK(mode) else "socket"
        raise not_written(path, f"it is a {kind}. Give the path of a file.")
    return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)


def descriptor_of(path: str | os.PathLike[str]) -> int | None:
    """The number of the open descriptor that a path leads to, as /dev/stdout and /dev/fd/3 do, or a link to them."""
    place = Path(path)
    with contextlib.suppress(OSError):  # a name too long, a folder that is closed, or gone though it is ours
        for _ in range(_LINKS):
            if (number := named_descriptor(place)) is not None:
                return number
            place = place.parent / place.readlink()
    return None


def named_descriptor(path: str | os.PathLike[str]) -> int | None:
    """The number of the open descriptor whose path this is, no link's."""
    try:
        name = os.path.abspath(path)  # noqa: PTH100
    except FileNotFoundError:  # the folder that we are in is gone
        return None
    found = _DESCRIPTOR.fullmatch(name)
    return int(found[1]) if found else _STANDARD.get(name)


def identity(path: str | os.PathLike[str]) -> object:
    """What all paths to one file have in common, whatever links they lead by, also before it is there."""
    try:
        facts = Path(path).stat()
    except (OSError, RuntimeError, ValueError):
        try:
            return os.path.realpath(path)
        except (OSError, ValueError):  # nothing is there, nor will be
            return path
    return facts.st_dev, facts.st_ino


@contextlib.contextmanager
def open_stream(path: str | os.PathLike[str]) -> Iterator[int]:
    """Yield a descriptor that writes to a stream; a FIFO is waited for until someone reads it. Raises OutputError."""
    number = descriptor_of(path)
    try:
        stream = os.open(path, os.O_WRONLY | os.O_NOCTTY) if number is None else os.dup(number)
    except OSError as error:
        raise cannot_write(path, error) from error
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
        raise ReaderGone(f"{shown(path)} was not written to its end: its reader went away. Keep it reading.") from error
    except OSError as error:
        raise cannot_write(path, error) from error


def _file(path: str | os.PathLike[str]) -> Path:
    """The file that a path means, at the end of links."""
    target, mode = _target(path, "file")
    if mode is not None and stat.S_ISDIR(mode):
        raise not_written(target, "it is a folder. Give the path of a file.")
    return target


def _folder(path: str | os.PathLike[str]) -> Path:
    """The folder that a path means, at the end of links."""
    target, mode = _target(path, "folder")
    if target.name in ("", ".."):
        raise not_written(target, "it leads to a folder by no name. Give the folder's own path.")
    if mode is not None and not stat.S_ISDIR(mode):
        raise cannot_write(target, NotADirectoryError(errno.ENOTDIR, "a file stands there"))
    return target


def _target(path: str | os.PathLike[str], kind: str) -> tuple[Path, int | None]:
    """What a path means, at the end of links, and the mode of what stands there, if anything does."""
    try:
        target = Path(path)
        target = target.resolve() if target.is_symlink() else target
        if target.is_symlink():  # only from Python 3.13 on: resolving a circle is no error
            raise RuntimeError("it is a link that leads to itself")
        return target, target.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return target, None
    except (OSError, RuntimeError, TypeError, ValueError) as error:  # a link to itself, a name too long, no path at all
        raise _no_place(path, error, kind) from error


@contextlib.contextmanager
def _temporary(target: Path, streamed: bool) -> Iterator[tuple[Path, int | None]]:
    """A new empty file of the target's suffix, removed if it is still there, and the mode that it is to have.

    It is in the target's folder where that is of use and takes new files. Elsewhere it is closed to others, and has no
    mode to have, for it will be copied.
    """
    name = f".{target.stem[:16]}-{secrets.token_hex(8)}{target.suffix[:32]}"  # no longer than a file's may be
    beside, elsewhere = target.with_name(name), Path(tempfile.gettempdir(), name)
    temporary, mode = elsewhere if streamed else beside, None
    try:
        try:
            mode = None if streamed else _make(beside, target, _create, 0o600)
        except OSError as error:
            if error.errno not in _NO_PLACE or not os.access(target, os.R_OK | os.W_OK):
                raise
            temporary = elsewhere
        if mode is None:
            _create(elsewhere, 0o600)
        yield temporary, mode
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _create(path: Path, mode: int) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode))


def _make(path: Path, target: Path, make: Callable[[Path, int], None], own: int) -> int:
    """Make what is to take a target's place; the mode that it is to have in the end.

    That is the mode of what stands there. Where nothing does, the system says it, by its umask and access lists. Until
    the end its owner has the bits of ``own`` too, so as to write it, and others have no more than in the end.
    """
    try:
        mode = stat.S_IMODE(target.stat().st_mode)
    except FileNotFoundError:
        make(path, own | own >> 3 | own >> 6)
        mode = stat.S_IMODE(path.stat().st_mode)
    else:
        make(path, own)
    _set_mode(path, mode | own)
    return mode


def _mode_to_keep(target: Path, mode: int) -> int:
    """The mode of what stands in a place by now; if nothing does, another."""
    try:
        return stat.S_IMODE(target.stat().st_mode)
    except FileNotFoundError:
        return mode


def _set_mode(path: Path, mode: int) -> None:
    """Give a path a mode, unless it has it: a file system may refuse to set any."""
    if stat.S_IMODE(path.stat().st_mode) != mode:
        path.chmod(mode)


def _put(temporary: Path, target: Path, mode: int) -> None:
    """Put a file in the place of another, or of none."""
    _set_mode(temporary, _mode_to_keep(target, mode))
    try:
        temporary.replace(target)
    except OSError as error:
        if error.errno not in _NO_RENAME or not target.is_file():
            raise
        _fill(temporary, target)


def _take_place(temporary: Path, target: Path) -> None:
    """Put a folder in the place of another, or of none, whatever others put there or take away meanwhile."""
    while True:
        try:
            temporary.replace(target)  # of none, or of an empty one
            return
        except OSError as error:
            if error.errno not in _FULL:
                raise
        try:
            if not _exchange(temporary, target):
                _replace_in_two_steps(temporary, target)
            return
        except OSError as error:
            if error.errno not in _FULL | {errno.ENOENT}:
                raise


def _replace_in_two_steps(temporary: Path, target: Path) -> None:
    """Put a folder in the place of another, which is put back if nothing came there."""
    retired = temporary.with_name(f"{temporary.name}-old")
    try:
        target.replace(retired)
        temporary.replace(target)
    finally:
        if retired.exists() and not target.exists():
            with contextlib.suppress(OSError):  # something came there
                retired.replace(target)
        _remove(retired)


def _remove(folder: Path) -> None:
    """Remove a folder, if it is there, also one that its owner may not write to."""
    with contextlib.suppress(OSError):
        folder.chmod(0o700)
    shutil.rmtree(folder, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Let two folders change places in one step; whether the system and the file system can."""
    call = _exchanging()
    if call is None or call(os.fsencode(one), os.fsencode(other)) == 0:
        return call is not None
    number = ctypes.get_errno()
    if number in _NO_EXCHANGE:
        return False
    raise OSError(number, os.strerror(number))


@functools.cache
def _exchanging() -> Callable[[bytes, bytes], int] | None:
    """The system's call that lets two paths change places; it gives 0 where that was done."""
    try:
        system = ctypes.CDLL(None, use_errno=True)
        if sys.platform == "darwin":  # only on macOS: Linux has it by another name
            swap = system.renamex_np
            return lambda one, other: swap(one, other, _EXCHANGE)
        rename = system.renameat2
        return lambda one, other: rename(_HERE, one, _HERE, other, _EXCHANGE)
    except (AttributeError, OSError, TypeError):  # a C library that has it not
        return None


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


def _no_place(path: object, error: Exception, kind: str) -> OutputError:
    name = path if isinstance(path, (str, Path)) else quoted(path)
    return not_written(name, f"{getattr(error, 'strerror', None) or error}. Give the path of a {kind}.")
