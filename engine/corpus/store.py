"""Where a corpus' files go: a folder here, or whatever fsspec reaches by a URL.

Files are made apart and put into their places when they are whole: whoever looks finds no part of one.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from notewave.checks import quoted, shown
from notewave.errors import OutputError, ToolError
from notewave.files import not_written

MAKING = ".making"  # the folder, in a corpus, of what is being made
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
# Of fsspec's protocols those by which a file is seen while it grows; objects of clouds appear whole.
_GROWING = {"file", "local", "memory", "sftp", "ssh", "smb", "ftp", "hdfs", "arrow_hdfs", "webhdfs", "webdav"}
_AGAIN = "and run it again: it goes on where it stopped."
_PERMIT = "Let this user write there, or choose another place (--out)."
_CURES = {
    errno.ENOSPC: f"Make room {_AGAIN}",
    errno.EDQUOT: f"Make room, or raise the quota, {_AGAIN}",
    errno.EFBIG: f"Raise the limit on the size of files (ulimit -f) {_AGAIN}",
    errno.EACCES: _PERMIT,
    errno.EPERM: _PERMIT,
    errno.EROFS: _PERMIT,
    errno.ENAMETOOLONG: "Give the song a shorter name.",
    errno.EISDIR: "Move the folder that stands there away.",
    errno.ENOTDIR: "Move what stands there in the place of a folder away.",
    errno.ELOOP: "Put a folder in its place, or make the whole corpus elsewhere (--out).",
    errno.EXDEV: "All of a corpus is on one file system: mount nothing in it, or make it elsewhere (--out).",
}


class Store(Protocol):
    """Where a corpus' files go. A path in it is relative, its folders are parted by ``/``, and none of them is ``..``.

    Raises OutputError for any other path, and for what cannot be written or read.
    """

    url: str  # as it was given, a folder's made absolute

    def staging(self) -> AbstractContextManager[Path]:
        """A new folder, closed to others, in which files are made before they are put; in the end it is removed."""

    def put(self, file: Path, path: str) -> None:
        """Take a finished file of ``staging`` to its place, instead of the one there. Folders are made."""

    def size(self, path: str) -> int | None:
        """The bytes of the file that stands there; None where none does."""

    def open(self, path: str) -> BinaryIO:
        """A file to be read. Raises FileNotFoundError."""

    def remove(self, path: str) -> None:
        """Remove the file that stands there, if one does."""

    def sweep(self) -> None:
        """Remove what stagings left whose process was killed; nobody may be at work in any."""


def open_store(out: str) -> LocalStore | UrlStore:
    """The store of a folder that is there, or of a URL, which ``://`` tells. Raises OutputError, ToolError."""
    return UrlStore(out) if "://" in out else LocalStore(Path(out))


class LocalStore:
    """A corpus in a folder of this machine, which must be there.

    The folder itself may be reached by links. In it none is followed, so that nothing is written elsewhere: one in the
    place of a folder is refused, one in the place of a file is replaced.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self.url = str(self.folder)

    @contextlib.contextmanager
    def staging(self) -> Iterator[Path]:
        """A new folder in ``.making``. As in ``Store``; what fails to be written in it raises OutputError, too."""
        making = self.folder / MAKING
        try:
            making.mkdir(exist_ok=True)
            if making.is_symlink():
                raise _is_link(MAKING)
            with tempfile.TemporaryDirectory(dir=making, prefix="", ignore_cleanup_errors=True) as folder:
                yield Path(folder)
        except OSError as error:
            raise _failed(making, error) from error

    def put(self, file: Path, path: str) -> None:
        """As in ``Store``. The file keeps the mode that it has."""
        *folders, name = _components(path)
        try:
            with self._within(folders, make=True) as parent:
                os.replace(file, name, dst_dir_fd=parent)
        except OSError as error:
            raise _failed(self.folder / path, error) from error

    def size(self, path: str) -> int | None:
        """As in ``Store``; links and whatever else is no file are none."""
        *folders, name = _components(path)
        try:
            with self._within(folders) as parent:
                facts = os.stat(name, dir_fd=parent, follow_symlinks=False)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _failed(self.folder / path, error, "cannot be looked at") from error
        return facts.st_size if stat.S_ISREG(facts.st_mode) else None

    def open(self, path: str) -> BinaryIO:
        """As in ``Store``."""
        *folders, name = _components(path)
        try:
            with self._within(folders) as parent:
                file = os.fdopen(os.open(name, _FILE, dir_fd=parent), "rb")
            if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return file
            file.close()
            raise OSError(errno.EINVAL, "it is no file")
        except FileNotFoundError:
            raise
        except OSError as error:
            raise _failed(self.folder / path, error, "cannot be read") from error

    def remove(self, path: str) -> None:
        """As in ``Store``."""
        *folders, name = _components(path)
        try:
            with self._within(folders) as parent:
                os.unlink(name, dir_fd=parent)
        except FileNotFoundError:
            return
        except OSError as error:
            raise _failed(self.folder / path, error, "was not removed") from error

    def sweep(self) -> None:
        """As in ``Store``. What cannot be removed stays: it is in nobody's way."""
        shutil.rmtree(self.folder / MAKING, ignore_errors=True)  # which follows no link

    @contextlib.contextmanager
    def _within(self, folders: list[str], make: bool = False) -> Iterator[int]:
        """A descriptor of the last of folders in each other, the first of them in the corpus. Raises OSError."""
        folder = os.open(self.folder, _FOLDER)
        try:
            for name in folders:
                inner = _enter(name, folder, make)
                os.close(folder)
                folder = inner
            yield folder
        finally:
            os.close(folder)


