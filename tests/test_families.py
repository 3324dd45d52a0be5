"""Voices of other makes than the published ones: their mel range, what they go on from, their sampler's times."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from notewave import SamplingError, Synthesizer, VoiceError
from notewave.kernels.reference import sampler_step
from notewave.sampling.samplers import sampler_table
from notewave.sampling.schedule import NoiseSchedule, alpha_bars
from notewave.song.dialect import EOS
from notewave.sound.mel import FRAMES, LOG_MIN, MELS, PUBLISHED_RANGE, MelRange
from notewave.voice.folder import Voice

SONG = [np.array([1134, 300 + index, EOS], np.int32) for index in range(2)]
OPTIONS: dict[str, Any] = {"sampler": "ddim", "steps": 2, "seed": 3}
OTHER = MelRange(-11.0, 6.0)
Described = Callable[..., Path]


@pytest.fixture
def described(reference_voice: Path, tmp_path: Path) -> Described:
    """A copy of the reference voice that says other things of itself."""

    def make(**changes: Any) -> Path:
        folder = Path(shutil.copytree(reference_voice, tmp_path / f"voice-{len(list(tmp_path.iterdir()))}"))
        dataclasses.replace(Voice.load(folder), **changes).save_description()
        return folder

    return make


def said(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "voice.json").read_text())
    return content


def test_a_description_has_the_format_that_says_it(described: Described) -> None:
    assert said(described())["format"] == 1 and "mel_range" not in said(described())
    for changes in ({"mel_range": OTHER}, {"first_context": "silence"}):
        folder = described(**changes)
        assert said(folder)["format"] == 3
        assert {name: getattr(Voice.load(folder), name) for name in changes} == changes


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"format": 2}, "mel_range is .*no place in format 2"),
        ({"format": 4}, "reads 1 to 3"),
        ({"mel_range": {"low": -11.0, "high": -10.5}}, "must lie 1 above its low"),
        ({"mel_range": {"low": -60.0, "high": 4.0}}, "the mel range's low is -60"),
        ({"mel_range": {"low": "loud", "high": 4.0}}, "the mel range's low is 'loud'"),
        ({"mel_range": None}, "MelRange section does not fit"),
        ({"first_context": "noise"}, "first_context is 'noise'"),
        ({"first_context": None}, "first_context is None"),
    ],
)
def test_crooked_descriptions_are_refused(described: Described, changes: dict[str, Any], reason: str) -> None:
    folder = described(mel_range=OTHER)
    (folder / "voice.json").write_text(json.dumps(said(folder) | changes))
    with pytest.raises(VoiceError, match=reason):
        Voice.load(folder)


def test_mels_are_in_the_voice_s_range(reference_voice: Path, described: Described) -> None:
    """The networks do the same, so what they give means another mel, and so does what they are given."""
    usual = Synthesizer(reference_voice, backend="cpu", threads=1)
    other = Synthesizer(described(mel_range=OTHER), backend="cpu", threads=1)
    context = np.random.default_rng(0).uniform(-9, 3, (FRAMES, MELS)).astype(np.float32)
    seen = PUBLISHED_RANGE.to_network(context)
    expected = OTHER.from_network(PUBLISHED_RANGE.to_network(usual.spectrogram(SONG, context=context, **OPTIONS)))
    found = other.spectrogram(SONG, context=OTHER.from_network(seen), **OPTIONS)
    np.testing.assert_allclose(found, np.clip(expected, OTHER.low, OTHER.high), rtol=0, atol=1e-4)


def test_a_first_segment_may_go_on_from_silence(reference_voice: Path, described: Described) -> None:
    usual = Synthesizer(reference_voice, backend="cpu", threads=1)
    other = Synthesizer(described(first_context="silence"), backend="cpu", threads=1)
    silence = np.full((FRAMES, MELS), LOG_MIN, np.float32)
    found = other.spectrogram(SONG, **OPTIONS)
    np.testing.assert_array_equal(found, usual.spectrogram(SONG, context=silence, **OPTIONS))
    assert np.abs(found - usual.spectrogram(SONG, **OPTIONS)).max() > 1e-3, "which is not to go on from nothing"


def test_silence_lies_where_the_range_puts_it() -> None:
    assert PUBLISHED_RANGE.silence == -1.0
    assert MelRange(LOG_MIN - 2, LOG_MIN + 6).silence == pytest.approx(-0.5)
    assert MelRange(-9.0, 3.0).silence == -1.0, "clipped"


def test_a_voice_without_a_context_encoder(tmp_path: Path) -> None:
    """Its segments are each sung for themselves, and none can go on from anything."""
    from notewave.export.checkpoints.seeded import RANDOM_SIZES
    from notewave.export.convert import export_voice
    from notewave.export.graphs.restore import restore_voice
    from notewave.export.networks import SpectrogramDiffusion
    from notewave.sampling.options import Sampling

    size = dataclasses.replace(RANDOM_SIZES["tiny"], context_encoder_layers=0)
    told = {"name": "alone", "licence": "l", "provenance": "p", "prediction": "x0", "sampling": Sampling("ddim", 2)}
    voice = export_voice(SpectrogramDiffusion(size), tmp_path / "voice", schedule=NoiseSchedule(), **told)
    assert not voice.takes_context and "context_encoder.onnx" not in voice.files
    singer = Synthesizer(voice.folder, backend="cpu", threads=1)
    noise = np.random.default_rng(0).standard_normal((2, FRAMES, MELS), np.float32)
    mel = singer.spectrogram([SONG[0], SONG[0]], noise=np.concatenate([noise[:1], noise[:1]]))
    np.testing.assert_array_equal(mel[:FRAMES], mel[FRAMES:])
    with pytest.raises(SamplingError, match="no context encoder"):
        singer.spectrogram(SONG, context=np.zeros((FRAMES, MELS), np.float32))
    assert restore_voice(voice).size == size
    with pytest.raises(VoiceError, match="first_context is 'silence'"):
        dataclasses.replace(voice, first_context="silence")


def test_the_port_s_sampler() -> None:
    """Its loop, in float64: noise is held so that x0 lies in [-1, 1], variance is the posterior's own."""
    steps, rng = 5, np.random.default_rng(1)
    table = sampler_table("ancestral", steps, NoiseSchedule("cosine-closed"), "epsilon")
    assert table.draws == steps and table.time[0] == 1.0 and table.time[-1] == 0.0
    # torch.linspace(0, 1, 5) and (0, 1, 4), to the last bit
    np.testing.assert_array_equal(table.time[::-1], np.float32([0, 0.25, 0.5, 0.75, 1]))
    four = sampler_table("ancestral", 4, NoiseSchedule("cosine-closed"), "epsilon").time[::-1]
    np.testing.assert_array_equal(four, np.float32([0, 0.33333334, 0.6666666, 1]))
    low, high = math.atan(math.exp(-10.0)), math.atan(math.exp(10.0))
    snr = -2.0 * np.log(np.tan((high - low) * table.time[::-1].astype(np.float64) + low))
    variance = 1.0 / (1.0 + np.exp(snr))
    alpha = np.sqrt(1.0 - variance)
    z = rng.standard_normal((1, 4, MELS))
    x, previous = z.astype(np.float32), np.zeros((1, 4, MELS), np.float32)
    for row, now in zip(table.rows, reversed(range(steps)), strict=True):
        eps, noise = rng.standard_normal((2, 1, 4, MELS))
        sampler_step(x, previous, eps.astype(np.float32), row, noise.astype(np.float32))
        held = np.clip(eps, (z - alpha[now]) / np.sqrt(variance[now]), (z + alpha[now]) / np.sqrt(variance[now]))
        if now:
            share = -np.expm1(snr[now] - snr[now - 1])
            mean = (z - np.sqrt(variance[now]) * share * held) * alpha[now - 1] / alpha[now]
            z = mean + np.sqrt(variance[now - 1] * share) * noise
        else:
            z = (z - np.sqrt(variance[0]) * held) / alpha[0]
        np.testing.assert_allclose(x, z, rtol=0, atol=2e-5)


def test_the_closed_schedule_has_both_ends() -> None:
    times, bars = alpha_bars(NoiseSchedule("cosine-closed", 1000))
    assert (times[0], times[-1], len(times)) == (0.0, 1.0, 1000)
    assert bars[0] == pytest.approx(1 / (1 + math.exp(-20))) and bars[-1] == pytest.approx(1 / (1 + math.exp(20)))
    assert (np.diff(bars) < 0).all()
