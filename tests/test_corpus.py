"""A folder of songs into a folder of music: what is made, what is kept, what is refused."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from notewave import ArgumentError, Notes, OutputError, Synthesizer, parts, read, to_midi, tokenize
from notewave.corpus import Machine, Making, Summary, make_corpus
from notewave.corpus.ledger import Ledger
from notewave.corpus.rows import Row
from notewave.song.edits import tempo, velocity
from notewave.sound.audio import pcm16

parquet = pytest.importorskip("pyarrow.parquet")

HERE, TWO = Machine(backend="cpu", workers=0, threads=1), Machine(backend="cpu", workers=2, threads=1)
QUICK = Making(form="wav", steps=1)
SONGS = ("piano_scale", "ensemble", "drums")


@pytest.fixture
def songs(tmp_path: Path) -> Path:
    """Three short songs in two folders, and files that are none."""
    folder = tmp_path / "songs"
    (folder / "deep").mkdir(parents=True)
    tune = Notes([0.0, 0.5, 1.0], [0.5, 1.0, 2.0], [60, 64, 67], [80, 90, 100], [0, 0, 40], [False] * 3)
    beat = Notes([0.0, 0.5], [0.1, 0.6], [36, 38], [100, 100], [0, 0], [True, True])
    (folder / "tune.mid").write_bytes(to_midi(tune))
    (folder / "beat.MIDI").write_bytes(to_midi(beat))
    slow = Notes([0.0, 6.0], [5.0, 7.0], [50, 55], [70, 70], [0, 0], [False] * 2)
    (folder / "deep" / "long.mid").write_bytes(to_midi(slow))
    (folder / "broken.mid").write_bytes(b"MThd\0\0")
    (folder / "notes.pdf").write_bytes(b"%PDF")
    return folder


@pytest.fixture(scope="module")
def synthesizer(vocoded_voice: Path) -> Synthesizer:
    return Synthesizer(vocoded_voice, backend="cpu")


def rows_of(out: Path) -> dict[str, Row]:
    """The manifest's rows by their names."""
    return {row["name"]: row for row in map(json.loads, (out / "manifest.jsonl").read_text("utf-8").splitlines())}


def make(songs: Path, out: Path, voice: Path, making: Making = QUICK, machine: Machine = HERE, **more: Any) -> Summary:
    return make_corpus([str(songs)], str(out), voices=[str(voice)], making=making, machine=machine, **more)


def sound_of(path: Path) -> Any:
    return soundfile.read(path, dtype="int16")[0]


def test_each_song_is_sung_as_rendering_sings_it_and_its_row_says_what_it_is(
    songs: Path, tmp_path: Path, vocoded_voice: Path, synthesizer: Synthesizer
) -> None:
    out, seen = tmp_path / "out", list[Row | None]()
    summary = make(songs, out, vocoded_voice, machine=TWO, on_take=seen.append)
    assert (summary.sung, summary.failed, summary.kept) == (3, 1, 0)
    rows = rows_of(out)
    assert set(rows) == {"tune", "beat", "deep/long", "broken"} and len(seen) == 4
    for name, song in (("tune", "tune.mid"), ("beat", "beat.MIDI"), ("deep/long", "deep/long.mid")):
        row, audio = rows[name], synthesizer.render(songs / song, steps=1).samples
        assert np.array_equal(sound_of(out / row["audio"]), pcm16(audio))
        assert row["sha256"] == hashlib.sha256((out / row["audio"]).read_bytes()).hexdigest()
        assert row["source"] == song and row["source_sha256"] == hashlib.sha256((songs / song).read_bytes()).hexdigest()
        assert (row["frames"], row["sample_rate"], row["seconds"]) == (len(audio), 16000, len(audio) / 16000)
        assert row["notes"] == len(read(songs / song)) and row["parts"] == list(parts(read(songs / song)))
        assert row["peak"] == pytest.approx(np.abs(audio).max()) and row["status"] == "sung"
        assert (row["steps"], row["voice"], row["seed"], row["mended"]) == (1, vocoded_voice.name, 0, [])
    assert rows["broken"]["status"] == "failed" and rows["broken"]["error_kind"] == "MidiError"
    assert "cannot be read" in rows["broken"]["error"] and rows["broken"]["audio"] is None
    table = parquet.read_table(out / "manifest.parquet").to_pylist()
    assert table == list(rows.values()), "the table says what the manifest says"
    assert not (out / ".making").exists()


