import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from notewave.benchmarks import judges, probes
from notewave.benchmarks.evaluate import evaluate
from notewave.cli import main
from notewave.errors import ArgumentError, MidiError, OutputError, ToolError
from notewave.export.material.excerpts import HELD_OUT
from notewave.export.material.fluidsynth import SOUNDFONT, as_midi, fluidsynth
from notewave.song.notes import Notes
from notewave.sound import distance
from notewave.sound.mel import FRAMES, MELS, SAMPLE_RATE, log_mel

MIDI = Path(__file__).parent / "data" / "midi"
needs_fluidsynth = pytest.mark.skipif(
    shutil.which("fluidsynth") is None or not SOUNDFONT.is_file(), reason="FluidSynth or its soundfont is not installed"
)


@pytest.fixture(scope="module")
def transcriber():
    for package in ("basic_pitch", "mir_eval"):
        pytest.importorskip(package)
    return judges.Transcriber()


def table(onsets_s, pitches, program=0, is_drum=False, length_s=0.4):
    onset_s = np.array(onsets_s, float)
    count = np.ones(len(onset_s), int)
    return Notes(onset_s, onset_s + length_s, np.array(pitches), 90 * count, program * count, is_drum * count)


def pitched(onsets_s, pitches, **options):
    return judges.PitchedNotes.of(table(onsets_s, pitches, **options))


def organ(notes, seconds):
    """Samples of decaying harmonic tones."""
    audio = np.zeros(int(seconds * SAMPLE_RATE))
    for onset_s, offset_s, pitch in zip(notes.onset_s, notes.offset_s, notes.pitch, strict=True):
        start, end = int(onset_s * SAMPLE_RATE), int(offset_s * SAMPLE_RATE)
        time_s = np.arange(end - start) / SAMPLE_RATE
        hertz = 440.0 * 2 ** ((pitch - 69) / 12)
        tone = sum(np.sin(2 * np.pi * hertz * k * time_s) / k**2 for k in range(1, 5))
        audio[start:end] += 0.2 * tone * np.exp(-3 * time_s) * np.minimum(1, (time_s[-1] - time_s) / 0.02)
    return audio


def clicks(times_s, seconds):
    """Samples of short bursts of noise over a quiet tone."""
    audio = 0.01 * np.sin(2 * np.pi * 220 * np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE)
    burst = np.random.default_rng(0).standard_normal(800) * np.exp(-np.arange(800) / 150)
    for time_s in times_s:
        at = int(time_s * SAMPLE_RATE)
        audio[at : at + 800] += 0.3 * burst
    return audio


def test_notes_that_sound_are_heard_and_others_are_not(transcriber):
    onsets_s, pitches = np.arange(0.5, 4.5, 0.5), np.array([60, 64, 67, 72, 71, 67, 62, 55])
    notes = table(onsets_s, pitches)
    heard = transcriber(organ(notes, 5.0))
    assert judges.note_f1(heard, judges.PitchedNotes.of(notes)) >= 0.9
    assert judges.note_f1(heard, pitched(onsets_s, pitches + 6)) <= 0.1
    assert judges.note_f1(heard, pitched(onsets_s + 0.25, pitches)) <= 0.1


def test_silence_has_no_notes(transcriber):
    heard = transcriber(np.zeros(SAMPLE_RATE))
    assert len(heard.pitches) == 0
    assert judges.note_f1(heard, pitched([0.1], [60])) == 0.0


def test_note_f1_counts_pitch_and_onset_only():
    pytest.importorskip("mir_eval")
    written = pitched([0.0, 1.0, 2.0], [60, 62, 64])
    assert judges.note_f1(pitched([0.04, 1.0, 2.0], [60, 62, 64], length_s=3.0), written) == 1.0
    assert judges.note_f1(pitched([0.06, 1.0, 2.0], [60, 62, 64]), written) == pytest.approx(2 / 3)
    assert judges.note_f1(pitched([0.0, 1.0, 2.0, 3.0], [60, 63, 64, 65]), written) == pytest.approx(4 / 7)


