"""Batches: every song of a list sounds as it does alone, whatever sings beside it and goes on after its end."""

from __future__ import annotations

import dataclasses
import shutil
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gpu_songs import STEPS, opened
from simulated_device import SimulatedDevice
from simulated_tensorrt import SimulatedTensorRTRTX, simulated_plan
from sounding_voice import sounding_voice

import notewave
from notewave import ArgumentError, Audio, MidiError, SamplingError, Synthesizer, VoiceError
from notewave.backends.device.shapes import MAX_BATCH
from notewave.backends.ort.backend import OrtRun
from notewave.export.plans.build import build_plans
from notewave.sampling.job import Job
from notewave.song.dialect import EOS, Dialect, Tokens
from notewave.sound.griffin_lim import GriffinLim
from notewave.sound.mel import FRAMES, HOP, MELS, FloatArray
from notewave.sound.stream import VocoderTraits
from notewave.voice.folder import Voice

QUICK = {"sampler": "ddpm", "steps": 2}
SEEDS = (5, 2**64 - 1, 0, 7)


def song(length: int, pitch: int = 300) -> list[Tokens]:
    return [np.array([1134, pitch + index, EOS], np.int32) for index in range(length)]


SONGS = [song(2), song(1, 400), song(3, 500), song(1, 600)]


@pytest.fixture
def singer(vocoded_voice: Path) -> Synthesizer:
    return Synthesizer(vocoded_voice, backend="cpu", threads=1)


@pytest.fixture(scope="module")
def sounding(reference_voice: Path, tmp_path_factory: pytest.TempPathFactory) -> Voice:
    return sounding_voice(reference_voice, tmp_path_factory.mktemp("voices") / "sounding")


