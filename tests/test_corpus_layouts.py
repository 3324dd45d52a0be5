"""What each layout of a corpus writes, read by the loaders that it is for."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hugging_face import hugging_face_loader
from hypothesis import given
from hypothesis import strategies as st

from notewave import Audio, Notes, parts, read, to_midi
from notewave.corpus.layouts import LAYOUTS
from notewave.corpus.rows import FIELDS, Row
from notewave.corpus.settings import Making

RATE = 16000
BAND = Notes(
    [0.0, 0.1, 0.2, 0.0, 0.15],
    [0.1, 0.2, 0.3, 0.3, 0.2],
    [60, 64, 67, 40, 36],
    [80, 90, 100, 70, 110],
    [52, 52, 0, 33, 0],
    [False, False, False, False, True],
)
PIANO = Notes([0.0, 0.05], [0.25, 0.2], [60, 72], [64, 1], [0, 0], [False, False])
SOLOS = Notes([0.0, 0.1], [0.1, 0.3], [50, 60], [99, 99], [119, 103], [False, False])


@dataclass
class Corpus:
    """A corpus whose songs are written one by one, as a singer would."""

    folder: Path
    making: Making
    rows: list[Row] = field(default_factory=list)
    sounds: dict[str, np.ndarray] = field(default_factory=dict)  # by the path of each

    def add(self, source: str, notes: Notes, split: str = "train", **said: Any) -> Row:
        """Write a song's files, with noise of its own for its sound and each stem; its row."""
        layout, number = LAYOUTS[self.making.layout], len(self.rows) + 1
        row: Row = dict.fromkeys(FIELDS)
        row |= {
            "source": source,
            "source_sha256": f"{number:064x}",
            "name": layout.numbered.format(number) if layout.numbered else source.removesuffix(".mid"),
            "split": split,
            **{"voice": "rosewood", "seed": number, "sampler": "ddim", "steps": 8, "guidance": 2.0, "status": "sung"},
            **{"sample_rate": RATE, "frames": 4800, "seconds": 0.3, "notes": len(notes), "parts": list(parts(notes))},
            **{"peak": 0.5, "loudness": -20.5, "stems_error": 0.7, "mended": [], "files": []},
            **said,
        }
        for index, (part, own) in reversed([*enumerate(parts(notes).items())]):  # in any order
            if self.making.stems:
                self._put(row, "stem", part, index, f".{self.making.form}")
            if self.making.stems and self.making.midi:
                self._put(row, "stem-midi", part, index, ".mid", to_midi(own))
        row["audio"] = self._put(row, "audio", None, 0, f".{self.making.form}")
        if self.making.midi:
            self._put(row, "midi", None, 0, ".mid", to_midi(notes))
        if self.making.mels:
            written = io.BytesIO()
            np.save(written, np.full((15, 128), number, np.float32))
            self._put(row, "mel", None, 0, ".npy", written.getvalue())
        programs = {part: None if own.is_drum[0] else int(own.program[0]) for part, own in parts(notes).items()}
        for path, content in layout.beside(row, programs).items():
            self._place(path).write_bytes(content)
        self.rows.append(row)
        return row

    def finish(self) -> Path:
        """Write the files of the whole corpus; its folder."""
        made = self.folder.with_name("made")
        made.mkdir()
        rows = iter(sorted(self.rows, key=lambda row: row["name"]))
        layout = LAYOUTS[self.making.layout]
        layout.finish(rows, self._take, made, self.making)
        return self.folder

    def _put(self, row: Row, kind: str, part: str | None, index: int, suffix: str, content: bytes | None = None) -> str:
        path = LAYOUTS[self.making.layout].path(kind, row["name"], row["split"], part, index, suffix)
        file = self._place(path)
        assert not file.exists()
        if content is None:
            noise = np.random.default_rng(len(self.sounds)).uniform(-0.5, 0.5, row["frames"]).astype(np.float32)
            Audio(noise, RATE).save(file)
            self.sounds[path] = soundfile.read(file, dtype="float32")[0]
        else:
            file.write_bytes(content)
        row["files"].append({"kind": kind, "part": part, "path": path, "bytes": file.stat().st_size, "sha256": ""})
        return path

    def _take(self, path: str, file: Path) -> None:
        file.rename(self._place(path))

    def _place(self, path: str) -> Path:
        file = self.folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        return file


@pytest.fixture
def corpora(tmp_path: Path) -> Any:
    """Makes the one corpus of a test."""
    return lambda **making: Corpus(tmp_path / "corpus", Making(**making))


