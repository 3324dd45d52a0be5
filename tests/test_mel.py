"""The mel against independent definitions."""

from __future__ import annotations

import numpy as np
import pytest

from notewave.sound.mel import (
    FFT,
    HOP,
    LOG_MAX,
    LOG_MIN,
    MELS,
    SAMPLE_RATE,
    WINDOW,
    MelStream,
    from_network,
    istft,
    log_mel,
    mel_centres,
    mel_weights,
    stft,
    to_network,
)


def test_log_mel_of_one_frame_by_hand() -> None:
    """The definition written out with loops: periodic Hann, zero-padded DFT magnitude, HTK triangles on bins from 1."""
    samples = np.random.default_rng(0).standard_normal(700)
    window = samples[HOP : HOP + 380] * [0.5 - 0.5 * np.cos(2 * np.pi * n / 640) for n in range(380)]
    bins = np.arange(FFT // 2 + 1)
    magnitude = np.abs(np.exp(-2j * np.pi * np.outer(bins, np.arange(380)) / FFT) @ window)
    to_mel = lambda hertz: 1127 * np.log(1 + hertz / 700)  # noqa: E731
    edges = [to_mel(8000) * i / (MELS + 1) for i in range(MELS + 2)]
    expected = []
    for left, centre, right in zip(edges, edges[1:], edges[2:], strict=False):
        weights = [0.0]
        for k in bins[1:]:
            m = to_mel(k * SAMPLE_RATE / FFT)
            weights.append(max(0.0, min((m - left) / (centre - left), (right - m) / (right - centre))))
        expected.append(np.log(max(float(magnitude @ weights), 1e-5)))
    assert log_mel(samples).shape == (3, MELS)
    np.testing.assert_allclose(log_mel(samples)[1], expected, atol=1e-5)


def test_a_tone_lands_in_its_bin() -> None:
    tone = np.sin(2 * np.pi * 1000 * np.arange(SAMPLE_RATE) / SAMPLE_RATE)
    peak = log_mel(tone)[10].argmax()
    assert abs(mel_centres()[peak] - 1000) < 20


def test_silence_is_the_floor_and_maps_to_minus_one() -> None:
    mel = log_mel(np.zeros(HOP * 4))
    assert mel == pytest.approx(LOG_MIN)
    assert to_network(mel) == pytest.approx(-1)


def test_network_range_inverts_and_clips() -> None:
    mel = np.linspace(LOG_MIN, LOG_MAX, 50, dtype=np.float32)
    np.testing.assert_allclose(from_network(to_network(mel)), mel, atol=1e-5)
    assert to_network(np.float32([LOG_MAX + 3]))[0] == 1


def test_dc_has_no_mel_weight_and_low_bins_have_few() -> None:
    weights = mel_weights()
    assert weights.shape == (FFT // 2 + 1, MELS)
    assert not weights[0].any()
    assert (weights >= 0).all()


def test_istft_inverts_stft() -> None:
    samples = np.random.default_rng(1).standard_normal(HOP * 20)
    np.testing.assert_allclose(istft(stft(samples))[HOP:], samples[HOP:], atol=1e-10)


@pytest.mark.parametrize("length", [0, 1, HOP, 2 * HOP - 1, 2 * HOP, 5000])
@pytest.mark.parametrize("chunk", [1, 100, HOP, 700, 4096])
def test_a_stream_of_chunks_has_the_mel_of_the_whole(length: int, chunk: int) -> None:
    samples = np.random.default_rng(2).standard_normal(length).astype(np.float32)
    stream = MelStream()
    frames = [stream.push(samples[start : start + chunk]) for start in range(0, length, chunk)]
    mel = np.concatenate([*frames, stream.finish()])
    assert mel.dtype == np.float32
    np.testing.assert_allclose(mel, log_mel(samples), atol=1e-5)


def test_a_stream_keeps_less_than_a_window(monkeypatch: pytest.MonkeyPatch) -> None:
    stream, sizes = MelStream(), []
    monkeypatch.setattr("notewave.sound.mel.stft", lambda samples: sizes.append(len(samples)) or stft(samples))
    for _ in range(50):
        stream.push(np.zeros(4 * HOP, np.float32))
    stream.finish()
    assert max(sizes) <= 4 * HOP + WINDOW


def test_no_samples_no_frames() -> None:
    assert log_mel(np.zeros(0)).shape == (0, MELS)
