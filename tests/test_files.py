"""Outputs appear whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import shutil
import socket
import struct
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile

from notewave import Audio, OutputError
from notewave.files import (
    ReaderGone,
    atomic_file,
    atomic_folder,
    check_writable,
    descriptor_of,
    identity,
    is_stream,
    named_descriptor,
)
from notewave.sound.audio import FORMATS, audio_file


def test_file_appears_at_the_end_only(tmp_path: Path) -> None:
    target = tmp_path / "out.bin"
    with atomic_file(target) as temporary:
        temporary.write_bytes(b"new")
        assert not target.exists()
    assert target.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_interrupted_writes_leave_the_old_file(tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / "out.bin"
    target.write_bytes(b"old")
    with pytest.raises(error), atomic_file(target) as temporary:
        temporary.write_bytes(b"half")
        raise error
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_missing_folder_is_explained(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="was not written"):
        Audio(np.zeros(10, np.float32)).save(tmp_path / "no" / "song.wav")


@pytest.mark.parametrize("name", ["n" * 246 + ".bin", "ü" * 120, "n." + "s" * 250], ids=lambda name: name[-5:])
def test_long_names_that_are_legal_are_written(tmp_path: Path, name: str) -> None:
    with atomic_file(tmp_path / name) as temporary:
        temporary.write_bytes(b"new")
    assert (tmp_path / name).read_bytes() == b"new"


@pytest.mark.parametrize("exists", [True, False])
def test_a_link_stays_and_leads_to_the_new_file(tmp_path: Path, exists: bool) -> None:
    (tmp_path / "away").mkdir()
    target, link = tmp_path / "away" / "song.bin", tmp_path / "link.bin"
    link.symlink_to(target)
    if exists:
        target.write_bytes(b"old")
    with atomic_file(link) as temporary:
        temporary.write_bytes(b"new")
    assert link.is_symlink()
    assert target.read_bytes() == b"new"


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664])
def test_what_is_replaced_keeps_its_mode(tmp_path: Path, mode: int) -> None:
    before = os.umask(0o027)
    try:
        for target in (tmp_path / "old.bin", tmp_path / "new.bin"):
            if target.name == "old.bin":
                target.touch()
                target.chmod(mode)
            with atomic_file(target) as temporary:
                assert temporary.stat().st_mode & 0o777 == (mode if target.name == "old.bin" else 0o640)
        for folder in (tmp_path / "old", tmp_path / "new"):
            if folder.name == "old":
                folder.mkdir()
                folder.chmod(mode | 0o100)
            with atomic_folder(folder) as temporary:
                assert temporary.stat().st_mode & 0o777 == (mode | 0o700 if folder.name == "old" else 0o750)
                (temporary / "file").touch()
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert modes == {"old.bin": mode, "new.bin": 0o640, "old": mode | 0o100, "new": 0o750}


@pytest.mark.parametrize("mask", [0o777, 0o277])
def test_what_its_owner_may_not_write_is_written(tmp_path: Path, mask: int) -> None:
    """By its own mode, or by the umask; until it is there its owner may."""
    (tmp_path / "old.bin").touch()
    (tmp_path / "old").mkdir()
    for path in tmp_path.iterdir():
        path.chmod(0o500)
    before = os.umask(mask)
    try:
        for name, mode in (("old", 0o500), ("new", 0o777 & ~mask)):
            with atomic_file(tmp_path / f"{name}.bin") as file, atomic_folder(tmp_path / name) as folder:
                assert all(path.stat().st_mode & 0o600 == 0o600 for path in (file, folder))
                file.write_bytes(b"new")
            assert (tmp_path / f"{name}.bin").stat().st_mode & 0o777 == mode & (0o666 if name == "new" else 0o777)
            assert (tmp_path / name).stat().st_mode & 0o777 == mode
    finally:
        os.umask(before)


def test_what_becomes_private_meanwhile_stays_so(tmp_path: Path) -> None:
    with atomic_file(tmp_path / "file") as temporary:
        (tmp_path / "file").touch(0o600)
        temporary.write_bytes(b"new")
    with atomic_folder(tmp_path / "folder"):
        (tmp_path / "folder").mkdir(0o700)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o700


def test_the_umask_is_not_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To read it by setting it would give what other threads make meanwhile any mode."""
    before, over, modes = os.umask(0o027), threading.Event(), set()
    set_mask, touched = os.umask, []
    monkeypatch.setattr(os, "umask", lambda mask: touched.append(mask) or set_mask(mask))

    def write(target: Path) -> None:
        while not over.is_set():
            with atomic_file(target.with_suffix(".bin")), atomic_folder(target):
                pass
            modes.update(path.stat().st_mode & 0o777 for path in (target.with_suffix(".bin"), target))
            target.with_suffix(".bin").unlink()
            target.rmdir()

    writers = [threading.Thread(target=write, args=[tmp_path / f"{n}"]) for n in range(4)]
    try:
        for writer in writers:
            writer.start()
        for n in range(500):
            os.close(os.open(tmp_path / f"other{n}", os.O_CREAT | os.O_EXCL, 0o666))
            modes.add((tmp_path / f"other{n}").stat().st_mode & 0o777)
    finally:
        over.set()
        for writer in writers:
            writer.join()
        set_mask(before)
    assert (modes, touched) == ({0o640, 0o750}, [])


