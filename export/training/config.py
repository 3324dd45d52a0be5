"""What a training run is made of, read from JSON: the bundled configurations lie in ``configs/``."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from notewave.errors import TrainingError
from notewave.export.material.songs import Data
from notewave.voice.contracts import Dimensions

CONFIGS = Path(__file__).parent / "configs"


@dataclass(frozen=True)
class Stage:
    """Settings of one phase of a stage; phases follow one another."""

    steps: int  # optimiser steps
    segments: int  # in a batch, at most
    tokens: int = 4800  # in a batch, padding included, at most (symbolic stage)
    crops: int = 1  # taken from each segment
    frames: int = 256  # of a crop
    starts: float = 0.0  # share of crops that begin with their segment, where the context tells most
    pianos: float | None = None  # share of segments by a piano alone; None: as they come
    learning_rate: float = 1e-3  # of new layers, at the start of the phase
    learning_rate_end: float = 1e-3  # at its end, reached by a half cosine
    pretrained_rate: float = 0.5  # factor on the rate of what is not new; in the symbolic stage only read-outs are
    high_noise: float = 0.5  # share of crops whose noise time lies above high_noise_from; the others are uniform
    high_noise_from: float = 0.85
    context: float = 0.0  # share of batches with the previous segment's mel
    unconditioned: float = 0.1  # share of segments trained without any condition, for guidance
    pinned: int = 0  # first steps in which the encoder's copying heads stay as they were set


@dataclass(frozen=True)
class VocoderTraining:
    """What vocoder to train and how long."""

    naming_steps: int = 0  # at first, which teach the trunk and a listener to name pitches, and nothing else
    steps: int = 6000  # after them
    batch: int = 16  # B
    frames: int = 64  # V
    learning_rate: float = 1e-3  # of the plateau
    warm_up: int = 100  # steps to the plateau
    decay: float = 0.3  # share of the steps that lead down from it; both happen in the naming and after it
    mel_weight: float = 1.0  # of the mel L1 beside the spectral losses
    pitch_weight: float = 5.0  # of the error of the pitches that the trunk names
    heard_weight: float = 20.0  # of how differently a listener names the pitches, where it has learned to
    feature_weight: float = 0.5  # of how differently the listener's layers answer
    gain_db: tuple[float, float] = (-12.0, 3.0)  # of the random gain of each crop
    average: float = 0.998  # of the exponential moving average of the weights, which is what is kept
    pair_fraction: float = 0.5  # of each batch that comes from the pairs, where there are any
    validate_every: int = 200  # steps
    checkpoint_seconds: float = 60.0
    seed: int = 0
    model: dict[str, Any] = field(default_factory=dict)  # constructor arguments of Tonewheel

    @property
    def all_steps(self) -> int:
        """Naming steps and those after them."""
        return self.naming_steps + self.steps


@dataclass(frozen=True)
class Config:
    """A whole run."""

    name: str
    dimensions: Dimensions
    symbolic: tuple[Stage, ...]
    mel: tuple[Stage, ...]
    vocoder: VocoderTraining | None = None  # without, the voice gets none
    data: Data = field(default_factory=Data)
    seed: int = 0
    ema: float = 0.998  # decay of the averaged weights
    structured: bool = True  # start from notewave.export.training.structure; False: small random weights
    threads: int = 2  # each computes its share of every batch
    device: str = "cpu"
    checkpoint_seconds: float = 120.0
    validate_seconds: float = 300.0


def load_config(source: str | Path) -> Config:
    """Read a configuration, a JSON file or the name of a bundled one. Raises TrainingError."""
    path = Path(source)
    path = path if path.suffix == ".json" else CONFIGS / f"{source}.json"
    if not path.exists():
        bundled = ", ".join(sorted(p.stem for p in CONFIGS.glob("*.json")))
        raise TrainingError(f"there is no configuration {source}: {path} does not exist. Bundled ones: {bundled}.")
    return parse_config(json.loads(path.read_text()))


def parse_config(values: dict[str, Any]) -> Config:
    """A configuration from JSON's values; ``notes`` at the top is documentation."""
    values = {key: value for key, value in values.items() if key != "notes"}
    for name in ("symbolic", "mel"):
        values[name] = tuple(_build(Stage, stage) for stage in values.get(name, ()))
    values["dimensions"] = _build(Dimensions, values["dimensions"])
    values["data"] = _build(Data, values.get("data", {}))
    if "vocoder" in values:
        values["vocoder"] = _build(VocoderTraining, values["vocoder"])
    return _build(Config, values)


def _build(kind: type[Any], values: dict[str, Any]) -> Any:
    unknown = set(values) - {f.name for f in fields(kind)}
    if unknown:
        raise TrainingError(
            f"a {kind.__name__} has no {', '.join(sorted(unknown))}; it has {', '.join(f.name for f in fields(kind))}."
        )
    return kind(**values)
