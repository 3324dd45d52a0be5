"""The averaged weights of a run: written with what they are, and read again."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from notewave.export.autoregressive import SpectrogramAutoregression, VoiceNetworks
from notewave.export.networks import SpectrogramDiffusion
from notewave.export.training.config import Config
from notewave.export.training.diffusion import PREDICTION, SCHEDULE
from notewave.export.training.queries import plain_state
from notewave.files import atomic_file
from notewave.sampling.samplers import AUTOREGRESSIVE
from notewave.voice.contracts import Dimensions


def write_weights(folder: Path, config: Config, model: VoiceNetworks, steps: int, distilled: bool = False) -> Path:
    """Write a trained model as ``ema.safetensors``, a plain model's state, and what it is as ``ema.json``."""
    target = folder / "ema.safetensors"
    state = plain_state(model, dict(model.named_parameters()))
    with atomic_file(target) as temporary:
        save_file({name: value.detach().cpu().contiguous() for name, value in state.items()}, temporary)
    about = {
        "dimensions": asdict(config.dimensions),
        "dialect": asdict(config.dialect),
        "prediction": AUTOREGRESSIVE if config.is_autoregressive else PREDICTION,
        "schedule": asdict(SCHEDULE),
        "steps_trained": steps,
        "distilled": distilled,
        "config": config.name,
        "provenance": f"Trained by notewave train, configuration {config.name}, {steps} "
        f"{'distillation' if distilled else 'mel'} steps.",
    }
    with atomic_file(target.with_suffix(".json")) as temporary:
        temporary.write_text(json.dumps(about, indent=1))
    return target


def load_weights(weights: Path) -> VoiceNetworks:
    """The networks of a run's averaged weights, ``ema.safetensors``."""
    about = weights_about(weights)
    kind = SpectrogramAutoregression if about["prediction"] == AUTOREGRESSIVE else SpectrogramDiffusion
    model = kind(Dimensions(**about["dimensions"]))
    model.load_state_dict(load_file(weights))
    return model.eval()


def weights_about(weights: Path) -> dict[str, Any]:
    """What a run's averaged weights are: their dimensions, dialect, steps trained, and so on."""
    about: dict[str, Any] = json.loads(weights.with_suffix(".json").read_text())
    return about