def test_a_second_run_keeps_what_is_whole_and_makes_what_is_not(
    songs: Path, tmp_path: Path, vocoded_voice: Path
) -> None:
    out = tmp_path / "out"
    make(songs, out, vocoded_voice)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file() and path.name != ".lock"}
    summary = make(songs, out, vocoded_voice)
    assert (summary.sung, summary.kept, summary.failed) == (0, 3, 1)
    assert before == {path: path.stat().st_mtime_ns for path in before}, "nothing was written"

    first = rows_of(out)
    (out / "audio" / "tune.wav").unlink()
    with (out / "audio" / "beat.wav").open("ab") as file:
        file.write(b"more")
    summary = make(songs, out, vocoded_voice)
    assert (summary.sung, summary.kept) == (2, 1)
    assert [row["sha256"] for row in rows_of(out).values()] == [row["sha256"] for row in first.values()]

    whole = (out / "audio" / "tune.wav").read_bytes()
    (out / "audio" / "tune.wav").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert make(songs, out, vocoded_voice).kept == 3, "sizes are compared"
    assert make(songs, out, vocoded_voice, verify=True).sung == 1, "checksums are, where that is asked for"
    assert (out / "audio" / "tune.wav").read_bytes() == whole


def test_a_song_that_changed_is_sung_again_and_nothing_is_left_of_what_it_was(
    songs: Path, tmp_path: Path, vocoded_voice: Path, synthesizer: Synthesizer
) -> None:
    out, making = tmp_path / "out", Making(form="wav", steps=1, stems=True, midi=True)
    make(songs, out, vocoded_voice, making)
    assert (out / "stems" / "tune" / "violin.wav").exists()
    (songs / "tune.mid").write_bytes((songs / "deep" / "long.mid").read_bytes())
    (songs / "broken.mid").write_bytes((songs / "beat.MIDI").read_bytes())
    summary = make(songs, out, vocoded_voice, making)
    assert (summary.sung, summary.kept, summary.failed) == (2, 2, 0)
    rows = rows_of(out)
    assert rows["tune"]["source_sha256"] == rows["deep/long"]["source_sha256"]
    assert np.array_equal(sound_of(out / "audio" / "tune.wav"), sound_of(out / "audio" / "deep" / "long.wav"))
    listed = {file["path"] for row in rows.values() for file in row["files"]}
    there = {str(path.relative_to(out)) for kind in ("audio", "stems", "midi") for path in (out / kind).rglob("*.*")}
    assert there == listed, "the violin's stem went with the violin"


def test_a_corpus_grows_by_seeds_voices_and_songs(
    songs: Path, tmp_path: Path, vocoded_voice: Path, synthesizer: Synthesizer
) -> None:
    out = tmp_path / "out"
    make(songs, out, vocoded_voice)
    summary = make(songs, out, vocoded_voice, seeds=[0, 7])
    assert (summary.sung, summary.kept) == (3, 3)
    assert np.array_equal(
        sound_of(out / "audio" / "tune.s7.wav"), pcm16(synthesizer.render(songs / "tune.mid", steps=1, seed=7).samples)
    )
    other = Path(shutil.copytree(vocoded_voice, tmp_path / "other"))
    both = make_corpus(
        [str(songs / "tune.mid")], str(out), voices=[str(vocoded_voice), str(other)], making=QUICK, machine=HERE
    )
    assert (both.sung, both.kept) == (1, 1) and "tune.other" in rows_of(out)
    assert len(rows_of(out)) == 4 + 3 + 1 + 1, "rows of songs that are not asked for stay"


