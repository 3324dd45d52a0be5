"""Sound at other rates: in chunks as at once, of the right length, and the same sound."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from notewave import ArgumentError
from notewave.sound.audio import MAX_SAMPLE_RATE
from notewave.sound.resample import Resampler

RATES = (8000, 11025, 16000, 15999, 22050, 44100, 48000, 96000, MAX_SAMPLE_RATE)


def noise(length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, length).astype(np.float32)


def resampled(samples: np.ndarray, rate: int) -> np.ndarray:
    """Sound of the engine's own rate, at another."""
    return Resampler(16000, rate).push(samples, last=True)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(RATES), st.sampled_from(RATES), st.lists(st.integers(0, 3000), max_size=12), st.integers(0, 2**32)
)
def test_chunks_join_to_the_whole_and_its_length(rate_in: int, rate_out: int, lengths: list[int], seed: int) -> None:
    sound = noise(sum(lengths), seed)
    resampler = Resampler(rate_in, rate_out)
    chunks = [resampler.push(chunk, last=False) for chunk in np.split(sound, np.cumsum(lengths)) if len(chunk)]
    chunks.append(resampler.push(sound[:0], last=True))
    whole = Resampler(rate_in, rate_out).push(sound, last=True)
    assert all(chunk.dtype == np.float32 and chunk.ndim == 1 for chunk in chunks)
    np.testing.assert_allclose(np.concatenate(chunks), whole, atol=1e-6)
    assert abs(len(whole) - len(sound) * rate_out / rate_in) <= 0.5


def test_sound_comes_before_all_of_it_is_there() -> None:
    resampler = Resampler(16000, 44100)
    assert len(resampler.push(noise(16000), last=False)) > 40000


@pytest.mark.parametrize("rate", [22050, 44100, 48000])
def test_a_tone_stays_the_tone(rate: int) -> None:
    tone = (0.5 * np.sin(2 * np.pi * 3000 * np.arange(16000) / 16000)).astype(np.float32)
    samples = resampled(tone, rate)
    expected = 0.5 * np.sin(2 * np.pi * 3000 * np.arange(rate) / rate)
    middle = slice(rate // 8, -rate // 8)
    assert len(samples) == rate
    np.testing.assert_allclose(samples[middle], expected[middle], atol=1e-5)


def test_what_a_lower_rate_cannot_hold_is_gone() -> None:
    tone = np.sin(2 * np.pi * 7000 * np.arange(16000) / 16000).astype(np.float32)
    assert np.abs(resampled(tone, 8000)[500:-500]).max() < 1e-4


def test_overshoots_are_clipped() -> None:
    square = np.sign(np.sin(np.arange(4000) * 0.5 + 0.1)).astype(np.float32)
    samples = resampled(square, 48000)
    assert np.abs(samples).max() == 1.0
    assert np.count_nonzero(np.abs(samples) == 1.0) > 10


def test_equal_rates_change_nothing() -> None:
    sound = 3 * noise(1000)
    assert np.array_equal(Resampler(16000, 16000).push(sound, last=True), sound)


def test_float64_and_strided_sound_is_taken() -> None:
    sound = noise(2000)
    expected = Resampler(16000, 44100).push(sound[::2], last=True)
    assert np.array_equal(Resampler(16000, 44100).push(sound.astype(np.float64)[::2], last=True), expected)


@pytest.mark.parametrize("rate", [0, -1, MAX_SAMPLE_RATE + 1, 44100.0, "44100", True, None])
def test_what_is_no_rate(rate: Any) -> None:
    for rates in ((16000, rate), (rate, 16000)):
        with pytest.raises(ArgumentError, match="rate cannot be"):
            Resampler(*rates)


@pytest.mark.parametrize("sound", [np.zeros((3, 2), np.float32), np.zeros(3, np.int16), None, [[1.0], [2.0, 3.0]]])
def test_what_is_no_mono_sound(sound: Any) -> None:
    for rate in (16000, 44100):
        with pytest.raises(ArgumentError, match="cannot be resampled"):
            Resampler(16000, rate).push(sound, last=True)


def test_soxr_is_loaded_where_it_is_used_only() -> None:
    program = (
        "import sys, notewave.sound.resample as r\nr.Resampler(16000, 16000)\nassert 'soxr' not in sys.modules\n"
        "r.Resampler(16000, 8000)\nassert 'soxr' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