def test_a_folder_s_rules_for_new_files_count(tmp_path: Path) -> None:
    """Its access list's, which the umask does not change; as the system sets them."""
    entries = ((0x01, 7), (0x04, 7), (0x20, 0))  # user, group, others
    rules = struct.pack("<I", 2) + b"".join(struct.pack("<HHi", tag, may, -1) for tag, may in entries)
    try:
        os.setxattr(tmp_path, "system.posix_acl_default", rules)
    except (AttributeError, OSError):
        pytest.skip("no access lists here")
    before = os.umask(0o077)
    try:
        with atomic_file(tmp_path / "file"), atomic_folder(tmp_path / "folder"):
            pass
    finally:
        os.umask(before)
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in ("file", "folder")] == [0o660, 0o770]


def rewrite(target: Path) -> None:
    check_writable(target)
    with atomic_file(target) as temporary:
        temporary.write_bytes(b"new")


@pytest.mark.parametrize("reason", [errno.EBUSY, errno.EACCES, errno.EPERM, errno.EXDEV])
def test_what_cannot_be_renamed_onto_is_filled(tmp_path: Path, reason: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, target: Path) -> None:
        raise OSError(reason, os.strerror(reason))

    monkeypatch.setattr(Path, "replace", refuse)
    target = tmp_path / "song.bin"
    target.write_bytes(b"old and longer")
    inode = target.stat().st_ino
    rewrite(target)
    assert (target.read_bytes(), target.stat().st_ino) == (b"new", inode)
    with pytest.raises(OutputError, match="was not written"):
        rewrite(tmp_path / "other.bin")
    target.write_bytes(b"old")
    fill = shutil.copyfileobj

    def fails(source: Any, target: Any) -> None:
        fill(source, target)
        if source.name != target.name and str(source.name).startswith(str(tmp_path / ".song")):
            raise KeyboardInterrupt

    monkeypatch.setattr("shutil.copyfileobj", fails)
    with pytest.raises(KeyboardInterrupt):
        rewrite(target)
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_file_beside_which_nothing_can_be_made_is_filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a folder of a file system that takes no new files."""
    create = os.open

    def refuse(path: Path, flags: int, *mode: int) -> int:
        if flags & os.O_CREAT and Path(path).parent == tmp_path / "closed":
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return create(path, flags, *mode)

    target = tmp_path / "closed" / "song.bin"
    target.parent.mkdir()
    target.write_bytes(b"old and longer")
    monkeypatch.setattr(os, "open", refuse)
    rewrite(target)
    assert target.read_bytes() == b"new"
    with pytest.raises(OutputError, match="Read-only file system"):
        rewrite(target.with_name("other.bin"))
    assert list(target.parent.iterdir()) == [target]


def test_a_mounted_file_is_filled(tmp_path: Path) -> None:
    """In a namespace of its own, where mounts end with the process."""
    (tmp_path / "away.bin").write_bytes(b"old and longer")
    (tmp_path / "song.bin").touch()
    program = (
        "import pathlib, sys; from notewave.files import atomic_file, check_writable\n"
        f"check_writable({str(tmp_path / 'song.bin')!r})\n"
        f"with atomic_file({str(tmp_path / 'song.bin')!r}) as temporary: temporary.write_bytes(b'new')"
    )
    mount = f'mount --bind {tmp_path}/away.bin {tmp_path}/song.bin || exit 77; exec {sys.executable} -c "$0"'
    done = subprocess.run(["unshare", "-m", "sh", "-c", mount, program], capture_output=True, check=False)
    if done.returncode in (1, 77) and b"Traceback" not in done.stderr:
        pytest.skip("only root mounts")
    assert (done.returncode, done.stderr) == (0, b"")
    assert (tmp_path / "away.bin").read_bytes() == b"new"


def test_a_writable_file_in_a_closed_folder_is_filled(tmp_path: Path) -> None:
    target = tmp_path / "closed" / "song.bin"
    target.parent.mkdir()
    target.write_bytes(b"old and longer")
    target.chmod(0o666)
    for folder in (target.parent, tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    child = os.fork()
    if child == 0:  # root writes everywhere, nobody does not
        with contextlib.suppress(BaseException):
            if os.getuid() == 0:
                os.setuid(65534)
            else:
                target.parent.chmod(0o555)
            rewrite(target)
            with pytest.raises(OutputError):
                rewrite(target.with_name("other.bin"))
            os._exit(0)
        os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    target.parent.chmod(0o755)
    assert target.read_bytes() == b"new"
    assert list(target.parent.iterdir()) == [target]


def test_streams_are_told_from_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to(tmp_path / "fifo")
    (tmp_path / "out").symlink_to("/dev/stdout")
    for path in (tmp_path / "fifo", tmp_path / "link", "/dev/null", "/dev/stdout", "/dev/fd/1", tmp_path / "out"):
        assert is_stream(path)
        check_writable(path)
    assert not is_stream(tmp_path / "none")
    assert not is_stream(tmp_path)
    assert descriptor_of(tmp_path / "out") == descriptor_of("/proc/self/fd/1") == 1
    assert descriptor_of("/dev/fd/2") == descriptor_of("/dev/../dev/stderr") == 2
    assert descriptor_of(tmp_path / "fifo") is descriptor_of("/dev/null") is None
    assert named_descriptor("/dev/stdin") == named_descriptor("/proc/self/fd/0") == 0
    assert named_descriptor(tmp_path / "out") is named_descriptor(tmp_path) is None
    with (tmp_path / "file").open("wb") as file:
        assert is_stream(f"/dev/fd/{file.fileno()}")


def test_where_a_path_leads_is_said_of_any_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also from a folder that is gone."""
    (tmp_path / "circle").symlink_to("circle")
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    paths = [tmp_path / "circle", tmp_path / ("n" * 300), tmp_path / "no" / "file", "song.wav", "", "n" * 300]
    for path in paths:
        assert descriptor_of(path) is None
        assert not is_stream(path)
    for path in (*paths, "a\0b", "\ud800"):
        assert identity(path) == identity(path)
    for path in paths:
        with pytest.raises(OutputError, match="was not written"):
            check_writable(path)
    check_writable(tmp_path / "song.wav")


