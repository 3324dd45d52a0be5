"""Streamed vocoding equals vocoding the whole; Griffin-Lim sounds what it is given."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from notewave.sound.griffin_lim import GriffinLim, invert_mel
from notewave.sound.mel import HOP, MELS, log_mel, mel_weights
from notewave.sound.stream import VocoderStream, VocoderTraits


def blurred(mel: np.ndarray, frame: int, left: int, right: int) -> np.ndarray:
    """A vocoder of known reach: each sample sums its frame's neighbourhood, and tells the frame's place in the song."""
    padded = np.pad(mel[0].sum(axis=1), (left, right))
    sums = np.lib.stride_tricks.sliding_window_view(padded, left + right + 1).sum(axis=1)
    places = frame + np.arange(len(sums))
    return np.repeat(np.sin(sums + places), HOP)[None].astype(np.float32)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=8), st.integers(0, 50), st.integers(0, 50))
def test_chunks_join_to_the_whole(lengths: list[int], left: int, right: int) -> None:
    mel = np.random.default_rng(sum(lengths)).standard_normal((sum(lengths), MELS)).astype(np.float32)
    stream = VocoderStream(
        lambda window, frame: blurred(window, frame, left, right), VocoderTraits(left, right, positional=True)
    )
    parts = np.split(mel, np.cumsum(lengths)[:-1])
    chunks = [stream.push(part, last=index == len(parts) - 1) for index, part in enumerate(parts)]
    np.testing.assert_allclose(np.concatenate(chunks), blurred(mel[None], 0, left, right)[0], atol=1e-4)


def test_sound_comes_as_early_as_the_reach_allows() -> None:
    stream = VocoderStream(lambda window, frame: blurred(window, frame, 5, 7), VocoderTraits(5, 7))
    assert len(stream.push(np.zeros((256, MELS), np.float32), last=False)) == (256 - 7) * HOP
    assert len(stream.push(np.zeros((256, MELS), np.float32), last=True)) == (256 + 7) * HOP


def chord() -> np.ndarray:
    time = np.arange(16000 * 3) / 16000
    return 0.2 * sum(np.sin(2 * np.pi * hertz * time) for hertz in (220, 277.2, 329.6))


def test_griffin_lim_gives_back_the_mel() -> None:
    mel = log_mel(chord())
    audio = GriffinLim()(mel[None], 0)[0]
    assert len(audio) == len(mel) * HOP
    loud = mel[5:-5] > -3
    assert np.abs(log_mel(audio)[5:-5] - mel[5:-5])[loud].mean() < 0.5


def test_griffin_lim_streams() -> None:
    vocoder = GriffinLim(iterations=8)
    mel = log_mel(chord())
    stream = VocoderStream(vocoder, vocoder.traits)
    chunks = [stream.push(mel[:70], last=False), stream.push(mel[70:], last=True)]
    np.testing.assert_allclose(np.concatenate(chunks), np.clip(vocoder(mel[None], 0)[0], -1, 1), atol=1e-5)


def test_mel_inversion_is_non_negative_and_fits() -> None:
    mel = np.exp(log_mel(chord())[10:20]).astype(np.float64)
    linear = invert_mel(mel)
    assert (linear >= 0).all()
    assert np.abs(linear @ mel_weights() - mel).mean() < 0.02 * mel.mean()


def test_window_does_not_grow_with_the_song() -> None:
    longest = 0

    def vocode(window: np.ndarray, frame: int) -> np.ndarray:
        nonlocal longest
        longest = max(longest, window.shape[1])
        return np.zeros((1, window.shape[1] * HOP), np.float32)

    stream = VocoderStream(vocode, VocoderTraits(20, 30))
    for _ in range(50):
        stream.push(np.zeros((256, MELS), np.float32), last=False)
    assert longest == 256 + 20 + 30
