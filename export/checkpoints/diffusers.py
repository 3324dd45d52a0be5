"""Checkpoints to ``SpectrogramDiffusion``: the diffusers layout, or seeded random weights.

Checkpoints are untrusted: nothing in them is executed, and sizes are checked before memory is taken for them. Missing,
extra and misshapen tensors are named, all in one error.
"""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from notewave.errors import VoiceError
from notewave.export.networks import MAX_NOISE_TIME, DecoderLayer, RMSNorm, SelfAttention, SpectrogramDiffusion
from notewave.sampling.options import Sampling
from notewave.sampling.schedule import NoiseSchedule
from notewave.voice.contracts import Dimensions

MAX_JSON_BYTES = 1 << 20
MAX_LAYERS = 256
MAX_PARAMETERS = 4_000_000_000  # ten times the largest published model
MAX_NAMED = 8  # tensors named in one error, of each kind

PARTS = ("notes_encoder", "continuous_encoder", "decoder")
WEIGHTS = "diffusion_pytorch_model"  # .safetensors or .bin
SCHEDULER = "scheduler/scheduler_config.json"
VOCODER = "melgan/model.onnx"
CONFIGS = (*(f"{part}/config.json" for part in PARTS), SCHEDULER)

PREDICTION_TYPES = {"epsilon": "epsilon", "sample": "x0", "v_prediction": "v"}  # diffusers' name: ours
SCHEDULER_DEMANDS = {"beta_schedule": "squaredcos_cap_v2", "trained_betas": None, "clip_sample": True}

# Parameter here: diffusers' tensor. "*" is the layer; of "{a,b}" the rows of a, then of b are stacked. Where only the
# checkpoint's name has a layer, the rows of all layers are stacked.
_ENCODER = {
    "positions": "position_encoding.weight",
    "layers.*.attention_norm.weight": "encoders.*.layer.0.layer_norm.weight",
    "layers.*.attention.qkv.weight": "encoders.*.layer.0.SelfAttention.{q,k,v}.weight",
    "layers.*.attention.out.weight": "encoders.*.layer.0.SelfAttention.o.weight",
    "layers.*.feed_forward_norm.weight": "encoders.*.layer.1.layer_norm.weight",
    "layers.*.feed_forward.gate_up.weight": "encoders.*.layer.1.DenseReluDense.{wi_0,wi_1}.weight",
    "layers.*.feed_forward.out.weight": "encoders.*.layer.1.DenseReluDense.wo.weight",
    "norm.weight": "layer_norm.weight",
}
NAMES = {
    "note_encoder.embedding.weight": "notes_encoder/token_embedder.weight",
    **{f"note_encoder.{ours}": f"notes_encoder/{theirs}" for ours, theirs in _ENCODER.items()},
    "context_encoder.input.weight": "continuous_encoder/input_proj.weight",
    **{f"context_encoder.{ours}": f"continuous_encoder/{theirs}" for ours, theirs in _ENCODER.items()},
    "time_embedding.hidden.weight": "decoder/conditioning_emb.0.weight",
    "time_embedding.out.weight": "decoder/conditioning_emb.2.weight",
    "time_embedding.film.weight": "decoder/decoders.*.layer.{0.FiLMLayer,2.film}.scale_bias.weight",
    "cross_attention.projection.weight": "decoder/decoders.*.layer.1.attention.{to_k,to_v}.weight",
    "decoder.input.weight": "decoder/continuous_inputs_projection.weight",
    "decoder.positions": "decoder/position_encoding.weight",
    "decoder.layers.*.attention_norm.weight": "decoder/decoders.*.layer.0.layer_norm.weight",
    "decoder.layers.*.attention.qkv.weight": "decoder/decoders.*.layer.0.attention.{to_q,to_k,to_v}.weight",
    "decoder.layers.*.attention.out.weight": "decoder/decoders.*.layer.0.attention.to_out.0.weight",
    "decoder.layers.*.cross_norm.weight": "decoder/decoders.*.layer.1.layer_norm.weight",
    "decoder.layers.*.cross_queries.weight": "decoder/decoders.*.layer.1.attention.to_q.weight",
    "decoder.layers.*.cross_out.weight": "decoder/decoders.*.layer.1.attention.to_out.0.weight",
    "decoder.layers.*.feed_forward_norm.weight": "decoder/decoders.*.layer.2.layer_norm.weight",
    "decoder.layers.*.feed_forward.gate_up.weight": "decoder/decoders.*.layer.2.DenseReluDense.{wi_0,wi_1}.weight",
    "decoder.layers.*.feed_forward.out.weight": "decoder/decoders.*.layer.2.DenseReluDense.wo.weight",
    "decoder.norm.weight": "decoder/decoder_norm.weight",
    "decoder.output.weight": "decoder/spec_out.weight",
}

