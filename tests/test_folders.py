"""Folders take the place of others in one step, whole or not at all, whoever else replaces or reads them."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from notewave import OutputError
from notewave.files import _exchange, _exchanging, atomic_folder, check_folder


def replace_often(target: Path, mark: str, times: int) -> None:
    """Replace a folder by one of two files, each of which says who made it."""
    for n in range(times):
        with atomic_folder(target) as temporary:
            for name in ("one", "two"):
                (temporary / name).write_text(f"{mark} {n}")


def read_all(folder: int) -> None:
    """Read an open folder, which others replace and then remove: what is still there is whole."""
    read = set()
    for name in ("one", "two"):
        with contextlib.suppress(FileNotFoundError):
            file = os.open(name, os.O_RDONLY, dir_fd=folder)
            read.add(os.read(file, 100))
            os.close(file)
    assert len(read) < 2 and b"" not in read


@contextlib.contextmanager
def children(count: int, work: Any) -> Iterator[None]:
    """Processes that work beside the block, and then all succeeded."""
    started = []
    for number in range(count):
        if (child := os.fork()) == 0:
            try:
                work(number)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        started.append(child)
    try:
        yield
    finally:
        ends = [os.waitpid(child, 0)[1] for child in started]
    assert ends == [0] * count


def test_folder_replaces_folder_or_nothing(tmp_path: Path) -> None:
    target = tmp_path / "voice"
    for content in ("one", "two"):
        with atomic_folder(target) as temporary:
            (temporary / "file").write_text(content)
    with pytest.raises(RuntimeError), atomic_folder(target) as temporary:
        (temporary / "file").write_text("three")
        raise RuntimeError
    assert (target / "file").read_text() == "two"
    assert list(tmp_path.iterdir()) == [target]


def test_a_folder_that_may_not_be_written_to_is_replaced_and_removed(tmp_path: Path) -> None:
    def work(number: int) -> None:
        if os.getuid() == 0:  # which may all
            os.setuid(65534)
        replace_often(tmp_path / "open" / "voice", "old", 1)
        (tmp_path / "open" / "voice").chmod(0o500)
        replace_often(tmp_path / "open" / "voice", "new", 1)

    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    with children(1, work):
        pass
    assert [path.name for path in (tmp_path / "open").iterdir()] == ["voice"]
    assert (tmp_path / "open" / "voice" / "one").read_text() == "new 0"


def test_a_folder_that_processes_replace_is_never_missing(tmp_path: Path) -> None:
    target = tmp_path / "voice"
    if not _exchange(*(Path(tempfile.mkdtemp(dir=tmp_path)) for _ in range(2))):
        pytest.skip("no exchange in one step here")
    shutil.rmtree(tmp_path)
    replace_often(target, "first", 1)
    with children(3, lambda number: replace_often(target, str(number), 300)):
        for _ in range(20_000):
            folder = os.open(target, os.O_RDONLY | os.O_DIRECTORY)
            try:
                read_all(folder)
            finally:
                os.close(folder)
    assert (target / "one").read_text() == (target / "two").read_text()
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("in_one_step", [True, False])
def test_processes_replace_a_folder_that_comes_and_goes(
    tmp_path: Path, in_one_step: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the system exchanges nothing, and where nothing stands there first."""
    if not in_one_step:
        monkeypatch.setattr("notewave.files._exchanging", lambda: None)
    target = tmp_path / "voice"

    def work(number: int) -> None:
        for n in range(150):
            replace_often(target, f"{number} {n}", 1)
            if number == 0:
                shutil.rmtree(target, ignore_errors=True)

    with children(4, work):
        pass
    replace_often(target, "last", 1)
    assert {path.name: path.read_text() for path in target.iterdir()} == {"one": "last 0", "two": "last 0"}
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("in_one_step", [True, False])
def test_what_comes_in_between_is_replaced(tmp_path: Path, in_one_step: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not in_one_step:
        monkeypatch.setattr("notewave.files._exchanging", lambda: lambda one, other: 1)  # as vfat and NFS do
        monkeypatch.setattr("ctypes.get_errno", lambda: errno.EINVAL)
    target = tmp_path / "voice"
    with atomic_folder(target) as temporary:
        (temporary / "new").touch()
        target.mkdir()
        (target / "old").touch()
    assert [path.name for path in target.iterdir()] == ["new"]
    with pytest.raises(OutputError, match="Not a directory"), atomic_folder(tmp_path / "file"):
        (tmp_path / "file").touch()
    assert {path.name for path in tmp_path.iterdir()} == {"voice", "file"}


def test_an_exchange_that_fails_leaves_the_old_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace_often(tmp_path / "voice", "old", 1)
    monkeypatch.setattr("notewave.files._exchanging", lambda: lambda one, other: 1)
    monkeypatch.setattr("ctypes.get_errno", lambda: errno.EIO)
    with pytest.raises(OutputError, match="Input/output error"):
        replace_often(tmp_path / "voice", "new", 1)
    assert (tmp_path / "voice" / "one").read_text() == "old 0"
    assert [path.name for path in tmp_path.iterdir()] == ["voice"]


def test_a_system_that_exchanges_nothing_replaces_in_two_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _exchanging.cache_clear()
    try:
        with monkeypatch.context() as patch:
            patch.setattr(ctypes, "CDLL", lambda *_, **__: object())  # no function is in it
            assert _exchanging() is None
            replace_often(tmp_path / "voice", "new", 2)
    finally:
        _exchanging.cache_clear()
    assert (tmp_path / "voice" / "one").read_text() == "new 1"
    assert [path.name for path in tmp_path.iterdir()] == ["voice"]


def test_a_folder_that_cannot_be_put_in_place_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("notewave.files._exchanging", lambda: None)
    replace, target = Path.replace, tmp_path / "voice"
    replace_often(target, "old", 1)

    def stops(self: Path, other: Path) -> Path:
        if other == target and not target.exists() and not self.name.endswith("-old"):
            raise KeyboardInterrupt
        return replace(self, other)

    monkeypatch.setattr(Path, "replace", stops)
    with pytest.raises(KeyboardInterrupt):
        replace_often(target, "new", 1)
    assert (target / "one").read_text() == "old 0"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("name", ["n" * 255, "😀" * 63, "\udce9"], ids=["long", "wide", "bytes"])
def test_long_names_of_folders_that_are_legal_are_written(tmp_path: Path, name: str) -> None:
    for _ in range(2):
        with atomic_folder(tmp_path / name) as temporary:
            (temporary / "file").touch()
    assert [path.name for path in tmp_path.iterdir()] == [name]


NO_FOLDERS = ("circle", "circle/voice", "a\0b", "\ud800", "n" * 300, "fifo", ".", "..", "/", "", None, b"a", 5)


@pytest.mark.parametrize("path", NO_FOLDERS, ids=lambda path: ascii(path)[:12])
def test_what_can_be_no_folder_is_refused_at_once(path: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "circle").symlink_to("circle")
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OutputError, match="was not written"), atomic_folder(path):
        raise RuntimeError
    with pytest.raises(OutputError, match="was not written"):
        check_folder(path)
    assert {entry.name for entry in tmp_path.iterdir()} == {"circle", "fifo"}


def test_the_question_whether_a_folder_may_stand_there_makes_none(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "new", tmp_path / "new" / "voice"):
        check_folder(path)
    assert not list(tmp_path.iterdir())
    (tmp_path / "fifo").touch()
    with pytest.raises(OutputError, match="was not written"), atomic_folder(tmp_path / "fifo" / "voice"):
        raise RuntimeError


def test_a_link_to_a_folder_stays(tmp_path: Path) -> None:
    (tmp_path / "away").mkdir()
    (tmp_path / "voice").symlink_to(tmp_path / "away")
    with atomic_folder(tmp_path / "voice") as temporary:
        (temporary / "file").touch()
    assert (tmp_path / "voice").is_symlink()
    assert (tmp_path / "away" / "file").exists()
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="a file stands there"), atomic_folder(tmp_path / "file"):
        pass
    assert {path.name for path in tmp_path.iterdir()} == {"away", "voice", "file"}
