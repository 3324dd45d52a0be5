import shutil
import sys

import numpy as np
import pytest

from notewave.benchmarks import second_judge
from notewave.benchmarks.judges import note_f1
from notewave.export.material.fluidsynth import SOUNDFONT, fluidsynth
from notewave.song.notes import Notes


def tune(program=0, is_drum=False, start_s=0.5):
    onset_s, one = start_s + np.arange(8) * 0.5, np.ones(8, int)
    pitch = np.array([60, 64, 67, 72, 71, 67, 62, 55])
    return Notes(onset_s, onset_s + 0.4, pitch, 90 * one, program * one, is_drum * one)


def test_only_pianos_alone_are_judged():
    assert second_judge.can_judge(tune())
    assert not second_judge.can_judge(tune(program=24))
    assert not second_judge.can_judge(tune(is_drum=True))
    assert not second_judge.can_judge(tune(start_s=second_judge.HEARD_SECONDS))  # after what is heard


def test_only_what_is_heard_counts():
    notes = tune(start_s=second_judge.HEARD_SECONDS - 0.75)
    assert second_judge.written(notes).pitches.tolist() == [60, 64]


def test_without_its_packages_there_is_no_second_judge(monkeypatch):
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(sys, "meta_path", [])
    monkeypatch.delitem(sys.modules, "transkun", raising=False)
    assert second_judge.second_transcriber() is None


@pytest.mark.skipif(
    shutil.which("fluidsynth") is None or not SOUNDFONT.is_file(), reason="FluidSynth or its soundfont is not installed"
)
def test_a_piano_is_heard_by_the_second_judge():
    for package in ("torch", "librosa", "mir_eval", "transkun"):
        pytest.importorskip(package)
    lent = sys.modules.get("torchaudio")
    judge = second_judge.second_transcriber()
    assert sys.modules.get("torchaudio") is lent  # what transkun was lent is gone
    heard = judge(fluidsynth(tune()))
    assert note_f1(heard, second_judge.written(tune())) == 1.0
    assert note_f1(heard, second_judge.written(tune(start_s=0.7))) == 0.0
    assert len(judge(np.zeros(16000)).pitches) == 0
