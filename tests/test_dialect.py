"""A voice reads songs in its own dialect of tokens, and refuses tokens of another by name."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

import notewave
from notewave import ArgumentError, Dialect, MidiError, Notes, Synthesizer, Voice, VoiceError
from notewave.cli import main
from notewave.live.fit import fit
from notewave.song.dialect import PUBLISHED, dialect_of
from notewave.voice.library import DESCRIPTION

GM = Dialect(velocities=32, programs="gm")
PORT = Dialect(programs="gm", codec="pytorch")
SONG = Notes([0.1, 0.5, 1.0], [0.4, 6.0, 1.1], [60, 64, 38], [20, 90, 127], [3, 81, 0], [0, 0, 1])


@pytest.fixture(scope="module")
def voice(reference_voice: Path, tmp_path_factory: pytest.TempPathFactory) -> Voice:
    """The reference networks, their tokens read in another dialect."""
    folder = Path(shutil.copytree(reference_voice, tmp_path_factory.mktemp("voices") / "dialect"))
    dataclasses.replace(Voice.load(reference_voice), folder=folder, dialect=GM).save_description()
    return Voice.load(folder)


@pytest.fixture(scope="module")
def port_voice(vocoded_voice: Path, tmp_path_factory: pytest.TempPathFactory) -> Voice:
    """The reference networks and a small vocoder, their tokens read in the PyTorch port's codec."""
    folder = Path(shutil.copytree(vocoded_voice, tmp_path_factory.mktemp("voices") / "port"))
    dataclasses.replace(Voice.load(vocoded_voice), folder=folder, dialect=PORT).save_description()
    return Voice.load(folder)


def described(voice: Voice) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((voice.folder / DESCRIPTION).read_text())
    return content


