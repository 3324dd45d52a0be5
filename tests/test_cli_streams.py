"""What the command prints: plain text for any terminal, and no failure of the command's when none can be shown."""

from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path

import pytest
import soundfile
from command import command, shell

from notewave.checks import shown
from notewave.cli import main
from notewave.cli.streams import logged, standard_streams

ESCAPES = "\x1b]0;pwned\x07\x1b[2Jband\r\nnotewave: fake"
STRANGE = {
    "latin-1": b"caf\xe9",
    "utf-8": "été 日本".encode(),
    "escapes": b"\x1b[2J\nsong",
    "mathtext": b"a$b^{_$",
}
LOCALES = {
    "ascii": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"},
    "cp1252": {"LC_ALL": "C.UTF-8", "PYTHONIOENCODING": "cp1252"},
    "utf-8": {"LC_ALL": "C.UTF-8"},
}


@pytest.fixture
def song(midi_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copyfile(midi_folder / "piano_scale.mid", tmp_path / "song.mid"))


def test_texts_are_shown_on_one_line() -> None:
    assert shown("a song, été 日本.mid") == "a song, été 日本.mid"
    assert shown("\x1b[2J\r\n\t\x7f\x9b\u202e") == r"\x1b[2J\r\n\t\x7f\x9b\u202e"
    assert shown(os.fsdecode(b"caf\xe9")) == r"caf\xe9"
    assert shown(Path("a")) == "a"


@pytest.mark.parametrize("locale", LOCALES.values(), ids=LOCALES)
def test_names_that_no_terminal_speaks_are_rendered(
    locale: dict[str, str], vocoded_voice: Path, song: Path, tmp_path: Path
) -> None:
    folder = tmp_path / os.fsdecode(b"d\xe9r")
    folder.mkdir()
    songs = [folder / os.fsdecode(name + b".mid") for name in STRANGE.values()]
    for path in songs:
        shutil.copyfile(song, path)
    words = ["render", *songs, "-o", folder, "--plot", folder, "--steps", "1", "--voice", vocoded_voice]
    code, out, errors = command(*words, env=locale)
    assert (code, errors) == (0, b"")
    for path in songs:
        assert soundfile.info(os.fsencode(path.with_suffix(".wav"))).frames
        assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert rb"d\xe9r/caf\xe9.wav: " in out
    assert rb"\x1b[2J\nsong.png: its mel" in out
    if locale is LOCALES["ascii"]:
        assert out.isascii()
    code, out, errors = command("info", songs[0], env=locale)
    assert code == 0
    assert rb"caf\xe9.mid: " in out


@pytest.mark.parametrize("locale", LOCALES.values(), ids=LOCALES)
def test_a_refused_name_is_shown(locale: dict[str, str]) -> None:
    for words in (["render", b"caf\xe9\x1b[2J.mid"], ["info", b"caf\xe9\x1b[2J"], [b"caf\xe9\x1b[2J"]):
        code, out, errors = command(*words, env=locale)
        assert code == 2 - (len(words) > 1)
        assert out == b""
        assert b"\x1b" not in errors
        assert rb"\x1b[2J" in errors
        assert b"Traceback" not in errors


def test_what_a_voice_says_of_itself_obeys_no_terminal(vocoded_voice: Path, song: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(vocoded_voice, tmp_path / "voice"))
    content = json.loads((folder / "voice.json").read_text())
    (folder / "voice.json").write_text(json.dumps(content | {"name": ESCAPES, "licence": ESCAPES}))
    code, out, errors = command("info", folder)
    assert (code, errors) == (0, b"")
    assert out.startswith(rb"\x1b]0;pwned\x07\x1b[2Jband\r\nnotewave: fake: ")
    assert b"\x1b" not in out
    picture = tmp_path / "mel.svg"
    words = ["render", song, "-o", tmp_path / "a.wav", "--plot", picture, "--voice", folder, "--steps", "1"]
    assert command(*words)[0] == 0
    assert b"\x1b" not in picture.read_bytes()
    (folder / "vocoder.onnx").unlink()
    code, out, errors = command("info", folder)
    assert code == 1
    (folder / "voice.json").write_text(json.dumps(content | {"vocoder": None, "name": ESCAPES, ESCAPES: 1}))
    code, out, errors = command("info", folder)
    assert (code, out) == (1, b"")
    assert errors.count(b"\n") == 1
    assert b"\x1b" not in errors


def test_warnings_obey_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with standard_streams(), logged(verbose=False):
        logging.getLogger("notewave").warning("%s is odd", ESCAPES)
        logging.getLogger("notewave").info("nothing")
    assert capsys.readouterr().err == f"notewave: {shown(ESCAPES)} is odd\n"


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("$notewave info {voice} | head -n 1", 0),
        ("$notewave info {voice} | true", 0),
        ("$notewave --help | true", 0),
        ("$notewave info {voice} >&-", 0),
        ("$notewave info {voice} >/dev/full", 0),
        ("$notewave bench --help >/dev/full", 0),
        ("$notewave info {voice} >/dev/full 2>&1", 0),
        ("$notewave info {voice} 2>&-", 0),
        ("$notewave info {voice} <&- >&- 2>&-", 0),
        ("$notewave info nothing 2>&-", 1),
        ("$notewave info nothing 2>/dev/full", 1),
        ("$notewave render {song} --voice {voice} --steps 1 -o song.wav >&-", 0),
        ("$notewave render {song} --voice {voice} --steps 1 -o song.wav >/dev/full", 0),
        ("$notewave render {song} --voice {voice} --steps 1 -o song.wav >/dev/full 2>&1", 0),
        ("$notewave render {song} --voice {voice} --steps 1 -o song.wav <&- >&- 2>&-", 0),
        ("$notewave render {song} --voice {voice} --steps 1 -o song.wav --plot song.png | true", 0),
    ],
)
def test_what_cannot_be_shown_is_no_failure(
    line: str, code: int, vocoded_voice: Path, song: Path, tmp_path: Path
) -> None:
    left, _, errors = shell(line.format(voice=vocoded_voice, song=song), tmp_path)
    assert left == code
    assert b"Traceback" not in errors
    assert b"Exception ignored" not in errors
    assert b"notewave: " not in errors
    if "song.wav" in line:
        assert soundfile.info(tmp_path / "song.wav").frames
    if "song.png" in line:
        assert (tmp_path / "song.png").is_file()


def test_the_reports_of_two_commands_in_one_process(vocoded_voice: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        assert main(["info", str(vocoded_voice)]) == 0
        assert capsys.readouterr().out.startswith("reference: ")
