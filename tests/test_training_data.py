import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from notewave.errors import ToolError, TrainingError
from notewave.export.material.ensembles import DRUMS, PIANO, Instrument, general_midi
from notewave.export.material.excerpts import HELD_OUT, held_out_notes
from notewave.export.material.fluidsynth import SOUNDFONT, fluidsynth
from notewave.export.material.packing import pack_songs, packed_songs
from notewave.export.material.pieces import as_notes, compose, sustain
from notewave.export.material.scores import HELD_OUT_SCORES, corpus_paths, medley, read_score
from notewave.export.material.segments import Segments, read_songs
from notewave.export.material.songs import (
    MEL_STEP,
    SEGMENT_SAMPLES,
    SUSTAINED,
    Data,
    Song,
    held_out,
    load_song,
    make_data,
    make_song,
    pack_mel,
    render_song,
    save_song,
    unpack_mel,
)
from notewave.export.training.config import CONFIGS, load_config, parse_config
from notewave.export.training.symbolic import (
    FAMILY,
    PARTS,
    part_rolls,
    piano_rolls,
    random_voices,
    symbolic_batch,
    token_targets,
)
from notewave.song.codec import decode_tokens, encode_notes
from notewave.song.dialect import PUBLISHED, Dialect, dialect_of
from notewave.song.notes import Notes
from notewave.sound.mel import FRAMES, HOP, LOG_MAX, LOG_MIN, MELS, SEGMENT_SECONDS, log_mel

BAND = (
    Instrument(33, role="bass", low=28, high=55),
    Instrument(24, role="harmony", low=40, high=76),
    Instrument(73, role="melody", low=60, high=96),
    Instrument(0, is_drum=True, role="drums"),
)
needs_fluidsynth = pytest.mark.skipif(
    shutil.which("fluidsynth") is None or not SOUNDFONT.exists(),
    reason="FluidSynth and its soundfont are not installed",
)


def columns(notes: Notes) -> np.ndarray:
    return np.stack([np.asarray(column, np.float64) for column in vars(notes).values()])


@pytest.mark.parametrize("ensemble", [PIANO, BAND])
@pytest.mark.parametrize("seed", range(4))
def test_pieces_are_the_same_each_time_and_tokenise_without_loss(ensemble: tuple[Instrument, ...], seed: int) -> None:
    notes = compose(np.random.default_rng(seed), ensemble, 25.0)
    again = compose(np.random.default_rng(seed), ensemble, 25.0)
    np.testing.assert_array_equal(columns(notes), columns(again))
    assert len(notes) > 20 and 20 < notes.seconds < 40
    back = decode_tokens(encode_notes(notes))
    pitched, found = ~notes.is_drum, ~back.is_drum
    onsets = sorted(zip(notes.onset_s[pitched].round(2), notes.pitch[pitched], strict=True))
    assert onsets == sorted(zip(back.onset_s[found].round(2), back.pitch[found], strict=True))
    offsets = sorted(zip(notes.offset_s[pitched].round(2), notes.pitch[pitched], strict=True))
    assert offsets == sorted(zip(back.offset_s[found].round(2), back.pitch[found], strict=True))


def test_every_instrument_of_a_band_plays_its_own() -> None:
    notes = compose(np.random.default_rng(0), BAND, 40.0)
    for instrument in BAND:
        own = (notes.program == instrument.program) & (notes.is_drum == instrument.is_drum)
        assert own.any() and notes.pitch[own].min() >= instrument.low and notes.pitch[own].max() <= instrument.high


def test_a_key_struck_again_ends_its_note() -> None:
    notes = as_notes(
        [(0.0, 2.0, 60, 0, False), (1.0, 3.0, 60, 0, False), (1.02, 1.5, 60, 0, False), (0.5, 0.8, 62, 0, False)]
    )
    table = sorted(zip(notes.onset_s.tolist(), notes.offset_s.tolist(), notes.pitch.tolist(), strict=True))
    assert table == [(0.0, 1.0, 60), (0.5, 0.8, 62), (1.0, 3.0, 60)]


