"""``notewave corpus``: what it is told, what it says."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from notewave import Notes, to_midi
from notewave.cli import main
from notewave.cli.corpus import TOLD
from notewave.corpus import Making

pytest.importorskip("pyarrow")


@pytest.fixture
def songs(tmp_path: Path) -> Path:
    folder = tmp_path / "songs"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.mid").write_bytes(to_midi(Notes([0.0], [1.0], [60 + number], [80], [0], [False])))
    return folder


@pytest.fixture
def words(songs: Path, tmp_path: Path, vocoded_voice: Path) -> list[str]:
    more = ["--voice", str(vocoded_voice), "--steps", "1", "--workers", "0", "--backend", "cpu", "--format", "ogg"]
    return ["corpus", str(songs), "--out", str(tmp_path / "out"), *more]


def test_it_says_what_a_run_came_to(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words, "--seeds", "0-1,7"]) == 0
    out, error = capsys.readouterr()
    assert out.startswith(f"{tmp_path / 'out'}: 9 songs sung, 46 s of music in ") and not error
    assert {path.name for path in (tmp_path / "out" / "audio").iterdir()} == {
        f"{song}{seed}.ogg" for song in range(3) for seed in ("", ".s1", ".s7")
    }
    assert main([*words, "--seeds", "1,7"]) == 0
    assert capsys.readouterr().out.partition(" in ")[0].endswith(": 0 songs sung, 0 s of music")
    assert main([*words, "--verify"]) == 0
    assert capsys.readouterr().out.endswith("; 3 there before\n")


def test_songs_that_cannot_be_sung_are_said_and_counted(
    words: list[str], songs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(TOLD + 5):
        (songs / f"bad {number}.mid").write_bytes(b"bad")
    assert main(words) == 1
    out, error = capsys.readouterr()
    assert f"3 songs sung, 15 s of music in 0 s; {TOLD + 5} that cannot be sung" in out.replace("in 1 s", "in 0 s")
    said = error.splitlines()
    assert len(said) == TOLD + 1 and said[-1] == "notewave: and 5 more; manifest.jsonl says why."
    assert all("bad " in line and "cannot be read as MIDI" in line for line in said[:-1])
    assert main(words) == 1, "they still cannot"
    assert capsys.readouterr().err == "", "but that was said"


def test_songs_may_be_listed_on_standard_input(
    words: list[str], songs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = io.TextIOWrapper(io.BytesIO(f"# two of them\n{songs}/0.mid\n{songs}/2.mid\n".encode()))
    monkeypatch.setattr(sys, "stdin", listed)
    words[1] = "-"
    assert main(words) == 0
    rows = [json.loads(line) for line in (tmp_path / "out" / "manifest.jsonl").open()]
    assert [row["source"] for row in rows] == ["0.mid", "2.mid"]


def test_edits_and_splits_are_the_corpus_own(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, "--transpose", "2", "--remap", "0=40", "--splits", "0:0:100"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "out" / "manifest.jsonl").open()]
    assert {row["split"] for row in rows} == {"test"} and all(row["parts"] == ["violin"] for row in rows)
    about = json.loads((tmp_path / "out" / "corpus.json").read_text())
    assert Making.of_json(about["making"]).edits == (("remap", ("0=40",)), ("transpose", ("2",)))
    capsys.readouterr()
    assert main([*words, "--transpose", "3", "--remap", "0=40", "--splits", "0:0:100"]) == 1
    assert "was begun with edits" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--seeds", "x"], "the seeds are 'x'; they must be whole numbers"),
        (["--seeds", "5-3"], "the seeds are '5-3'"),
        (["--seeds", "0-999999999999"], "the seeds are"),
        (["--seeds", "-1"], "the seeds are '-1'"),
        (["--splits", "80:10"], "the splits are '80:10'"),
        (["--splits", "80:10:20"], "100 in all"),
        (["--workers", "-2"], "workers is -2"),
        (["--steps", "0"], "steps is 0"),
        (["--rate", "0"], "rate cannot be 0"),
        (["--transpose", "up"], "transpose is 'up'"),
        (["--max-seconds", "-1"], "max_seconds and max_bytes"),
        (["--voice", "nobody"], "nobody"),
        (["--guidance", "nan"], "guidance is nan"),
        (["--sampler", "euler"], "sampler is 'euler'"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_made(
    more: list[str], said: str, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, *more]) == 1
    assert said in capsys.readouterr().err
    assert not list((tmp_path / "out").rglob("*.ogg"))


def test_a_missing_package_is_named(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from notewave.corpus import corpus

    monkeypatch.setattr(corpus, "PACKAGES", ("pyarrow", "no_such_package"))
    assert main(words) == 1
    assert "no_such_package is not installed, which this needs. Install notewave[corpus]." in capsys.readouterr().err


def test_no_songs_and_no_room_are_said(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more: dict[int, Any] = {1: str(tmp_path / "nothing"), 3: "/dev/null/out"}
    for place, said in ((1, "is not there"), (3, "was not written: Not a directory")):
        assert main([more[place] if index == place else word for index, word in enumerate(words)]) == 1
        assert said in capsys.readouterr().err