def _same_notes(path: str | Path, notes: Notes) -> bool:
    """Whether a file is read as these notes, to a millisecond."""
    found, told = (sorted(np.round(np.transpose([*vars(song).values()]), 3).tolist()) for song in (read(path), notes))
    return found == told


def test_a_plain_corpus_lies_as_its_songs_do(corpora: Any) -> None:
    corpus = corpora(mels=True, stems=True, midi=True, form="flac")
    corpus.add("bach/air.mid", BAND)
    corpus.finish()
    stems = {f"stems/bach/air/{part}{suffix}" for part in parts(BAND) for suffix in (".flac", ".mid")}
    found = {str(path.relative_to(corpus.folder)) for path in corpus.folder.rglob("*") if path.is_file()}
    assert found == {"audio/bach/air.flac", "mels/bach/air.npy", "midi/bach/air.mid", *stems}


@pytest.fixture
def slakh(corpora: Any) -> tuple[Corpus, Any]:
    """A corpus as Slakh, and mirdata's dataset of it."""
    import mirdata

    corpus = corpora(layout="slakh", form="flac", mels=True)
    corpus.add("band.mid", BAND)
    corpus.add("piano.mid", PIANO, "validation", voice='"rose": wood')
    corpus.add("solos.mid", SOLOS, "test")
    folder = corpus.finish()
    dataset = mirdata.initialize("slakh", data_home=f"{folder}/mirdata")
    dataset.index_path = f"{folder}/mirdata/index.json"
    return corpus, dataset


def test_mirdata_reads_the_songs_of_a_corpus_that_lies_as_slakh(slakh: tuple[Corpus, Any]) -> None:
    corpus, dataset = slakh
    songs = dataset.load_multitracks()
    assert list(songs) == ["Track00001", "Track00002", "Track00003"]
    assert dataset.get_mtrack_splits() == {
        "train": ["Track00001"],
        "validation": ["Track00002"],
        "test": ["Track00003"],
    }
    for row, notes, song in zip(corpus.rows, (BAND, PIANO, SOLOS), songs.values(), strict=True):
        assert Path(song.mix_path).resolve() == corpus.folder / row["split"] / row["name"] / "mix.flac"
        samples, rate = song.audio
        assert rate == RATE and np.array_equal(samples, corpus.sounds[row["audio"]])
        assert _same_notes(song.midi_path, notes)
        assert (song.uuid, song.lakh_midi_dir) == (row["source_sha256"], row["source"])
        assert (song.normalized, song.overall_gain) == (False, 1.0)
        assert sorted(song.notes.pitches) == sorted(notes.pitch[~notes.is_drum])
    missing, _ = dataset.validate(verbose=False)
    assert not any(missing.values())


def test_mirdata_reads_the_stems_of_a_corpus_that_lies_as_slakh(slakh: tuple[Corpus, Any]) -> None:
    corpus, dataset = slakh
    band = dataset.multitrack("Track00001")
    stems = list(band.tracks.values())
    assert [stem.track_id for stem in stems] == [f"Track00001-S0{n}" for n in range(4)]
    assert [stem.program_number for stem in stems] == [0, 33, 52, 128]
    assert [stem.is_drum for stem in stems] == [False, False, False, True]
    assert [stem.instrument for stem in stems] == ["Piano", "Bass", "Strings (continued)", "Drums"]
    assert [stem.midi_program_name for stem in stems] == [
        *("Acoustic Grand Piano", "Electric Bass (finger)", "Choir Aahs", "Drums")
    ]
    assert [stem.mixing_group for stem in stems] == ["piano", "bass", None, "drums"]
    for stem, own in zip(stems, parts(BAND).values(), strict=True):
        path = str(Path(stem.audio_path).resolve().relative_to(corpus.folder))
        assert np.array_equal(stem.audio[0], corpus.sounds[path])
        assert _same_notes(stem.midi_path, own)
        assert stem.split == "train"
    submixes, groups = band.get_submix_by_group(["bass", "drums"])
    assert groups == {"bass": ["Track00001-S01"], "drums": ["Track00001-S03"], "other": [*band.tracks][::2]}
    assert submixes["bass"].shape == (1, 4800)
    assert dataset.track("Track00002-S00").plugin_name == '"rose": wood'
    assert [dataset.track(f"Track00003-S0{n}").instrument for n in (0, 1)] == ["Sound Effects", "Sound effects"]