def test_rolls_say_when_notes_sound() -> None:
    notes = as_notes([(0.1, 0.2, 60, 0, False), (5.0, 5.3, 64, 0, False)])
    roll = piano_rolls(notes, 2)
    assert roll.shape == (2, FRAMES, 2, 128)
    assert np.flatnonzero(roll[0, :, 0, 60]).tolist() == [5, 6, 7, 8, 9]
    assert np.flatnonzero(roll[0, :, 1, 60]).tolist() == [5]
    assert roll[0, 250:, 0, 64].all() and roll[1, :9, 0, 64].all() and not roll[1, 9:, 0, 64].any()


def test_rolls_of_parts_tell_instruments_apart() -> None:
    notes = as_notes([(0.1, 0.2, 60, 33, False), (0.1, 0.3, 60, 73, False), (1.0, 1.1, 38, 0, True)])
    velocities = part_rolls(notes, 1)[0]
    assert set(np.unique(velocities)) == {np.float32(0), np.float32(90 / 127)}
    rolls = velocities > 0
    bass, flute = 33 // FAMILY, 73 // FAMILY
    assert np.flatnonzero(rolls[:, bass, 60]).tolist() == [5, 6, 7, 8, 9]
    assert np.flatnonzero(rolls[:, flute, 60]).tolist() == [*range(5, 15)]
    assert np.flatnonzero(rolls[:, PARTS - 1, 38]).tolist() == [50, 51, 52]
    assert rolls.sum() == 5 + 10 + 3
    assert piano_rolls(notes, 1)[0, :, 0, 38].sum() == 0


def test_targets_of_unisons_end_with_their_own_instrument() -> None:
    notes = as_notes([(0.1, 1.0, 60, 33, False), (0.2, 2.0, 60, 73, False)])
    tokens = encode_notes(notes)[0]
    targets, mask = token_targets(tokens)
    starts = targets[mask[:, 1]]
    np.testing.assert_allclose(starts[:, :2] * SEGMENT_SECONDS, [(0.1, 1.0), (0.2, 2.0)], atol=1e-5)


def test_symbolic_batches_are_of_the_ensembles_and_in_the_dialect_asked_for() -> None:
    spoken, data = Dialect(32, "gm"), Data(ensemble="general-midi")
    batches = [symbolic_batch(np.random.default_rng(seed), 8, 3000, data, spoken) for seed in range(4)]
    parts = [batch.parts for batch in batches if batch.parts is not None]
    assert len(parts) == 4 and max(int((own.sum(dim=(0, 1, 3)) > 0).sum()) for own in parts) >= 3
    assert all((batch.tokens == spoken.tie).any() for batch in batches)
    assert symbolic_batch(np.random.default_rng(0), 8, 3000, Data(), PUBLISHED).parts is None


def test_random_voices_sound_together() -> None:
    notes = random_voices(np.random.default_rng(1), 20.0)
    assert piano_rolls(notes, 4)[:, :, 0].sum(axis=-1).max() > 1


def test_scores_held_out_are_not_trained_on() -> None:
    pytest.importorskip("music21")
    trained = [path for paths in corpus_paths().values() for path in paths]
    assert len(trained) > 1000
    for name in HELD_OUT_SCORES:
        assert not any(f"/{name}." in path for path in trained)
    assert len(held_out(0, 20.0, Data())) > 30


def test_a_medley_fills_its_time() -> None:
    pytest.importorskip("music21")
    notes = medley(np.random.default_rng(3), 20.0)
    assert 15 < notes.seconds < 40


def test_ensembles_of_general_midi_are_of_all_kinds() -> None:
    ensembles = [general_midi(np.random.default_rng(seed)) for seed in range(600)]
    assert {len(players) for players in ensembles} == set(range(1, 9))
    assert {player.program for players in ensembles for player in players} == set(range(128))
    assert any(tuple(players) == (DRUMS,) for players in ensembles)
    assert any(len(players) == 1 and not players[0].is_drum for players in ensembles)
    assert any(len(players) > 1 and not any(one.is_drum for one in players) for players in ensembles)


