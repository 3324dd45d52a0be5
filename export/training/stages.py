"""The stages of training a voice's networks: symbolic, then mel."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from notewave.errors import VoiceError
from notewave.export.autoregressive import SpectrogramAutoregression, VoiceNetworks
from notewave.export.graphs.restore import restore_voice
from notewave.export.material.segments import Segments, read_songs
from notewave.export.material.songs import HELD_OUT_SECONDS, held_out, unpack_mel
from notewave.export.material.timbres import Timbres
from notewave.export.networks import SpectrogramDiffusion
from notewave.export.training.config import Config, Stage
from notewave.export.training.context import attend_to_context, hold_film, pass_on_heads
from notewave.export.training.diffusion import PREDICTION, SCHEDULE, MelBatch, mel_batch, mel_loss
from notewave.export.training.frames import frame_loss, frames_of
from notewave.export.training.generation import mel_scores
from notewave.export.training.growth import grow
from notewave.export.training.loop import Allowance, low_precision
from notewave.export.training.phases import PhasedRun
from notewave.export.training.queries import scale_queries
from notewave.export.training.structure import COPYING_HEADS, structure
from notewave.export.training.symbolic import (
    SYMBOLIC_LAYERS,
    SymbolicBatch,
    SymbolicHeads,
    symbolic_batch,
    symbolic_loss,
    symbolic_scores,
    token_batch,
)
from notewave.export.training.weights import write_weights
from notewave.song.dialect import PUBLISHED
from notewave.sound.mel import from_network
from notewave.voice.contracts import Dimensions
from notewave.voice.folder import Voice

Batch = TypeVar("Batch", SymbolicBatch, MelBatch)

FITTED_SONGS = 2  # on which the attention to the context is fitted
AHEAD_STEPS, AHEAD_THREADS = 12, 8  # how many batches are made ahead for a GPU, and by how many threads
VALIDATION_STEPS = 8  # of sampling
VALIDATION_SEGMENTS = 3  # of each held-out song


def fresh_model(config: Config) -> SpectrogramDiffusion:
    """The networks before any training, with scaled queries."""
    torch.manual_seed(config.seed)
    model = SpectrogramDiffusion(config.dimensions)
    if config.structured:
        structure(model, SYMBOLIC_LAYERS)
        model = grow(model, PUBLISHED, config.dimensions, config.dialect, config.seed)
    scale_queries(model)
    return model


def kind_of(name: str) -> str:
    """Which learning rate a parameter has in the mel stage: that of new, of pretrained or of slow layers."""
    if name.startswith(("time_embedding.", "context_encoder.")):
        return "slow"
    early = tuple(f"decoder.layers.{index}." for index in range(SYMBOLIC_LAYERS))
    seen = ("note_encoder.", "cross_attention.", "decoder.positions", *early)
    return "pretrained" if name.startswith(seen) else "new"


def symbolic_kind_of(name: str) -> str:
    """As ``kind_of``, in the symbolic stage: only the read-outs are new.

    What the structured start set must move slowly, or the noise of early steps undoes it.
    """
    if name.startswith("heads."):
        return "new"
    return "slow" if kind_of(name.removeprefix("model.")) == "slow" else "pretrained"


def train_symbolic(
    config: Config,
    folder: Path,
    allowance: Allowance | None = None,
    start: SpectrogramDiffusion | None = None,
    timbres: Timbres | None = None,
) -> SpectrogramDiffusion | None:
    """Run or resume the symbolic stage; returns the networks with averaged weights, or None if it was stopped.

    start: networks to begin with, in the place of fresh ones. timbres: sounds of notes for the note encoder to learn.
    """
    model, heads = start or fresh_model(config), SymbolicHeads(config.dimensions.width)
    both = nn.ModuleDict({"model": model, "heads": heads}).to(config.device)
    run = PhasedRun(folder, "symbolic", config, both, symbolic_kind_of, allowance)
    layers: Any = model.note_encoder.layers
    copying: Tensor = layers[0].attention.qkv.parametrizations.weight.original
    copying.register_hook(lambda gradient: _pin(gradient, config.dimensions) if run.pinned else gradient)
    songs = [held_out(index, HELD_OUT_SECONDS, config.data) for index in range(config.data.held_out_songs)]

    def loss(phase: Stage, share: int) -> Tensor:
        rng, shares = np.random.default_rng((config.seed, 1, run.step, share)), config.threads
        batch = symbolic_batch(rng, phase.segments // shares, phase.tokens // shares, config.data, config.dialect)
        batch = to_device(batch, config.device)
        with low_precision(config.device):
            return symbolic_loss(model, heads, batch, phase.frames, run.generator(share), timbres)

    def validate() -> dict[str, float]:
        with low_precision(config.device):
            return symbolic_scores(model, heads, songs, config.dialect) if songs else {}

    if not run.train_phases(loss, validate):
        return None
    run.average.settle()
    return model


def prepare_for_mel(model: SpectrogramDiffusion, config: Config, data: Path) -> VoiceNetworks:
    """Let the layers that the symbolic stage left alone begin where those that it trained stand.

    Returns the networks of the configuration's decoder, for the mel stage.
    """
    torch.manual_seed(config.seed)
    hold_film(model)
    if config.structured:
        pass_on_heads(model, SYMBOLIC_LAYERS)
    if config.is_autoregressive:
        return frames_of(model).to(config.device)
    if config.structured and config.dimensions.context_frames:
        segments = Segments(data, config.dialect, replace(config.data, songs=FITTED_SONGS))
        later = [index for index, first in enumerate(segments.first) if not first]
        tokens = token_batch([segments.tokens[index] for index in later])
        before = np.stack([segments.mel(index - 1) for index in later])
        attend_to_context(model, tokens.to(config.device), torch.from_numpy(before).to(config.device), SYMBOLIC_LAYERS)
    return model


def trained_model(config: Config, voice: Voice) -> SpectrogramDiffusion:
    """A voice's networks, to be trained further, grown to the configuration's size and dialect where those are larger.

    Raises VoiceError where they can't be.
    """
    if voice.prediction != PREDICTION or voice.schedule != SCHEDULE:
        raise VoiceError(
            f"{voice.folder} has another prediction or schedule than training makes ({PREDICTION}, {SCHEDULE.name}): "
            "it can't go on from it. Choose a voice that `notewave train` made."
        )
    restored = restore_voice(voice)
    assert isinstance(restored, SpectrogramDiffusion), "its prediction says so"
    model = grow(restored, voice.dialect, config.dimensions, config.dialect, config.seed)
    scale_queries(model)
    return model.to(config.device)


def train_mel(
    config: Config, folder: Path, data: Path, model: VoiceNetworks, allowance: Allowance | None = None
) -> Path | None:
    """Run or resume the mel stage; returns the file of the averaged weights, or None if it was stopped."""
    run = PhasedRun(folder, "mel", config, model, kind_of, allowance)
    if config.structured and config.dimensions.context_frames:
        _pin_context_heads(model)
    segments = Segments(data, config.dialect, config.data)
    check = held_out_check(config, data, segments)

    batches = Batches(run, segments)

    def loss(phase: Stage, share: int) -> Tensor:
        batch = batches(share)
        with low_precision(config.device):
            batch = to_device(batch, config.device)
            if isinstance(model, SpectrogramAutoregression):
                return frame_loss(model, batch, phase, run.generator(share))
            return mel_loss(model, batch, phase, run.generator(share))

    def validate() -> dict[str, float]:
        write_weights(folder, config, model, run.step)
        with low_precision(config.device):
            return check(model, VALIDATION_STEPS)

    finished = run.train_phases(loss, validate)
    run.average.settle()
    weights = write_weights(folder, config, model, run.step)
    return weights if finished else None


class Batches:
    """Batches of mels, made ahead in other threads where a GPU computes; a CPU is busy enough with the one in hand."""

    def __init__(self, run: PhasedRun, segments: Segments) -> None:
        self.run, self.segments = run, segments
        self.pool = None if run.config.device == "cpu" else ThreadPoolExecutor(AHEAD_THREADS)
        self.coming: dict[tuple[int, int], Future[MelBatch]] = {}

    def __call__(self, share: int) -> MelBatch:
        """A share of the present step's batch."""
        step = self.run.step
        if self.pool is None:
            return self._make(step, share)
        for later in range(step, step + AHEAD_STEPS):
            if (later, share) not in self.coming and self.run.phase(later) is not None:
                self.coming[later, share] = self.pool.submit(self._make, later, share)
        return self.coming.pop((step, share)).result()

    def _make(self, step: int, share: int) -> MelBatch:
        current = self.run.phase(step)
        assert current is not None
        config = self.run.config
        return mel_batch(self.segments, config.seed, step, current[0], slice(share, None, config.threads))