def test_what_was_begun_otherwise_is_refused(songs: Path, tmp_path: Path, vocoded_voice: Path) -> None:
    out = tmp_path / "out"
    make(songs, out, vocoded_voice)
    with pytest.raises(ArgumentError, match="begun with steps 1, not 2"):
        make(songs, out, vocoded_voice, Making(form="wav", steps=2))
    with pytest.raises(ArgumentError, match="begun with form 'wav', not 'flac'"):
        make(songs, out, vocoded_voice, Making(steps=1))
    for seeds in ([], [1, 1]):
        with pytest.raises(ArgumentError, match="each once"):
            make(songs, out, vocoded_voice, seeds=seeds)
    (out / "corpus.json").write_text("[]")
    with pytest.raises(OutputError, match="says no corpus"):
        make(songs, out, vocoded_voice)


def test_mels_stems_and_notes_are_those_of_the_song(
    songs: Path, tmp_path: Path, vocoded_voice: Path, synthesizer: Synthesizer
) -> None:
    out = tmp_path / "out"
    making = Making(steps=1, mels=True, stems=True, midi=True, edits=(("transpose", ("2",)), ("mute", ("drums",))))
    make(songs, out, vocoded_voice, making)
    rows, dialect = rows_of(out), synthesizer.voice.dialect
    assert rows["beat"]["status"] == "failed", "all of it is muted"
    sung = read(out / "midi" / "tune.mid")
    assert sorted(sung.pitch) == [62, 66, 69]
    tokens = tokenize(sung, dialect=dialect)
    assert np.array_equal(np.load(out / "mels" / "tune.npy"), synthesizer.spectrogram(tokens, steps=1))
    stems: Any = synthesizer.stems(sung, steps=1)
    assert np.array_equal(sound_of(out / "audio" / "tune.flac"), pcm16(stems.mix.samples))
    for part, audio in stems.items():
        assert np.array_equal(sound_of(out / "stems" / "tune" / f"{part}.flac"), pcm16(audio.samples))
        alone = read(out / "stems" / "tune" / f"{part}.mid")
        assert list(parts(alone)) == [part] and len(alone) == len(parts(sung)[part])
    assert rows["tune"]["stems_error"] == pytest.approx(stems.error, rel=1e-5)


def test_a_song_of_which_nothing_is_left_to_be_heard_is_no_trouble_of_the_disk(
    songs: Path, tmp_path: Path, vocoded_voice: Path
) -> None:
    making = Making(form="wav", steps=1, stems=True, rate=100, edits=(("end", ("0.001",)),))
    summary = make(songs, tmp_path / "out", vocoded_voice, making)
    assert (summary.sung, summary.failed) == (0, 4)
    assert {row["error_kind"] for row in rows_of(tmp_path / "out").values()} == {"MidiError"}
    assert "nothing of it is left" in rows_of(tmp_path / "out")["tune"]["error"]


def test_songs_side_by_side_are_each_as_they_are_alone(songs: Path, tmp_path: Path, vocoded_voice: Path) -> None:
    making = Making(form="wav", steps=1, stems=True, mels=True)
    make(songs, tmp_path / "one", vocoded_voice, making)
    together = Machine(backend="cpu", workers=1, threads=1, together=3)
    make(songs, tmp_path / "three", vocoded_voice, making, together)
    one, three = rows_of(tmp_path / "one"), rows_of(tmp_path / "three")
    assert one.keys() == three.keys()
    for name, row in one.items():
        assert [file["sha256"] for file in row["files"]] == [file["sha256"] for file in three[name]["files"]]


