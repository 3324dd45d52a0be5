"""Where the command's outputs may go: streams are written to, songs and nodes are never replaced."""

from __future__ import annotations

import io
import os
import shutil
import stat
import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile
from command import command, shell, start

from notewave.backends.ort.backend import OrtRun
from notewave.cli import main

WAV_HEADER = 44  # bytes


@pytest.fixture
def song(midi_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copyfile(midi_folder / "piano_scale.mid", tmp_path / "song.mid"))


@pytest.fixture
def words(vocoded_voice: Path, song: Path) -> list[str]:
    """A render without its output."""
    return ["render", str(song), "--voice", str(vocoded_voice), "--steps", "1"]


@pytest.fixture
def sound(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The samples that come of it, as a file has them."""
    out = tmp_path_factory.mktemp("sound") / "out.wav"
    assert main([*words, "-o", str(out)]) == 0
    return out.read_bytes()[WAV_HEADER:]


def test_sound_goes_to_standard_output_and_the_report_does_not(words: list[str], sound: bytes, tmp_path: Path) -> None:
    for out in ("-", "/dev/stdout", "/dev/fd/1"):
        code, made, errors = command(*words, "-o", out, "--plot", tmp_path / "mel.png")
        assert code == 0
        assert made[WAV_HEADER:] == sound
        assert b"real-time factor" in errors
        assert b"mel.png: its mel" in errors
    read, rate = soundfile.read(io.BytesIO(made), dtype="int16")
    assert (rate, len(read)) == (16000, len(sound) // 2)
    code, made, errors = command(*words, "-o", "/dev/fd/2")
    assert b"real-time factor" in made
    assert errors[WAV_HEADER:] == sound


def test_a_song_comes_from_standard_input(words: list[str], song: Path, sound: bytes, tmp_path: Path) -> None:
    for more in ([], ["-o", "-"]):
        code, made, errors = command("render", "-", *words[2:], *more, data=song.read_bytes())
        assert (code, made[WAV_HEADER:]) == (0, sound)
        assert errors.startswith(b"standard output: ")
    assert command("render", "-", *words[2:], "-o", tmp_path, data=song.read_bytes())[0] == 0
    assert (tmp_path / "stdin.wav").read_bytes()[WAV_HEADER:] == sound
    assert command("render", "-", *words[2:], data=b"no song")[0] == 1
    code, _, errors = shell(f"$notewave render - --voice {words[3]} <&-", tmp_path)
    assert (code, errors.count(b"\n")) == (1, 1)
    assert b"standard input cannot be read: it is closed" in errors


def test_sound_is_not_for_terminals(words: list[str], song: Path) -> None:
    import pty

    leader, follower = pty.openpty()
    try:
        for more in (words, ["render", "-", *words[2:]]):
            with (
                song.open("rb") as data,
                start(*more, *["-o", "-"] * (more is words), stdin=data, stdout=follower) as one,
            ):
                _, errors = one.communicate(timeout=60)
            assert one.returncode == 1
            assert b"Give the path of a file by -o" in errors
    finally:
        os.close(leader)
        os.close(follower)


def test_a_reader_who_leaves_ends_the_rendering(words: list[str], tmp_path: Path) -> None:
    code, _, errors = shell(f"$notewave {' '.join(words)} --steps 300 -o - | head -c 100", tmp_path)
    assert (code, errors) == (0, b"")
    os.mkfifo(tmp_path / "out.wav")
    with start(*words, "-o", tmp_path / "out.wav") as process:
        with (tmp_path / "out.wav").open("rb") as reader:
            reader.read(10)
        out, errors = process.communicate(timeout=60)
    assert (process.returncode, out, errors) == (0, b"", b"")


def test_a_full_standard_output_is_an_error_of_the_sound_s(words: list[str], tmp_path: Path) -> None:
    code, _, errors = shell(f"$notewave {' '.join(words)} -o - >/dev/full", tmp_path)
    assert code == 1
    assert errors.startswith(b"notewave: /dev/stdout was not written: No space left on device.")
    for out in ("-", "/dev/stdout"):
        code, _, errors = shell(f"$notewave {' '.join(words)} -o {out} >&-", tmp_path)
        assert code == 1
        assert errors.startswith(b"notewave: standard output was not written: it is closed.")
    assert [path.name for path in tmp_path.iterdir()] == ["song.mid"]


@pytest.mark.parametrize("linked", [False, True])
@pytest.mark.parametrize("name", ["out.wav", "out", "out.flac", "out.ogg"])
def test_fifos_are_streamed_into(words: list[str], sound: bytes, name: str, linked: bool, tmp_path: Path) -> None:
    fifo = out = tmp_path / name
    os.mkfifo(fifo)
    if linked:
        out = tmp_path / "link" / name
        out.parent.mkdir()
        out.symlink_to(fifo)
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(fifo.read_bytes()))
    reader.start()
    assert main([*words, "-o", str(out)]) == 0
    reader.join()
    assert fifo.is_fifo()
    assert out.is_symlink() == linked
    samples, _ = soundfile.read(io.BytesIO(read[0]), dtype="int16")
    assert len(samples) == len(sound) // 2
    if not name.endswith("ogg"):
        np.testing.assert_array_equal(samples, np.frombuffer(sound, "<i2"))
    assert len(list(tmp_path.iterdir())) == 2 + linked


def test_devices_are_written_to_and_not_replaced(words: list[str], tmp_path: Path) -> None:
    (tmp_path / "null.wav").symlink_to("/dev/null")
    for out in ("/dev/null", str(tmp_path / "null.wav")):
        assert main([*words, "-o", out]) == 0
    assert Path("/dev/null").is_char_device()
    assert (tmp_path / "null.wav").is_symlink()


def test_block_devices_and_sockets_are_refused(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import socket

    monkeypatch.setattr(OrtRun, "denoise", None)  # errors come before the work
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "out.wav"))
        assert main([*words, "-o", str(tmp_path / "out.wav")]) == 1
    assert "it is a socket" in capsys.readouterr().err
    try:
        os.mknod(tmp_path / "disk.wav", 0o600 | stat.S_IFBLK, os.makedev(7, 250))
    except PermissionError:
        pytest.skip("only root makes devices")
    assert main([*words, "-o", str(tmp_path / "disk.wav")]) == 1
    assert "it is a block device" in capsys.readouterr().err


@pytest.mark.parametrize("link", [None, "symbolic", "hard"])
def test_the_song_is_never_written_over(
    words: list[str], song: Path, link: str | None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OrtRun, "denoise", None)  # errors come before the work
    monkeypatch.chdir(song.parent)
    before = song.read_bytes()
    named = song.rename(song.with_name("song.wav"))  # which is its default name, too
    picture = song.with_name("mel.png")
    if link == "symbolic":
        picture.symlink_to(named)
    else:
        picture.hardlink_to(named)
    out = named
    if link is not None:
        out = song.with_name("other.wav")
        out.symlink_to(named) if link == "symbolic" else out.hardlink_to(named)
    for more in ([], ["-o", str(out)], ["-o", "."], ["-o", "./new.wav", "--plot", str(picture)]):
        assert main(["render", str(named), *words[2:], *more]) == 1
        error = capsys.readouterr().err
        assert f"it is the song {named}" in error
        assert error.count("\n") == 1
    assert named.read_bytes() == before
    same = ["-o", "both.png", "--plot", "both.png"]
    assert main(["render", str(named), *words[2:], *same]) == 1
    assert "goes there" in capsys.readouterr().err


@pytest.mark.parametrize("folder", ["new/", "there", "there/"])
def test_a_folder_takes_the_song_s_name(words: list[str], sound: bytes, folder: str, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    assert main([*words, "-o", f"{tmp_path}/{folder}", "--plot", f"{tmp_path}/{folder}"]) == 0
    assert (tmp_path / folder / "song.wav").read_bytes()[WAV_HEADER:] == sound
    assert (tmp_path / folder / "song.png").is_file()


def test_many_songs_are_one_file_each(
    words: list[str], midi_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.mid").write_bytes(b"no song")
    songs = [str(midi_folder / "late_start.mid"), str(tmp_path / "broken.mid"), words[1]]
    out = f"{tmp_path}/out/"
    assert main(["render", *songs, *words[2:], "-o", out, "--plot", out]) == 1
    captured = capsys.readouterr()
    assert captured.out.splitlines()[-1] == "2 of 3 songs rendered"
    assert captured.err.count("\n") == 1
    assert "broken.mid cannot be read as MIDI" in captured.err
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"late_start.wav", "late_start.png", "song.wav", "song.png"}
    assert main(["render", *songs[::2], *words[2:], "-o", out]) == 0


@pytest.mark.parametrize(
    ("songs", "more", "reason"),
    [
        (["a/song.mid", "b/song.mid"], ["-o", "out/"], "song.mid goes there"),
        (["a/song.mid", "a/song.mid"], [], "song.mid goes there"),
        (["a/song.mid", "-", "-"], ["-o", "out/"], "goes there"),
        (["a/song.mid", "b/other.mid"], ["-o", "out.wav"], "2 songs do not go into one file"),
        (["a/song.mid", "b/other.mid"], ["-o", "-"], "2 songs do not go into one file"),
        (["a/song.mid", "b/other.mid"], ["--plot", "mel.png"], "2 songs do not go into one file"),
        (["a/song.mid"], ["-o", "no/folder/"], "was not made"),
        (["a/song.mid"], ["-o", "a/song.mid/"], "was not made"),
        (["a/song.mid"], ["-o", "out/", "--rate", "0"], "rate"),
        (["a/none.mid"], ["-o", "out/"], "cannot be opened"),
    ],
)
def test_what_does_not_go_together_is_refused_before_any_work(
    songs: list[str],
    more: list[str],
    reason: str,
    words: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(OrtRun, "denoise", None)
    monkeypatch.chdir(tmp_path)
    for name in ("a/song.mid", "b/song.mid", "b/other.mid"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(words[1], tmp_path / name)
    before = sorted(tmp_path.rglob("*"))
    assert main(["render", *songs, *words[2:], *more]) == 1
    captured = capsys.readouterr()
    assert reason in captured.err
    assert (captured.out, captured.err.count("\n")) == ("", 1)
    assert sorted(tmp_path.rglob("*")) == before