RANDOM_SIZES = {
    "base": Dimensions(768, 12, 64, 2048, 12, 12, 12),
    "small": Dimensions(512, 6, 64, 1024, 8, 8, 8),
    "tiny": Dimensions(64, 4, 16, 128, 2, 2, 2),
}


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


def load_diffusers(source: str | os.PathLike[str]) -> Checkpoint:
    """Load a checkpoint in the diffusers layout: a local folder, or a repository id of the Hugging Face hub.

    Raises VoiceError when it cannot be found or read, or is not a Spectrogram Diffusion checkpoint.
    """
    folder = Path(source) if Path(source).is_dir() else _download(str(source))
    size = _dimensions({part: read_json(folder / part / "config.json") for part in PARTS})
    prediction, schedule = _noise(read_json(folder / SCHEDULER))
    stored = {f"{part}/{name}": tensor for part in PARTS for name, tensor in _read_part(folder / part).items()}
    vocoder = folder / VOCODER
    model = assemble(size, NAMES, stored)
    return Checkpoint(model, prediction, schedule, vocoder=vocoder if vocoder.is_file() else None)


def random_checkpoint(name: str, seed: int = 0) -> Checkpoint:
    """Seeded random weights of a published size ("base", "small") or a "tiny" one, at T5's initial scales."""
    if name not in RANDOM_SIZES:
        raise VoiceError(f"there is no random voice {name!r}. Choose one of {', '.join(RANDOM_SIZES)}.")
    with torch.device("meta"):
        model = SpectrogramDiffusion(RANDOM_SIZES[name])
    model.to_empty(device="cpu").requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    scale_down = RANDOM_SIZES[name].head_width ** -0.5  # of queries: T5 has no scaling of the dot products
    for module in model.modules():
        for weight in module.parameters(recurse=False):
            if isinstance(module, RMSNorm):
                weight.fill_(1.0)
            else:
                deviation = weight.shape[1] ** -0.5 if isinstance(module, nn.Linear) else 1.0
                weight.normal_(0.0, deviation, generator=generator)
    for module in model.modules():
        if isinstance(module, SelfAttention):
            module.qkv.weight[: module.qkv.out_features // 3] *= scale_down
        if isinstance(module, DecoderLayer):
            module.cross_queries.weight *= scale_down
    return Checkpoint(model)


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


def _read_part(folder: Path) -> dict[str, Stored]:
    safetensors, pickled = folder / f"{WEIGHTS}.safetensors", folder / f"{WEIGHTS}.bin"
    if safetensors.is_file():
        return _open_safetensors(safetensors)
    if pickled.is_file():
        return _open_pickle(pickled)
    raise VoiceError(f"{folder} has neither {safetensors.name} nor {pickled.name}. Download the whole checkpoint.")


def _open_safetensors(path: Path) -> dict[str, Stored]:
    try:
        file: Any = safe_open(path, "pt")  # a native class without types
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise VoiceError(f"{path} is not a readable safetensors file ({error}). Download it again.") from error
    return {name: Stored(shape, functools.partial(file.get_tensor, name)) for name, shape in shapes.items()}


def _open_pickle(path: Path) -> dict[str, Stored]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises whatever a broken archive or a forbidden pickle runs into
        reason = str(error).partition("\n")[0]
        raise VoiceError(f"{path} is not a readable file of plain tensors ({reason}). Download it again.") from error
    if not isinstance(content, dict) or not all(_is_plain(name, value) for name, value in content.items()):
        raise VoiceError(f"{path} holds other things than named tensors of numbers. Do not trust this checkpoint.")
    return {name: Stored(tuple(value.shape), value.detach) for name, value in content.items()}


def _is_plain(name: object, value: object) -> bool:
    """A tensor whose numbers all lie in the file: views that repeat a few could ask for any amount of memory."""
    if not (isinstance(name, str) and isinstance(value, Tensor) and value.layout == torch.strided):
        return False
    return value.is_floating_point() and value.nbytes <= value.untyped_storage().nbytes()


def _dimensions(configs: Mapping[str, Mapping[str, Any]]) -> Dimensions:
    notes, _, decoder = (configs[part] for part in PARTS)
    shared = ("d_model", "num_heads", "d_kv", "d_ff")
    demands = [
        *((part, key, decoder.get(key)) for part in PARTS[:2] for key in shared),
        *((part, "feed_forward_proj", "gated-gelu") for part in PARTS[:2]),
        ("continuous_encoder", "input_dims", decoder.get("input_dims")),
        ("continuous_encoder", "targets_context_length", decoder.get("targets_length")),
        ("decoder", "max_decoder_noise_time", MAX_NOISE_TIME),
    ]
    for part, key, value in demands:
        _demand(f"{part}/config.json", configs[part], key, value)
    layers = [configs[part].get("num_layers") for part in PARTS]
    if not all(isinstance(count, int) and count <= MAX_LAYERS for count in layers):
        raise VoiceError(f"the checkpoint says num_layers = {layers}; each must be an integer up to {MAX_LAYERS}.")
    tables: list[Any] = [notes.get("vocab_size"), notes.get("max_length")]
    segment: list[Any] = [decoder.get("targets_length"), decoder.get("input_dims")]
    widths: list[Any] = [decoder.get(key) for key in shared]
    return Dimensions(*widths, *layers, *tables, *segment)


def _noise(config: Mapping[str, Any]) -> tuple[str, NoiseSchedule]:
    """Prediction and schedule; what diffusers' schedulers can do beyond these is refused."""
    for key, value in SCHEDULER_DEMANDS.items():
        _demand(SCHEDULER, config, key, value)
    prediction = PREDICTION_TYPES.get(str(config.get("prediction_type")))
    if prediction is None:
        raise VoiceError(
            f"{SCHEDULER} says prediction_type = {config.get('prediction_type')!r}; "
            f"this engine knows {', '.join(PREDICTION_TYPES)}."
        )
    steps: Any = config.get("num_train_timesteps")
    return prediction, NoiseSchedule(config["beta_schedule"], steps)


def _demand(file: str, config: Mapping[str, Any], key: str, value: Any) -> None:
    if config.get(key) != value:
        raise VoiceError(
            f"{file} says {key} = {config.get(key)!r}, where the other networks or this engine need {value!r}. "
            "Use a Spectrogram Diffusion checkpoint with context."
        )


def _download(repository: str) -> Path:
    """Fetch what is needed of a repository of the Hugging Face hub, or find it in the local cache."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise VoiceError(f"there is no checkpoint at {repository!r}: it is no folder, and no hub id like owner/name.")
    try:
        folder = _fetch(repository, [*CONFIGS, VOCODER, *(f"{part}/{WEIGHTS}.safetensors" for part in PARTS)])
        pickled = [part for part in PARTS if not (folder / part / f"{WEIGHTS}.safetensors").is_file()]
        return _fetch(repository, [f"{part}/{WEIGHTS}.bin" for part in pickled]) if pickled else folder
    except Exception as error:  # the hub's client raises many types of its own
        raise VoiceError(
            f"{repository!r} is no folder here, and could not be fetched from the Hugging Face hub "
            f"({type(error).__name__}: {error}). Check the name and the network, or give a local folder."
        ) from error


def _fetch(repository: str, files: list[str]) -> Path:
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(repository, allow_patterns=files))