def test_odd_names_and_names_that_collide_each_have_their_own_files(
    songs: Path, tmp_path: Path, vocoded_voice: Path
) -> None:
    out, tune = tmp_path / "out", (songs / "tune.mid").read_bytes()
    odd = [b"caf\xe9.mid", b"TUNE.mid", b"tune.midi", b"a\nb.mid", b"con.mid", "é…☃.mid".encode(), b"x" * 240 + b".mid"]
    for name in odd:
        Path(os.fsdecode(os.fsencode(songs) + b"/" + name)).write_bytes(tune)
    assert make(songs, out, vocoded_voice).sung == 3 + len(odd)
    rows = rows_of(out)
    sounds = [row["audio"] for row in rows.values() if row["audio"]]
    assert len({name.lower() for name in sounds}) == 3 + len(odd)
    assert all((out / name).is_file() for name in sounds)
    assert {"caf\\xe9.mid", "a\\nb.mid"} <= {row["source"] for row in rows.values()}
    assert make(songs, out, vocoded_voice).kept == 3 + len(odd)
    assert parquet.read_table(out / "manifest.parquet").num_rows == len(rows)


def test_a_song_that_changes_under_the_run_is_one_or_the_other(
    songs: Path, tmp_path: Path, vocoded_voice: Path, synthesizer: Synthesizer
) -> None:
    out, old, new = tmp_path / "out", (songs / "tune.mid").read_bytes(), (songs / "deep" / "long.mid").read_bytes()

    def change(row: Row | None) -> None:
        (songs / "tune.mid").write_bytes(new)
        (songs / "beat.MIDI").unlink(missing_ok=True)

    make(songs, out, vocoded_voice, on_take=change)
    row = rows_of(out)["tune"]
    sung = {hashlib.sha256(data).hexdigest(): data for data in (old, new)}[row["source_sha256"]]
    assert np.array_equal(sound_of(out / row["audio"]), pcm16(synthesizer.render(sung, steps=1).samples))


def test_two_runs_at_once_are_refused(songs: Path, tmp_path: Path, vocoded_voice: Path) -> None:
    out = tmp_path / "out"
    with Ledger(out), pytest.raises(OutputError, match=f"process {os.getpid()} on .* is making it"):
        make(songs, out, vocoded_voice)
    assert make(songs, out, vocoded_voice).sung == 3


