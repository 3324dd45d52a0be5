"""Checkpoints of the paper's PyTorch port, yoyolicoris/music-spectrogram-diffusion-pytorch, as Lightning saves them.

A file holds the weights beside the training's state, which is passed over. Sizes are read off the tensors; what these
cannot tell is in the training run's configuration, and else as in the published models.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import torch
import yaml
from torch import Tensor

from notewave.checks import quoted, shown
from notewave.errors import VoiceError
from notewave.export.autoregressive import SpectrogramAutoregression, VoiceNetworks
from notewave.export.checkpoints.assemble import MAX_JSON_BYTES, SAMPLING, Checkpoint, Stored, assemble
from notewave.export.checkpoints.pickled import read_pickled
from notewave.export.checkpoints.records import OpenFile
from notewave.export.networks import SpectrogramDiffusion, port_family
from notewave.inputs import read_regular
from notewave.sampling.options import FRAME_BY_FRAME
from notewave.sampling.samplers import AUTOREGRESSIVE
from notewave.sampling.schedule import CLOSED, NoiseSchedule
from notewave.song.dialect import Dialect
from notewave.sound.mel import FFT, FRAMES, HOP, MEL_HIGH_HZ, MELS, SAMPLE_RATE, WINDOW, MelRange
from notewave.voice.contracts import Dimensions

SUFFIX = ".ckpt"
CONFIG = "config.yaml"  # of the training run, in a folder beside the checkpoint
PART = "state_dict"  # of the file: where it has the weights
CLASSES: dict[str, type[VoiceNetworks]] = {
    "DiffusionLM": SpectrogramDiffusion,
    "AutoregressiveLM": SpectrogramAutoregression,
}
HEAD_WIDTH = 64  # of the published models; the tensors hold only heads x head width
GUIDANCE = "2.0"  # of the published models
NORM_EPS = 1e-5  # torch's own, of the last norms whatever a configuration says of the others

Setting: TypeAlias = bool | float | str | None

# What the configuration must say where it says any of these. Mels are torchaudio's, centred and reflected at both ends:
# a frame begins half a window before one of ``notewave.sound.mel``, whose weights differ from theirs a little, too.
MODEL_SETTINGS: dict[str, Setting] = {
    "norm_first": True,
    "layer_norm_eps": NORM_EPS,
    "sample_rate": SAMPLE_RATE,
    "n_fft": FFT,
    "win_length": WINDOW,
    "hop_length": HOP,
    "f_min": 0,
    "f_max": MEL_HIGH_HZ,
    "pad": 0,
    "n_mels": MELS,
    "power": 1,
    "normalized": False,
    "center": True,
    "pad_mode": "reflect",
    "norm": None,
    "mel_scale": "htk",
}
DATA_SETTINGS: dict[str, Setting] = {"sample_rate": SAMPLE_RATE, "segment_length": HOP * FRAMES}
MEL_SHAPES = {  # of what the file has of its spectrogram
    "mel.0.spectrogram.window": (WINDOW,),
    "mel.0.mel_scale.fb": (FFT // 2 + 1, MELS),
    "mel.1.min": (),  # log-mels that the networks see as -1 and 1
    "mel.1.max": (),
}

# Parameter here: the port's tensor, in the notation of notewave.export.checkpoints.assemble, after ``_as_here``.
_LAYER = {
    "attention_norm.weight": "norm1.weight",
    "attention_norm.bias": "norm1.bias",
    "attention.qkv.weight": "self_attn.{q,k,v}_proj.weight",
    "attention.out.weight": "self_attn.emb_proj.weight",
    "feed_forward.gate_up.weight": "linear1.weight",
    "feed_forward.gate_up.bias": "linear1.bias",
    "feed_forward.out.weight": "linear2.weight",
    "feed_forward.out.bias": "linear2.bias",
}
_ENCODER = {
    **{f"layers.*.{ours}": f"layers.*.{theirs}" for ours, theirs in _LAYER.items()},
    "layers.*.feed_forward_norm.weight": "layers.*.norm2.weight",
    "layers.*.feed_forward_norm.bias": "layers.*.norm2.bias",
    "norm.weight": "norm.weight",
    "norm.bias": "norm.bias",
}
_DECODER = {
    **{f"layers.*.{ours}": f"layers.*.{theirs}" for ours, theirs in _LAYER.items()},
    "layers.*.cross_norm.weight": "layers.*.norm2.weight",
    "layers.*.cross_norm.bias": "layers.*.norm2.bias",
    "layers.*.cross_queries.weight": "layers.*.multihead_attn.q_proj.weight",
    "layers.*.cross_out.weight": "layers.*.multihead_attn.emb_proj.weight",
    "layers.*.feed_forward_norm.weight": "layers.*.norm3.weight",
    "layers.*.feed_forward_norm.bias": "layers.*.norm3.bias",
    "norm.weight": "norm.weight",
    "norm.bias": "norm.bias",
}
_NOTES, _CONTEXT, _FRAMES = (f"model.transformer.{part}" for part in ("encoder", "context_encoder", "decoder"))
_POSITIONS = "model.out_pos_emb"
_TIME = "model.diffusion_emb.projection1.weight"
NAMES = {
    "note_encoder.embedding.weight": "model.emb.weight",
    "note_encoder.positions": "model.in_pos_emb",
    **{f"note_encoder.{ours}": f"{_NOTES}.{theirs}" for ours, theirs in _ENCODER.items()},
    "context_encoder.input.weight": "model.linear_in.weight",
    "context_encoder.input.bias": "model.linear_in.bias",
    "context_encoder.positions": _POSITIONS,
    **{f"context_encoder.{ours}": f"{_CONTEXT}.{theirs}" for ours, theirs in _ENCODER.items()},
    "time_embedding.hidden.weight": _TIME,
    "time_embedding.hidden.bias": "model.diffusion_emb.projection1.bias",
    "time_embedding.out.weight": "model.diffusion_emb.projection2.weight",
    "time_embedding.out.bias": "model.diffusion_emb.projection2.bias",
    "time_embedding.film.weight": f"{_FRAMES}.layers.*.{{film1,film2}}.linear.weight",
    "time_embedding.film.bias": f"{_FRAMES}.layers.*.{{film1,film2}}.linear.bias",
    "cross_attention.projection.weight": f"{_FRAMES}.layers.*.multihead_attn.{{k,v}}_proj.weight",
    "decoder.input.weight": "model.linear_in.weight",
    "decoder.input.bias": "model.linear_in.bias",
    "decoder.positions": _POSITIONS,
    **{f"decoder.{ours}": f"{_FRAMES}.{theirs}" for ours, theirs in _DECODER.items()},
    "decoder.output.weight": "model.linear_out.weight",
    "decoder.output.bias": "model.linear_out.bias",
}  # of both decoders: a model has the names of its parameters


def find_lightning(source: Path) -> tuple[Path, Path | None] | None:
    """A checkpoint and its configuration, if it has one beside it: the source itself, or the only one in that folder.

    None where the source is neither. Raises VoiceError for a folder that has several.
    """
    if not source.is_dir():
        return (source, None) if source.suffix == SUFFIX else None
    try:
        found = sorted(path for path in source.iterdir() if path.suffix == SUFFIX)
    except OSError:  # closed to us
        return None
    if len(found) > 1:
        names = ", ".join(shown(path.name) for path in found[:4])
        raise VoiceError(f"{source} has {len(found)} checkpoints, {names} among them. Name the one that you want.")
    config = source / CONFIG
    return (found[0], config if config.exists() else None) if found else None


def load_lightning(path: Path, config: Path | None = None) -> Checkpoint:
    """Load a checkpoint by its file and its training run's configuration in YAML.

    Raises VoiceError where either cannot be read, or the two do not agree, or the model is none that runs here.
    """
    if (file := OpenFile.find(path)) is None:
        raise VoiceError(f"there is no checkpoint at {path}. Check the path.")
    stored = read_pickled(file, PART)
    has_time = any(name.startswith(_TIME.rpartition(".")[0]) or ".film" in name for name in stored)
    kind = SpectrogramDiffusion if has_time else SpectrogramAutoregression
    model, data = ({}, {}) if config is None else _read_config(config, kind)
    mel = {name: stored.pop(name) for name in MEL_SHAPES if name in stored}
    if wrong := [name for name, shape in MEL_SHAPES.items() if name not in mel or mel[name].shape != shape]:
        raise VoiceError(
            f"{path} has no {', '.join(wrong)} of the shape that the port's spectrograms give it. Use a checkpoint "
            "whose spectrograms are the published ones."
        )
    size = _dimensions(stored, model)
    _check_settings(size, stored, model, data)
    networks = assemble(
        size,
        NAMES,
        {name: _as_here(name, tensor, size) for name, tensor in stored.items()},
        family=port_family(NORM_EPS),
        kind=kind,
    )
    low, high = (float(mel[name].read()) for name in ("mel.1.min", "mel.1.max"))
    is_autoregressive = kind is SpectrogramAutoregression
    guided = replace(SAMPLING, guidance=_number(model, "cfg_weighting", GUIDANCE))
    return Checkpoint(
        networks,
        prediction=AUTOREGRESSIVE if is_autoregressive else "epsilon",
        schedule=NoiseSchedule(CLOSED),
        sampling=FRAME_BY_FRAME if is_autoregressive else guided,
        dialect=Dialect(programs="gm", codec="pytorch"),
        mel_range=MelRange(low, high),
        first_context="silence" if size.context_frames else "none",
    )


def _as_here(name: str, tensor: Stored, size: Dimensions) -> Stored:
    """A tensor as the networks here have it, read no sooner."""
    rows = tensor.shape[:1]
    if name == _POSITIONS:  # the silence before a song has a frame more there
        rows = (min(*rows, FRAMES),)
    return Stored((*rows, *tensor.shape[1:]), lambda: _converted(name, tensor.read(), size))


def _converted(name: str, weight: Tensor, size: Dimensions) -> Tensor:
    if name.endswith(".q_proj.weight"):  # attention there divides by the root of the head width
        return weight.float() * size.head_width**-0.5
    if ".linear1." in name:  # there the gate comes second
        return weight.roll(size.feed_forward, 0)
    if name == _TIME:  # there cosine and sine alternate
        return torch.cat([weight[:, 1::2], weight[:, ::2]], 1)
    return weight[:FRAMES] if name == _POSITIONS else weight


def _dimensions(stored: Mapping[str, Stored], model: Mapping[str, Any]) -> Dimensions:
    """Read the sizes off the tensors' shapes, and how attention splits into heads off the configuration."""

    def shape(name: str) -> tuple[int, ...]:
        if name not in stored or len(stored[name].shape) != 2:
            raise VoiceError(f"the checkpoint has no matrix {name}. Check that it is one of the port's, and whole.")
        return stored[name].shape

    vocabulary, width = shape("model.emb.weight")
    inner = shape(f"{_FRAMES}.layers.0.self_attn.q_proj.weight")[0]
    head_width = int(_number(model, "head_dim", str(HEAD_WIDTH)))
    if head_width < 1 or inner % head_width:
        raise VoiceError(
            f"attention of width {inner} does not split into heads of {head_width}. Name the training run's "
            "configuration, which says head_dim (--model-config)."
        )
    if width % 2:
        raise VoiceError(f"the checkpoint's networks have the odd width {width}, which has no sines and cosines.")
    shape(_POSITIONS)
    return Dimensions(
        width=width,
        heads=inner // head_width,
        head_width=head_width,
        feed_forward=shape(f"{_FRAMES}.layers.0.linear2.weight")[1],
        note_encoder_layers=_layers(stored, _NOTES),
        context_encoder_layers=_layers(stored, _CONTEXT),
        decoder_layers=_layers(stored, _FRAMES),
        vocabulary=vocabulary,
        max_tokens=shape("model.in_pos_emb")[0],
        mels=shape("model.linear_in.weight")[1],
    )


