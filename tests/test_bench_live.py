"""What is measured of live play: songs played as they come, loudness that beats, hops by the clock."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from notewave import Synthesizer
from notewave.benchmarks.live import Way, save_live_plot
from notewave.benchmarks.live_play import beat, deeds, loudness_db, play, play_by_the_clock
from notewave.benchmarks.report import Case, Result, Spread
from notewave.cli import main
from notewave.song.notes import Notes
from notewave.sound.mel import HOP, SAMPLE_RATE

SONG = Notes(
    np.array([0.0, 0.5, 0.5]),
    np.array([0.5, 1.0, 0.5]),
    np.array([60, 60, 38]),
    np.array([80, 0, 90]),
    np.zeros(3, int),
    np.array([False, False, True]),
)


@pytest.fixture(scope="module")
def singer() -> Synthesizer:
    return Synthesizer("band", backend="cpu", threads=1)


def test_a_player_lets_a_key_go_before_striking_it_again_and_leaves_drums_alone() -> None:
    done = [(deed.time_s, deed.is_on, deed.pitch, deed.is_drum) for deed in deeds(SONG)]
    assert done == [
        *[(0.0, True, 60, False), (0.5, False, 60, False), (0.5, True, 38, True), (0.5, True, 60, False)],
        (1.0, False, 60, False),
    ]
    assert all(deed.velocity > 0 for deed in deeds(SONG) if deed.is_on), "of 0 none would sound"


def test_a_song_is_played_without_knowing_what_comes(singer: Synthesizer) -> None:
    """What is played after a time changes nothing before it, though it is told all at once to whoever renders."""
    whole, stats = play(singer, SONG, 1.2, hop=5, steps=1)
    part, _ = play(singer, SONG.rows(np.array([0])), 1.2, hop=5, steps=1)
    assert len(whole) == 1.2 * SAMPLE_RATE and stats.hops == 12
    np.testing.assert_array_equal(whole[: 5 * 5 * HOP], part[: 5 * 5 * HOP])
    assert not np.allclose(whole, part)


def test_a_beat_is_heard_at_the_rate_of_hops_only() -> None:
    time_s = np.arange(20 * SAMPLE_RATE) / SAMPLE_RATE
    noise = np.random.default_rng(0).normal(0, 1, len(time_s))
    steady = np.sin(2 * np.pi * 300 * time_s) * np.exp(-time_s / 10) + 0.01 * noise
    hop = 4
    beating = steady * (1 + 0.05 * np.sin(2 * np.pi * SAMPLE_RATE / (hop * HOP) * time_s))
    assert beat(steady, hop) < 3 < 5 < beat(beating, hop) and beat(beating, hop + 1) < 3


def test_loudness_is_of_each_second() -> None:
    sound = np.concatenate([np.full(SAMPLE_RATE, 1.0), np.full(SAMPLE_RATE, 0.1), np.ones(100)])
    np.testing.assert_allclose(loudness_db(sound), [0, -20], atol=1e-3)


def test_by_the_clock_hops_are_taken_when_they_are_due(singer: Synthesizer) -> None:
    session = play_by_the_clock(singer, SONG, 1.5, hop=12)
    assert session.hop == 12 and session.stats.hops == 7 and 0 <= session.stats.late <= 7
    assert 0 < session.stats.load <= session.stats.load_99 <= session.stats.worst
    assert session.latency_s > 0.24 and session.memory_mib[1] >= 0


def test_the_command_writes_and_draws_what_it_measures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "live.json"
    words = ["--set", "--minutes", "0.02", "--clock-hop", "10", "--clock-song", "engine/bundled/songs/band.mid"]
    assert main(["bench", "live", *words, "--notes", "0", "--threads", "1", "--json", str(out)]) == 0
    (case,) = Result.load(out).cases
    assert case.settings == {"minutes": 0.02, "hop": 10, "steps": 1} and case.figures["hops"].median == 6
    assert json.loads(out.read_text())["benchmark"] == "live" and "By the clock" in capsys.readouterr().out


def test_quality_is_drawn_over_the_hop(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    figures = {name: Spread.of([0.9]) for name in ("note_f1_ratio", "mel_error_ratio")}
    cases = [Case({"set": "piano", "way": "live", **Way(hop, None, 1).options}, figures) for hop in (2, 4)]
    rendered = Case({"set": "piano", "way": "rendered"}, {"note_f1": Spread.of([0.8])})
    save_live_plot(Result("live", {}, {}, [rendered, *cases]), str(tmp_path / "live.png"))
    assert (tmp_path / "live.png").stat().st_size > 5000
