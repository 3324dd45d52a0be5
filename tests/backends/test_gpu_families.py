"""Voices of other makes on the simulated GPU, against the CPU: the PyTorch port's, and such without a context."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from gpu_songs import job, opened, sung
from random_voices import random_voice
from simulated_device import SimulatedDevice
from simulated_tensorrt import SimulatedTensorRTRTX, simulated_plan

from notewave.backends.ort.backend import OrtBackend
from notewave.export.networks import T5, port_family
from notewave.export.plans.build import build_plans
from notewave.song.dialect import Tokens
from notewave.sound.mel import FRAMES, MELS
from notewave.voice.folder import Voice

SEGMENT_RMS = {"fp32": 1e-5, "fp16": 2e-3, "bf16": 2e-2}  # of a denoised segment against the CPU, as T5's are
GUIDANCE = 2.0  # which magnifies errors, as it weighs predictions by itself and by 1 - itself
MADE = {
    "the port's": (port_family(1e-5), 1),
    "seeing padding": (dataclasses.replace(T5, sees_padding=True), 1),
    "without context": (T5, 0),
    "the port's without context": (port_family(1e-5), 0),
}


@pytest.fixture(scope="module", params=MADE)
def voice(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Voice:
    family, context = MADE[request.param]
    return random_voice(tmp_path_factory.mktemp("voices") / "voice", family, context=context)


@pytest.mark.parametrize("precision", SEGMENT_RMS)
def test_songs_are_sung_as_on_the_cpu(
    precision: str, voice: Voice, segments: list[Tokens], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Side by side, in three segments of two buckets, with guidance: whose songs without notes attend to nothing."""
    monkeypatch.setenv("NOTEWAVE_PLANS", str(tmp_path))
    build_plans(voice, precision, (8, 9), trt=SimulatedTensorRTRTX(SimulatedDevice()), compile_plan=simulated_plan)
    work, songs = job(voice, guidance=GUIDANCE, seeds=(3, 4)), [segments, segments[::-1]]
    backend, device = opened(voice, precision=precision)
    mine, cpu = (sung(each, work, songs) for each in (backend, OrtBackend(voice, 1)))
    assert mine.shape == (3, 2, FRAMES, MELS)
    errors = np.sqrt(np.mean((mine - cpu) ** 2, axis=(2, 3)))
    assert errors.max() < (GUIDANCE + abs(1 - GUIDANCE)) * SEGMENT_RMS[precision]
    backend.close()
    assert not device.memories and not device.leaked
