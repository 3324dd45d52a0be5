"""The command from a folder of songs to what others' loaders read, whole."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hugging_face import hugging_face_loader

from notewave import Notes, Synthesizer, parts, read, to_midi
from notewave.cli import main
from notewave.corpus.layouts import LAYOUTS
from notewave.corpus.settings import NEEDS
from notewave.corpus.takes import split_of
from notewave.sound.audio import pcm16

pytest.importorskip("pyarrow")

SPLITS = (50, 25, 25)


@pytest.fixture
def songs(tmp_path: Path) -> Path:
    """Eight songs of a violin, a bass and drums, and a file that is none."""
    folder = tmp_path / "songs"
    folder.mkdir()
    for number in range(8):
        key = 50 + number
        columns = [0.0, 0.5, 1.0, 0.0], [0.5, 1.0, 2.0, 0.1], [key, key + 3, 40, 36], [80] * 4, [40, 40, 33, 0]
        song = Notes(*columns, [False, False, False, True])
        (folder / f"song {number}.mid").write_bytes(to_midi(song))
    (folder / "none.mid").write_bytes(b"nothing")
    return folder


def corpus(songs: Path, out: Path, voice: Path, *more: str, fails: Sequence[str] = ("none.mid",)) -> Path:
    """A corpus made by the command, in this process."""
    words = [str(songs), "--out", str(out), "--voice", str(voice), "--steps", "1", "--workers", "0", "--backend", "cpu"]
    assert main(["corpus", *words, *more]) == bool(fails)
    rows = [json.loads(line) for line in (out / "manifest.jsonl").read_text("utf-8").splitlines()]
    assert [row["source"] for row in rows if row["status"] == "failed"] == list(fails)
    assert all(row["split"] == split_of(row["source_sha256"] or "0" * 8, SPLITS) for row in rows)
    return out


def test_every_layout_is_known_by_its_needs() -> None:
    assert set(LAYOUTS) == set(NEEDS) and all(name == layout.name for name, layout in LAYOUTS.items())


def test_mirdata_reads_what_the_command_makes_for_slakh(songs: Path, tmp_path: Path, vocoded_voice: Path) -> None:
    mirdata = pytest.importorskip("mirdata")
    out = corpus(songs, tmp_path / "out", vocoded_voice, "--layout", "slakh", "--splits", "50:25:25")
    dataset = mirdata.initialize("slakh", data_home=str(out / "mirdata"))
    dataset.index_path = str(out / "mirdata" / "index.json")
    synthesizer = Synthesizer(vocoded_voice, backend="cpu")
    tracks = dataset.load_multitracks()
    assert len(tracks) == 8
    for name, track in tracks.items():
        (row,) = (row for row in map(json.loads, (out / "manifest.jsonl").open()) if row["name"] == name)
        song = songs / row["source"]
        assert track.data_split == row["split"]
        mix, rate = track.audio
        assert rate == 16000 and np.array_equal(pcm16(mix), pcm16(synthesizer.render(song, steps=1).samples))
        stems = synthesizer.stems(song, steps=1)
        assert len(track.tracks) == len(stems) == 3
        for (part, stem), (_, found) in zip(stems.items(), sorted(track.tracks.items()), strict=True):
            assert found.is_drum == (part == "drums")
            assert np.array_equal(pcm16(np.ravel(found.audio[0])), pcm16(stem.samples))
            assert len(read(found.midi_path)) == len(parts(read(song))[part])


def test_mirdata_reads_what_the_command_makes_for_maestro(songs: Path, tmp_path: Path, vocoded_voice: Path) -> None:
    mirdata = pytest.importorskip("mirdata")
    more = ("--layout", "maestro", "--splits", "50:25:25", "--format", "wav")
    out = corpus(songs, tmp_path / "out", vocoded_voice, *more)
    dataset = mirdata.initialize("maestro", data_home=str(out))
    dataset.index_path = str(out / "mirdata" / "index.json")
    tracks = dataset.load_tracks()
    assert len(tracks) == 8 and {track.split for track in tracks.values()} <= {"train", "validation", "test"}
    for track in tracks.values():
        song = songs / track.canonical_title
        assert track.duration == soundfile.info(track.audio_path).duration
        assert len(track.midi.instruments) == 3 and len(read(track.midi_path)) == len(read(song)) == 4


def test_datasets_reads_what_the_command_makes_for_hugging_face(
    songs: Path, tmp_path: Path, vocoded_voice: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = hugging_face_loader(monkeypatch, tmp_path / "cache")
    from datasets import Audio

    more = ("--layout", "huggingface", "--splits", "50:25:25", "--mels", "--midi")
    out = corpus(songs, tmp_path / "out", vocoded_voice, *more)
    loaded = load("audiofolder", data_dir=str(out))
    count = 0
    for split, songs_of in loaded.items():
        for song in songs_of.cast_column("audio", Audio(decode=False)):
            count += 1
            assert split == split_of(song["source_sha256"], SPLITS)
            samples, rate = soundfile.read(song["audio"]["path"], dtype="int16")
            assert (len(samples), rate) == (song["frames"], song["sample_rate"])
            assert np.load(out / song["mel"]).shape[1] == 128 and len(read(out / song["midi"])) == song["notes"] == 4
    assert count == 8
