"""The comparison with diffusers' pipeline, without the pipeline."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from bench_command import parse

from notewave.benchmarks import peer, peer_environment
from notewave.benchmarks.peer_environment import PEER, Timing
from notewave.benchmarks.report import Result, Spread
from notewave.benchmarks.speed import synthetic_song
from notewave.errors import NotewaveError
from notewave.song.midi import read, tokenize
from notewave.voice.folder import Voice

DATA = Path(__file__).parent / "data"


def test_speedups_are_taken_round_by_round() -> None:
    timings = {
        PEER: [Timing(10.0, [1.0, 1.0]), Timing(20.0, [2.0, 2.0])],
        "ours": [Timing(1.0, [0.5, 0.5]), Timing(2.0, [1.0, 1.0])],
    }
    cases = peer.cases(timings, {PEER: 2, "ours": 8}, {PEER: 100, "ours": 8})
    figures = cases[1].figures
    assert (figures["step_speedup"], figures["encoders_speedup"]) == (Spread(2, 2, 2, 2), Spread(10, 10, 10, 2))
    assert figures["segment_speedup"].median == pytest.approx(110 / 5)
    assert [case.settings["segment"] for case in cases] == ["extrapolated from 2 steps", "measured"]


def test_our_modules_and_engine_take_turns(reference_voice: Path) -> None:
    pytest.importorskip("torch")
    from notewave.export.checkpoints.diffusers import load_diffusers

    song = synthetic_song(20, 2)
    engine = peer.Engine(Voice.load(reference_voice), 1, song, 3)
    modules = peer.Modules(load_diffusers(DATA / "reference" / "checkpoint"), 1, compiled=False)
    timings = peer.take_turns([engine, modules], song[-1], {engine.name: 3, modules.name: 3}, repeat=2)
    assert {name: len(rounds) for name, rounds in timings.items()} == {"notewave fp32": 2, "our modules, eager": 2}
    assert len(timings[modules.name][0].steps_s) == 3
    assert all(timing.encoders_s > 0 for rounds in timings.values() for timing in rounds)


def test_voices_are_exported_once_for_each_checkpoint(tmp_path: Path) -> None:
    checkpoint = Path(shutil.copytree(DATA / "reference" / "checkpoint", tmp_path / "checkpoint"))
    first = peer.exported(checkpoint, "fp16")
    written = (first.folder / "voice.json").stat().st_mtime_ns
    again = peer.exported(checkpoint, "fp16")
    assert (again.folder, (again.folder / "voice.json").stat().st_mtime_ns) == (first.folder, written)
    weights = next(checkpoint.glob("decoder/*.bin"), None) or next(checkpoint.glob("decoder/*.safetensors"))
    os.utime(weights, ns=(0, 0))
    assert peer.exported(checkpoint, "fp16").folder != first.folder
    assert not first.folder.exists()


class Tokeniser:
    """In the peer's stead: our own tokens, slower, and wrong on demand."""

    def __init__(self, wrong: bool = False) -> None:
        self.versions = {"diffusers": "0"}
        self._wrong = wrong

    def ask(self, do: str, song: str) -> dict[str, Any]:
        assert do == "tokens"
        return {"tokenise_s": 1e3, "tokens": [x.tolist() for x in tokenize(song, strict=True)[self._wrong :]]}


def test_tokens_are_compared_on_one_song_of_the_stated_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.mid", "b.mid"):
        peer.write_song(tmp_path / name)
    assert (tmp_path / "a.mid").read_bytes() == (tmp_path / "b.mid").read_bytes()
    notes = read(tmp_path / "a.mid")
    assert len(notes) == peer.SONG_NOTES and 0.99 < notes.seconds / peer.SONG_SECONDS <= 1
    with pytest.raises(NotewaveError, match="are not those of diffusers"):
        peer.token_cases(Tokeniser(wrong=True), tmp_path / "a.mid", repeat=1)

    opened = []
    monkeypatch.setattr(peer, "open_peer", lambda *given: opened.append(given) or contextlib.nullcontext(Tokeniser()))
    outputs = ["--json", str(tmp_path / "p.json"), "--plot", str(tmp_path / "p.png")]
    options = parse("peer", "--only", "tokens", "--repeat", "1", *outputs)
    options.run(options)
    assert opened == [(options.venv, None, None)]  # without a checkpoint
    theirs, ours = Result.load(tmp_path / "p.json").cases
    assert (theirs.settings["side"], ours.settings["side"]) == (PEER, "notewave")
    assert theirs.figures["tokenise_speedup"] == Spread(1, 1, 1, 1)
    assert ours.figures["tokenise_speedup"].median == pytest.approx(1e3 / ours.figures["tokenise_s"].median)
    assert "tokenise speedup" in capsys.readouterr().out
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


def test_an_environment_that_cannot_be_made_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(NotewaveError, match="was not made"):
        peer_environment.peer_python(tmp_path / "venv")