def _layers(stored: Mapping[str, Stored], part: str) -> int:
    pattern = re.compile(re.escape(part) + r"\.layers\.(\d+)\.")
    return len({found[1] for name in stored if (found := pattern.match(name))})


def _check_settings(
    size: Dimensions, stored: Mapping[str, Stored], model: Mapping[str, Any], data: Mapping[str, Any]
) -> None:
    """Raise VoiceError where a configuration says anything else than the tensors, or than what runs here."""
    with_context = size.context_encoder_layers > 0
    found: dict[str, Setting] = {
        "num_emb": size.vocabulary,
        "output_dim": size.mels,
        "max_input_length": size.max_tokens,
        "max_output_length": stored[_POSITIONS].shape[0],
        "emb_dim": size.width,
        "dim_feedforward": size.feed_forward,
        "nhead": size.heads,
        "head_dim": size.head_width,
        "num_layers": size.decoder_layers,  # that of the encoders may differ
        "with_context": with_context,
    }
    sections: dict[str, tuple[Mapping[str, Any], dict[str, Setting]]] = {
        "model": (model, {**MODEL_SETTINGS, **found}),
        "data": (data, {**DATA_SETTINGS, "with_context": with_context}),
    }
    for section, (said, due) in sections.items():
        for key, value in due.items():
            if key in said and not _says(said[key], value):
                reason = "the checkpoint's tensors have" if key in found else "this engine needs"
                raise VoiceError(
                    f"the configuration says {key} = {quoted(said[key])} in its {section}, where {reason} "
                    f"{quoted(value)}. Name the one that the checkpoint was trained by."
                )