def test_slakh_s_metadata_have_the_fields_of_its_own(slakh: tuple[Corpus, Any]) -> None:
    import yaml

    metadata = yaml.safe_load((slakh[0].folder / "train/Track00001/metadata.yaml").read_text("ascii"))
    assert metadata.keys() == {
        *("UUID", "audio_dir", "lmd_midi_dir", "midi_dir", "normalization_factor", "normalized", "overall_gain"),
        *("stems", "target_peak"),
    }
    for stem, traits in metadata["stems"].items():
        assert traits.keys() == {
            *("audio_rendered", "inst_class", "is_drum", "midi_program_name", "midi_saved", "plugin_name"),
            "program_num",
        }
        assert traits["audio_rendered"] is traits["midi_saved"] is True
        for folder, suffix in ((metadata["audio_dir"], "flac"), (metadata["midi_dir"], "mid")):
            assert (slakh[0].folder / f"train/Track00001/{folder}/{stem}.{suffix}").is_file()


@given(st.text(), st.text())
def test_no_name_means_anything_in_slakh_s_metadata(source: str, voice: str) -> None:
    import yaml

    row = dict.fromkeys(FIELDS) | {"source": source, "voice": voice, "split": "test", "name": "Track00001"}
    row |= {"parts": ["drums"], "files": [{"kind": "stem", "part": "drums", "path": "test/Track00001/stems/S00.wav"}]}
    (content,) = LAYOUTS["slakh"].beside(row, {"drums": None}).values()
    metadata = yaml.safe_load(content)
    assert metadata["lmd_midi_dir"] == source
    assert metadata["stems"]["S00"]["plugin_name"] == voice
    assert metadata["stems"]["S00"]["midi_saved"] is False


@pytest.fixture
def maestro(corpora: Any) -> Corpus:
    """A corpus as MAESTRO, one of whose songs has a name that a spreadsheet would compute."""
    corpus = corpora(layout="maestro", stems=True, mels=True)
    corpus.add('bach, j. s./"air".mid', PIANO)
    corpus.add("=cmd|' /C calc'!A0.mid", SOLOS, "validation", seconds=0.3000625)
    corpus.add("élan\U0001f3b9.mid", PIANO, "test")
    corpus.finish()
    return corpus


TITLES = ['bach, j. s./"air".mid', "./=cmd|' /C calc'!A0.mid", "élan\U0001f3b9.mid"]


def test_mirdata_reads_a_corpus_that_lies_as_maestro(maestro: Corpus) -> None:
    import mirdata

    dataset = mirdata.initialize("maestro", data_home=str(maestro.folder))
    dataset.index_path = f"{maestro.folder}/mirdata/index.json"
    songs = dataset.load_tracks()
    assert list(songs) == ["0/000001", "0/000002", "0/000003"]
    assert [song.canonical_title for song in songs.values()] == TITLES
    assert dataset.get_track_splits() == {"train": ["0/000001"], "validation": ["0/000002"], "test": ["0/000003"]}
    for row, notes, song in zip(maestro.rows, (PIANO, SOLOS, PIANO), songs.values(), strict=True):
        samples, rate = song.audio
        assert rate == RATE and np.array_equal(samples, maestro.sounds[row["audio"]])
        assert _same_notes(song.midi_path, notes)
        assert (song.canonical_composer, song.year, song.duration) == ("Unknown", 0, row["seconds"])
    missing, _ = dataset.validate(verbose=False)
    assert not any(missing.values())


def test_maestro_s_table_is_the_same_as_csv_and_as_json(maestro: Corpus) -> None:
    import pandas

    table = pandas.read_csv(maestro.folder / "maestro-v3.0.0.csv")
    assert table.columns.tolist() == [
        *("canonical_composer", "canonical_title", "split", "year", "midi_filename", "audio_filename", "duration")
    ]
    assert table.canonical_title.tolist() == TITLES
    assert table.duration.tolist() == [0.3, 0.3000625, 0.3]
    for row in table.itertuples():
        assert (row.midi_filename, row.audio_filename) == (f"{row.year}/00000{row.Index + 1}.midi", row.audio_filename)
        assert (maestro.folder / row.midi_filename).is_file() and (maestro.folder / row.audio_filename).is_file()
    by_column = json.loads((maestro.folder / "maestro-v3.0.0.json").read_text("ascii"))
    assert by_column == json.loads(table.to_json())
    by_row = json.loads((maestro.folder / "maestro-v2.0.0.json").read_text("ascii"))
    assert by_row == table.to_dict("records")


