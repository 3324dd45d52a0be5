"""Checkpoints in the diffusers layout, from a folder or the Hugging Face hub."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from notewave.checks import quoted
from notewave.errors import VoiceError
from notewave.export.checkpoints.assemble import MAX_LAYERS, Checkpoint, Stored, assemble, read_json
from notewave.export.checkpoints.pickled import read_pickled
from notewave.export.checkpoints.records import OpenFile
from notewave.export.checkpoints.repository import PARTS, SCHEDULER, STEM, VOCODER, fetch_repository
from notewave.export.checkpoints.safetensors_file import read_safetensors
from notewave.export.networks import MAX_NOISE_TIME, SpectrogramDiffusion
from notewave.sampling.schedule import NoiseSchedule
from notewave.voice.contracts import Dimensions

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
    folder = local_folder(source) or fetch_repository(str(source))
    size = _dimensions({part: _read_config(folder / part / "config.json") for part in PARTS})
    prediction, schedule = _noise(_read_config(folder / SCHEDULER))
    stored = {f"{part}/{name}": tensor for part in PARTS for name, tensor in _read_part(folder / part).items()}
    vocoder = OpenFile.find(folder / VOCODER)
    if vocoder is not None and not vocoder.bytes:  # as files in /proc are, which may be waited for
        raise VoiceError(f"{vocoder.path} is empty. Download it again, or remove it.")
    model = assemble(size, NAMES, stored, kind=SpectrogramDiffusion)
    return Checkpoint(model, prediction, schedule, vocoder=vocoder.path if vocoder else None)


def local_folder(source: str | os.PathLike[str]) -> Path | None:
    """The folder that a source is, or None where nothing is there."""
    try:
        folder = Path(source)
        if folder.is_dir():
            return folder
        reason = "it is no folder" if folder.exists() or folder.is_symlink() else None
    except (OSError, TypeError, ValueError) as error:  # too long, closed to us, no path at all
        reason = str(error)
    if reason is not None:
        raise VoiceError(f"there is no checkpoint at {quoted(source)}: {reason}. Give a folder or a hub id.")
    return None


def _read_config(path: Path) -> dict[str, Any]:
    """Settings; those that are lists or objects, none of which has a meaning here, as texts: they may be deep."""
    return {key: quoted(value) if isinstance(value, (dict, list)) else value for key, value in read_json(path).items()}


def _read_part(folder: Path) -> dict[str, Stored]:
    if file := OpenFile.find(folder / f"{STEM}.safetensors"):
        return read_safetensors(file)
    if file := OpenFile.find(folder / f"{STEM}.bin"):
        return read_pickled(file)
    raise VoiceError(f"{folder} has neither {STEM}.safetensors nor {STEM}.bin. Download the whole checkpoint.")


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
        raise VoiceError(
            f"the checkpoint says num_layers = {quoted(layers)}; each must be an integer up to {MAX_LAYERS}."
        )
    tables: list[Any] = [notes.get("vocab_size"), notes.get("max_length")]
    segment: list[Any] = [decoder.get("targets_length"), decoder.get("input_dims")]
    widths: list[Any] = [decoder.get(key) for key in shared]
    return Dimensions(*widths, *layers, *tables, *segment)


def _noise(config: Mapping[str, Any]) -> tuple[str, NoiseSchedule]:
    """Prediction and schedule; what diffusers' schedulers can do beyond these is refused."""
    for key, value in SCHEDULER_DEMANDS.items():
        _demand(SCHEDULER, config, key, value)
    kind = config.get("prediction_type")
    if not isinstance(kind, str) or kind not in PREDICTION_TYPES:
        raise VoiceError(
            f"{SCHEDULER} says prediction_type = {quoted(kind)}; this engine knows {', '.join(PREDICTION_TYPES)}."
        )
    steps: Any = config.get("num_train_timesteps")
    return PREDICTION_TYPES[kind], NoiseSchedule(config["beta_schedule"], steps)


def _demand(file: str, config: Mapping[str, Any], key: str, value: Any) -> None:
    if config.get(key) != value:
        raise VoiceError(
            f"{file} says {key} = {quoted(config.get(key))}, where the other networks or this engine need "
            f"{quoted(value)}. "
            "Use a Spectrogram Diffusion checkpoint with context."
        )
