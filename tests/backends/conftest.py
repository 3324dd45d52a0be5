"""What the tests of the GPU's backend share: a voice with a sound, plans of it for both simulated TensorRTs, a song."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from simulated_device import SimulatedDevice
from simulated_tensorrt import (
    SimulatedTensorRT,
    SimulatedTensorRTRTX,
    simulated_plan,
)
from sounding_voice import sounding_voice

import notewave
from notewave.export.plans.build import build_plans
from notewave.song.dialect import EOS, Tokens
from notewave.voice.folder import Voice


@pytest.fixture(scope="module")
def voice(reference_voice: Path, tmp_path_factory: pytest.TempPathFactory) -> Voice:
    return sounding_voice(reference_voice, tmp_path_factory.mktemp("voices") / "sounding")


@pytest.fixture(scope="module")
def plans(voice: Voice, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home with float32 plans for the simulated GPU and both simulated TensorRTs."""
    home = tmp_path_factory.mktemp("plans")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NOTEWAVE_PLANS", str(home))
        patch.setattr("notewave.export.plans.build._local_capability", lambda: (8, 9))
        for kind in (SimulatedTensorRT, SimulatedTensorRTRTX):
            build_plans(voice, "fp32", (8, 9), trt=kind(SimulatedDevice()), compile_plan=simulated_plan)
    yield home


@pytest.fixture
def home(plans: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NOTEWAVE_PLANS", str(plans))
    return plans


@pytest.fixture
def spoilable(plans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the TensorRT-RTX plans, to be damaged."""
    home = tmp_path / "home"
    shutil.copytree(plans, home)
    monkeypatch.setenv("NOTEWAVE_PLANS", str(home))
    (folder,) = home.glob("*-tensorrt_rtx-*")
    return folder


@pytest.fixture(scope="module")
def segments(midi_folder: Path) -> list[Tokens]:
    """Two that share a bucket of token lengths, and one of another."""
    first, second, third = notewave.tokenize(midi_folder / "ensemble.mid")[:3]
    return [
        np.append(tokens[: length - 1], EOS).astype(np.int32)
        for tokens, length in ((first, 300), (second, 280), (third, 99))
    ]
