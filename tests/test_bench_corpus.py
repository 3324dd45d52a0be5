"""The benchmark of corpora: a trial finds what is wrong and passes what is right, and the whole of it runs."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from notewave import Notes, Synthesizer, to_midi
from notewave.backends.processors import processors
from notewave.benchmarks import corpus as bench
from notewave.benchmarks.corpus_scale import Costs, efficiency
from notewave.benchmarks.corpus_songs import BREAKAGES, EXCERPT_SECONDS, excerpts, write_varied
from notewave.benchmarks.corpus_trial import Files, compare, sung
from notewave.cli import main
from notewave.corpus.corpus import make_corpus
from notewave.corpus.settings import Machine, Making
from notewave.song.midi import read

pytest.importorskip("pyarrow")

COUNT = 40  # songs of the trial; one in five files is broken, each in another way


def song(chance: random.Random, seconds: float) -> bytes:
    """Notes at random."""
    onsets = sorted(chance.uniform(0, seconds) for _ in range(30))
    rows = [(onset, onset + 0.5, chance.randrange(40, 80), 90, 0, False) for onset in onsets]
    return to_midi(Notes(*map(list, zip(*rows, strict=True))))


@pytest.fixture(scope="module")
def songs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, chance = tmp_path_factory.mktemp("songs"), random.Random(3)
    (folder / "deep").mkdir()
    for number in range(COUNT):
        (folder / ("deep" * (number % 2)) / f"{number:02} a.mid").write_bytes(song(chance, chance.uniform(6, 20)))
    return folder


def figures_of(path: Path) -> dict[tuple[Any, ...], dict[str, float]]:
    """A result's figures, by its cases' settings."""
    cases = json.loads(path.read_text())["cases"]
    return {
        tuple(case["settings"].values()): {name: figure["median"] for name, figure in case["figures"].items()}
        for case in cases
    }


def test_a_corpus_of_good_and_broken_files_comes_through_all_trouble(
    songs: Path, vocoded_voice: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--trial", str(COUNT * 5 // 4), "--voice", str(vocoded_voice), "--steps", "6"]
    code = main(["bench", "corpus", str(songs), *words, "--json", str(tmp_path / "trial.json")])
    assert code == 0, capsys.readouterr().out
    (found,) = figures_of(tmp_path / "trial.json").values()
    assert (found["files"], found["broken"], found["sung_good"]) == (COUNT * 5 // 4, COUNT // 4, COUNT)
    assert found["failed_broken"] + found["sung_broken"] == COUNT // 4 and found["failed_broken"] >= 8
    assert found["workers_killed"] >= 2


def test_a_trial_of_few_songs_is_refused(songs: Path, vocoded_voice: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "corpus", str(songs), "--trial", "10", "--voice", str(vocoded_voice)]) == 1
    assert "8 songs are too few" in capsys.readouterr().err


@pytest.fixture(scope="module")
def singer(vocoded_voice: Path) -> Synthesizer:
    return Synthesizer(vocoded_voice, backend="cpu", threads=1)


@pytest.fixture
def corpus(singer: Synthesizer, tmp_path: Path) -> tuple[Path, Path, Files]:
    """A corpus of two songs and of each kind of broken file, their folder, and what they are."""
    folder, out, chance = tmp_path / "songs", tmp_path / "out", random.Random(1)
    folder.mkdir()
    files: Files = {"one.mid": None, "two.mid": None}
    for name in files:
        (folder / name).write_bytes(song(chance, 3))
    for number, (kind, breakage) in enumerate(BREAKAGES.items()):
        if kind != "forbidden" or os.geteuid():
            files[f"{number}.mid"] = kind
            breakage.write(folder / f"{number}.mid", song(chance, 3), chance)
    machine, making = Machine("cpu", workers=0, threads=1), Making(steps=1, edits=(("end", ("2",)),))
    make_corpus([str(folder)], str(out), voices=[str(singer.voice.folder)], making=making, machine=machine)
    return out, folder, files


def edit_row(out: Path, name: str, **said: object) -> None:
    lines = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    text = "".join(json.dumps(row | said if row["name"] == name else row) + "\n" for row in lines)
    (out / "manifest.jsonl").write_text(text)


def drop_row(out: Path) -> None:
    lines = (out / "manifest.jsonl").read_text().splitlines(keepends=True)
    (out / "manifest.jsonl").write_text("".join(line for line in lines if '"name": "one"' not in line))


def swap_sounds(out: Path) -> None:
    one, two = (out / "audio" / f"{name}.flac" for name in ("one", "two"))
    data = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(data)


TAMPERED: dict[str, Callable[[Path], object]] = {
    "one.mid is not in the manifest": drop_row,
    "audio/one.flac is not there": lambda out: (out / "audio" / "one.flac").rename(out / "audio" / "two.flac"),
    "one.mid: its samples are not those that rendering makes": swap_sounds,
    "one.mid: its sound cannot be read": lambda out: (out / "audio" / "one.flac").write_bytes(b"fLaC"),
    "one.mid: its checksum is another one": lambda out: edit_row(out, "one", sha256="0" * 64),
    "one.mid: it can be sung and is failed": lambda out: edit_row(out, "one", status="failed", error="no"),
    ".making is there": lambda out: (out / ".making").mkdir(),
    "more.flac is there": lambda out: (out / "more.flac").write_bytes(b""),
    "stray.mid is in the manifest, and was not given": lambda out: edit_row(out, "one", source="stray.mid"),
    "6.mid is a pipe, and sung": lambda out: edit_row(out, "6", status="sung"),
    "2.mid is refused (": lambda out: edit_row(out, "2", error="why?"),
}


def test_what_is_right_passes(corpus: tuple[Path, Path, Files], singer: Synthesizer) -> None:
    trial = compare(*corpus, lambda data: sung(singer, data, 1, 2.0))
    assert trial.wrong == [] and trial.figures["sung_good"] == 2
    assert trial.figures["failed_broken"] + trial.figures["sung_broken"] == trial.figures["broken"] >= 9


@pytest.mark.parametrize("complaint", TAMPERED)
def test_what_is_wrong_is_found(corpus: tuple[Path, Path, Files], singer: Synthesizer, complaint: str) -> None:
    out, folder, files = corpus
    TAMPERED[complaint](out)
    trial = compare(out, folder, files, lambda data: sung(singer, data, 1, 2.0))
    assert any(line.startswith(complaint) for line in trial.wrong), trial.wrong


def test_a_driver_is_measured_while_nothing_is_sung(tmp_path: Path, vocoded_voice: Path) -> None:
    words = ["--only", "driver", "--takes", "50", "--voice", str(vocoded_voice)]
    assert main(["bench", "corpus", *words, "--json", str(tmp_path / "driver.json")]) == 0
    found = figures_of(tmp_path / "driver.json")
    driver = found["driver", 50]
    assert 0 < driver["cpu_a_take_s"] < driver["wall_a_take_s"] and driver["planning_s"] > 0
    assert 10 < driver["memory_first_tenth_mib"] <= driver["memory_peak_mib"]
    assert {case[2] for case in found if case[0] == "layout"} == {"plain", "slakh", "maestro", "huggingface"}
    assert found["resume", 50, "False"]["call_s"] > 0 < found["resume", 50, "True"]["call_s"]


def test_ways_to_share_processors_are_set_beside_each_other(
    tmp_path: Path, vocoded_voice: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "WORKERS", (1, 2, 5))
    monkeypatch.setattr(bench, "WARM_S", 0.1)
    words = ["--songs", "2", "--repeat", "1", "--takes", "20", "--steps", "1", "--voice", str(vocoded_voice)]
    words += ["--json", str(tmp_path / "all.json"), "--plot", str(tmp_path / "all.png")]
    assert main(["bench", "corpus", *words]) == 0
    found = figures_of(tmp_path / "all.json")
    singing = {case[1:]: figures for case, figures in found.items() if case[0] == "singing"}
    assert singing[1, 1]["efficiency"] == 1.0 and (processors(), 1) in singing
    assert all(figures["songs_an_hour"] > 0 for figures in singing.values())
    assert list(singing.values())[-1]["over_one_process"] == 1.0
    assert 0 < found["asleep", 5]["efficiency"] <= 1
    assert [case[1] for case in found if case[0] == "simulated"] == [1, 2, 5]
    assert (tmp_path / "all.png").read_bytes().startswith(b"\x89PNG")


def test_workers_wait_for_a_slow_driver_and_a_slow_disk_and_for_nothing_else() -> None:
    free = Costs(0.0, 0.0, 0.0, [1.0])
    assert efficiency(1, free, 50) == efficiency(64, free, 640) == 1.0
    assert efficiency(4, free, 5) == pytest.approx(5 / 8), "in the end three wait for the fifth"
    assert efficiency(100, Costs(0.05, 0.05, 0.0, [1.0]), 5000) == pytest.approx(0.1, rel=0.02), "ten takes a second"
    assert efficiency(100, Costs(0.0, 0.0, 0.02, [1.0]), 5000) == pytest.approx(0.5, rel=0.02), "fifty sounds a second"
    assert efficiency(1, Costs(0.1, 0.1, 0.25, [1.0]), 50) == pytest.approx(0.8, rel=0.02), "takes are there beforehand"
    assert 0.9 < efficiency(8, Costs(1e-3, 1e-3, 0.0, [0.5, 1.0, 2.0]), 800) < 1.0


def test_excerpts_of_scores_are_short_songs_and_no_two_alike() -> None:
    pytest.importorskip("music21")
    made = dict(islice(excerpts(0), 3))
    assert len(made) == len(set(made.values())) == 3
    notes = [read(data) for data in made.values()]
    assert max(song.onset_s.max() for song in notes) < EXCERPT_SECONDS[1]
    assert max(len(np.unique(song.program)) for song in notes) > 1


def test_varied_songs_are_equally_long_and_no_two_alike(tmp_path: Path) -> None:
    write_varied(tmp_path, 30)
    files = [path.read_bytes() for path in tmp_path.iterdir()]
    assert len(set(files)) == 30 and len({round(read(data).seconds, 3) for data in files}) == 1