def test_a_stream_gets_all_of_a_file_and_says_when_its_reader_leaves(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    data, read = bytes(range(256)) * 4096, []
    thread = threading.Thread(target=lambda: read.append(os.fdopen(reader, "rb").read()))
    thread.start()
    with atomic_file(f"/dev/fd/{writer}") as temporary:
        temporary.write_bytes(data)
    os.close(writer)
    thread.join()
    assert read == [data]
    reader, writer = os.pipe()
    os.close(reader)
    with pytest.raises(ReaderGone, match="reader went away"):
        Audio(np.zeros(10, np.float32)).save(f"/dev/fd/{writer}")
    os.close(writer)
    with pytest.raises(OutputError, match="Bad file descriptor"):
        Audio(np.zeros(10, np.float32)).save("/dev/fd/999")
    with pytest.raises(OutputError, match="No space left"):
        Audio(np.zeros(10, np.float32)).save("/dev/full")


def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "circle.wav").symlink_to(tmp_path / "circle.wav")
    for path in (
        tmp_path,
        tmp_path / "circle.wav",
        tmp_path / "a\0b.wav",
        tmp_path / ("n" * 300),
        None,
        b"song.wav",
        5,
    ):
        with pytest.raises(OutputError, match="was not written"), atomic_file(path):  # type: ignore[arg-type]
            raise RuntimeError
        with pytest.raises(OutputError, match="was not written"):
            check_writable(path)  # type: ignore[arg-type]
    assert [entry.name for entry in tmp_path.iterdir()] == ["circle.wav"]


def test_a_socket_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's path is short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("song.wav")
        for question in (lambda: check_writable("song.wav"), lambda: rewrite(Path("song.wav"))):
            with pytest.raises(OutputError, match=r"it is a socket\. Give the path of a file"):
                question()


def test_a_stream_that_takes_nothing_of_ours_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "fifo")
    check_writable(tmp_path / "fifo")
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # which root is never told
    with pytest.raises(OutputError, match="Permission denied"):
        check_writable(tmp_path / "fifo")


def test_what_can_be_written_is_not_touched_by_the_question(tmp_path: Path) -> None:
    (tmp_path / "song.wav").write_bytes(b"old")
    check_writable(tmp_path / "song.wav")
    check_writable(tmp_path / "other.wav")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".aiff", ".aif", ".WAV"])