def test_songs_of_general_midi_have_dynamics_all_drums_solos_and_silence() -> None:
    pytest.importorskip("music21")
    data = Data(ensemble="general-midi", seconds=40.0)
    songs = [make_song(index, data) for index in range(24)]
    assert songs[0].velocity.tolist() == make_song(0, data).velocity.tolist()
    velocity = np.concatenate([notes.velocity for notes in songs])
    assert velocity.min() < 30 and velocity.max() == 127
    keys = np.unique(np.concatenate([notes.pitch[notes.is_drum] for notes in songs]))
    assert {35, 36, 38, 42, 49} <= set(keys.tolist()) and len(keys) > 30 and keys.min() >= 27 and keys.max() <= 87
    usual = [notes for index, notes in enumerate(songs) if index % SUSTAINED != SUSTAINED - 1]
    counts = [len(tokens) for notes in usual for tokens in encode_notes(notes, Dialect(32, "gm"))]
    assert np.median(counts) > 120 and max(counts) > 700
    gaps = [np.diff(np.sort(np.append(notes.onset_s, 0.0))).max() for notes in songs]
    assert max(gaps) > 4.0


def test_one_song_in_six_has_long_notes_alone() -> None:
    pytest.importorskip("music21")
    data = Data(ensemble="general-midi", seconds=60.0)
    long, usual = (make_song(index, data) for index in (SUSTAINED - 1, SUSTAINED))
    shares = [((notes.offset_s - notes.onset_s > 5.12) & ~notes.is_drum).mean() for notes in (long, usual)]
    assert shares[0] > 0.5 > 0.2 > shares[1], "longer than a segment"
    assert (long.offset_s - long.onset_s).max() > 15 and not long.is_drum.any() and len(np.unique(long.velocity)) > 1
    alone = sustain(np.random.default_rng(0), (DRUMS,), 20.0)
    assert not alone.is_drum.any(), "drums cannot be held"


def test_parts_of_a_score_are_shared_out() -> None:
    pytest.importorskip("music21")
    notes = medley(np.random.default_rng(3), 20.0, (Instrument(33, low=28), Instrument(73, low=60)))
    flute, bass = (notes.pitch[notes.program == program].mean() for program in (73, 33))
    assert flute > bass


def test_songs_are_stored_whole(tmp_path: Path) -> None:
    song = a_song()
    save_song(song, tmp_path / "train-00003.npz")
    back = load_song(tmp_path / "train-00003.npz")
    np.testing.assert_array_equal(back.samples, song.samples)
    np.testing.assert_array_equal(back.mel, song.mel)
    np.testing.assert_array_equal(columns(back.notes), columns(song.notes))
    spoken = Dialect(32, "gm")
    segments = Segments(tmp_path, spoken, Data(songs=4))
    assert segments.first == [True, False] and {dialect_of(tokens) for tokens in segments.tokens} == {spoken}
    assert [tokens.tolist() for tokens in segments.tokens] == [x.tolist() for x in encode_notes(song.notes, spoken)]
    with pytest.raises(TrainingError, match="no songs"):
        Segments(tmp_path, spoken, Data(songs=3))


def a_song() -> Song:
    rng = np.random.default_rng(0)
    mel = rng.integers(0, 256, (2, FRAMES, MELS)).astype(np.uint8)
    notes = as_notes([(0.2, 0.5, 60, 12, False), (6.0, 6.5, 40, 0, True)])
    return Song(rng.integers(-5, 5, 2 * SEGMENT_SAMPLES).astype(np.int16), mel, notes)


def test_mels_in_8_bits_are_off_by_half_a_step_at_most() -> None:
    mel = np.random.default_rng(0).uniform(LOG_MIN - 1, LOG_MAX + 1, 10000)
    back = unpack_mel(pack_mel(mel))
    assert np.abs(back - np.clip(mel, LOG_MIN, LOG_MAX)).max() <= MEL_STEP / 2 + 1e-5
    np.testing.assert_array_equal(pack_mel(back), pack_mel(mel))


def test_packed_songs_are_the_same_but_for_one_bit_and_the_samples(tmp_path: Path) -> None:
    song = a_song()
    for name in ("train-00000", "train-00001", "heldout-00000"):
        save_song(song, tmp_path / f"{name}.npz")
    assert pack_songs(tmp_path, tmp_path / "songs.pack", 1) == 2
    (number, back), *others = packed_songs(tmp_path / "songs.pack", "train")
    assert number == 0 and not others and not back.samples.size
    np.testing.assert_array_equal(back.mel, song.mel & 0xFE)
    np.testing.assert_array_equal(columns(back.notes), columns(song.notes))
    packed, loose = (Segments(source, PUBLISHED, Data(songs=1)) for source in (tmp_path / "songs.pack", tmp_path))
    assert [tokens.tolist() for tokens in packed.tokens] == [tokens.tolist() for tokens in loose.tokens]
    assert len(list(read_songs(tmp_path / "songs.pack", "heldout", 8))) == 1