def test_drums_are_no_pitched_notes_and_unisons_count_once():
    piano, strings = table([0, 1], [60, 64]), table([0, 1], [60, 65], program=48)
    both = Notes(*(np.concatenate([getattr(notes, column) for notes in (piano, strings)]) for column in vars(piano)))
    assert sorted(judges.PitchedNotes.of(both).pitches) == [60, 64, 65]
    assert len(judges.PitchedNotes.of(table([0, 1], [36, 38], is_drum=True)).pitches) == 0


def test_drum_f1_finds_the_strokes():
    for package in ("librosa", "mir_eval"):
        pytest.importorskip(package)
    times_s = np.arange(0.5, 4.5, 0.37)
    mel = log_mel(clicks(times_s, 5.0))
    assert judges.drum_f1(mel, table(times_s, [38] * len(times_s), is_drum=True)) >= 0.9
    assert judges.drum_f1(mel, table(times_s + 0.18, [38] * len(times_s), is_drum=True)) <= 0.1


def random_mel(seed=0, frames=FRAMES):
    return np.random.default_rng(seed).standard_normal((frames, MELS)).astype(np.float32)


def test_mel_error_is_the_mean_difference_over_common_frames():
    mel = random_mel()
    assert distance.mel_error(mel, mel) == 0.0
    assert distance.mel_error(mel + np.float32(0.5), mel[:100]) == pytest.approx(0.5, abs=1e-6)
    assert distance.mel_error(mel + np.float32(0.5), mel, level=-0.5) == pytest.approx(0.0, abs=1e-6)


def test_one_level_is_found_for_all_songs():
    songs = [random_mel(seed) for seed in range(3)]
    shifts = np.array([7, 7, 9]) * distance.DB
    sung = [song + np.float32(shift) for song, shift in zip(songs, shifts, strict=True)]
    level = judges.best_level(sung, songs)
    assert level / distance.DB == pytest.approx(-7, abs=0.03)
    errors_db = [distance.mel_error(*pair, level) / distance.DB for pair in zip(sung, songs, strict=True)]
    assert errors_db == pytest.approx([0, 0, 2], abs=0.05)


def test_level_of_silence_is_none():
    silence = np.full((FRAMES, MELS), -50, np.float32)
    assert judges.best_level([silence], [random_mel()]) == 0.0


def test_what_lies_below_the_range_does_not_count():
    true = random_mel() - np.float32(20)
    true[0, 0] = 0.0  # the loudest, far above all others
    deaf = true + np.where(true < -10, np.float32(3), np.float32(0))
    assert distance.mel_error(deaf, true) == 0.0
    audible = true.copy()
    audible[1] = -distance.RANGE_DB * distance.DB + 2.0
    assert distance.mel_error(audible, true) == pytest.approx(2.0 / FRAMES, rel=1e-5)


