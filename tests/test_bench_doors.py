"""What is measured of stems, and of songs that go on from a sound."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from notewave.benchmarks.context import _taken
from notewave.cli import main
from notewave.export.material.fluidsynth import SOUNDFONT
from notewave.sound.mel import FRAMES, MELS

played = pytest.mark.skipif(
    shutil.which("fluidsynth") is None or not SOUNDFONT.is_file(), reason="FluidSynth or its soundfont is missing"
)


@played
def test_the_sum_is_judged_beside_the_mix(tmp_path: Path) -> None:
    words = ["bench", "stems", "--song", "band", "--songs", "1", "--segments", "1", "--backend", "cpu"]
    assert main([*words, "--json", str(tmp_path / "s.json"), "--plot", str(tmp_path / "s.png")]) == 0
    cases = json.loads((tmp_path / "s.json").read_text())["cases"]
    assert [case["settings"]["song"] for case in cases][1:] == ["mean"] and cases[0]["settings"]["parts"] == 5
    figures = {name: figure["median"] for name, figure in cases[0]["figures"].items()}
    assert 0.3 < figures["note_f1_mix"] <= 1.0 and 0.3 < figures["note_f1_sum"] <= 1.0
    assert 0.05 < figures["sum_error"] < 3.0 and figures["real_time_factor"] > 0
    assert (tmp_path / "s.png").read_bytes().startswith(b"\x89PNG")


@played
def test_what_is_taken_up_of_a_context_is_measured(tmp_path: Path) -> None:
    words = ["bench", "context", "--song", "piano", "--songs", "1", "--backend", "cpu"]
    assert main([*words, "--json", str(tmp_path / "c.json"), "--plot", str(tmp_path / "c.png")]) == 0
    cases = {
        case["settings"]["context"]: case["figures"] for case in json.loads((tmp_path / "c.json").read_text())["cases"]
    }
    assert 0.1 < cases.pop("its own")["mel_error"]["median"] < 1.5 and "mel_error" in cases.pop("none")
    assert len(cases) == 6 and all(abs(case["taken_up"]["median"]) < 1.5 for case in cases.values())


def test_all_of_a_change_that_is_sung_is_taken_up_and_none_of_one_that_is_not() -> None:
    rng = np.random.default_rng(0)
    context, sung = rng.normal(0, 1, (2, FRAMES, MELS)).astype(np.float32)
    change = np.linspace(-1, 1, MELS, dtype=np.float32)
    for share in (0.0, 0.4, 1.0):
        found = _taken(context, context + change, sung, sung + np.float32(share) * change)
        assert found == pytest.approx(share, abs=1e-3)
