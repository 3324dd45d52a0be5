"""Probes of dynamics and programs, by singers whose faults are known: FluidSynth itself behind the face of a voice."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from notewave.benchmarks import probes
from notewave.benchmarks.judges import DB
from notewave.benchmarks.songs import play_notes, play_song, song_notes, song_tokens
from notewave.errors import MidiError
from notewave.export.material.excerpts import DRUM_SECONDS
from notewave.export.material.fluidsynth import SOUNDFONT, fluidsynth
from notewave.export.material.pieces import VELOCITY
from notewave.export.material.songs import SEGMENT_SAMPLES
from notewave.song.codec import encode_notes
from notewave.song.dialect import PUBLISHED, Dialect, dialect_of
from notewave.song.notes import Notes

MIDI = Path(__file__).parent / "data" / "midi"
EVERY = Dialect(127, "gm")
needs_fluidsynth = pytest.mark.skipif(
    shutil.which("fluidsynth") is None or not SOUNDFONT.is_file(), reason="FluidSynth or its soundfont is not installed"
)


class Singer:
    """FluidSynth as a voice of some dialect, that many nats louder; programs beyond ``highest`` it sings as it."""

    def __init__(self, dialect=EVERY, louder=0.0, highest=127):
        self.voice, self.louder, self.highest = SimpleNamespace(dialect=dialect), louder, highest

    def spectrogram(self, tokens):
        played = play_song(tokens, SOUNDFONT)
        if played.notes.program.max() > self.highest:
            program = np.minimum(played.notes.program, self.highest)
            notes = Notes(**{**vars(played.notes), "program": program})
            played = play_song(encode_notes(notes, self.voice.dialect)[:1], SOUNDFONT)
        return played.mel + np.float32(self.louder)


def row(velocity, program=0, pitch=60, is_drum=False):
    return Notes([0.0], [0.5], [pitch], [velocity], [program], [is_drum])


@pytest.fixture
def two_players(monkeypatch):
    monkeypatch.setattr(probes, "PLAYERS", {"piano": 0, "drums": None})


@needs_fluidsynth
@pytest.mark.parametrize(
    ("dialect", "given", "played"), [(EVERY, 37, 37), (Dialect(4, "gm"), 60, 47), (PUBLISHED, 37, VELOCITY)]
)
def test_fluidsynth_plays_the_middle_of_a_velocity_s_bin(dialect, given, played):
    sung = play_song(encode_notes(row(given), dialect), SOUNDFONT)
    assert len(sung.samples) == SEGMENT_SAMPLES
    assert np.array_equal(sung.samples, play_notes(row(played), 1, SOUNDFONT))


@needs_fluidsynth
def test_drums_have_a_length_though_tokens_tell_none():
    triangle = Notes([0.0], [DRUM_SECONDS], [81], [90], [0], [True])  # one that is damped when it ends
    played = play_song(encode_notes(triangle, EVERY), SOUNDFONT)
    assert np.array_equal(played.samples, fluidsynth(triangle)[:SEGMENT_SAMPLES])


def test_songs_are_read_in_the_voice_s_dialect():
    path = MIDI / "piano_scale.mid"
    (tokens,) = song_tokens([path], EVERY).values()
    (notes,) = song_notes([path]).values()
    assert {dialect_of(one) for one in tokens} == {EVERY}
    assert [one.tolist() for one in tokens] == [one.tolist() for one in encode_notes(notes, EVERY)]
    with pytest.raises(MidiError, match="two of one name"):
        song_notes([path, path])


@needs_fluidsynth
def test_dynamics_of_a_voice_that_has_them_are_right_at_any_level(two_players):
    found = probes.measure_dynamics(Singer(louder=5 * DB), SOUNDFONT, {}, velocities=(32, 80, 127))
    assert found.error_db == pytest.approx(0.0, abs=1e-4)
    assert np.diff(found.fluidsynth_db["piano"]).min() > 3
    assert found.ours_db["drums"] == pytest.approx(found.fluidsynth_db["drums"], abs=1e-4)


@needs_fluidsynth
def test_dynamics_of_a_voice_of_one_velocity_are_flat(two_players):
    found = probes.measure_dynamics(Singer(PUBLISHED), SOUNDFONT, {}, velocities=(32, 80, 127))
    assert np.ptp(found.ours_db["piano"]) == 0.0
    assert np.ptp(found.fluidsynth_db["piano"]) / 4 < found.errors_db["piano"] < np.ptp(found.fluidsynth_db["piano"])
    assert found.error_db == pytest.approx(np.mean([*found.errors_db.values()]))


def some_phrases():
    every = probes.program_phrases()
    few = {"pianos": ["0 Acoustic Grand Piano"], "organs": ["16 Drawbar Organ", "19 Church Organ"], "drums": ["27-42"]}
    return {family: {name: every[family][name] for name in names} for family, names in few.items()}


@needs_fluidsynth
def test_programs_of_a_voice_that_has_them_are_right_at_its_level():
    found = probes.measure_programs(Singer(louder=2.0), SOUNDFONT, {}, -2.0, some_phrases())
    assert found.ratio == pytest.approx(0.0, abs=1e-5)
    assert set(found.programs) == {"0 Acoustic Grand Piano", "16 Drawbar Organ", "19 Church Organ"}
    assert set(found.families) == {"pianos", "organs", "drums"}


@needs_fluidsynth
def test_the_program_that_a_voice_lacks_is_named():
    found = probes.measure_programs(Singer(highest=16), SOUNDFONT, {}, 0.0, some_phrases())
    assert [*found.worst(1)] == ["19 Church Organ"]
    assert found.programs["16 Drawbar Organ"] == found.families["pianos"] == found.families["drums"] == 0.0
    assert found.families["organs"] > 0.1


def test_phrases_ask_for_every_program_and_drum_in_one_segment():
    phrases = probes.program_phrases()
    assert [len(named) for named in phrases.values()][:16] == [8] * 16
    programs = [
        int(program)
        for named in phrases.values()
        for notes in named.values()
        for program in set(notes.program[~notes.is_drum])
    ]
    assert programs == list(range(128))
    keys = np.concatenate([notes.pitch for notes in phrases[probes.DRUMS].values()])
    assert keys.tolist() == list(range(27, 88))
    for named in phrases.values():
        for notes in named.values():
            assert len(encode_notes(notes)) == 1
            assert len(set(notes.velocity)) == 2
            assert notes.is_drum.all() or np.ptp(notes.pitch) == 24