class UrlStore:
    """A corpus where fsspec reaches: buckets of clouds, servers. Links on a server are followed as the server does."""

    def __init__(self, url: str) -> None:
        """Raises ToolError where a package is missing, OutputError for a URL that leads nowhere."""
        self.url = url
        self._files, self._root = _connect(url)
        self._grows = any(part.partition("://")[0] in _GROWING for part in url.split("::"))

    @contextlib.contextmanager
    def staging(self) -> Iterator[Path]:
        """A new folder in the system's own of temporary files. As in ``Store``, and in ``LocalStore``."""
        try:
            with tempfile.TemporaryDirectory(prefix="notewave-", ignore_cleanup_errors=True) as folder:
                yield Path(folder)
        except OSError as error:
            raise _failed(tempfile.gettempdir(), error) from error

    def put(self, file: Path, path: str) -> None:
        """As in ``Store``."""
        target = self._path(path)
        with self._failing(path, "was not written"):
            if not self._grows:
                self._files.put_file(str(file), target)
                return
            making = f"{self._root}/{MAKING}"
            temporary = f"{making}/{secrets.token_hex(8)}"
            for folder in (making, target.rpartition("/")[0]):
                self._files.makedirs(folder, exist_ok=True)
            try:
                self._files.put_file(str(file), temporary)
                self._take_place(temporary, target)
            except BaseException:
                with contextlib.suppress(Exception):
                    self._files.rm_file(temporary)
                raise

    def size(self, path: str) -> int | None:
        """As in ``Store``."""
        target = self._path(path)
        with self._failing(path, "cannot be looked at"):
            try:
                facts = self._files.info(target)
            except FileNotFoundError:
                return None
            return int(facts["size"]) if facts["type"] == "file" else None

    def open(self, path: str) -> BinaryIO:
        """As in ``Store``."""
        target = self._path(path)
        try:
            file: BinaryIO = self._files.open(target, "rb")
        except FileNotFoundError:
            raise
        except Exception as error:  # as in ``_failing``
            raise self._failed(path, error, "cannot be read") from error
        return file

    def remove(self, path: str) -> None:
        """As in ``Store``."""
        target = self._path(path)
        with self._failing(path, "was not removed"), contextlib.suppress(FileNotFoundError):
            self._files.rm_file(target)

    def sweep(self) -> None:
        """As in ``Store``; what cannot be removed stays."""
        with contextlib.suppress(Exception):
            self._files.rm(f"{self._root}/{MAKING}", recursive=True)

    def _path(self, path: str) -> str:
        return "/".join([self._root, *_components(path)])

    def _take_place(self, temporary: str, target: str) -> None:
        """Rename a file, also by protocols that rename onto none."""
        if self._files.isdir(target):  # some would put it in there
            raise IsADirectoryError(errno.EISDIR, "a folder stands there")
        try:
            self._files.mv(temporary, target)
        except Exception:
            if not self._files.isfile(target):
                raise
            self._files.rm_file(target)
            self._files.mv(temporary, target)

    @contextlib.contextmanager
    def _failing(self, path: str, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # those of clouds' clients have no base in common
            raise self._failed(path, error, what) from error

    def _failed(self, path: str, error: Exception, what: str) -> OutputError:
        return _failed(f"{_public(self.url)}/{path}", error, what)


def _connect(url: str) -> tuple[Any, str]:
    """The file system that a URL leads to, and the corpus' path in it."""
    try:
        from fsspec.core import url_to_fs
    except ImportError as error:
        raise ToolError(f"{_public(url)} is reached by fsspec, which is missing. Install notewave[corpus].") from error
    try:
        files, root = url_to_fs(url, use_listings_cache=False)  # others write there meanwhile
    except ImportError as error:  # says itself which package to install
        raise ToolError(f"{_public(url)} cannot be reached, a package is missing: {error}.") from error
    except Exception as error:  # as in ``_failing``
        raise not_written(_public(url), f"{_reason(error)}. Check the URL, as s3://bucket/folder.") from error
    return files, str(root).rstrip("/")


def _components(path: str) -> list[str]:
    """The folders and the name of a path in a corpus. Raises OutputError for one that leads elsewhere."""
    components = path.split("/")
    if "\0" in path or any(component in ("", ".", "..") for component in components):
        raise not_written(quoted(path), "it is no path in a corpus. Give one that is relative, without '..'.")
    return components


def _enter(name: str, folder: int, make: bool) -> int:
    """A descriptor of a folder in a folder, which is made if need be. Raises OSError, also for a link."""
    try:
        return os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=folder)
    except FileNotFoundError:
        if not make:
            raise
    except OSError as error:
        if stat.S_ISLNK(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
            raise _is_link(name) from error
        raise
    with contextlib.suppress(FileExistsError):  # another worker was first
        os.mkdir(name, dir_fd=folder)
    return os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=folder)


def _is_link(name: str) -> OSError:
    return OSError(errno.ELOOP, f"{name} in the corpus is a link, which might lead out of it")


def _failed(path: str | os.PathLike[str], error: Exception, what: str = "was not written") -> OutputError:
    number = error.errno if isinstance(error, OSError) else None
    cure = _CURES.get(number or 0, f"Check that the corpus can be reached, {_AGAIN}")
    return OutputError(f"{shown(path)} {what}: {_reason(error)}. {cure}")


def _reason(error: Exception) -> str:
    """What an error says, in one line."""
    reason = getattr(error, "strerror", None) or error
    return shown(" ".join(str(reason).split())[:300]).rstrip(".") or type(error).__name__


def _public(url: str) -> str:
    """A URL without the user and the password in it."""
    return re.sub(r"://[^/@]*@", "://", url)