def test_a_damaged_pack_is_named(tmp_path: Path) -> None:
    save_song(a_song(), tmp_path / "train-00000.npz")
    pack = tmp_path / "songs.pack"
    pack_songs(tmp_path, pack)
    whole = pack.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"no archive", whole[:200] + bytes(400) + whole[600:]):
        pack.write_bytes(damaged)
        with pytest.raises(TrainingError, match="is no pack of songs"):
            list(packed_songs(pack, "train"))
    with zipfile.ZipFile(pack, "w", zipfile.ZIP_LZMA) as archive, archive.open("train-00000.mel", "w") as member:
        np.lib.format.write_array_header_1_0(member, {"descr": "|u1", "fortran_order": False, "shape": (128, 1 << 50)})
    with pytest.raises(TrainingError, match="no song is so long"):
        list(packed_songs(pack, "train"))
    with pytest.raises(TrainingError, match="no songs to pack"):
        pack_songs(tmp_path / "nowhere", pack)


@needs_fluidsynth
def test_audio_mel_and_tokens_agree_about_time() -> None:
    song = render_song(as_notes([(1.0, 1.5, 72, 0, False), (6.0, 6.4, 60, 0, False)]))
    assert len(song.tokens()) == 2 and song.samples.shape == (2 * SEGMENT_SAMPLES,)
    loud = np.flatnonzero(np.abs(song.samples) > 100)
    assert 0 <= loud[0] - 16000 < 2 * HOP
    mel = unpack_mel(song.mel)
    frames = mel.reshape(-1, MELS).mean(axis=1)
    assert np.flatnonzero(np.diff(frames) > 1)[0] in range(47, 51)
    np.testing.assert_allclose(log_mel(song.samples / 32767).reshape(song.mel.shape), mel, atol=MEL_STEP / 2 + 1e-4)


@needs_fluidsynth
def test_velocities_and_more_programs_than_channels_are_heard() -> None:
    soft, loud = (fluidsynth(Notes([0.0], [1.0], [60], [velocity], [0], [0])).std() for velocity in (30, 120))
    assert 10 < 20 * np.log10(loud / soft) < 35
    rows = [(0.5 * index, 0.5 * index + 0.3, 60, index, False) for index in range(20)]
    both = fluidsynth(as_notes([*rows, (0.0, 0.1, 38, 0, True)]))
    apart = fluidsynth(as_notes([rows[19]]))
    heard = slice(int(9.5 * 16000), int(9.8 * 16000))
    assert both[heard].std() > 0.7 * apart[heard].std() > 1e-4
    drums = [fluidsynth(Notes([0.0], [0.1], [38], [90], [program], [1])) for program in (0, 40)]
    np.testing.assert_array_equal(drums[0], drums[1])


@needs_fluidsynth
def test_a_set_is_rendered_once(tmp_path: Path) -> None:
    pytest.importorskip("music21")
    make_data(tmp_path, Data(songs=1, held_out_songs=0, seconds=6.0))
    before = (tmp_path / "train-00000.npz").stat().st_mtime_ns
    make_data(tmp_path, Data(songs=1, held_out_songs=0, seconds=6.0))
    assert (tmp_path / "train-00000.npz").stat().st_mtime_ns == before


def test_a_missing_program_or_soundfont_is_named_before_anything_is_rendered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes = as_notes([(0.0, 0.1, 60, 0, False)])
    if shutil.which("fluidsynth"):
        with pytest.raises(ToolError, match=r"soundfont.*apt install"):
            fluidsynth(notes, tmp_path / "missing.sf2")
        (tmp_path / "text.sf2").write_text("no soundfont")
        with pytest.raises(ToolError, match=r"rendered nothing .*Check that .*text\.sf2 is a soundfont"):
            fluidsynth(notes, tmp_path / "text.sf2")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolError, match=r"fluidsynth is not installed.*apt install"):
        make_data(tmp_path / "songs", Data(songs=1))
    assert list((tmp_path / "songs").iterdir()) == []