def test_audio_files_hold_the_samples(tmp_path: Path, suffix: str) -> None:
    samples = np.linspace(-1, 1, 16000, dtype=np.float32)
    audio = Audio(samples)
    assert audio.duration == 1.0
    audio.save(tmp_path / f"song{suffix}")
    read, rate = soundfile.read(tmp_path / f"song{suffix}", dtype="float32")
    assert rate == 16000
    np.testing.assert_allclose(read, samples, atol=1 / 32767)


@pytest.mark.parametrize("suffix", [".ogg", ".mp3"])
def test_lossy_files_hold_the_sound(tmp_path: Path, suffix: str) -> None:
    samples = 0.5 * np.sin(np.arange(100_000, dtype=np.float32) / 20)
    Audio(samples).save(tmp_path / f"song{suffix}")
    read, _ = soundfile.read(tmp_path / f"song{suffix}", dtype="float32")
    assert len(read) == len(samples)
    assert np.corrcoef(read, samples)[0, 1] > 0.99


@pytest.mark.parametrize("suffix", FORMATS)
def test_what_is_too_loud_is_cut(tmp_path: Path, suffix: str) -> None:
    """To what any format has: LAME ended the process."""
    wave = np.sin(np.arange(20_000) / 20)
    for loudness, kind in ((1e30, np.float32), (1e308, np.float64)):
        Audio((loudness * wave).astype(kind)).save(tmp_path / f"song{suffix}")
        read, _ = soundfile.read(tmp_path / f"song{suffix}")
        assert np.corrcoef(read, np.clip(1e30 * wave, -1, 1))[0, 1] > 0.97
        assert np.abs(read).max() < 2


def test_long_songs_become_vorbis(tmp_path: Path) -> None:
    """More samples than libsndfile's Vorbis takes at once."""
    audio = Audio(np.zeros(300 * 16000, np.float32))
    audio.save(tmp_path / "song.ogg")
    assert soundfile.info(tmp_path / "song.ogg").frames == len(audio.samples)


@pytest.mark.parametrize("name", ["song.docx", "song.raw", "song.mat", "song"])
def test_unknown_format_is_explained(tmp_path: Path, name: str) -> None:
    with pytest.raises(OutputError, match=r"Use \.wav, \.flac"):
        Audio(np.zeros(10, np.float32)).save(tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", FORMATS)
def test_what_is_no_sound_is_explained(tmp_path: Path, suffix: str) -> None:
    silence = np.zeros(10, np.float32)
    for samples, fact in (
        (np.zeros((10, 2), np.float32), r"the samples are float32 \[10, 2\]"),
        (np.zeros(10, np.int64), r"the samples are int64 \[10\]"),
        (silence.tolist(), "the samples are"),
        (None, "the samples are None"),
        (silence * np.nan, "no finite number"),
        (silence[:0], "the sound has no samples"),
    ):
        with pytest.raises(OutputError, match=fact):
            Audio(samples).save(tmp_path / f"song{suffix}")  # type: ignore[arg-type]
    for rate in (0, -1, 1 << 40, 250_000, "16000", None, True):
        with pytest.raises(OutputError, match="its rate is"):
            Audio(silence, rate).save(tmp_path / f"song{suffix}")  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_a_rate_that_a_format_has_not_is_explained(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="Choose another rate or format"):
        Audio(np.zeros(10, np.float32), 12345).save(tmp_path / "song.mp3")


def test_the_errors_of_those_who_write_stay_theirs(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="of their own"), audio_file(tmp_path / "song.wav") as file:
        file.write(np.zeros(10, np.float32))
        raise AssertionError("of their own")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_file_that_came_out_too_short_is_not_kept(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """libsndfile tells of no room for what its encoders hold back to the end."""
    facts = soundfile.info
    monkeypatch.setattr(soundfile, "info", lambda name: SimpleNamespace(frames=facts(name).frames - 1153))
    with pytest.raises(OutputError, match="the disk took only a part"):
        Audio(np.zeros(10_000, np.float32)).save(tmp_path / f"song{suffix}")
    assert not list(tmp_path.iterdir())


def test_full_disk_leaves_nothing(tmp_path: Path) -> None:
    """A limit on file sizes fails writes as a full disk does."""
    import signal

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        with pytest.raises(OutputError, match="the disk took only a part"):
            Audio(np.zeros(1_000_000, np.float32)).save(tmp_path / "song.wav")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert not list(tmp_path.iterdir())