def test_a_description_says_its_dialect_where_it_is_not_the_published_one(voice: Voice, reference_voice: Path) -> None:
    assert voice.dialect == GM
    assert described(voice)["format"] == 2 and described(voice)["dialect"] == {"velocities": 32, "programs": "gm"}
    published = Voice.load(reference_voice)
    assert published.dialect == PUBLISHED
    assert described(published)["format"] == 1 and "dialect" not in described(published)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"format": 1}, "dialect.*no place in format 1"),
        ({"dialect": None}, "Dialect section does not fit"),
        ({"dialect": {"velocities": 32}}, "Dialect section does not fit"),
        ({"dialect": {"velocities": 0, "programs": "gm"}}, "velocities is 0"),
        ({"dialect": {"velocities": 1e9, "programs": "gm"}}, "velocities is"),
        ({"dialect": {"velocities": 32, "programs": ["gm"]}}, "programs is"),
        ({"dialect": {"velocities": 32, "programs": "gm", "codec": "mt3"}}, "codec.*no place in format 2"),
        ({"format": 3}, "Dialect section does not fit"),
        ({"format": 4}, "reads 1 to 3"),
        ({"format": True}, "reads 1 to 3"),
    ],
)
def test_crooked_dialects_are_refused(voice: Voice, tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    folder = Path(shutil.copytree(voice.folder, tmp_path / "voice"))
    (folder / DESCRIPTION).write_text(json.dumps(described(voice) | change))
    with pytest.raises(VoiceError, match=rf"(?s){DESCRIPTION}.*{reason}"):
        Voice.load(folder)


def test_a_vocabulary_too_small_for_the_dialect_is_refused(voice: Voice, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(voice.folder, tmp_path / "voice"))
    content = described(voice)
    content["dimensions"]["vocabulary"] = GM.end - 1
    (folder / DESCRIPTION).write_text(json.dumps(content))
    with pytest.raises(VoiceError, match=f"must have the dialect's {GM.end} tokens"):
        Voice.load(folder)


def test_songs_are_read_in_the_voices_dialect(voice: Voice) -> None:
    synthesizer = Synthesizer(voice.folder, backend="cpu", threads=1)
    tokens = notewave.tokenize(SONG, dialect=voice.dialect)
    assert [dialect_of(segment) for segment in tokens] == [GM, GM]
    mel = synthesizer.spectrogram(SONG, steps=1)
    np.testing.assert_array_equal(mel, synthesizer.spectrogram(tokens, steps=1))
    np.testing.assert_array_equal(mel, synthesizer.spectrogram(iter(tokens), steps=1))
    louder = dataclasses.replace(SONG, velocity=[120, 90, 127])
    assert np.abs(mel - synthesizer.spectrogram(louder, steps=1)).max() > 1e-3


def test_tokens_of_another_dialect_are_refused_by_name(voice: Voice, reference_voice: Path) -> None:
    ours, published = (Synthesizer(folder, backend="cpu", threads=1) for folder in (voice.folder, reference_voice))
    cases = [(ours, PUBLISHED), (ours, Dialect(16, "gm")), (published, GM)]
    for synthesizer, spoken in cases:
        tokens = notewave.tokenize(SONG, dialect=spoken)
        fact = rf"segment 0 is in the dialect of velocities={spoken.velocities}, programs='{spoken.programs}'; voice "
        with pytest.raises(MidiError, match=fact):
            synthesizer.spectrogram(tokens)
        with synthesizer.session(sound=False) as session, pytest.raises(MidiError, match=fact):
            session.feed(tokens[:1])
    with pytest.raises(MidiError, match="in the dialect of velocities=1"):
        ours.spectrogram([tokens.tolist() for tokens in notewave.tokenize(SONG, dialect=GM)])


def test_what_is_no_dialect_is_refused() -> None:
    for dialect in (None, "gm", 32):
        with pytest.raises(ArgumentError, match=r"must be a notewave\.Dialect"):
            notewave.tokenize(SONG, dialect=dialect)  # type: ignore[arg-type]


def test_the_command_reads_songs_in_the_voices_dialect(
    voice: Voice, midi_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    song, out = midi_folder / "piano_scale.mid", tmp_path / "song.wav"
    options = ["--vocoder", "griffin-lim", "--steps", "1", "--backend", "cpu"]
    assert main(["render", str(song), "-o", str(out), "--voice", str(voice.folder), *options]) == 0
    sung, _ = soundfile.read(out, dtype="int16")
    expected = Synthesizer(voice.folder, backend="cpu", vocoder="griffin-lim").render(song, steps=1)
    expected.save(tmp_path / "expected.wav")
    np.testing.assert_array_equal(sung, soundfile.read(tmp_path / "expected.wav", dtype="int16")[0])
    assert main(["info", str(voice.folder)]) == 0
    assert "velocities=32, programs='gm'" in capsys.readouterr().out


def test_ids_become_tokens_of_a_dialect(voice: Voice) -> None:
    synthesizer = Synthesizer(voice.folder, backend="cpu", threads=1)
    tokens = notewave.tokenize(SONG, dialect=GM)
    again = [GM.tokens(segment.tolist()) for segment in tokens]
    np.testing.assert_array_equal(synthesizer.spectrogram(again, steps=1), synthesizer.spectrogram(tokens, steps=1))
    beyond = GM.tokens([GM.tie, GM.end, 1])
    with pytest.raises(MidiError, match=f"ids are 1 to {GM.end - 1}"):
        synthesizer.spectrogram([beyond])


def test_a_voice_of_the_ports_codec_sings_songs_side_by_side_and_live(
    port_voice: Voice, monkeypatch: pytest.MonkeyPatch
) -> None:
    singer = Synthesizer(port_voice.folder, backend="cpu", threads=1)
    monkeypatch.setattr(singer._backend, "side_by_side", 2)
    short = SONG.rows(np.array([0]))
    alone, longer = (singer.render(song, steps=1) for song in (short, SONG))
    batch = singer.render_batch([short, SONG], steps=1)
    np.testing.assert_allclose(batch[0].samples, alone.samples, rtol=0, atol=1e-4)
    np.testing.assert_allclose(batch[1].samples, longer.samples, rtol=0, atol=1e-4)
    stems = singer.stems(SONG, steps=1)
    assert {len(stem.samples) for stem in stems.values()} == {len(longer.samples)}
    with singer.live(real_time=False, hop=8) as live:
        live.note_on(60, program=3)
        assert any(np.abs(live.read().samples).max() > 0 for _ in range(4))
    chosen = fit(singer._backend, port_voice, singer._job({"steps": 1, "guidance": 1.0}), hop=20)
    assert chosen.windows.hop == 20


@pytest.mark.parametrize("ids", [[644, 0], [644, 901], [-1], [PUBLISHED.tie, 1]])
def test_what_the_ports_codec_cannot_have_is_refused(port_voice: Voice, ids: list[int]) -> None:
    singer = Synthesizer(port_voice.folder, backend="cpu", threads=1)
    with pytest.raises(MidiError, match=r"segment 0 is no token sequence: ids are 1 to 900\."):
        singer.spectrogram([PORT.tokens(ids)])
    for none in ([], [644] * 3001):
        with pytest.raises(MidiError, match=r"integers \[1 to 3000\]"):
            singer.spectrogram([PORT.tokens(none)])
    with pytest.raises(MidiError, match=r"velocities=1, programs='slakh'; voice .* reads .*codec='pytorch'"):
        singer.spectrogram([[PUBLISHED.tie, 1]])