def test_a_missing_music21_is_named_with_its_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    read_score.cache_clear()
    monkeypatch.setitem(sys.modules, "music21", None)
    for read in (lambda: held_out_notes(HELD_OUT["piano"][0]), lambda: held_out(0, 5.0, Data())):
        with pytest.raises(ToolError, match=r"music21.*missing.*notewave\[train\]"):
            read()


def test_material_needs_no_torch() -> None:
    program = (
        "import importlib, pkgutil, sys, notewave.export.material as material\n"
        "names = [found.name for found in pkgutil.iter_modules(material.__path__, 'notewave.export.material.')]\n"
        "assert 'notewave.export.material.songs' in names\n"
        "for name in names:\n    importlib.import_module(name)\n"
        "heavy = {'torch', 'music21', 'notewave.export.training'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("name", sorted(path.stem for path in CONFIGS.glob("*.json")))
def test_bundled_configurations_are_sound(name: str) -> None:
    config = load_config(name)
    assert config.symbolic and config.mel and config.name == name


def test_a_misspelt_setting_is_named() -> None:
    with pytest.raises(TrainingError, match="stepz"):
        parse_config({"name": "x", "dimensions": {}, "mel": [{"stepz": 1}]})
    with pytest.raises(TrainingError, match="piano"):
        load_config("no-such-thing")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"crooked\.json is no configuration: it is not readable JSON"),
        ("\xff", "not readable JSON"),
        ("[" * 100_000, "not readable JSON"),
        ("[]", r"a Config is \[\]; it must be an object"),
        ('{"name": "x"}', "a Config lacks dimensions"),
        ('{"dimensions": {"width": 64}}', "a Dimensions lacks heads, head_width, "),
        ('{"mel": {"steps": 1}}', "mel of a Config is {'steps': 1}; it must be "),
        ('{"mel": [{"steps": "1", "segments": 2}]}', "steps of a Stage is '1'; it must be int"),
        ('{"mel": [{"steps": true, "segments": 2}]}', "steps of a Stage is True; it must be int"),
        ('{"mel": [{"steps": 1, "segments": 2, "live": []}]}', r"live of a Stage is \[\]; it must be float"),
        ('{"vocoder": {"gain_db": [1.0]}}', r"gain_db of a VocoderTraining is \[1\.0\]"),
        ('{"data": {"seconds": NaN}}', "seconds of a Data is nan; it must be float"),
    ],
)
def test_a_crooked_configuration_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "crooked.json").write_text(text, encoding="latin-1")
    with pytest.raises(TrainingError, match=message):
        load_config(tmp_path / "crooked.json")


def test_log_mel_is_the_stated_formula() -> None:
    """STFT by SciPy, mel triangles written out by hand: frames of 640 at hop 320, FFT of 1024, HTK mel, magnitudes."""
    from scipy.signal import get_window

    samples = np.random.default_rng(5).normal(size=3 * HOP) * 0.1
    padded = np.concatenate([samples, np.zeros(640)])
    spectrum = np.array(
        [np.abs(np.fft.fft(padded[i * 320 : i * 320 + 640] * get_window("hann", 640), 1024))[:513] for i in range(3)]
    )
    edges = 700 * (10 ** (np.linspace(0, 2595 * np.log10(1 + 8000 / 700), 130) / 2595) - 1)
    mel_of = lambda hertz: 2595 * np.log10(1 + hertz / 700)  # noqa: E731
    expected = np.zeros((3, MELS))
    for index in range(MELS):
        low, middle, high = mel_of(edges[index]), mel_of(edges[index + 1]), mel_of(edges[index + 2])
        for bin_ in range(1, 513):
            at = mel_of(bin_ * 16000 / 1024)
            weight = max(0.0, min((at - low) / (middle - low), (high - at) / (high - middle)))
            expected[:, index] += weight * spectrum[:, bin_]
    np.testing.assert_allclose(log_mel(samples), np.log(np.maximum(expected, 1e-5)), atol=2e-5)
