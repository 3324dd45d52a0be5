"""Stored tensors to ``SpectrogramDiffusion``, by a table of names; what every kind of checkpoint shares.

Checkpoints are untrusted: nothing in them is executed, and sizes are checked before memory is taken for them. Missing,
extra and misshapen tensors are named, all in one error.

A table of names has, for each parameter here, the tensors stored for it: "*" is the layer; of "{a,b}" the rows of a,
then of b are stacked. Where only the stored name has a layer, the rows of all layers are stacked.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from notewave.checks import shown
from notewave.errors import VoiceError
from notewave.export.autoregressive import VoiceNetworks
from notewave.export.networks import T5, Family
from notewave.inputs import read_regular
from notewave.sampling.options import Sampling
from notewave.sampling.schedule import NoiseSchedule
from notewave.song.dialect import PUBLISHED, Dialect
from notewave.sound.mel import PUBLISHED_RANGE, MelRange
from notewave.voice.contracts import Dimensions

MAX_JSON_BYTES = 1 << 20
MAX_LAYERS = 256
MAX_PARAMETERS = 4_000_000_000  # ten times the largest published model
MAX_NAMED = 8  # tensors named in one error, of each kind
MAX_NAME = 200  # characters of each

# What a voice of published weights recommends: diffusers' own 100 steps of DDPM are there for the asking.
SAMPLING = Sampling("dpmpp-2m", steps=15)


Model = TypeVar("Model", bound=VoiceNetworks)


@dataclass(frozen=True)
class Stored:
    """A tensor that lies in a checkpoint, not read yet."""

    shape: tuple[int, ...]
    read: Callable[[], Tensor]


@dataclass(frozen=True)
class Checkpoint:
    """Everything that a checkpoint says about a voice."""

    model: VoiceNetworks
    prediction: str = "epsilon"  # one of notewave.sampling.samplers.PREDICTIONS
    schedule: NoiseSchedule = field(default_factory=NoiseSchedule)
    sampling: Sampling = SAMPLING
    dialect: Dialect = PUBLISHED
    mel_range: MelRange = PUBLISHED_RANGE
    first_context: str = "none"
    vocoder: Path | None = None  # the ONNX mel decoder that lies beside it


def assemble(
    size: Dimensions,
    names: Mapping[str, str],
    stored: Mapping[str, Stored],
    others: Iterable[str] = (),
    *,
    family: Family = T5,
    kind: Callable[[Dimensions, Family], Model],
) -> Model:
    """Build the networks of a family from stored tensors, by a table of names like NAMES.

    Others are names of what lies beside these tensors, and should not. Raises VoiceError that names every missing,
    extra or misshapen tensor, before any is read, or the first whose numbers are not finite.
    """
    if (layers := max(size.note_encoder_layers, size.context_encoder_layers, size.decoder_layers)) > MAX_LAYERS:
        raise VoiceError(f"the checkpoint has {layers} layers in a network, over {MAX_LAYERS}. Check that it is one.")
    with torch.device("meta"):
        model = kind(size, family)
    if sum(parameter.numel() for parameter in model.parameters()) > MAX_PARAMETERS:
        raise VoiceError(f"the checkpoint's sizes ask for more than {MAX_PARAMETERS} weights. Check its configuration.")
    parts = {name: _spell(name, names, size.decoder_layers) for name in model.state_dict()}
    expected: dict[str, tuple[int, ...]] = {}
    for name, parameter in model.state_dict().items():
        rows = len(parameter) // len(parts[name])
        expected |= dict.fromkeys(parts[name], (rows, *parameter.shape[1:]))
    _compare(expected, {name: tensor.shape for name, tensor in stored.items()}, others)
    model.load_state_dict({name: _stack(parts[name], stored) for name in parts}, assign=True)
    model.requires_grad_(False)
    return model


def read_json(path: Path, most: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """Read a JSON object of so many bytes at most from a regular file; raises VoiceError."""
    try:
        return parse_json(read_regular(path, most))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise VoiceError(f"{path} is not readable JSON ({reason}). Is this a complete checkpoint?") from error


def parse_json(content: bytes) -> dict[str, Any]:
    """A JSON object in UTF-8. Raises ValueError for anything else."""
    try:
        value = json.loads(content.decode("utf-8"))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(value, dict):
        raise ValueError(f"it holds a {type(value).__name__}, not an object")
    return value


def _spell(name: str, names: Mapping[str, str], decoder_layers: int) -> list[str]:
    """Names of the stored tensors whose rows a parameter stacks, in order."""
    layer = re.search(r"\.(\d+)\.", name)
    pattern = names[name.replace(layer[0], ".*.") if layer else name]
    layers = [layer[1]] if layer else [str(index) for index in range(decoder_layers if "*" in pattern else 1)]
    braces = re.search(r"{(.*)}", pattern)
    choices = [pattern.replace(braces[0], choice) for choice in braces[1].split(",")] if braces else [pattern]
    return [choice.replace("*", index) for index in layers for choice in choices]


def _compare(
    expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]], others: Iterable[str]
) -> None:
    misshapen = [
        f"{name} {list(found[name])} instead of {list(shape)}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    missing, extra = sorted(expected.keys() - found.keys()), sorted((found.keys() | set(others)) - expected.keys())
    problems = {"missing": missing, "extra": extra, "misshapen": misshapen}
    if any(problems.values()):
        listed = "; ".join(f"{kind}: {_enumerate(names)}" for kind, names in problems.items() if names)
        raise VoiceError(
            f"the checkpoint's tensors are not those that its configuration asks for ({listed}). "
            "Check that it is whole, and a Spectrogram Diffusion checkpoint."
        )


def _enumerate(items: list[str]) -> str:
    rest = f" and {len(items) - MAX_NAMED} more" if len(items) > MAX_NAMED else ""
    return ", ".join(shown(item[:MAX_NAME]) for item in items[:MAX_NAMED]) + rest


def _stack(parts: list[str], stored: Mapping[str, Stored]) -> Tensor:
    """Rows of stored tensors, one below another, in float32."""
    read = []
    for name in parts:
        tensor = stored[name].read().to(torch.float32)
        if not tensor.isfinite().all():
            raise VoiceError(f"the checkpoint's tensor {name} has weights that are no finite numbers. Use another.")
        read.append(tensor)
    return torch.cat(read)
