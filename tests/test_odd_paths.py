"""Whatever stands at a path, or is read instead of one: an error of the family at once, and no waiting."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import command, shell, start

from notewave import Audio, MidiError, OutputError, examine, read, tokenize
from notewave.cli import main
from notewave.sound.mel import MELS
from notewave.sound.plot import check_picture, save_mel_picture
from notewave.voice.library import voices

SONG = Path(__file__).parent / "data" / "midi" / "piano_scale.mid"
TYPED = ("n" * 300, "a\0b", "\ud800")  # what no file is called


def short(path: str) -> str:
    """A path as a test's name."""
    return ascii(path)[1:12]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that we are in, of what is no song."""
    monkeypatch.chdir(tmp_path)
    os.mkfifo("fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
    Path("circle").symlink_to("circle")
    for name, target in (("zero", "/dev/zero"), ("kmsg", "/proc/kmsg"), ("tty", "/dev/tty"), ("stdin", "/dev/stdin")):
        Path(name).symlink_to(target)
    Path("folder").mkdir()
    return tmp_path


NO_SONGS = ("fifo", "socket", "circle", "zero", "kmsg", "tty", "stdin", "folder", "fifo/song.mid", "none")
PATHS = ("/dev/zero", "/dev/random", "/proc/kmsg", "/dev/tty", "/dev/fd/0", "/dev/stdin", "/")


def test_what_is_no_file_is_no_song(folder: Path) -> None:
    """In a process with a pipe to read from that nobody writes to."""
    program = (
        "import sys; from notewave import MidiError, examine, read, tokenize\n"
        "for path in sys.argv[1:]:\n"
        "    for call in (examine, read, tokenize):\n"
        "        try: call(path)\n"
        "        except MidiError as error: print(error)"
    )
    words = [sys.executable, "-c", program, *NO_SONGS, *PATHS]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.wait(60) == 0
        said = process.stdout.read().splitlines()
    assert len(said) == 3 * len(words[3:])
    for path, line in zip(words[3:], said[::3], strict=True):
        assert line.startswith(f"{path} cannot be ")
    kinds = dict(zip(words[3:], said[::3], strict=True))
    assert "it is a FIFO, not a file. Give the path" in kinds["fifo"]
    assert "it is a FIFO" in kinds["/dev/fd/0"]
    assert "Too many levels of symbolic links. Check the path." in kinds["circle"]
    assert "it is a device" in kinds["/dev/zero"]


@pytest.mark.parametrize("path", [*TYPED, "\udce9.mid"], ids=short)
def test_what_no_file_is_called_is_no_song(path: str) -> None:
    for source in (path, Path(path)):
        with pytest.raises(MidiError, match="cannot be opened") as caught:
            tokenize(source)
        assert str(caught.value).encode().isascii(), "and can be printed"


def test_the_command_waits_for_no_path(folder: Path) -> None:
    songs = [*NO_SONGS[:-2], "/dev/random", "/"]
    with start("render", *songs, SONG, "-o", "out/", "--voice", "none", stdin=subprocess.PIPE) as process:
        _, errors = process.communicate(timeout=60)
    lines = errors.decode().splitlines()
    assert process.returncode == 1
    assert len(lines) == len(songs) + 1, "and the voice"
    assert all(line.startswith(f"notewave: {song} cannot be ") for song, line in zip(songs, lines, strict=False))


@pytest.mark.parametrize("path", [*NO_SONGS, *PATHS[:4], *TYPED], ids=short)
def test_a_song_or_voice_that_is_neither_is_told_in_one_line(
    path: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (
        ["info", path],
        ["info", f"{path}.mid"],
        ["render", path],
        ["render", f"{SONG}", "--voice", path],
        ["render", f"{SONG}", "-o", f"{path}/no/song.wav"],
        ["render", f"{SONG}", "--plot", f"{path}/no/song.png"],
    ):
        assert main(words) == 1
        assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    "line",
    [
        "$notewave info <(cat song.mid)",
        "$notewave info /dev/stdin < song.mid",
        "cat song.mid | $notewave info /dev/stdin; exit $?",
        "cat song.mid | $notewave info -; exit $?",
        "$notewave info - < <(sleep 0.2; head -c 30 song.mid; sleep 0.2; tail -c +31 song.mid)",
        "$notewave info /dev/fd/3 3< <(cat song.mid)",
        "$notewave info /dev/../dev/fd/3 3< song.mid",
        "exec 3< song.mid; $notewave info /dev/fd/3 > /dev/null; $notewave info /dev/fd/3",
        "cat song.mid > fifo & exec 3< fifo; sleep 0.3; $notewave info /dev/fd/3",
    ],
)
def test_what_is_handed_over_is_read(line: str, tmp_path: Path) -> None:
    shutil.copyfile(SONG, tmp_path / "song.mid")
    os.mkfifo(tmp_path / "fifo")
    code, out, errors = shell(line, tmp_path)
    assert (code, errors) == (0, b"")
    assert f"{len(read(SONG))} notes".encode() in out


def test_what_is_handed_over_is_rendered(vocoded_voice: Path, tmp_path: Path) -> None:
    shutil.copyfile(SONG, tmp_path / "song.mid")
    line = f"$notewave render <(cat song.mid) /dev/fd/3 -o out/ --voice {vocoded_voice} --steps 1 3< <(cat song.mid)"
    code, out, errors = shell(line, tmp_path)
    assert (code, errors) == (0, b"")
    assert out.endswith(b"2 of 2 songs rendered\n")
    one, other = (tmp_path / "out").iterdir()
    assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize("name", ["-", "/dev/stdin", "/dev/fd/0"])
def test_a_pipe_that_does_not_wait_is_waited_for(name: str) -> None:
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    data = SONG.read_bytes()

    def write() -> None:
        for part in (data[:40], data[40:]):
            threading.Event().wait(1)  # longer than the command takes to begin
            os.write(writer, part)
        os.close(writer)

    slow = threading.Thread(target=write)
    with start("info", name, stdin=reader) as process:
        slow.start()
        out, errors = process.communicate(timeout=60)
    slow.join()
    os.close(reader)
    assert (process.returncode, errors) == (0, b"")
    assert b" notes\n" in out


def test_streams_that_are_no_songs_end(tmp_path: Path) -> None:
    for line, fact in (
        ("$notewave info - < /dev/zero", b"larger than 4 MiB"),
        ("$notewave info /dev/fd/3 3< /dev/zero", b"larger than 4 MiB"),
        ("$notewave info /dev/fd/3 3< .", b"it is a folder"),
        ("$notewave info /dev/fd/9", b"cannot be opened"),
        ("$notewave info - 0> file", b"cannot be read"),
        ("$notewave info /dev/fd/3 3> >(cat)", b"cannot be read"),
    ):
        code, _, errors = shell(line, tmp_path)
        assert code == 1
        assert errors.count(b"\n") == 1
        assert fact in errors


PACKED = {"gzip": (gzip.compress, gzip.open), "bz2": (bz2.compress, bz2.open), "lzma": (lzma.compress, lzma.open)}


@pytest.mark.parametrize("kind", PACKED)
def test_a_compressed_song_is_read_whole_or_refused(kind: str) -> None:
    compress, opened = PACKED[kind]
    packed = compress(SONG.read_bytes())
    assert len(read(opened(io.BytesIO(packed)))) == len(read(SONG))
    broken = [packed[:size] for size in (1, 5, 15, len(packed) // 2, len(packed) - 1)]
    broken += [packed[:at] + bytes([packed[at] ^ 0xFF]) + packed[at + 1 :] for at in range(0, len(packed), 7)]
    broken += [SONG.read_bytes(), packed + b"more"]
    refused = 0
    for data in broken:
        try:
            read(opened(io.BytesIO(data)))
        except MidiError as error:
            refused += "cannot be read" in str(error)
    assert refused > len(broken) * 0.8, "but for bytes of the header that tell nothing"


class Stream:
    """A binary file whose reads give, or raise, one thing after another."""

    def __init__(self, *parts: Any) -> None:
        self.parts, self.asked = iter(parts), 0

    def read(self, size: int) -> Any:
        self.asked = size
        part = next(self.parts, b"")
        if isinstance(part, BaseException):
            raise part
        return part


class NoText(Exception):
    def __str__(self) -> str:
        raise RuntimeError


ODD = ("text", None, 5, [], np.zeros(3, np.uint8), [b"MThd"], OSError(5, "Input/output error"), EOFError(), NoText())
ODD += (RecursionError("deep"), MemoryError(), UnicodeDecodeError("utf-8", b"a", 0, 1, "odd"), StopIteration())


@pytest.mark.parametrize("part", ODD, ids=lambda part: type(part).__name__)
def test_a_stream_that_gives_no_bytes_is_refused(part: Any) -> None:
    for parts in ((part,), (SONG.read_bytes()[:50], part)):
        with pytest.raises(MidiError, match="cannot be read"):
            examine(Stream(*parts))  # type: ignore[arg-type]


def test_what_ends_the_program_is_no_fault_of_a_stream_s() -> None:
    for end in (KeyboardInterrupt, SystemExit):
        with pytest.raises(end):
            read(Stream(end()))  # type: ignore[arg-type]


def test_a_stream_gives_its_bytes_bit_by_bit() -> None:
    data = SONG.read_bytes()
    assert len(read(Stream(*(data[at : at + 7] for at in range(0, len(data), 7))))) == len(read(SONG))  # type: ignore[arg-type]
    every_second = memoryview(bytes(np.repeat(np.frombuffer(data, np.uint8), 2)))[::2]
    assert len(read(Stream(bytearray(data[:9]), every_second[9:]))) == len(read(SONG))  # type: ignore[arg-type]
    with SONG.open("rb", buffering=0) as file:
        assert len(read(file)) == len(read(SONG))


def endless(part: bytes) -> Iterator[bytes]:
    while True:
        yield part


def test_a_stream_that_gives_too_much_is_refused() -> None:
    for stream in (Stream(bytes(5 << 20)), Stream(*[bytes(1 << 20)] * 9), Stream()):
        stream.parts = stream.parts if stream.parts.__length_hint__() else endless(bytes(1 << 10))
        with pytest.raises(MidiError, match="larger than 4 MiB"):
            read(stream)  # type: ignore[arg-type]
        assert stream.asked <= 1 << 20, "bytes"
    huge = sys.maxsize - 1
    assert len(read(Stream(SONG.read_bytes()), max_bytes=huge)) == len(read(SONG, max_bytes=huge))  # type: ignore[arg-type]


def test_bytes_are_counted_as_such() -> None:
    numbers = memoryview(np.zeros(1000, np.int64))
    with pytest.raises(MidiError, match="larger than 1000 bytes"):
        read(numbers, max_bytes=1000)  # type: ignore[arg-type]
    with pytest.raises(MidiError):
        read(memoryview(np.zeros((), np.uint8)))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["circle", *TYPED, "folder", "fifo/x"], ids=short)
def test_outputs_that_can_be_no_files_are_refused(name: str, folder: Path) -> None:
    Path("circle.png").symlink_to("circle.png")
    Path("circle.wav").symlink_to("circle.wav")
    Path("folder.png").mkdir()
    Path("folder.wav").mkdir()
    mel = np.zeros((10, MELS), np.float32)
    for call in (
        lambda: check_picture(f"{name}.png"),
        lambda: save_mel_picture({"a": mel}, f"{name}.png"),
        lambda: Audio(np.zeros(10, np.float32)).save(f"{name}.wav"),
    ):
        with pytest.raises(OutputError, match="was not written") as caught:
            call()
        assert str(caught.value).encode().isascii(), "and can be printed"


def test_the_command_runs_in_a_folder_that_is_gone(vocoded_voice: Path, tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    render = f"$notewave render {SONG} --voice {vocoded_voice} --steps 1"
    line = f"cd gone; rmdir ../gone; {render} -o {tmp_path}/song.wav && $notewave info {SONG} >&2 && {render}"
    code, _, errors = shell(line, tmp_path)
    assert code == 1
    assert b"Traceback" not in errors
    assert errors.splitlines()[-1].startswith(b"notewave: piano_scale.wav was not written: No such file")
    assert (tmp_path / "song.wav").is_file()


def test_voices_that_are_none_are_listed_at_once(tmp_path: Path) -> None:
    root = tmp_path / "voices"
    for name in ("fifo", "zero", "kmsg", "folder", "circle", "deep", "huge"):
        (root / name).mkdir(parents=True)
    os.mkfifo(root / "fifo" / "voice.json")
    (root / "zero" / "voice.json").symlink_to("/dev/zero")
    (root / "kmsg" / "voice.json").symlink_to("/proc/kmsg")
    (root / "folder" / "voice.json").mkdir()
    (root / "circle" / "voice.json").symlink_to("voice.json")
    (root / "deep" / "voice.json").write_text("[" * 1_000_000)
    with (root / "huge" / "voice.json").open("wb") as file:
        file.truncate(1 << 40)
    os.mkfifo(root / "node")
    code, out, errors = command("voices", env={"NOTEWAVE_VOICES": f"{root}"})
    assert (code, errors) == (0, b"")
    assert [line.split()[0] for line in out.splitlines()[1:-1]] == [b"deep", b"huge", b"kmsg"]


@pytest.mark.parametrize("name", ["circle", "fifo", "zero", "kmsg", "n" * 300])
def test_a_voice_folder_that_is_none_is_told(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from notewave import VoiceError

    monkeypatch.setenv("NOTEWAVE_VOICES", str(folder / name))
    with pytest.raises(VoiceError, match=r"voice folder .* cannot be read"):
        voices()
    for words in (["voices"], ["info", "none"], ["render", f"{SONG}", "--voice", "none"]):
        assert main(words) == 1


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_names_of_any_bytes_are_listed(encoding: str, tmp_path: Path) -> None:
    root = tmp_path / os.fsdecode(b"d\xe9r\x1b[2J\n")
    (root / "deep").mkdir(parents=True)
    (root / "deep" / "voice.json").touch()
    environment = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": encoding, "NOTEWAVE_VOICES": os.fspath(root)}
    code, out, errors = command("voices", env=environment)
    assert (code, errors) == (0, b"")
    assert rb"d\xe9r\x1b[2J\n/deep" in out


def test_training_and_export_refuse_what_can_be_no_folder_first(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before hours of work, and before what they need is imported."""
    for words in (
        ["export", "--random", "base", "--out"],
        ["train", "--out"],
        ["train", "--state"],
        ["train", "--pack"],
    ):
        for path in ("circle", *TYPED, "socket"):
            assert main([*words, path]) == 1
            error = capsys.readouterr().err
            assert error.count("\n") == 1
            assert "was not written" in error


def test_an_end_beyond_all_time_is_the_song_s(vocoded_voice: Path, tmp_path: Path) -> None:
    words = ["render", f"{SONG}", "--voice", f"{vocoded_voice}", "--steps", "1", "-o", f"{tmp_path}/a.wav"]
    assert main([*words, "--end", "1e308"]) == 0