@pytest.fixture(scope="module")
def plans(sounding: Voice, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Where plans are looked for lie those of the sounding voice for the simulated GPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NOTEWAVE_PLANS", str(tmp_path_factory.mktemp("plans")))
        patch.setattr("notewave.export.plans.build._local_capability", lambda: (8, 9))
        trt = SimulatedTensorRTRTX(SimulatedDevice())
        build_plans(sounding, "fp32", (8, 9), trt=trt, compile_plan=simulated_plan)
        yield


@pytest.fixture
def unlike(monkeypatch: pytest.MonkeyPatch) -> None:
    """Songs of any lengths are sung together."""
    monkeypatch.setattr("notewave.synthesizer.ALIKE", 0.0)


def started(singer: Synthesizer, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Seeds of the songs of each run that will begin."""
    runs, start = [], singer._backend.start

    def watched(job: Job) -> Any:
        runs.append(job.seeds)
        return start(job)

    monkeypatch.setattr(singer._backend, "start", watched)
    return runs


def assert_each_is_its_render(
    batch: list[Audio], singer: Synthesizer, songs: list[Any], tolerance: float, **options: Any
) -> None:
    assert len(batch) == len(songs)
    for index, (audio, one) in enumerate(zip(batch, songs, strict=True)):
        expected = singer.render(one, seed=SEEDS[index], **options)
        assert audio.samples.dtype == np.float32 and audio.samples.shape == expected.samples.shape
        np.testing.assert_allclose(audio.samples, expected.samples, rtol=0, atol=tolerance)
        assert np.abs(expected.samples).max() > 100 * tolerance, "silence is like silence"


def test_on_the_cpu_songs_are_sung_by_turns_to_the_last_bit(
    singer: Synthesizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = started(singer, monkeypatch)
    monkeypatch.setattr(OrtRun, "mel", None)  # only songs of unequal lengths need it
    batch = singer.render_batch(SONGS, seeds=SEEDS, guidance=2.0, **QUICK)
    assert sorted(runs) == sorted((seed,) for seed in SEEDS)
    assert_each_is_its_render(batch, singer, SONGS, 0.0, guidance=2.0, **QUICK)


@pytest.mark.usefixtures("unlike")
@pytest.mark.parametrize("griffin_lim", [None, GriffinLim(iterations=3)], ids=["its own", "griffin-lim"])
def test_songs_side_by_side_end_as_they_do_alone(
    griffin_lim: GriffinLim | None, singer: Synthesizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(singer, "_griffin_lim", griffin_lim)
    runs = started(singer, monkeypatch)
    monkeypatch.setattr(singer._backend, "side_by_side", 4)
    batch = singer.render_batch(SONGS, seeds=SEEDS, **QUICK)
    assert runs == [(SEEDS[2], SEEDS[0], SEEDS[1], SEEDS[3])]
    assert_each_is_its_render(batch, singer, SONGS, 1e-4, **QUICK)


class Seeing:
    """A vocoder whose sound is the mean of all that it sees around a frame, and the frame's number."""

    def __init__(self, left: int, right: int) -> None:
        self.traits = VocoderTraits(left, right, positional=True)

    def __call__(self, mel: FloatArray, frame: int) -> FloatArray:
        left, right = self.traits.left_frames, self.traits.right_frames
        level = mel.mean(axis=2) / 20
        seen = [level[:, max(at - left, 0) : at + right + 1].mean(axis=1) for at in range(mel.shape[1])]
        number = 1e-4 * np.arange(frame, frame + mel.shape[1])
        return np.repeat(np.stack(seen, axis=1) + number, HOP, axis=1).astype(np.float32)


@pytest.mark.usefixtures("unlike")
@pytest.mark.parametrize(("left", "right"), [(0, 0), (0, 7), (9, 0), (40, 60), (5, 300), (600, 1)])
def test_songs_end_as_they_do_alone_whatever_the_vocoder_sees(
    left: int, right: int, singer: Synthesizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(singer, "_griffin_lim", Seeing(left, right))
    monkeypatch.setattr(singer._backend, "side_by_side", 4)
    songs = [song(2), song(1, 400), song(4, 500), song(3, 600)]
    batch = singer.render_batch(songs, seeds=SEEDS, **QUICK)
    assert_each_is_its_render(batch, singer, songs, 1e-4, **QUICK)


@pytest.mark.usefixtures("unlike")
@pytest.mark.parametrize("griffin_lim", [None, GriffinLim(iterations=3)], ids=["its own", "griffin-lim"])
def test_on_the_gpu_songs_of_any_lengths_share_a_run(
    griffin_lim: GriffinLim | None, sounding: Voice, plans: None, midi_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend, _ = opened(sounding)
    monkeypatch.setattr("notewave.synthesizer.open_backend", lambda *_: backend)
    singer = Synthesizer(sounding.folder)
    monkeypatch.setattr(singer, "_griffin_lim", griffin_lim)
    assert backend.side_by_side == MAX_BATCH > 3
    first, second, third = notewave.tokenize(midi_folder / "ensemble.mid")[:3]
    songs = [[first], [third, first, second], [second, third]]
    runs = started(singer, monkeypatch)
    batch = singer.render_batch(songs, seeds=SEEDS[:3], sampler="ddpm", steps=STEPS)
    assert runs == [(SEEDS[1], SEEDS[2], SEEDS[0])]
    assert_each_is_its_render(batch, singer, songs, 1e-3, sampler="ddpm", steps=STEPS)


def test_songs_of_like_length_go_together(singer: Synthesizer, monkeypatch: pytest.MonkeyPatch) -> None:
    runs, steps = started(singer, monkeypatch), []
    monkeypatch.setattr(singer._backend, "side_by_side", 2)
    songs = [song(1), song(3), song(1), song(3), song(2)]
    batch = singer.render_batch(songs, seeds=range(5), on_step=lambda: steps.append(1), **QUICK)
    assert runs == [(1, 3), (4, 0), (2,)]
    assert [len(audio.samples) // (FRAMES * HOP) for audio in batch] == [1, 3, 1, 3, 2]
    assert len(steps) == 2 * (3 + 2 + 1), "a step is one of all songs that go together"
    runs.clear()
    singer.render_batch([song(1), song(3), song(2)], seeds=range(3), **QUICK)
    assert runs == [(1, 2), (0,)]
    runs.clear()
    singer.render_batch([song(1), song(3), song(1)], seeds=range(3), **QUICK)
    assert runs == [(1,), (0, 2)], "one that ends early would be sung for nothing"


def test_mels_are_given_to_whoever_asks(singer: Synthesizer, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [singer.spectrogram(one, seed=seed, **QUICK) for one, seed in zip(SONGS, SEEDS, strict=True)]
    for together, tolerance in ((1, 0.0), (4, 1e-3)):
        monkeypatch.setattr(singer._backend, "side_by_side", together)
        mels: list[list[np.ndarray]] = [[] for _ in SONGS]
        singer.render_batch(SONGS, seeds=SEEDS, on_mel=lambda place, mel: mels[place].append(mel.copy()), **QUICK)  # noqa: B023
        for found, mel in zip(mels, expected, strict=True):
            assert {len(segment) for segment in found} == {FRAMES}
            np.testing.assert_allclose(np.concatenate(found), mel, rtol=0, atol=tolerance)


def test_without_seeds_every_song_has_the_option_s(singer: Synthesizer, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = started(singer, monkeypatch)
    singer.render_batch([song(1), song(1)], seed=9, **QUICK)
    singer.render_batch([song(1), song(1)], **QUICK)
    singer.render_batch((song(1), song(1)), seed=9, seeds=np.array([3, 4]), **QUICK)
    assert runs == [(9,), (9,), (0,), (0,), (3,), (4,)]


def test_songs_in_any_form(singer: Synthesizer, midi_folder: Path) -> None:
    path = midi_folder / "piano_scale.mid"
    expected = singer.render(path, **QUICK).samples
    forms = [path, path.read_bytes(), notewave.read(path), notewave.tokenize(path), iter(notewave.tokenize(path))]
    with path.open("rb") as file:
        batch = singer.render_batch([*forms, file], **QUICK)
    assert len(batch) == 6
    for audio in batch:
        np.testing.assert_array_equal(audio.samples, expected)


def test_no_songs_are_no_sounds(singer: Synthesizer) -> None:
    assert singer.render_batch([], **QUICK) == singer.render_batch((), seeds=(), **QUICK) == []
    with pytest.raises(SamplingError, match="steps"):
        singer.render_batch([], steps=0)


def test_a_voice_of_another_dialect_sings_unequal_songs_too(
    vocoded_voice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(vocoded_voice, tmp_path / "voice")
    dialect = Dialect(velocities=32)
    dataclasses.replace(Voice.load(vocoded_voice), folder=folder, dialect=dialect).save_description()
    singer = Synthesizer(folder, backend="cpu", threads=1)
    monkeypatch.setattr(singer._backend, "side_by_side", 2)
    songs = [[dialect.tokens(tokens) for tokens in song(length)] for length in (1, 2)]
    assert_each_is_its_render(singer.render_batch(songs, seeds=SEEDS[:2], **QUICK), singer, songs, 1e-4, **QUICK)


def test_a_long_batch_takes_the_memory_of_its_sound(singer: Synthesizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(singer._backend, "side_by_side", 2)
    songs = [song(1) * 59, song(1) * 60]
    singer.render_batch([song(1), song(2)], sampler="ddpm", steps=1)
    tracemalloc.start()
    try:
        batch = singer.render_batch(songs, sampler="ddpm", steps=1)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak - sum(audio.samples.nbytes for audio in batch) < 6 << 20


@pytest.mark.parametrize(
    ("songs", "options", "kind", "fact"),
    [
        (
            SONGS[:2],
            {"noise": np.zeros((2, FRAMES, MELS), np.float32)},
            SamplingError,
            "noise was given for many songs",
        ),
        (SONGS, {"seeds": (1, 2)}, SamplingError, r"seeds is \(1, 2\); it must be a list of 4 seeds"),
        (SONGS, {"seeds": 5}, SamplingError, "seeds is 5; it must be a list of 4 seeds"),
        (SONGS[:2], {"seeds": (1, -1)}, SamplingError, "a seed is -1"),
        (SONGS[:2], {"seed": -1}, SamplingError, "seed is -1"),
        (SONGS[:2], {"speed": 2}, SamplingError, "unknown option speed"),
        ("song.mid", {}, ArgumentError, "songs is 'song.mid'; it must be a list"),
        (None, {}, ArgumentError, "songs is None"),
        ([*SONGS[:3], "no such file.mid"], {}, MidiError, "^song 3: no such file.mid cannot be opened"),
        ([SONGS[0], b"x", "y"], {}, MidiError, "^song 1: The MIDI data cannot be read"),
        ([SONGS[0], []], {}, MidiError, "^song 1: the song has no segments"),
        ([iter([]), SONGS[0]], {}, MidiError, "^song 0: the song has no segments"),
        ([SONGS[0], iter([*SONGS[0], "x"])], {}, MidiError, "^song 1: segment 2 is"),
    ],
)
def test_what_cannot_be_sung_is_said_before_anything_is(
    songs: Any, options: dict[str, Any], kind: type, fact: str, singer: Synthesizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = started(singer, monkeypatch)
    with pytest.raises(kind, match=fact) as caught:
        singer.render_batch(songs, **{**QUICK, **options})
    assert type(caught.value) is kind and not runs


def test_the_cause_of_an_unreadable_song_is_kept(singer: Synthesizer) -> None:
    with pytest.raises(MidiError, match="song 0: ") as caught:
        singer.render_batch(["no such file.mid"], **QUICK)
    assert isinstance(caught.value.__cause__, MidiError)
    assert isinstance(caught.value.__cause__.__cause__, FileNotFoundError)


def test_a_voice_without_a_vocoder_says_so(reference_voice: Path) -> None:
    silent = Synthesizer(reference_voice, backend="cpu", threads=1)
    with pytest.raises(VoiceError, match="has no vocoder"):
        silent.render_batch(SONGS)
