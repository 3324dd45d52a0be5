"""Stored tensors to ``SpectrogramDiffusion``, by a table of names; what every kind of checkpoint shares.

Checkpoints are untrusted: nothing in them is executed, and sizes are checked before memory is taken for them. Missing,
extra and misshapen tensors are named, all in one error.

A table of names has, for each parameter here, the tensors stored for it: "*" is the layer; of "{a,b}" the rows of a,
then of b are stacked. Where only the stored name has a layer, the rows of all layers are stacked.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from notewave.errors import VoiceError
from notewave.export.networks import SpectrogramDiffusion
from notewave.sampling.options import Sampling
from notewave.sampling.schedule import NoiseSchedule
from notewave.voice.contracts import Dimensions

MAX_JSON_BYTES = 1 << 20
MAX_LAYERS = 256
MAX_PARAMETERS = 4_000_000_000  # ten times the largest published model
MAX_NAMED = 8  # tensors named in one error, of each kind

# What a voice of published weights recommends: diffusers' own 100 steps of DDPM are there for the asking.
SAMPLING = Sampling("dpmpp-2m", steps=15)


@dataclass(frozen=True)
class Stored:
    """A tensor that lies in a checkpoint, not read yet."""

    shape: tuple[int, ...]
    read: Callable[[], Tensor]


@dataclass(frozen=True)
class Checkpoint:
    """Everything that a checkpoint says about a voice."""

    model: SpectrogramDiffusion
    prediction: str = "epsilon"  # one of notewave.sampling.samplers.PREDICTIONS
    schedule: NoiseSchedule = field(default_factory=NoiseSchedule)
    sampling: Sampling = SAMPLING
    vocoder: Path | None = None  # the ONNX mel decoder that lies beside it


def assemble(size: Dimensions, names: Mapping[str, str], stored: Mapping[str, Stored]) -> SpectrogramDiffusion:
    """Build the networks from stored tensors, by a table of names like NAMES.

    Raises VoiceError that names every missing, extra or misshapen tensor, before any is read.
    """
    with torch.device("meta"):
        model = SpectrogramDiffusion(size)
    if sum(parameter.numel() for parameter in model.parameters()) > MAX_PARAMETERS:
        raise VoiceError(f"the checkpoint's sizes ask for more than {MAX_PARAMETERS} weights. Check its configuration.")
    parts = {name: _spell(name, names, size.decoder_layers) for name in model.state_dict()}
    expected: dict[str, tuple[int, ...]] = {}
    for name, parameter in model.state_dict().items():
        rows = len(parameter) // len(parts[name])
        expected |= dict.fromkeys(parts[name], (rows, *parameter.shape[1:]))
    _compare(expected, {name: tensor.shape for name, tensor in stored.items()})
    model.load_state_dict({name: _stack([stored[part] for part in parts[name]]) for name in parts}, assign=True)
    return model.requires_grad_(False)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object of bounded size; raises VoiceError."""
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise VoiceError(f"{path} has more than {MAX_JSON_BYTES} bytes; it is no configuration. Download it again.")
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise VoiceError(f"{path} is not readable JSON ({error}). Is this a complete checkpoint?") from error
    if not isinstance(content, dict):
        raise VoiceError(f"{path} holds a {type(content).__name__}, not an object. Is this a complete checkpoint?")
    return content


def _spell(name: str, names: Mapping[str, str], decoder_layers: int) -> list[str]:
    """Names of the stored tensors whose rows a parameter stacks, in order."""
    layer = re.search(r"\.(\d+)\.", name)
    pattern = names[name.replace(layer[0], ".*.") if layer else name]
    layers = [layer[1]] if layer else [str(index) for index in range(decoder_layers if "*" in pattern else 1)]
    braces = re.search(r"{(.*)}", pattern)
    choices = [pattern.replace(braces[0], choice) for choice in braces[1].split(",")] if braces else [pattern]
    return [choice.replace("*", index) for index in layers for choice in choices]


def _compare(expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]) -> None:
    misshapen = [
        f"{name} {list(found[name])} instead of {list(shape)}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    missing, extra = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    problems = {"missing": missing, "extra": extra, "misshapen": misshapen}
    if any(problems.values()):
        listed = "; ".join(f"{kind}: {_enumerate(names)}" for kind, names in problems.items() if names)
        raise VoiceError(
            f"the checkpoint's tensors are not those that its configuration asks for ({listed}). "
            "Check that it is whole, and a Spectrogram Diffusion checkpoint with context."
        )


def _enumerate(items: list[str]) -> str:
    rest = f" and {len(items) - MAX_NAMED} more" if len(items) > MAX_NAMED else ""
    return ", ".join(items[:MAX_NAMED]) + rest


def _stack(parts: list[Stored]) -> Tensor:
    return torch.cat([part.read().to(torch.float32) for part in parts])
