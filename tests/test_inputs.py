"""Inputs are regular files within bounds, and what was checked is what is read."""

from __future__ import annotations

import errno
import os
import pickle
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from notewave import VoiceError
from notewave.inputs import SETTLED, FileRecord, HeldFiles, open_regular, read_regular

LINUX = Path("/proc/self").exists()


def held(folder: Path, **content: bytes) -> HeldFiles:
    for name, data in content.items():
        (folder / name).write_bytes(data)
        age(folder / name)
    records = {name: FileRecord.of(folder / name) for name in content}
    return HeldFiles(folder, records, "the list", VoiceError, "Copy it again.")


def age(path: Path) -> None:
    """Make it long ago that a file was written, as far as a test can wait."""
    threading.Event().wait(1.5 * SETTLED)


@pytest.fixture
def odd(tmp_path: Path) -> Iterator[dict[str, Path]]:
    """Whatever a path can lead to beside a file."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    (tmp_path / "circle").symlink_to("circle")
    (tmp_path / "endless").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as server:
        here = Path.cwd()
        os.chdir(tmp_path)  # a socket's path is short
        server.bind("socket")
        os.chdir(here)
        names = ("fifo", "folder", "circle", "endless", "socket", "missing", "a" * 300, "zero\0byte", "half\ud800")
        yield {name[:9]: tmp_path / name for name in names}


def test_whatever_is_no_file_is_refused_at_once(odd: dict[str, Path]) -> None:
    for name, path in odd.items():
        with pytest.raises(OSError) as caught:
            read_regular(path, 100)
        assert caught.value.strerror, name


def test_reasons(odd: dict[str, Path]) -> None:
    for name, reason in {"fifo": "a FIFO", "folder": "a folder", "endless": "a device", "socket": "a socket"}.items():
        with pytest.raises(OSError, match=f"it is {reason}, not a file"):
            open_regular(odd[name])


@pytest.mark.skipif(not LINUX, reason="reads /proc")
def test_files_that_are_waited_for_are_empty() -> None:
    """/proc/kmsg says that it is a regular file, of no bytes; whoever reads it waits for the kernel."""
    for path in ("/proc/kmsg", "/proc/self/status"):
        if os.access(path, os.R_OK):
            assert read_regular(path, 100) == b""


def test_what_comes_in_between_is_looked_at_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A FIFO in the place of the file that was looked at: it is refused, not waited for, and not left open."""
    (tmp_path / "x").touch()
    descriptors, opens = [], os.open

    def swap(path: Path, flags: int) -> int:
        Path(path).unlink()
        os.mkfifo(path)
        descriptors.append(opens(path, flags))
        return descriptors[0]

    monkeypatch.setattr(os, "open", swap)
    with pytest.raises(OSError, match="it is a FIFO, not a file"):
        open_regular(tmp_path / "x")
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptors[0])


def test_a_disk_that_fails_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = held(tmp_path, x=b"1", y=b"2")
    files.check("x")

    def fails(*_: int) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "pread", fails)
    for read in (files.read, files.check):
        with pytest.raises(VoiceError, match=r"y cannot be read \(Input/output error\)\. Copy it again"):
            read("y")
    with pytest.raises(VoiceError, match=r"x cannot be read \(Input/output error\)"):
        files.read("x")


def test_whether_a_file_is_in_its_place(tmp_path: Path) -> None:
    files = held(tmp_path, x=b"1", y=b"2", z=b"3")
    assert all(files.is_in_place(name) for name in "xyz")
    (tmp_path / "x").unlink()
    (tmp_path / "new").write_bytes(b"2")
    (tmp_path / "new").replace(tmp_path / "y")
    (tmp_path / "z").write_bytes(b"4")
    assert not any(files.is_in_place(name) for name in "xyz")


def test_bounds(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"12345")
    assert read_regular(tmp_path / "x", 5) == b"12345"
    with pytest.raises(OSError, match="it has 5 bytes, over 4"):
        read_regular(tmp_path / "x", 4)


def test_spans(tmp_path: Path) -> None:
    files = held(tmp_path, x=b"0123456789")
    assert files.read("x") == b"0123456789"
    assert files.read_parts("x", [(2, 3), (0, 0), (9, 1)]) == [b"234", b"", b"9"]
    for span in ((0, 11), (10, 1), (-1, 2), (3, -1)):
        with pytest.raises(VoiceError, match="has 10 bytes, of which"):
            files.read_parts("x", [span])


def test_a_replaced_file_is_read_as_it_was(tmp_path: Path) -> None:
    files = held(tmp_path, x=b"old", y=b"not read yet")
    files.check("x")
    for name in "xy":
        (tmp_path / "new").write_bytes(b"new")
        (tmp_path / "new").replace(tmp_path / name)
    assert files.read("x") == b"old"
    (tmp_path / "x").unlink()
    assert files.read("x") == b"old"
    with pytest.raises(VoiceError, match="y has 3 bytes where the list says 12"):
        files.read("y")


@pytest.mark.parametrize("settled", [True, False])
@pytest.mark.parametrize("content", [b"new", b"longer than it was", b""])
def test_a_file_that_is_written_over_is_refused(tmp_path: Path, content: bytes, settled: bool) -> None:
    files = held(tmp_path, x=b"old")
    if not settled:
        (tmp_path / "x").write_bytes(b"old")  # so new that its time tells nothing of what comes next
    files.check("x")
    (tmp_path / "x").write_bytes(content)
    for _ in range(2):
        with pytest.raises(VoiceError, match=r"x does not match its SHA-256 in the list.*Copy it again\."):
            files.read("x")


def test_a_file_whose_time_or_links_change_is_read_on(tmp_path: Path) -> None:
    files = held(tmp_path, x=b"old")
    files.check("x")
    os.utime(tmp_path / "x")
    assert files.read("x") == b"old"
    (tmp_path / "y").hardlink_to(tmp_path / "x")
    assert files.read("x") == b"old"


def test_what_is_not_as_recorded(tmp_path: Path) -> None:
    record = {name: FileRecord(3, "0" * 64) for name in ("x", "missing", "fifo", "out")}
    files = HeldFiles(tmp_path, record, "the list", VoiceError, "Copy it again.")
    (tmp_path / "x").write_bytes(b"abc")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "out").symlink_to(__file__)
    for name, fault in {
        "x": "does not match",
        "missing": "is missing, though the list lists it",
        "fifo": "cannot be read .it is a FIFO",
        "out": "leads out of its folder",
    }.items():
        with pytest.raises(VoiceError, match=f"{name} {fault}"):
            files.check(name)


@pytest.mark.skipif(not LINUX, reason="counts descriptors in /proc")
def test_files_are_let_go(tmp_path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    files = held(tmp_path, x=b"1", y=b"2")
    for name in "xy":
        files.check(name)
    assert len(list(Path("/proc/self/fd").iterdir())) == before + 2
    again = pickle.loads(pickle.dumps(files))
    assert again.read("y") == b"2"
    del files, again
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_many_threads_read_one_file(tmp_path: Path) -> None:
    content = os.urandom(1 << 16)
    files, found = held(tmp_path, x=content), []
    threads = [threading.Thread(target=lambda: found.append(files.read_parts("x", [(5, 1000)]))) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [[content[5:1005]]] * 16