def held_out_check(config: Config, data: Path, segments: Segments) -> Callable[[VoiceNetworks, int], dict[str, float]]:
    """What gives the scores of a model, in so many steps, on the beginnings of the held-out songs; none without any."""
    held, few = read_songs(data, "heldout", config.data.held_out_songs), slice(VALIDATION_SEGMENTS)
    songs = [(song.tokens(config.dialect)[few], unpack_mel(song.mel[few])) for song in held]
    mean = from_network(np.mean([segments.mel(index).mean(axis=0) for index in range(len(segments))], axis=0))
    return lambda model, steps: mel_scores(model, songs, mean, steps) if songs else {}


def _pin(gradient: Tensor, size: Dimensions) -> Tensor:
    """The gradient of the first note-encoder layer, without that of queries and keys of its copying heads."""
    keep = torch.ones(3, size.heads, size.head_width, 1, device=gradient.device)
    keep[:2, :COPYING_HEADS] = 0
    return gradient * keep.flatten(0, 2)


def _pin_context_heads(model: VoiceNetworks) -> None:
    """Keep what the context heads attend to: closing them is quicker learned than using what they bring."""
    size = model.size
    rows = slice((size.heads - 1) * size.head_width, size.heads * size.head_width)

    def without(*pinned: slice) -> Callable[[Tensor], Tensor]:
        def hook(gradient: Tensor) -> Tensor:
            gradient = gradient.clone()
            for part in pinned:
                gradient[part] = 0
            return gradient

        return hook

    layers: Any = model.decoder.layers
    inner = size.heads * size.head_width
    later = range(SYMBOLIC_LAYERS, size.decoder_layers)
    for index in later:
        layers[index].cross_queries.parametrizations.weight.original.register_hook(without(rows))
    keys = [slice(2 * index * inner + rows.start, 2 * index * inner + rows.stop) for index in later]
    model.cross_attention.projection.weight.register_hook(without(*keys))


def to_device(batch: Batch, device: str) -> Batch:
    """The batch with its tensors on a device."""
    tensors = {field.name: getattr(batch, field.name) for field in fields(batch)}
    return replace(batch, **{name: value.to(device) for name, value in tensors.items() if value is not None})
