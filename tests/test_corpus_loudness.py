"""Loudness is what BS.1770 says it is, whatever a sound's length and rate."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pyloudnorm
import pytest
from numpy.typing import NDArray

from notewave.corpus.loudness import loudness, peak

MONO = 10 * np.log10(2)  # dB by which one channel must be louder than two of the same to be as loud
RATES = [8000, 16000, 22050, 44100, 48000]


def sine(rate: int, *parts: tuple[float, float], hertz: float = 1000.0) -> NDArray[np.float32]:
    """A sine of so many dBFS for so many seconds, one part after another."""
    level = np.concatenate([np.full(round(seconds * rate), 10 ** (dbfs / 20)) for dbfs, seconds in parts])
    return (level * np.sin(2 * np.pi * hertz * np.arange(len(level)) / rate)).astype(np.float32)


def noise(rate: int, seconds: float, seed: int = 0) -> NDArray[np.float32]:
    """Noise that swells, over silence and over the gates."""
    time = np.arange(round(rate * seconds)) / rate
    return (np.random.default_rng(seed).standard_normal(len(time)) * np.abs(np.sin(time)) ** 5 / 5).astype(np.float32)


def test_a_full_sine_is_as_loud_as_the_recommendation_says() -> None:
    """BS.1770-4: 0 dBFS at 997 Hz in one channel are -3.01 LKFS."""
    assert loudness(sine(48000, (0, 5), hertz=997), 48000) == pytest.approx(-3.01, abs=0.002)


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([(-23, 20)], -23),
        ([(-33, 20)], -33),
        ([(-36, 10), (-23, 60), (-36, 10)], -23),
        ([(-72, 10), (-36, 10), (-23, 60), (-36, 10), (-72, 10)], -23),
        ([(-26, 20), (-20, 20.1), (-26, 20)], -23),
    ],
    ids=range(1, 6),
)
def test_ebu_tech_3341(rate: int, parts: list[tuple[float, float]], expected: float) -> None:
    """Its first five signals, and its tolerance; one channel, as much louder."""
    sound = sine(rate, *((level + MONO, seconds) for level, seconds in parts))
    assert loudness(sound, rate) == pytest.approx(expected, abs=0.1)


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("seconds", [0.4, 1.7, 19.9, 20, 20.1, 93.5])
def test_blocks_are_heard_as_one_sound(rate: int, seconds: float) -> None:
    sound = noise(rate, seconds)
    expected = pyloudnorm.Meter(rate, "DeMan").integrated_loudness(sound)
    assert loudness(sound, rate) == pytest.approx(expected, abs=1e-4)


def test_what_the_filters_hold_passes_from_block_to_block() -> None:
    """A constant is heard where it begins, and never again."""
    sound = np.full(20 * 16000, 0.5, np.float32) + noise(16000, 20) / 1000
    found = loudness(sound, 16000)
    assert found == pytest.approx(pyloudnorm.Meter(16000, "DeMan").integrated_loudness(sound), abs=1e-4)


def test_a_window_that_is_not_whole_does_not_count() -> None:
    sound = noise(16000, 5)
    assert loudness(np.concatenate([sound, np.ones(1599, np.float32)]), 16000) == loudness(sound, 16000)


@pytest.mark.parametrize("rate", [11025, 12345])
def test_rates_that_no_tenth_divides(rate: int) -> None:
    sound = noise(rate, 30)
    assert loudness(sound, rate) == pytest.approx(pyloudnorm.Meter(rate, "DeMan").integrated_loudness(sound), abs=5e-3)


def test_of_silence_and_of_less_than_a_window_there_is_none() -> None:
    for sound in (np.zeros(160_000), np.zeros(0), noise(16000, 0.399), sine(16000, (-75, 10)), sine(16000, (0, 0.39))):
        assert loudness(sound.astype(np.float32), 16000) is None
    assert loudness(sine(16000, (-20, 0.4)), 16000) is not None


def test_what_a_file_cuts_is_not_heard() -> None:
    sound = 5 * noise(16000, 5)
    assert np.abs(sound).max() > 1
    assert loudness(sound, 16000) == loudness(np.clip(sound, -1, 1), 16000)


def test_peaks() -> None:
    for values, expected in (([], 0), ([0, 0], 0), ([0.25, -0.5], 0.5), ([0.5, -0.25], 0.5), ([3, -7], 1), ([-1], 1)):
        assert peak(np.array(values, np.float32)) == expected
    assert type(peak(np.ones(3, np.float32))) is float


def test_memory_does_not_grow_with_the_sound() -> None:
    sound = noise(48000, 120)
    tracemalloc.start()
    try:
        found = []
        for part in (sound[: 60 * 48000], sound):
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            loudness(part, 48000)
            peak(part)
            found.append(tracemalloc.get_traced_memory()[1] - before)
    finally:
        tracemalloc.stop()
    assert found[1] < 1.1 * found[0]