def test_lines_that_are_no_rows_are_passed_over_and_a_broken_last_one_is_cut_off(
    songs: Path, tmp_path: Path, vocoded_voice: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    make(songs, out, vocoded_voice)
    lines = (out / "manifest.jsonl").read_bytes().splitlines(keepends=True)
    (out / "manifest.jsonl").write_bytes(lines[0] + b'{"source": 1}\n' + lines[1] + lines[3][:-9])
    summary = make(songs, out, vocoded_voice)
    assert (summary.sung, summary.kept + summary.failed) == (2, 2)
    assert "line 2 of " in caplog.text
    assert len(rows_of(out)) == 4


def test_near_copies_are_left_out(songs: Path, tmp_path: Path, vocoded_voice: Path) -> None:
    song = read(Path(__file__).parent / "data" / "midi" / "ensemble.mid")
    (songs / "original.mid").write_bytes(to_midi(song))
    (songs / "slower.mid").write_bytes(to_midi(tempo(velocity(song, 0.7), 0.8)))
    out = tmp_path / "out"
    summary = make(songs, out, vocoded_voice, dedupe=True)
    assert (summary.sung, summary.duplicates, summary.failed) == (4, 1, 1)
    assert rows_of(out)["slower"]["duplicate_of"] == "original.mid"
    assert make(songs, out, vocoded_voice, dedupe=True).duplicates == 1
    assert make(songs, out, vocoded_voice).sung == 1, "not asked for any more, it is sung"
    assert make(songs, out, vocoded_voice, dedupe=True).kept == 5, "and what was sung stays"


def test_a_corpus_may_be_elsewhere(
    songs: Path, tmp_path: Path, vocoded_voice: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    there, given = tmp_path / "there", {"voices": [str(vocoded_voice)], "making": QUICK}
    url = f"file://{there}"
    summary = make_corpus([str(songs)], url, machine=TWO, **given)
    assert (summary.sung, summary.failed) == (3, 1)
    rows = rows_of(there)
    for row in rows.values():
        for file in row["files"]:
            assert hashlib.sha256((there / file["path"]).read_bytes()).hexdigest() == file["sha256"]
    assert parquet.read_table(there / "manifest.parquet").num_rows == 4
    assert not [path for path in there.rglob("*") if path.is_file() and ".making" in path.parts]
    assert make_corpus([str(songs)], url, machine=HERE, **given).kept == 3

    shutil.rmtree(tmp_path / "state")  # as on another machine: what is there says what was done
    (there / rows["tune"]["audio"]).unlink()
    summary = make_corpus([str(songs)], url, machine=HERE, verify=True, **given)
    assert (summary.sung, summary.kept, summary.failed) == (1, 2, 1)
    with pytest.raises(ArgumentError, match="begun with steps"):
        make_corpus([str(songs)], url, machine=HERE, voices=[str(vocoded_voice)], making=Making(form="wav", steps=2))
    with pytest.raises(OutputError, match="Protocol not known"):
        make_corpus([str(songs)], "nowhere://bucket", machine=HERE, **given)


def test_songs_that_cannot_be_opened_have_rows_until_they_can(songs: Path, tmp_path: Path, vocoded_voice: Path) -> None:
    out, listed = tmp_path / "out", songs / "list.txt"
    listed.write_text("tune.mid\nmissing.mid\n")
    assert make(listed, out, vocoded_voice).failed == 1
    assert "cannot be opened: No such file" in rows_of(out)["missing"]["error"]
    before = (out / "manifest.jsonl").read_bytes()
    assert make(listed, out, vocoded_voice).failed == 1 and (out / "manifest.jsonl").read_bytes() == before
    (songs / "tune.mid").rename(songs / "missing.mid")
    summary = make(listed, out, vocoded_voice)
    assert (summary.sung, summary.failed) == (1, 1) and rows_of(out)["missing"]["status"] == "sung"
    assert rows_of(out)["tune"]["status"] == "failed", "where it was there is nothing now"


def test_voices_are_held_to_what_they_were(
    songs: Path, tmp_path: Path, vocoded_voice: Path, reference_voice: Path
) -> None:
    out, voice = tmp_path / "out", Path(shutil.copytree(vocoded_voice, tmp_path / "voice"))
    make(songs, out, voice)
    shutil.rmtree(voice)
    shutil.copytree(reference_voice, voice)
    with pytest.raises(ArgumentError, match="'voice' is another one than that"):
        make(songs, out, voice, Making(form="wav", steps=1, vocoder=None))
    twice = [str(vocoded_voice), str(shutil.copytree(vocoded_voice, tmp_path / "deep" / vocoded_voice.name))]
    for voices, said in ((twice, "there are two voices"), ([], "no voice is given")):
        with pytest.raises(ArgumentError, match=said):
            make_corpus([str(songs)], str(tmp_path / "new"), voices=voices, making=QUICK, machine=HERE)
    (out / "corpus.json").write_text('{"making": {}}')
    with pytest.raises(ArgumentError, match="says no"):
        make(songs, out, vocoded_voice)


def test_labels_that_look_alike_as_text_are_two_songs(songs: Path, tmp_path: Path, vocoded_voice: Path) -> None:
    tune = (songs / "tune.mid").read_bytes()
    for name in (b"x\xe9.mid", b"x\\xe9.mid"):
        Path(os.fsdecode(os.fsencode(songs) + b"/" + name)).write_bytes(tune)
    assert make(songs, tmp_path / "out", vocoded_voice).sung == 5
    assert make(songs, tmp_path / "out", vocoded_voice).kept == 5
