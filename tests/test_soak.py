"""A few seconds of what ``make soak`` does for an hour."""

from pathlib import Path

import pytest
from soak import Soak

from notewave import Synthesizer, tokenize


@pytest.fixture
def soak(vocoded_voice: Path, midi_folder: Path) -> Soak:
    synth = Synthesizer(vocoded_voice, backend="cpu", threads=1)
    whole = tokenize(midi_folder / "ensemble.mid", dialect=synth.voice.dialect)
    return Soak(synth, [whole[:1], whole[:2]])


def test_random_work_gives_the_same_sounds_and_leaves_nothing_open(soak: Soak) -> None:
    soak.sing_all()
    while soak.rounds < 1:
        soak.work()
    begun = soak.held()
    while soak.rounds < 3:
        soak.work()
    ended = soak.held(begun)
    assert soak.wrong == []
    assert ended.threads <= begun.threads
    assert ended.files <= begun.files
