"""``notewave bench decoders``: two voices judged and timed in turn, and which decoder leads in what."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from notewave import ArgumentError, Synthesizer
from notewave.benchmarks import bench, decoders
from notewave.benchmarks.evaluate import Report
from notewave.benchmarks.probes import Dynamics
from notewave.benchmarks.report import Result
from notewave.song.midi import read

SONG = Path(__file__).parent / "data" / "midi" / "ensemble.mid"


def report(steps: int, **scores: float) -> Report:
    """What ``evaluate`` would say of a voice with these scores."""
    summary = dict.fromkeys(decoders.QUALITY, float("nan")) | scores
    return Report({"name": "v"}, {"steps": steps}, {}, {}, summary, Dynamics((), {}, {}), None)


@pytest.fixture(scope="module")
def result(vocoded_voice: Path, frames_voice: Path) -> Result:
    singers = [Synthesizer(voice, backend="cpu", threads=1) for voice in (vocoded_voice, frames_voice)]
    reports = [
        report(2, note_f1_ratio=0.9, mel_error_ratio=0.4, seam=2.0),
        report(256, note_f1_ratio=0.7, mel_error_ratio=0.3, seam=1.0),
    ]
    return Result("decoders", {}, {}, decoders.measure(singers, reports, read(SONG), 1, 2))


def test_both_are_judged_and_timed(result: Result) -> None:
    assert [case.settings["decoder"] for case in result.cases] == ["diffusion", "autoregressive"]
    for case in result.cases:
        assert set(case.figures) == {"note_f1_ratio", "mel_error_ratio", "seam", *decoders.SPEED}
        assert case.figures["first_audio_s"].median > 0, "the first sound takes its time"
        assert case.figures["first_audio_s"].median <= 5.12 * case.figures["real_time_factor"].median + 1e-3


def test_the_table_says_which_leads(result: Result) -> None:
    lines = {
        line.split()[0]: line.split()[1:] for line in decoders.verdict(result).splitlines()[1:] if line.strip("- ")
    }
    assert lines["note_f1_ratio"] == ["0.900", "0.700", "diffusion"], "more is better"
    assert lines["mel_error_ratio"] == ["0.400", "0.300", "autoregressive"], "less is better"
    assert lines["seam"][-1] == "autoregressive" and "frechet" not in lines


def test_a_picture_is_drawn(result: Result, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    decoders.save_decoders_plot(result, str(tmp_path / "decoders.png"))
    assert (tmp_path / "decoders.png").read_bytes()[:4] == b"\x89PNG"


def test_voices_are_named_in_their_order(vocoded_voice: Path, frames_voice: Path) -> None:
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    options = parser.parse_args(["decoders", "--voice", str(frames_voice), str(vocoded_voice), "--backend", "cpu"])
    with pytest.raises(ArgumentError, match="one that denoises, then one that writes frame by frame"):
        options.run(options)
