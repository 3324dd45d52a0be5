"""What the command makes of songs: parts of them, other rates, what they are, and how large they may be."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from command import STOPPED, command, start, wait_until
from test_player import CARD, Listener, real

import notewave
from notewave.cli import main


@pytest.fixture
def words(vocoded_voice: Path, midi_folder: Path) -> list[str]:
    return ["render", str(midi_folder / "piano_scale.mid"), "--voice", str(vocoded_voice), "--steps", "1"]


@pytest.mark.parametrize("rate", [16000, 44100, 8000])
def test_a_part_is_as_long_as_was_asked(words: list[str], rate: int, tmp_path: Path) -> None:
    out = tmp_path / "part.wav"
    assert main([*words, "-o", str(out), "--start", "0.5", "--end", "1.75", "--rate", str(rate)]) == 0
    samples, found = soundfile.read(out)
    assert (found, len(samples)) == (rate, 1.25 * rate)
    assert np.abs(samples).max() > 0


def test_a_part_without_an_end_is_whole_segments(words: list[str], tmp_path: Path) -> None:
    out = tmp_path / "part.wav"
    assert main([*words, "-o", str(out), "--start", "1"]) == 0
    assert soundfile.info(out).frames % 81920 == 0


def test_a_part_that_ends_in_silence_is_as_long(
    vocoded_voice: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import pretty_midi

    song = pretty_midi.PrettyMIDI()
    song.instruments.append(pretty_midi.Instrument(0))
    song.instruments[0].notes += [pretty_midi.Note(90, 60, start, start + 1) for start in (0, 30)]
    song.write(str(tmp_path / "song.mid"))
    words = ["render", str(tmp_path / "song.mid"), "--voice", str(vocoded_voice), "--steps", "1"]
    for end, seconds in (("20", 20), ("31", 31), ("1000", 7 * 5.12)):
        assert main([*words, "-o", str(tmp_path / "out.wav"), "--end", end]) == 0
        assert soundfile.info(tmp_path / "out.wav").frames == round(seconds * 16000)
        assert f"{seconds:.2f} s of music" in capsys.readouterr().out
    for more in (["--start", "5", "--end", "6"], ["--start", "40"], ["--start", "3", "--end", "2"], ["--start", "nan"]):
        assert main([*words, "-o", str(tmp_path / "none.wav"), *more]) == 1
    assert not (tmp_path / "none.wav").exists()


def test_the_sound_at_another_rate_is_the_same(words: list[str], tmp_path: Path) -> None:
    for rate in ("16000", "48000"):
        assert main([*words, "-o", str(tmp_path / f"{rate}.wav"), "--rate", rate]) == 0
    low, high = (soundfile.read(tmp_path / f"{rate}.wav")[0] for rate in (16000, 48000))
    assert len(high) == 3 * len(low)
    assert np.corrcoef(high[::3], low)[0, 1] > 0.95, "but for its last band, and what was clipped"


def test_a_song_s_limits_are_raised_as_the_messages_say(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for option, low, high in (("--max-seconds", "1", "100"), ("--max-bytes", "10", "100000")):
        assert main([*words, "-o", str(tmp_path / "a.wav"), option, low]) == 1
        assert option in capsys.readouterr().err
        assert main([*words, "-o", str(tmp_path / "a.wav"), option, high]) == 0
        assert main(["info", words[1], option, low]) == 1
        assert main(["info", words[1], option, high]) == 0
        capsys.readouterr()


def sound_card(card: Path) -> dict[str, str]:
    """An environment whose sound card is a file or a pipe."""
    card.with_suffix(".conf").write_text(CARD.replace("PATH", str(card)))
    return {"ALSA_CONFIG_PATH": str(card.with_suffix(".conf"))}


@real
def test_sound_is_played_and_written_only_where_asked(words: list[str], tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    for more, place in (([], b"sound card: "), (["-o", "out.wav"], b"out.wav: ")):
        card = tmp_path / "card.raw"
        code, out, errors = command(
            *words, "--play", "--rate", "32000", *more, cwd=tmp_path / "here", env=sound_card(card)
        )
        assert (code, errors) == (0, b"")
        assert out.startswith(place)
        assert [path.name for path in (tmp_path / "here").iterdir()] == more[1:]
    samples, rate = soundfile.read(tmp_path / "here" / "out.wav", dtype="float32")
    assert rate == 32000
    np.testing.assert_allclose(samples, np.fromfile(card, np.float32)[: len(samples)], atol=1 / 32767)


@real
def test_ctrl_c_stops_what_is_played(words: list[str], tmp_path: Path) -> None:
    listener = Listener(tmp_path / "card.raw")
    listener.start()
    with start(*words, "--play", env=sound_card(tmp_path / "card.raw")) as process:
        wait_until(process, lambda: listener.heard)
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    listener.join(30)
    assert (process.returncode, errors) == (130, STOPPED)
    assert len(listener.heard) < 8 * 16000 * 4, "of 10 s"


def test_without_a_sound_card_that_is_said(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    assert main([*words, "--play"]) == 1
    assert "Install notewave[live]" in capsys.readouterr().err


def test_info_tells_the_song(midi_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    song = midi_folder / "ensemble.mid"
    assert main(["info", str(song)]) == 0
    report = capsys.readouterr().out
    notes, tokens = notewave.read(song), notewave.tokenize(song)
    assert report.startswith(f"{song}: {notes.seconds:.2f} s, {len(notes)} notes\n")
    assert f"segments    {len(tokens)}, of " in report
    assert f"{max(map(len, tokens))} at most; none above 2048" in report
    assert report.endswith("mended      nothing\n")
    parts = [line for line in report.splitlines() if " to " in line]
    assert len(parts) == len({(program, drum) for program, drum in zip(notes.program, notes.is_drum, strict=True)})
    assert any(line.startswith("  drums ") for line in parts) == notes.is_drum.any()


def test_info_tells_songs_by_what_they_are(
    midi_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = (midi_folder / "piano_scale.mid").read_bytes()
    for name in ("song", "song.bin", "bandit"):
        (tmp_path / name).write_bytes(data)
        assert main(["info", name]) == 0
        assert "Acoustic Grand Piano" in capsys.readouterr().out
    (tmp_path / "band").write_bytes(data)
    assert main(["info", "band"]) == 0
    assert "checksums agree" in capsys.readouterr().out, "a voice has that name"
    for name, error in (("none.mid", "none.mid cannot be opened"), ("none", "no voice"), ("n" * 300, "no voice")):
        assert main(["info", name]) == 1
        assert error in capsys.readouterr().err


def test_info_tells_what_is_too_dense_and_what_was_mended(
    midi_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = (midi_folder / "piano_scale.mid").read_bytes()
    (tmp_path / "stray.mid").write_bytes(b"stray bytes" + data)
    assert main(["info", str(tmp_path / "stray.mid")]) == 0
    captured = capsys.readouterr()
    assert "mended      nothing" not in captured.out
    assert captured.err == ""
    assert main(["info", str(midi_folder / "dense.mid")]) == 0
    above = sum(len(one) > 2048 for one in untruncated(midi_folder / "dense.mid"))
    assert f"{above or 'none'} above 2048" in capsys.readouterr().out


def untruncated(song: Path) -> list[Any]:
    from notewave.song.codec import encode_notes

    return list(encode_notes(notewave.read(song)))


def test_voices_are_listed_and_added(
    vocoded_voice: Path,
    midi_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NOTEWAVE_VOICES", str(tmp_path / "voices"))
    assert main(["voices"]) == 0
    assert capsys.readouterr().out.startswith("band ")
    assert main(["voices", "add", str(vocoded_voice), "--name", "tiny"]) == 0
    assert "tiny" in capsys.readouterr().out
    assert main(["voices"]) == 0
    assert f"tiny                 {tmp_path / 'voices' / 'tiny'}\n" in capsys.readouterr().out
    song = str(midi_folder / "piano_scale.mid")
    assert main(["render", song, "--voice", "tiny", "--steps", "1", "-o", str(tmp_path / "a.wav")]) == 0
    assert main(["info", "tiny"]) == 0
    assert main(["voices", "add", str(tmp_path / "nothing")]) == 1
