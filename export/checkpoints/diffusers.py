"""Checkpoints in the diffusers layout, from a folder or the Hugging Face hub."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from notewave.errors import VoiceError
from notewave.export.checkpoints.assemble import MAX_LAYERS, Checkpoint, Stored, assemble, read_json
from notewave.export.hub import reaching
from notewave.export.networks import MAX_NOISE_TIME
from notewave.sampling.schedule import NoiseSchedule
from notewave.voice.contracts import Dimensions

PARTS = ("notes_encoder", "continuous_encoder", "decoder")
STEM = "diffusion_pytorch_model"  # of the files of weights: .safetensors or .bin
SCHEDULER = "scheduler/scheduler_config.json"
VOCODER = "melgan/model.onnx"
CONFIGS = (*(f"{part}/config.json" for part in PARTS), SCHEDULER)

PREDICTION_TYPES = {"epsilon": "epsilon", "sample": "x0", "v_prediction": "v"}  # diffusers' name: ours
SCHEDULER_DEMANDS = {"beta_schedule": "squaredcos_cap_v2", "trained_betas": None, "clip_sample": True}

# Parameter here: diffusers' tensor, in the notation of notewave.export.checkpoints.assemble.
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


def _read_part(folder: Path) -> dict[str, Stored]:
    safetensors, pickled = folder / f"{STEM}.safetensors", folder / f"{STEM}.bin"
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
    with reaching(repository):
        folder = _fetch(repository, [*CONFIGS, VOCODER, *(f"{part}/{STEM}.safetensors" for part in PARTS)])
        pickled = [part for part in PARTS if not (folder / part / f"{STEM}.safetensors").is_file()]
        return _fetch(repository, [f"{part}/{STEM}.bin" for part in pickled]) if pickled else folder


def _fetch(repository: str, files: list[str]) -> Path:
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(repository, allow_patterns=files))