def _says(said: Any, value: Setting) -> bool:
    """Whether a setting, which is a text or a container of such, means a value in YAML."""
    if not isinstance(said, str):
        return False
    if value is None or isinstance(value, bool):
        words = {None: ("", "~", "null"), True: ("true", "yes", "on"), False: ("false", "no", "off")}[value]
        return said.lower() in words
    if isinstance(value, str):
        return said == value
    try:
        return float(said) == value
    except ValueError:
        return False


def _number(said: Mapping[str, Any], key: str, default: str) -> float:
    """A setting that is a number. Raises VoiceError."""
    given = said.get(key, default)
    try:
        number = float(given if isinstance(given, str) else "")
    except ValueError:
        number = float("nan")
    if not abs(number) <= 1 << 16:
        raise VoiceError(f"the configuration says {key} = {quoted(given)}; it must be a number. Mend it.")
    return number


def _read_config(path: Path, due: type[VoiceNetworks]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings of a configuration's model and of its data, all of them as texts. Raises VoiceError.

    due: the networks that the checkpoint has.
    """
    try:
        # All scalars as they are written: YAML has numbers that take long to read, and takes JSON's 1e-05 for a text.
        content = yaml.load(read_regular(path, MAX_JSON_BYTES), yaml.BaseLoader)
    except (OSError, RecursionError, ValueError, yaml.YAMLError) as error:
        reason = getattr(error, "strerror", None) or getattr(error, "problem", None) or type(error).__name__
        raise VoiceError(f"{path} is not readable YAML ({reason}). Name the training run's configuration.") from error
    model = _section(content, "model")
    arguments = _section(model, "init_args")
    kind = model.get("class_path")
    name = kind.rpartition(".")[2] if isinstance(kind, str) else kind
    (wanted,) = (name for name, networks in CLASSES.items() if networks is due)
    if name != wanted or not arguments:
        raise VoiceError(
            f"{path} does not fit the checkpoint, which is of a {wanted}: its model has the class_path {quoted(kind)} "
            f"and {len(arguments)} init_args. Name the configuration that it was trained by."
        )
    return arguments, _section(_section(content, "data"), "init_args")


def _section(content: Any, name: str) -> dict[str, Any]:
    """A mapping in another, or an empty one."""
    section = content.get(name) if isinstance(content, dict) else None
    return section if isinstance(section, dict) else {}
