from dataclasses import replace

import numpy as np
import pytest

from notewave.export.material.ensembles import FIRST_KEY, LAST_KEY
from notewave.export.material.excerpts import DRUM_SECONDS, EXCERPT_SECONDS, HELD_OUT, PLAIN, Excerpt, held_out_notes
from notewave.export.material.pieces import VELOCITY
from notewave.export.material.scores import CORPUS_WEIGHTS
from notewave.song.codec import MAX_TOKENS, encode_notes
from notewave.song.dialect import Dialect


@pytest.fixture(scope="module")
def gm():
    pytest.importorskip("music21")
    return [held_out_notes(excerpt) for excerpt in HELD_OUT["gm"]]


def programs_of(excerpt):
    return {program for part in excerpt.programs for program in (part if isinstance(part, tuple) else (part,))}


def test_held_out_songs_share_no_folder_with_the_training_scores():
    assert not {excerpt.score.split("/")[0] for songs in HELD_OUT.values() for excerpt in songs} & set(CORPUS_WEIGHTS)


def test_no_two_held_out_songs_are_of_one_name():
    names = [excerpt.name for songs in HELD_OUT.values() for excerpt in songs]
    assert len(set(names)) == len(names)


def test_a_held_out_song_is_an_excerpt_for_its_instruments():
    pytest.importorskip("music21")
    excerpt = next(excerpt for excerpt in HELD_OUT["band"] if excerpt.score.startswith("corelli"))
    notes = held_out_notes(excerpt)
    assert len(encode_notes(notes)) <= 9
    assert set(notes.program[~notes.is_drum]) == set(excerpt.programs)
    assert set(notes.pitch[notes.is_drum]) == set(PLAIN)
    assert set(notes.velocity) == {VELOCITY}


def test_general_midi_s_songs_are_of_all_families_and_drums(gm):
    programs = {int(program) for notes in gm for program in notes.program[~notes.is_drum]}
    assert {program // 8 for program in programs} == set(range(16))
    assert len(programs) > 100
    keys = {int(key) for notes in gm for key in notes.pitch[notes.is_drum]}
    assert keys == set(range(FIRST_KEY, LAST_KEY + 1))
    assert sum(notes.is_drum.all() for notes in gm) == 1
    alone = [notes for notes in gm if not notes.is_drum.any() and len(set(notes.program)) == 1]
    assert len(alone) == 1


def test_general_midi_s_songs_are_as_their_excerpts_say(gm):
    for excerpt, notes in zip(HELD_OUT["gm"], gm, strict=True):
        assert set(notes.program[~notes.is_drum]) == programs_of(excerpt)
        assert set(notes.pitch[notes.is_drum]) <= {key for beat in excerpt.beats for key in beat}
        assert 0.85 * EXCERPT_SECONDS < notes.seconds < 1.1 * EXCERPT_SECONDS
        assert max(map(len, encode_notes(notes, Dialect(32, "gm")))) < MAX_TOKENS


def test_general_midi_s_songs_have_dynamics(gm):
    means = [notes.velocity.mean() for notes in gm]
    assert all(len(set(notes.velocity)) > 20 for notes in gm)
    assert np.std(means) > 10
    assert all((notes.velocity == 127).mean() < 0.25 for notes in gm)


def test_an_excerpt_is_always_the_same(gm):
    again = held_out_notes(HELD_OUT["gm"][0])
    assert all(np.array_equal(getattr(again, name), column) for name, column in vars(gm[0]).items())


def test_beats_take_turns_on_their_sixteenths():
    first, second = {36: "x...", 42: "..x."}, {38: "xx......"}
    notes = held_out_notes(Excerpt("", 60, beats=(first, second)))
    order = np.argsort(notes.onset_s, kind="stable")
    onset_s, key = notes.onset_s[order], notes.pitch[order]
    bar = onset_s < 6  # two bars of the first and of the second, one after the other, and the first again
    assert list(zip(onset_s[bar].tolist(), key[bar].tolist(), strict=True)) == [
        *[(0.0, 36), (0.5, 42), (1.0, 36), (1.5, 42)],
        *[(2.0, 38), (2.25, 38), (4.0, 38), (4.25, 38)],
    ]
    assert onset_s.max() <= EXCERPT_SECONDS
    assert np.allclose(notes.offset_s - notes.onset_s, DRUM_SECONDS)


def test_players_take_turns():
    pytest.importorskip("music21")
    excerpt = replace(HELD_OUT["band"][0], programs=((1, 2), 3, 4, 5), beats=())
    notes = held_out_notes(excerpt)
    early = notes.program[notes.onset_s < 10]
    later = notes.program[(notes.onset_s >= 10) & (notes.onset_s < 20)]
    assert set(early) == {1, 3, 4, 5}
    assert set(later) == {2, 3, 4, 5}
