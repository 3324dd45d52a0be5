"""The command as its user types it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

import notewave
from notewave.backends.ort.backend import OrtRun
from notewave.cli import main


def test_render_writes_sound_and_picture(
    vocoded_voice: Path, midi_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, plot = tmp_path / "song.wav", tmp_path / "song.png"
    arguments = ["render", str(midi_folder / "piano_scale.mid"), "-o", str(out), "--voice", str(vocoded_voice)]
    assert main([*arguments, "--steps", "2", "--sampler", "dpmpp-2m", "--backend", "cpu", "--plot", str(plot)]) == 0
    report = capsys.readouterr().out
    assert "real-time factor" in report
    assert str(out) in report
    samples, rate = soundfile.read(out)
    assert rate == 16000
    assert len(samples) % 81920 == 0
    assert np.abs(samples).max() > 0
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_same_seed_same_file(vocoded_voice: Path, midi_folder: Path, tmp_path: Path) -> None:
    files = []
    for name, seed in (("a", "3"), ("b", "3"), ("c", "4")):
        out = tmp_path / f"{name}.wav"
        song = str(midi_folder / "piano_scale.mid")
        assert (
            main(["render", song, "-o", str(out), "--voice", str(vocoded_voice), "--steps", "1", "--seed", seed]) == 0
        )
        files.append(out.read_bytes())
    assert files[0] == files[1] != files[2]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["render", "missing.mid"], "missing.mid"),
        (["render", "."], ". cannot be opened: it is a folder"),
        (["render", "/"], "/ cannot be opened: it is a folder"),
        (["render", ""], "The empty path cannot be opened"),
        (["render", "{song}", "--voice", "missing voice"], "no voice"),
        (["render", "{song}", "--voice", "{voice}", "-o", "{folder}/no/out.wav"], "was not written"),
        (["render", "{song}", "--voice", "{voice}", "-o", "{folder}/out.xyz"], "no known sound format"),
        (["render", "{song}", "--voice", "{voice}", "-o", "{folder}/out.wav", "--steps", "0"], "steps"),
        (["render", "{song}", "--voice", "{voice}", "-o", "{folder}/no/new/"], "no/new/ was not made"),
        (["render", "{song}", "--voice", "{voice}", "--plot", "{folder}/no/mel.png"], "mel.png was not written"),
        (["render", "{song}", "--voice", "{voice}", "--plot", "{folder}/mel.mp3"], "Use .png, .svg, .pdf"),
        (["render", "{song}", "--voice", "{voice}", "--rate", "0"], "rate"),
        (["render", "{song}", "--voice", "{voice}", "--rate", "12345", "-o", "{folder}/a.mp3"], "another rate"),
        (["info", "missing voice"], "no voice"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_errors_are_one_line_and_leave_nothing(
    vocoded_voice: Path,
    midi_folder: Path,
    tmp_path: Path,
    arguments: list[str],
    words: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(OrtRun, "denoise", None)  # errors come before the work
    monkeypatch.chdir(tmp_path)
    places = {"song": midi_folder / "piano_scale.mid", "voice": vocoded_voice, "folder": tmp_path}
    assert main([argument.format(**places) for argument in arguments]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("notewave: ")
    assert captured.err.count("\n") == 1
    assert words in captured.err
    assert captured.out == ""
    assert not list(tmp_path.iterdir())


def test_errors_that_are_none_of_ours_are_shown_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("notewave.cli._run", lambda _: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        main(["voices"])


@pytest.mark.parametrize("module", ["notewave", "notewave.cli"])
def test_the_package_runs_as_a_module(module: str) -> None:
    done = subprocess.run([sys.executable, "-m", module, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"notewave {notewave.__version__}\n"


HEAVY = ("torch", "onnx", "matplotlib", "scipy", "music21", "librosa", "soxr", "sounddevice", "rtmidi")
HEAVY += ("notewave.benchmarks", "notewave.export")


def imported_by(*arguments: str) -> set[str]:
    """Which of HEAVY a process of its own has imported after the command, however that ended."""
    program = (
        "import contextlib, sys\n"
        "from notewave.cli import main\n"
        "with contextlib.suppress(SystemExit):\n"
        f"    main({list(arguments)!r})\n"
        f"print('imported', *({{*{HEAVY!r}}} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    name, *found = done.stdout.splitlines()[-1].split()
    assert name == "imported"
    return set(found)


@pytest.mark.parametrize(
    "arguments",
    [
        ["render", "--help"],
        ["render", "bench"],
        ["render", "bench.mid", "--voice", "bench"],
        ["info", "{voice}"],
        ["voices", "--help"],
        ["info", "bench"],
        ["--help"],
        ["train", "--help"],
        ["play", "--help"],
        ["play", "bench.mid", "--steps", "x"],
        ["live", "--help"],
        ["live", "--map", "bench"],
    ],
    ids=" ".join,
)
def test_commands_import_what_they_need(arguments: list[str], reference_voice: Path) -> None:
    assert imported_by(*(argument.format(voice=reference_voice) for argument in arguments)) == set()


def test_benchmarks_are_imported_when_they_are_chosen() -> None:
    for command in (["bench", "--help"], ["-v", "bench", "peer", "--help"]):
        assert imported_by(*command) == {"notewave.benchmarks", "notewave.export"}


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["bench", "--help"], "--compare"),
        (["bench", "peer", "--help"], "--no-modules"),
        (["bench", "roofline", "--help"], "--guidance"),
        (["bench", "quality", "--help"], "--reference-steps"),
        (["evaluate", "--help"], "--soundfont"),
        (["play", "--help"], "--out DEVICE"),
        (["live", "--help"], "--map CHANNEL=PROGRAMS"),
    ],
    ids=" ".join,
)
def test_every_command_has_its_own_help(command: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(command)
    assert left.value.code == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"usage: notewave {' '.join(command[:-1])} [")
    assert words in printed


@pytest.mark.parametrize(
    ("arguments", "missing", "extras"),
    [
        (["export", "--random", "tiny", "--out", "bench"], "torch", "export"),
        (["build", "band"], "onnx", "export,rtx"),
        (["train", "--out", "{folder}/export"], "torch", "export,train"),
        (["bench", "--help"], "notewave.benchmarks.trial", "export,plot"),
        (["bench", "--voice", "evaluate"], "notewave.benchmarks.trial", "export,plot"),
        (["evaluate", "bench"], "notewave.benchmarks.judges", "evaluate"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)
def test_what_is_not_installed_is_named_with_the_command_s_extras(
    arguments: list[str], missing: str, extras: str, vocoded_voice: Path, midi_folder: Path, tmp_path: Path
) -> None:
    places = {"song": midi_folder / "piano_scale.mid", "voice": vocoded_voice, "folder": tmp_path}
    words = [word.format(**places) for word in arguments]
    program = f"import sys; sys.modules[{missing!r}] = None; from notewave.cli import main; sys.exit(main({words!r}))"
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == f"notewave: {missing} is not installed, which this needs. Install notewave[{extras}].\n"


@pytest.mark.parametrize("backend", ["auto", "cpu", "cuda"])
def test_without_any_onnx_runtime_it_is_named(backend: str, vocoded_voice: Path, midi_folder: Path) -> None:
    command = ["render", str(midi_folder / "piano_scale.mid"), "--backend", backend, "--voice", str(vocoded_voice)]
    program = (
        f"import sys; sys.modules['onnxruntime'] = None; from notewave.cli import main; sys.exit(main({command!r}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("notewave: ONNX Runtime is not installed, and every backend but TensorRT needs it.")
    assert "Install notewave[cpu], or notewave[cuda]" in done.stderr


def test_info_tells_the_voice(reference_voice: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(reference_voice)]) == 0
    report = capsys.readouterr().out
    assert "epsilon" in report
    assert "checksums agree" in report


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_shells_learn_the_command(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("shtab")
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for word in ("render", "--max-bytes", "griffin-lim", "roofline", "play", "--midi-in"):
        assert word in script


def test_completion_says_what_it_needs(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completion", "bash"]) == 1
    assert "Install notewave[completion]" in capsys.readouterr().err