def test_silence_error_is_what_sounds_where_nothing_should():
    floor = -distance.RANGE_DB * distance.DB
    true = np.full((FRAMES, MELS), floor - 1, np.float32)
    true[: FRAMES // 4] = 0.0
    ours = np.full_like(true, floor + 3)  # in all cells; those that should sound are another judge's
    assert judges.silence_error([ours], [true]) == pytest.approx((3.0, 0.75), rel=1e-5)
    assert judges.silence_error([ours], [true], level=-1.0) == pytest.approx((2.0, 0.75), rel=1e-5)
    assert judges.silence_error([true], [true]) == (0.0, 0.75)
    loud = np.zeros_like(true)
    error, share = judges.silence_error([ours], [loud])
    assert np.isnan(error) and share == 0.0
    assert judges.silence_error([ours, ours], [true, loud]) == pytest.approx((3.0, 0.375), rel=1e-5)


def test_loudness_is_mean_power_in_decibels():
    mel = np.log(np.array([[1.0, 1.0], [3.0, 1.0]], np.float32))
    assert judges.loudness_db(mel) == pytest.approx(10 * np.log10(3.0), abs=1e-5)
    assert judges.loudness_db(mel + np.float32(distance.DB)) == pytest.approx(10 * np.log10(3.0) + 1, abs=1e-4)


def test_seam_score_is_the_jump_at_joins_over_the_jump_elsewhere():
    drift = np.tile(np.arange(3 * FRAMES, dtype=np.float32)[:, None] / 64, (1, MELS))
    assert judges.seam_score([drift]) == pytest.approx(1.0)
    jump = drift + np.repeat(np.arange(3), FRAMES)[:, None].astype(np.float32) * np.float32(4 / 64)
    assert judges.seam_score([jump]) == pytest.approx(5.0)
    assert judges.seam_score([jump, drift]) == pytest.approx(3.0)
    assert np.isnan(judges.seam_score([drift[:FRAMES]]))


def test_frechet_distance_of_known_distributions():
    rng = np.random.default_rng(0)
    samples = rng.standard_normal((4000, 6)) @ rng.standard_normal((6, 6))
    deviation = samples.std(axis=0, ddof=1)
    assert judges.frechet_distance(samples, samples) == pytest.approx(0.0, abs=1e-9)
    assert judges.frechet_distance(samples + deviation, samples) == pytest.approx(1.0)
    assert judges.frechet_distance(samples.mean(axis=0) + 0 * samples, samples) == pytest.approx(1.0)
    assert judges.frechet_distance(samples * 2 - samples.mean(axis=0), samples) == pytest.approx(1.0)


def test_patches_tell_a_blurred_mel_from_a_sharp_one():
    pytest.importorskip("scipy")
    rng = np.random.default_rng(0)
    sharp = rng.standard_normal((4000, MELS)).astype(np.float32)
    blurred = (sharp + np.roll(sharp, 1, axis=1)) / np.float32(np.sqrt(2))  # white noise no more, but as loud
    noisy = sharp + np.float32(0.1) * rng.standard_normal(sharp.shape).astype(np.float32)
    true, near, far = (judges.patches(mel) for mel in (sharp, noisy, blurred))
    assert true.shape == (1 + (4000 - judges.PATCH_FRAMES) // judges.PATCH_STEP, np.prod(judges.PATCH_COSINES))
    assert judges.frechet_distance(near, true) < 0.2 * judges.frechet_distance(far, true)


@needs_fluidsynth
def test_a_voice_is_judged_beside_fluidsynth(reference_voice, tmp_path, transcriber, monkeypatch):
    for package in ("matplotlib", "music21"):
        pytest.importorskip(package)
    drums_alone = next(excerpt for excerpt in HELD_OUT["gm"] if not excerpt.score)
    monkeypatch.setitem(HELD_OUT, "gm", (drums_alone,))
    monkeypatch.setattr(probes, "PLAYERS", {"piano": 0})
    few = {"organs": {"16": probes.program_phrases()["organs"]["16 Drawbar Organ"]}}
    monkeypatch.setattr(probes, "program_phrases", lambda: few)
    strings_and_claves = Notes([0.0, 1.0], [5.0, 1.1], [48, 75], [100, 100], [48, 0], [False, True])
    as_midi(strings_and_claves).write(str(tmp_path / "both.mid"))
    out = tmp_path / "report"
    options = {"vocoder": "griffin-lim", "max_segments": 1, "sampler": "ddim", "steps": 2, "seed": 3}
    report = evaluate(reference_voice, [MIDI / "piano_scale.mid", tmp_path / "both.mid", "gm"], out=out, **options)
    scale, drums = report.songs["piano_scale"], report.songs["drums"]
    assert scale["note_f1_fluidsynth"] > 0.9 > 0.5 > scale["note_f1"]  # the voice's weights are random
    assert scale["note_f1_vocoder"] > 0.8
    assert scale["note_f1_vocoder"] == pytest.approx(scale["note_f1_griffin_lim"])
    assert scale["stft_vocoder"] == pytest.approx(scale["stft_griffin_lim"], rel=1e-3)
    assert 0.3 < scale["stft_griffin_lim"] < 2
    assert np.isnan(scale["drum_f1"]) and np.isnan(drums["note_f1"])
    assert scale["mel_error"] > scale["mel_error_mean"] > 0
    assert np.isnan(scale["silence_error"]) and drums["silence_error"] > 0.1 and 0 < drums["silence_share"] < 1
    assert report.songs["both"]["silence_share"] > 0.9  # of its drums alone: its strings sound all the time
    assert report.dynamics.errors_db["piano"] == report.summary["dynamics_db"] > 5  # its tokens tell no velocities
    assert set(report.programs.programs) == {"16"}
    assert report.sampling == {"sampler": "ddim", "steps": 2, "guidance": 1.0, "seed": 3}
    saved = json.loads((out / "report.json").read_text())
    assert saved["songs"]["piano_scale"]["drum_f1"] is None
    assert saved["summary"]["frechet"] == report.summary["frechet"] > 0.1
    assert saved["dynamics"]["errors_db"] == report.dynamics.errors_db
    assert saved["programs"]["families"] == report.programs.families
    assert {path.name for path in out.iterdir()} == {"report.json", "piano_scale.png", "both.png", "drums.png"}
    notes, mels, dynamics, programs, rest = (block.splitlines() for block in report.table().split("\n\n"))
    assert [line.split()[0] for line in notes[2:]] == ["piano_scale", "both", "drums", "all"]
    assert "drum-F1" in notes[0] and "mel error" in mels[0] and "silence" in mels[0]
    assert "piano" in dynamics[2] and "organs" in programs[2] and "worst: 16" in programs[3]
    assert {"level_db", "frechet", "dynamics_db", "programs_ratio"} <= {line.split(":")[0] for line in rest}


@needs_fluidsynth
def test_the_command_prints_what_it_writes(reference_voice, tmp_path, transcriber, monkeypatch, capsys):
    for package in ("matplotlib", "music21"):
        pytest.importorskip(package)
    monkeypatch.setattr(probes, "PLAYERS", {"piano": 0})
    monkeypatch.setattr(probes, "program_phrases", dict)
    as_midi(table([0.0, 1.0], [60, 64])).write(str(tmp_path / "two.mid"))
    words = ["evaluate", str(reference_voice), str(tmp_path / "two.mid"), "--out", str(tmp_path / "report")]
    assert main([*words, "--vocoder", "griffin-lim", "--sampler", "ddim", "--steps", "1", "--seed", "5"]) == 0
    saved = json.loads((tmp_path / "report" / "report.json").read_text())
    assert saved["sampling"] == {"sampler": "ddim", "steps": 1, "guidance": 1.0, "seed": 5}
    printed = capsys.readouterr().out
    row = next(line for line in printed.splitlines() if line.startswith("two"))
    assert row.split()[1:3] == [f"{saved['songs']['two'][f1]:.2f}" for f1 in ("note_f1", "note_f1_fluidsynth")]


@needs_fluidsynth
def test_songs_of_one_name_are_refused():
    with pytest.raises(MidiError, match="two of one name"):
        evaluate("band", [MIDI / "piano_scale.mid"] * 2)


def test_a_missing_tool_is_named_with_its_cure(tmp_path, monkeypatch):
    if shutil.which("fluidsynth"):
        with pytest.raises(ToolError, match=r"soundfont.*apt install"):
            evaluate("band", soundfont=Path("missing.sf2"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolError, match=r"fluidsynth.*not installed.*apt install"):
        evaluate("band")
    monkeypatch.setitem(sys.modules, "basic_pitch", None)
    with pytest.raises(ToolError, match=r"basic_pitch.*pip install --no-deps basic-pitch"):
        judges.Transcriber()
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ModuleNotFoundError, match="onnxruntime"):  # which the command says how to install
        judges.Transcriber()


def test_no_segments_cannot_be_judged():
    with pytest.raises(ArgumentError, match="0 segments"):
        evaluate("band", max_segments=0)


@needs_fluidsynth
def test_a_report_that_cannot_be_written_is_refused_before_the_work(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be made"):
        evaluate("band", out=tmp_path / "file")


@needs_fluidsynth
def test_a_note_of_no_length_does_not_sound_for_ever() -> None:
    """At one tick its end would come before its beginning, and FluidSynth would write to the disk until it is full."""
    sound = fluidsynth(table([0.2], [60], length_s=0.0))
    assert 0.2 * 16000 < len(sound) < 10 * 16000
