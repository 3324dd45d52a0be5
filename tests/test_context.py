"""A song that goes on from a sound."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from notewave import ArgumentError, Audio, SamplingError, Synthesizer
from notewave.kernels.reference import mel_to_context, philox_normal
from notewave.sampling.context import network_context
from notewave.sound.mel import FRAMES, HOP, LOG_MIN, MELS, SAMPLE_RATE, log_mel, to_network

SECONDS = 7.3


def noise(length: int, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(length)).astype(np.float32)


@pytest.fixture(scope="module")
def synthesizer(vocoded_voice: Path) -> Synthesizer:
    return Synthesizer(vocoded_voice, backend="cpu")


def test_segments_one_by_one_are_the_song(synthesizer: Synthesizer, midi_folder: Path) -> None:
    """Each goes on from the one before, as in one run."""
    from notewave import tokenize

    tokens = tokenize(midi_folder / "ensemble.mid", dialect=synthesizer.voice.dialect)
    options: Any = {"sampler": "ddpm", "steps": 3, "guidance": 2.0}
    whole = synthesizer.spectrogram(tokens, **options, seed=5)
    assert len(tokens) > 2
    mel = None
    for segment, one in enumerate(tokens):
        drawn = np.empty((3, FRAMES, MELS), np.float32)
        for draw in range(3):
            philox_normal(5, segment, draw, drawn[draw])
        mel = synthesizer.spectrogram([one], **options, noise=drawn, context=mel)
        np.testing.assert_allclose(mel, whole[segment * FRAMES : (segment + 1) * FRAMES], atol=2e-4)
    without = synthesizer.spectrogram([tokens[-1]], **options, noise=drawn)
    assert np.abs(mel - without).mean() > 1e-3, "what came before matters"


def test_a_song_goes_on_from_a_sound_its_file_and_its_mel(
    synthesizer: Synthesizer, midi_folder: Path, tmp_path: Path
) -> None:
    samples = noise(round(SECONDS * SAMPLE_RATE))
    options: Any = {"steps": 1, "seed": 3}
    song = midi_folder / "piano_scale.mid"
    expected = synthesizer.spectrogram(song, **options, context=Audio(samples))
    soundfile.write(tmp_path / "x.flac", samples, SAMPLE_RATE, "PCM_24")
    soundfile.write(tmp_path / "x.wav", np.stack([2 * samples, 0 * samples], 1), SAMPLE_RATE, "FLOAT")
    for given in (str(tmp_path / "x.flac"), tmp_path / "x.wav", log_mel(samples)[:-1]):
        np.testing.assert_allclose(synthesizer.spectrogram(song, **options, context=given), expected, atol=0.02)
    assert np.abs(synthesizer.spectrogram(song, **options) - expected).mean() > 1e-3
    streamed = np.concatenate([chunk.samples for chunk in synthesizer.stream(song, **options, context=Audio(samples))])
    (batched, other) = synthesizer.render_batch(
        [song, midi_folder / "late_start.mid"], **options, context=Audio(samples)
    )
    assert np.array_equal(streamed, batched.samples)
    assert not np.array_equal(streamed, synthesizer.render(song, **options).samples)
    assert np.array_equal(
        other.samples, synthesizer.render(midi_folder / "late_start.mid", **options, context=Audio(samples)).samples
    )


@pytest.mark.parametrize("rate", [8000, 16000, 44100])
def test_the_end_of_a_sound_counts_in_whole_frames(rate: int) -> None:
    """A tone that goes on to the end is as loud in the last frame as before, and what came long before is forgotten."""
    time_s = np.arange(round(SECONDS * rate)) / rate
    tone = (0.3 * np.sin(2 * np.pi * 440.0 * time_s)).astype(np.float32)
    before = np.where(time_s < SECONDS - 6.0, noise(len(tone)), tone).astype(np.float32)
    given = network_context(Audio(before, rate))
    assert given.shape == (FRAMES, MELS) and given.dtype == np.float32
    np.testing.assert_allclose(given, network_context(Audio(tone, rate)), atol=1e-3)
    steady = to_network(log_mel(0.3 * np.sin(2 * np.pi * 440.0 * np.arange(20 * HOP) / SAMPLE_RATE))[5:6])
    np.testing.assert_allclose(
        given[:, steady[0] > 0], np.broadcast_to(steady, given.shape)[:, steady[0] > 0], atol=0.02
    )


@pytest.mark.parametrize("samples", [64, 2 * HOP - 1, 2 * HOP, 2 * HOP + 1, 3 * HOP, (FRAMES + 1) * HOP, 10**6])
def test_a_short_sound_comes_after_silence(samples: int) -> None:
    given = network_context(Audio(noise(samples)))
    frames = min(max(-(-(samples - HOP) // HOP), 1), FRAMES)
    assert (given[: FRAMES - frames] == -1.0).all()
    assert (given[FRAMES - frames :] > -1.0).any(axis=1).all()


def test_a_mel_counts_by_its_last_frames() -> None:
    mel = np.random.default_rng(0).uniform(LOG_MIN, 4.0, (300, MELS)).astype(np.float32)
    assert np.array_equal(network_context(mel), mel_to_context(to_network(mel[-FRAMES:])))
    assert np.array_equal(network_context(mel[:7])[-7:], to_network(mel[:7]))
    assert (network_context(mel + 40.0) == 1.0).all(), "bounded, as what the networks made is"


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        ("missing.wav", "No such file"),
        ("folder", "cannot be opened"),
        ("/dev/zero", "device"),
        ("text.wav", "cannot be read as sound"),
        ("wide.wav", "33 channels"),
        (3, "it must be an Audio"),
        (np.zeros((3, 3), np.float32), r"float32 \[3, 3\]"),
        (np.zeros((0, MELS), np.float32), "float32"),
        (np.full((4, MELS), np.nan, np.float32), "no numbers"),
        (Audio(np.zeros((3, 2), np.float32)), "mono floats"),
        (Audio(np.zeros(0, np.float32)), "mono floats"),
        (Audio(np.full(3, np.inf, np.float32)), "no finite"),
        (Audio(np.zeros(3, np.float32), 0), "rate cannot be 0"),
    ],
)
def test_what_is_no_context(
    given: Any, fault: str, synthesizer: Synthesizer, midi_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path("text.wav").write_text("no sound")
    soundfile.write("wide.wav", np.zeros((10, 33)), 8000)
    with pytest.raises(ArgumentError, match=fault):
        synthesizer.spectrogram(midi_folder / "piano_scale.mid", context=given)


def test_live_play_begins_with_silence(synthesizer: Synthesizer) -> None:
    with pytest.raises(SamplingError, match="begins with silence"):
        synthesizer.live(real_time=False, context=Audio(noise(100)))
