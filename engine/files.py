"""Outputs appear whole or not at all: written under a temporary name beside the target, then renamed."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from notewave.checks import quoted
from notewave.errors import OutputError


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path with the target's suffix; rename it to ``path`` when the block succeeds.

    A link is followed: what it leads to is replaced. On any exception, Ctrl-C included, the temporary file is removed
    and ``path`` is left as it was. Raises OutputError when the file cannot be written (no such folder, no permission,
    disk full, a folder stands there).
    """
    target = _target(path)
    temporary = _beside(target)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(target)
    except OSError as error:
        raise OutputError(_cannot_write(target, error)) from error
    finally:
        temporary.unlink(missing_ok=True)


def check_writable(path: str | os.PathLike[str]) -> None:
    """Raise the OutputError now that ``atomic_file`` would raise later; whatever stands there is not touched."""
    _beside(_target(path)).unlink()


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary folder; rename it to ``path`` when the block succeeds, replacing a folder that stands there.

    On any exception, Ctrl-C included, the temporary folder is removed and ``path`` is left as it was.
    Raises OutputError when the folder cannot be written.
    """
    target = Path(path)
    temporary: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        yield temporary
        temporary.chmod(0o777 & ~_umask())
        if target.exists():
            retired = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
            try:
                target.replace(retired / "old")
                temporary.replace(target)
            finally:
                if not target.exists():
                    (retired / "old").replace(target)
                shutil.rmtree(retired)
        else:
            temporary.replace(target)
    except OSError as error:
        raise OutputError(_cannot_write(target, error)) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _target(path: str | os.PathLike[str]) -> Path:
    """The file that a path means, at the end of links."""
    try:
        target = Path(path)
        target = target.resolve() if target.is_symlink() else target
        if target.is_symlink():  # from Python 3.13 on, resolving a circle is no error
            raise RuntimeError("it is a link that leads to itself")
        is_folder = target.is_dir()
    except (OSError, RuntimeError, TypeError, ValueError) as error:  # a link to itself, a name too long, no path at all
        raise OutputError(f"{quoted(path)} was not written: {error}. Give the path of a file.") from error
    if is_folder:
        raise OutputError(f"{target} was not written: it is a folder. Give the path of a file.")
    return target


def _beside(target: Path) -> Path:
    """A new empty file in the target's folder, of its suffix; its name is no longer than a file's may be."""
    try:
        handle, name = tempfile.mkstemp(prefix=f".{target.stem[:16]}-", suffix=target.suffix[:32], dir=target.parent)
    except OSError as error:
        raise OutputError(_cannot_write(target, error)) from error
    except ValueError as error:  # a zero byte
        raise OutputError(f"{quoted(str(target))} was not written: {error}. Give the path of a file.") from error
    os.close(handle)
    return Path(name)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _cannot_write(target: Path, error: OSError) -> str:
    return (
        f"{target} was not written: {error.strerror or error}. Check that its folder exists, is writable and has room."
    )
