"""Songs part by part, by the library and the command; and what the command makes of edits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from notes_at_random import columns

from notewave import MidiError, Notes, SamplingError, Synthesizer, parts, read, tokenize
from notewave.cli import main
from notewave.song.dialect import EOS
from notewave.song.edits import cut, merge, mute, remap, shift, solo, tempo, transpose
from notewave.sound.mel import HOP
from notewave.stems import stem_tokens, sum_error


@pytest.fixture(scope="module")
def synthesizer(vocoded_voice: Path) -> Synthesizer:
    return Synthesizer(vocoded_voice, backend="cpu")


@pytest.fixture
def ensemble(midi_folder: Path) -> Path:
    return midi_folder / "ensemble.mid"


@pytest.fixture
def words(vocoded_voice: Path, ensemble: Path) -> list[str]:
    return ["render", str(ensemble), "--voice", str(vocoded_voice), "--steps", "1"]


def test_each_part_is_sung_alone_by_the_song_s_seed(synthesizer: Synthesizer, ensemble: Path) -> None:
    notes, options = read(ensemble), {"steps": 1, "seed": 7}
    stems: Any = synthesizer.stems(ensemble, **options)
    assert list(stems) == list(parts(notes)) and list(stems)[-1] == "drums"
    assert np.array_equal(stems.mix.samples, synthesizer.render(ensemble, **options).samples)
    for name, stem in stems.items():
        alone = synthesizer.render(parts(notes)[name], **options).samples
        assert len(stem.samples) == len(stems.mix.samples) >= len(alone)
        same = len(alone) - 20 * HOP if len(alone) < len(stem.samples) else len(alone)  # what follows is heard before
        assert np.array_equal(stem.samples[:same], alone[:same])
    total = np.sum([stem.samples for stem in stems.values()], axis=0)
    assert stems.error == sum_error(total, stems.mix.samples) > 0
    assert sum_error(stems.mix.samples, stems.mix.samples) == 0
    with pytest.raises(MidiError):
        synthesizer.stems(tokenize(ensemble))
    with pytest.raises(SamplingError):
        synthesizer.stems(ensemble, steps=0)


def test_a_part_that_ends_early_is_followed_by_silence_not_by_its_last_note(synthesizer: Synthesizer) -> None:
    notes = Notes([0.0, 0.0], [5.0, 17.0], [60, 64], [80, 80], [0, 40], [False, False])
    dialect = synthesizer.voice.dialect
    told = stem_tokens(notes, tokenize(notes, dialect=dialect), dialect, 100.0)
    assert [len(tokens) for tokens in told.values()] == [4, 4]
    assert [one.tolist() for one in told["acoustic-grand-piano"][1:]] == [[dialect.tie, EOS]] * 3
    assert len(told["violin"][3]) > 2, "the violin is held on"


def test_the_command_writes_each_part_and_the_mix(
    words: list[str], ensemble: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, "--stems", str(tmp_path / "stems")]) == 0
    names = {path.name for path in (tmp_path / "stems").iterdir()}
    assert names == {f"{name}.wav" for name in (*parts(read(ensemble)), "mix")}
    assert "5 parts in " in (said := capsys.readouterr().out) and " nats from the mix" in said
    assert main([*words, "-o", str(tmp_path / "song.wav")]) == 0
    assert (tmp_path / "song.wav").read_bytes() == (tmp_path / "stems" / "mix.wav").read_bytes()
    lengths = {soundfile.info(path).frames for path in (tmp_path / "stems").iterdir()}
    assert len(lengths) == 1
    assert main([*words, "-o", str(tmp_path / "solo.wav"), "--solo", "drums"]) == 0
    alone, _ = soundfile.read(tmp_path / "solo.wav", dtype="int16")
    stem, _ = soundfile.read(tmp_path / "stems" / "drums.wav", dtype="int16")
    assert np.array_equal(alone[: -20 * HOP], stem[: len(alone) - 20 * HOP])


def test_parts_of_several_songs_go_into_folders_of_their_own(
    words: list[str], midi_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "all"
    songs = [words[1], str(midi_folder / "piano_scale.mid"), str(tmp_path / "missing.mid")]
    more = ["--stems", str(out), "-o", f"{tmp_path}/", "--rate", "8000", "--end", "2"]
    assert main([words[0], *songs, *words[2:], *more]) == 1, "one song of three is missing"
    assert {path.name for path in out.iterdir()} == {"ensemble", "piano_scale"}, "no folder is left empty"
    assert soundfile.info(out / "ensemble" / "mix.wav").frames == 16000
    assert (tmp_path / "ensemble.wav").read_bytes() == (out / "ensemble" / "mix.wav").read_bytes()


def test_parts_have_the_format_of_the_song(words: list[str], tmp_path: Path) -> None:
    assert main([*words, "-o", str(tmp_path / "x.flac"), "--stems", str(tmp_path / "x"), "--solo", "0,33"]) == 0
    assert {path.name for path in (tmp_path / "x").iterdir()} == {
        *("acoustic-grand-piano.flac", "electric-bass-finger.flac", "mix.flac")
    }


def test_the_command_edits_as_the_library_does(words: list[str], ensemble: Path, tmp_path: Path) -> None:
    midi, out = tmp_path / "sung.mid", tmp_path / "out.wav"
    edits = ["--mute", "drums", "--mute", "violin", "--remap", "0=48", "--transpose", "-2", "--tempo", "1.1"]
    edits += ["--start", "1", "--end", "6", "--shift", "0.5", "--midi-out", str(midi)]
    assert main([*words, *edits, "-o", str(out)]) == 0
    expected = remap(mute(cut(read(ensemble), 1.0, 6.0), ["drums", "violin"]), {0: 48})
    expected = shift(tempo(transpose(expected, -2), 1.1), 0.5)
    found = read(midi)
    assert len(found) == len(expected)
    assert sorted(row[2:] for row in columns(found)) == sorted(row[2:] for row in columns(expected))
    assert soundfile.info(out).frames == round((5.0 / 1.1 + 0.5) * 16000)
    assert main([words[0], str(midi), *words[2:], "-o", str(tmp_path / "again.wav")]) == 0
    again, first = (soundfile.read(path)[0] for path in (tmp_path / "again.wav", out))
    assert np.array_equal(again[: len(first)], first), "what was written is what was sung"


def test_songs_are_merged_and_quantised_by_the_command(
    words: list[str], ensemble: Path, midi_folder: Path, tmp_path: Path
) -> None:
    other = midi_folder / "piano_scale.mid"
    midi = tmp_path / "both.mid"
    more = ["--merge", str(other), "--midi-out", str(midi), "-o", str(tmp_path / "both.wav")]
    assert main([*words, *more]) == 0
    assert len(read(midi)) == len(merge(read(ensemble), read(other)))
    assert main([*words, *more, "--quantise", "0.25s"]) == 0
    np.testing.assert_allclose(read(midi).onset_s % 0.25 % 0.2499, 0.0, atol=2e-4)


def test_the_command_goes_on_from_a_sound(words: list[str], tmp_path: Path) -> None:
    first, on, other = (tmp_path / name for name in ("first.wav", "on.wav", "other.wav"))
    assert main([*words, "-o", str(first)]) == 0
    assert main([*words, "-o", str(on), "--context", str(first)]) == 0
    assert main([*words, "-o", str(other), "--context", str(tmp_path / "missing.wav")]) == 1
    assert on.read_bytes() != first.read_bytes() and not other.exists()
    assert main([*words, "-o", str(first), "--context", str(first)]) == 1, "it would be written over"


@pytest.mark.parametrize(
    ("more", "fault"),
    [
        (["--solo", "violn"], "there is no part 'violn'"),
        (["--mute", "0,33,40,61,drums"], "Nothing is left without the parts that were named: the song has acoustic"),
        (["--tempo", "0"], "tempo is 0.0"),
        (["--transpose", "2.5"], "must be a whole number"),
        (["--quantise", "often"], "a note's length, as 1/16"),
        (["--remap", "0"], "must be a part and the program"),
        (["--merge", "missing.mid"], "missing.mid cannot be opened"),
        (["--shift", "-1000"], "No note is in the part"),
        (["--stems", "folder/x/y"], "was not made"),
    ],
)
def test_edits_that_cannot_be_are_one_sentence_and_leave_nothing(
    more: list[str], fault: str, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*words, "-o", "out.wav", *more]) == 1
    said = capsys.readouterr().err
    assert said.startswith("notewave: ") and said.count("\n") == 1 and fault in said
    assert not [*tmp_path.iterdir()]


def test_a_voice_without_dynamics_says_so(words: list[str], tmp_path: Path, capsys: Any) -> None:
    assert main([*words, "-o", str(tmp_path / "out.wav"), "--velocity", "0.5"]) == 0
    assert "sings soft and loud alike" in capsys.readouterr().err


def test_solos_of_the_library_are_the_command_s(
    words: list[str], ensemble: Path, synthesizer: Synthesizer, tmp_path: Path
) -> None:
    assert main([*words, "-o", str(tmp_path / "x.wav"), "--solo", "strings", "--seed", "3"]) == 0
    synthesizer.render(solo(read(ensemble), "strings"), steps=1, seed=3).save(tmp_path / "y.wav")
    assert (tmp_path / "x.wav").read_bytes() == (tmp_path / "y.wav").read_bytes()
