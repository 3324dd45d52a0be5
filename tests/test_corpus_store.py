"""A corpus' files are put into their places when they are whole, and nowhere else."""

from __future__ import annotations

import errno
import importlib.util
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from notewave import OutputError
from notewave.corpus.store import MAKING, LocalStore, UrlStore, open_store
from notewave.errors import ToolError

PATHS = ["a.wav", "audio/a.wav", "audio/Ä [1]*#%/deep/ü.wav"]
ELSEWHERE = ["/a", "../a", "a/../../b", "a/..", ".", "./a", "a//b", "a/", "", "a\0b"]


class Objects(MemoryFileSystem):
    """Objects as clouds have them: they appear whole, and are not renamed."""

    protocol = "objects"

    def put_file(self, lpath: str, rpath: str, **_: object) -> None:
        self.pipe_file(rpath, Path(lpath).read_bytes())

    def mv(self, *_: object, **__: object) -> None:
        raise AssertionError("it would be copied")


@pytest.fixture(params=["local", "file", "memory", "objects", "chained"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[LocalStore | UrlStore]:
    (tmp_path / "corpus").mkdir()
    fsspec.register_implementation("objects", Objects, clobber=True)
    urls = {
        "local": f"{tmp_path}/corpus",
        "file": f"file://{tmp_path}/corpus",
        "memory": f"memory://{tmp_path}",
        "objects": f"objects://{tmp_path}",
        "chained": f"dir::file://{tmp_path}/corpus",
    }
    yield open_store(urls[request.param])
    MemoryFileSystem.store.clear()


def put(store: LocalStore | UrlStore, path: str, content: bytes) -> None:
    with store.staging() as folder:
        (folder / "file").write_bytes(content)
        store.put(folder / "file", path)


def read(store: LocalStore | UrlStore, path: str) -> bytes:
    with store.open(path) as file:
        return file.read()


def as_nobody(folder: Path, program: str) -> subprocess.CompletedProcess[str]:
    """Run a program with FOLDER, and all of notewave.corpus.store, as a user who may write nowhere but there."""
    for parent in (folder, *folder.parents[:3]):
        parent.chmod(0o755)
    lines = (
        "import fsspec.implementations.local, os, sys; from pathlib import Path",
        "from notewave.corpus.store import *; from notewave.errors import *",
        "os.setuid(65534) if os.getuid() == 0 else None; FOLDER = Path(sys.argv[1])",
        program,
    )
    command = [sys.executable, "-c", "\n".join(lines), str(folder)]
    uncovered = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=uncovered)


def test_which_store_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert (type(open_store("music")), open_store("music").url) == (LocalStore, f"{tmp_path}/music")
    assert (type(open_store("memory://music")), open_store("memory://music").url) == (UrlStore, "memory://music")


@pytest.mark.parametrize("path", PATHS)
def test_what_is_put_is_there_and_replaces_what_was(store: LocalStore | UrlStore, path: str) -> None:
    assert store.size(path) is None
    with pytest.raises(FileNotFoundError):
        store.open(path)
    for content in (b"old and longer", b"new"):
        put(store, path, content)
        assert (store.size(path), read(store, path)) == (len(content), content)


def test_what_is_removed_is_gone(store: LocalStore | UrlStore) -> None:
    for path in ("a/b.wav", "a/c.wav"):
        put(store, path, b"1")
    for _ in range(2):
        store.remove("a/b.wav")
        assert (store.size("a/b.wav"), store.size("a/c.wav")) == (None, 1)
    store.remove("none/a.wav")


def test_nothing_is_left_beside_what_was_put(tmp_path: Path) -> None:
    for store in (LocalStore(tmp_path), UrlStore(f"file://{tmp_path}")):
        put(store, "a/b.wav", b"1")
        assert [path.name for path in (tmp_path / "a").iterdir()] == ["b.wav"]
        assert not list((tmp_path / MAKING).iterdir())


@pytest.mark.parametrize("path", ELSEWHERE)
def test_a_path_out_of_the_corpus_is_refused(store: LocalStore | UrlStore, path: str) -> None:
    with pytest.raises(OutputError, match=r"it is no path in a corpus\. Give"):
        put(store, path, b"1")
    for question in (store.size, store.open, store.remove):
        with pytest.raises(OutputError, match="no path in a corpus"):
            question(path)


def test_a_folder_is_no_file(store: LocalStore | UrlStore) -> None:
    put(store, "a/b", b"1")
    assert store.size("a") is None
    if store.url.startswith(("memory", "objects")):  # where folders are only names
        return
    with pytest.raises(OutputError, match=r"a was not written: .*folder|a was not written: Is a directory"):
        put(store, "a", b"1")
    with pytest.raises(OutputError, match="a/b/c was not written"):
        put(store, "a/b/c", b"1")
    with pytest.raises(OutputError, match="a cannot be read"):
        store.open("a")
    assert read(store, "a/b") == b"1"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_staging_is_removed_whatever_happens(store: LocalStore | UrlStore, error: type[BaseException]) -> None:
    with pytest.raises(error), store.staging() as folder:
        (folder / "part").mkdir()
        (folder / "part" / "file").touch()
        raise error
    assert not folder.exists()


def test_stagings_are_new_and_private(store: LocalStore | UrlStore) -> None:
    with store.staging() as one, store.staging() as other:
        assert one != other
        assert [path.stat().st_mode & 0o777 for path in (one, other)] == [0o700] * 2


def test_what_cannot_be_written_in_a_staging_is_told(store: LocalStore | UrlStore) -> None:
    told = r"was not written: No space left on device\. Make room and run it again"
    with pytest.raises(OutputError, match=told), store.staging():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_what_a_killed_process_left_is_swept_away(tmp_path: Path) -> None:
    program = (
        "import os; from pathlib import Path; from notewave.corpus.store import LocalStore\n"
        f"with LocalStore(Path({str(tmp_path)!r})).staging() as folder:\n"
        "    (folder / 'file').touch(); print(folder, flush=True); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL
    left = Path(done.stdout.strip())
    assert (left / "file").exists()
    store = LocalStore(tmp_path)
    put(store, "a", b"1")
    store.sweep()
    assert not left.exists()
    store.sweep()
    assert read(store, "a") == b"1"
    put(store, "b", b"2")


def test_sweeping_at_a_url(tmp_path: Path) -> None:
    store = UrlStore(f"file://{tmp_path}")
    store.sweep()
    (tmp_path / MAKING / "left").mkdir(parents=True)
    put(store, "a", b"1")
    store.sweep()
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_links_in_a_corpus_lead_nowhere(tmp_path: Path) -> None:
    for name in ("corpus", "away", "corpus/inner"):
        (tmp_path / name).mkdir()
    (tmp_path / "away" / "secret").write_bytes(b"secret")
    (tmp_path / "corpus" / "audio").symlink_to(tmp_path / "away")
    (tmp_path / "corpus" / "near").symlink_to("inner")
    (tmp_path / "corpus" / "file").symlink_to(tmp_path / "away" / "secret")
    store = LocalStore(tmp_path / "corpus")
    for folder in ("audio", "near"):
        for ask in (lambda path: put(store, path, b"1"), store.size, store.open, store.remove):
            with pytest.raises(OutputError, match=rf"{folder} in the corpus is a link.*\. Put a folder in its place"):
                ask(f"{folder}/secret")
    assert store.size("file") is None
    with pytest.raises(OutputError, match="file cannot be read"):
        store.open("file")
    put(store, "file", b"1")
    assert not (tmp_path / "corpus" / "file").is_symlink()
    assert (tmp_path / "away" / "secret").read_bytes() == b"secret"
    assert [path.name for path in (tmp_path / "away").iterdir()] == ["secret"]


def test_a_link_in_the_place_of_making_is_not_followed(tmp_path: Path) -> None:
    for name in ("corpus", "away"):
        (tmp_path / name).mkdir()
    (tmp_path / "away" / "dear").touch()
    (tmp_path / "corpus" / MAKING).symlink_to(tmp_path / "away")
    store = LocalStore(tmp_path / "corpus")
    store.sweep()
    with pytest.raises(OutputError, match=r"\.making in the corpus is a link"), store.staging():
        pass
    assert [path.name for path in (tmp_path / "away").iterdir()] == ["dear"]


def test_the_corpus_itself_may_be_reached_by_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "corpus").symlink_to("disk")
    put(LocalStore(tmp_path / "corpus"), "a/b", b"1")
    assert (tmp_path / "disk" / "a" / "b").read_bytes() == b"1"


def test_what_is_waited_for_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    store = LocalStore(tmp_path)
    assert store.size("fifo") is None
    with pytest.raises(OutputError, match="it is no file"):
        store.open("fifo")


def test_modes_are_as_the_umask_says(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        put(LocalStore(tmp_path), "a/b", b"1")
    finally:
        os.umask(before)
    assert [(tmp_path / path).stat().st_mode & 0o777 for path in ("a", "a/b")] == [0o750, 0o640]


def test_many_workers_make_the_same_folders_at_once(store: LocalStore | UrlStore) -> None:
    start, failed = threading.Barrier(8), []

    def work(number: int) -> None:
        try:
            start.wait()
            for song in range(20):
                put(store, f"{song}/a/b/{number}", str(number).encode())
        except BaseException as error:
            failed.append(error)

    workers = [threading.Thread(target=work, args=[number]) for number in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not failed
    assert all(read(store, f"{song}/a/b/{number}") == b"%d" % number for song in range(20) for number in range(8))


def test_one_place_that_many_fill_holds_one_whole_file(store: LocalStore | UrlStore) -> None:
    def work(number: int) -> None:
        for _ in range(20):
            put(store, "a/b", bytes([number]) * 10_000)

    workers = [threading.Thread(target=work, args=[number]) for number in range(4)]
    put(store, "a/b", bytes(10_000))
    for worker in workers:
        worker.start()
    while any(worker.is_alive() for worker in workers):
        found = read(store, "a/b")
        assert (len(found), len(set(found))) == (10_000, 1)
    for worker in workers:
        worker.join()


def test_a_full_disk_is_told(tmp_path: Path) -> None:
    """A real one, of a megabyte, in a namespace of its own where mounts end with the process."""
    program = (
        "import sys; from pathlib import Path; from notewave.corpus.store import *; from notewave.errors import *\n"
        f"store = LocalStore(Path({str(tmp_path)!r}))\n"
        "with store.staging() as folder:\n"
        "    (folder / 'a').write_bytes(bytes(1000)); store.put(folder / 'a', 'x/a')\n"
        "try:\n"
        "    with store.staging() as folder: (folder / 'b').write_bytes(bytes(2 << 20))\n"
        "except OutputError as error: print(error)\n"
        "print(store.size('x/a'), store.size('b'), list(Path(store.url, MAKING).iterdir()))\n"
        "with store.staging() as folder:\n"
        "    (folder / 'c').write_bytes(bytes(500_000)); store.put(folder / 'c', 'x/c')\n"
    )
    mount = f'mount -t tmpfs -o size=1m none {tmp_path} || exit 77; exec {sys.executable} -c "$0"'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", mount, program], capture_output=True, text=True, check=False, cwd="/"
    )
    if done.returncode in (1, 77) and "Traceback" not in done.stderr:
        pytest.skip("only root mounts")
    assert (done.returncode, done.stderr) == (0, "")
    told, rest = done.stdout.splitlines()
    assert told.endswith("was not written: No space left on device. Make room and run it again: it goes on where it "
                         "stopped.")  # fmt: skip
    assert rest == "1000 None []"


def test_another_file_system_in_a_corpus_is_told(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from notewave.corpus.store import *; from notewave.errors import *\n"
        f"store = LocalStore(Path({str(tmp_path)!r}))\n"
        "try:\n"
        "    with store.staging() as folder: (folder / 'b').touch(); store.put(folder / 'b', 'audio/b')\n"
        "except OutputError as error: print(error)\n"
    )
    (tmp_path / "audio").mkdir()
    mount = f'mount -t tmpfs -o size=1m none {tmp_path}/audio || exit 77; exec {sys.executable} -c "$0"'
    done = subprocess.run(["unshare", "-m", "sh", "-c", mount, program], capture_output=True, text=True, check=False)
    if done.returncode in (1, 77) and "Traceback" not in done.stderr:
        pytest.skip("only root mounts")
    assert (done.returncode, done.stderr) == (0, "")
    assert "audio/b was not written: Invalid cross-device link. All of a corpus is on one file system" in done.stdout


def test_a_limit_on_files_is_told(store: LocalStore | UrlStore) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
        with pytest.raises(OutputError, match=r"File too large\. Raise the limit on the size of files"):
            put(store, "a", bytes(100_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert store.size("a") is None


@pytest.mark.parametrize("given", ["str(FOLDER)", "f'file://{FOLDER}'"])
def test_a_place_that_is_closed_to_us_is_told(tmp_path: Path, given: str) -> None:
    (tmp_path / "corpus").mkdir()
    program = (
        f"store = open_store({given})\n"
        "try:\n"
        "    with store.staging() as folder: (folder / 'a').touch(); store.put(folder / 'a', 'a')\n"
        "except OutputError as error: print(error)"
    )
    done = as_nobody(tmp_path / "corpus", program)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Permission denied. Let this user write there, or choose another place (--out)." in done.stdout


def test_a_name_that_no_disk_takes_is_told(tmp_path: Path) -> None:
    for store in (LocalStore(tmp_path), UrlStore(f"file://{tmp_path}")):
        with pytest.raises(OutputError, match=r"File name too long\. Give the song a shorter name"):
            put(store, "audio/" + "n" * 300, b"1")


def test_a_corpus_that_is_gone_is_told(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "gone")
    with pytest.raises(OutputError, match=r"was not written: No such file"), store.staging():
        pass
    (tmp_path / "file").touch()
    store = LocalStore(tmp_path / "file")
    with pytest.raises(OutputError, match=r"file/\.making was not written: Not a directory"), store.staging():
        pass


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    packages = {"s3": "s3fs", "gs": "gcsfs", "abfs": "adlfs", "oss": "ossfs", "sftp": "paramiko", "smb": "smbclient"}
    missing = [name for name, package in packages.items() if importlib.util.find_spec(package) is None]
    for name in missing:
        with pytest.raises(ToolError, match=rf"^{name}://host/music cannot be reached, .*{packages[name]}|smbprotocol"):
            open_store(f"{name}://user:word@host/music")
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    with pytest.raises(ToolError, match=r"Install notewave\[corpus\]\."):
        open_store("memory://music")


def test_a_url_that_leads_nowhere_is_told_without_its_password() -> None:
    with pytest.raises(OutputError, match=r"^nowhere://host/music was not written: .*Check the URL") as caught:
        open_store("nowhere://user:word@host/music")
    assert "word" not in str(caught.value)