def test_a_corpus_without_songs_has_tables_without_rows(corpora: Any, tmp_path: Path) -> None:
    for layout in ("slakh", "maestro", "huggingface"):
        corpus = Corpus(tmp_path / layout / "corpus", Making(layout=layout))
        corpus.folder.mkdir(parents=True)
        corpus.finish()
    assert json.loads((tmp_path / "slakh/corpus/mirdata/index.json").read_bytes())["tracks"] == {}
    folder = tmp_path / "maestro/corpus"
    assert json.loads((folder / "maestro-v2.0.0.json").read_bytes()) == []
    assert set(map(str, json.loads((folder / "maestro-v3.0.0.json").read_bytes()).values())) == {"{}"}
    assert not list((tmp_path / "huggingface/corpus").iterdir())


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """``datasets.load_dataset``, off the network, with a cache of its own."""
    return hugging_face_loader(monkeypatch, tmp_path / "cache")


def _heard(audio: Mapping[str, Any]) -> np.ndarray:
    """The samples of a sound that ``datasets`` has not decoded."""
    source = io.BytesIO(audio["bytes"]) if audio["bytes"] else audio["path"]
    return soundfile.read(source, dtype="float32")[0]


def test_datasets_reads_a_corpus_that_lies_for_hugging_face(corpora: Any, load: Any) -> None:
    import datasets

    corpus = corpora(layout="huggingface", form="flac", stems=True, midi=True, mels=True)
    corpus.add("2020-01-01.mid", BAND, seed=2**64 - 1)
    corpus.add("test/1999-12-31.mid", PIANO, "validation", loudness=None, guidance=None, mended=["a note"])
    corpus.add("null", SOLOS, "test", loudness=None)
    corpus.add("\U0001f3b9,\n=1.mid", SOLOS, "train")
    folder = corpus.finish()
    for name in ("manifest.parquet", "manifest.jsonl", "corpus.json"):  # which lie there, too
        (folder / name).touch()
    for whole in (load("audiofolder", data_dir=str(folder)), load(str(folder))):
        assert {split: len(songs) for split, songs in whole.items()} == {"train": 2, "validation": 1, "test": 1}
        assert whole["train"].features["audio"] == datasets.Audio()
        assert whole["train"].features["stems"] == datasets.List(datasets.Audio())
        undecoded = datasets.Audio(decode=False)
        whole = whole.cast_column("audio", undecoded).cast_column("stems", datasets.List(undecoded))
        for row, notes in zip(corpus.rows, (BAND, PIANO, SOLOS, SOLOS), strict=True):
            (song,) = (song for song in whole[row["split"]] if song["source_sha256"] == row["source_sha256"])
            assert np.array_equal(_heard(song["audio"]), corpus.sounds[row["audio"]])
            stems = {file["part"]: file["path"] for file in row["files"] if file["kind"] == "stem"}
            assert list(parts(notes)) == song["parts"] and len(song["stems"]) == len(stems)
            for part, stem, midi in zip(song["parts"], song["stems"], song["stem_midis"], strict=True):
                assert np.array_equal(_heard(stem), corpus.sounds[stems[part]])
                assert _same_notes(folder / midi, parts(notes)[part])
            assert _same_notes(folder / song["midi"], notes)
            assert np.load(folder / song["mel"], allow_pickle=False).shape == (15, 128)
            assert song["seed"] == str(row["seed"])
            for name in ("source", "voice", "sampler", "guidance", "seconds", "loudness", "mended"):
                assert song[name] == row[name]


def test_a_lean_corpus_for_hugging_face_has_no_columns_of_what_it_lacks(corpora: Any, load: Any) -> None:
    corpus = corpora(layout="huggingface")
    corpus.add("a.mid", PIANO, "validation")
    folder = corpus.finish()
    whole = load(str(folder), streaming=True)
    assert list(whole) == ["validation"]
    assert whole["validation"].features.keys() == {
        *("audio", "source", "source_sha256", "voice", "seed", "sampler", "steps", "guidance", "sample_rate", "frames"),
        *("seconds", "notes", "parts", "mended", "peak", "loudness"),
    }
    assert "| validation | 1 | 0.00 |" in (folder / "README.md").read_text("ascii")


def test_metadata_are_written_as_they_come(corpora: Any) -> None:
    import pyarrow.parquet as parquet

    corpus = corpora(layout="huggingface")
    row = corpus.add("a.mid", PIANO)
    corpus.rows = [row | {"notes": number} for number in range(2500)]
    table = parquet.ParquetFile(corpus.finish() / "train/metadata.parquet")
    assert [table.metadata.row_group(n).num_rows for n in range(3)] == [1000, 1000, 500]
    assert table.read(["notes"])["notes"].to_pylist() == list(range(2500))
