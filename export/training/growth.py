"""A trained voice's networks made larger, or taught another dialect of tokens, what they have learned kept.

New hidden units, heads and layers add nothing at first: what they put out starts at zero, and training finds a use for
them. In another dialect each token starts as the nearest that the voice knew, with a mark of its own.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from notewave.errors import VoiceError
from notewave.export.networks import SpectrogramDiffusion
from notewave.export.training.codes import Slots
from notewave.song.dialect import DRUMS, PROGRAMS, SHIFT, VELOCITY, Dialect
from notewave.voice.contracts import Dimensions

VELOCITY_HEAD, PROGRAM_HEAD = 1, 2  # of the note encoder's first layer: they copy these to each note
CODE = 3.3  # norm of a program's or a velocity's mark, which fills the slot that pitches have in notes
TOLD = 2.2  # norm of what a copying head adds of it to a note
VELOCITY_WAVES = 4  # by which a velocity is told
GROWING = ("feed_forward", "heads", "note_encoder_layers", "context_encoder_layers", "decoder_layers")
SILENT = (".out.weight", ".cross_out.weight", "time_embedding.film.weight")  # of new parts these start at zero


@torch.no_grad()
def grow(
    model: SpectrogramDiffusion, spoken: Dialect, size: Dimensions, dialect: Dialect, seed: int
) -> SpectrogramDiffusion:
    """Networks of ``size`` for tokens of ``dialect`` that do what ``model`` does for those of ``spoken``.

    Raises VoiceError for a size that is smaller somewhere, or differs in what cannot grow.
    """
    kept = dataclasses.replace(size, **{name: getattr(model.size, name) for name in GROWING})
    if kept != model.size or any(getattr(size, name) < getattr(model.size, name) for name in GROWING):
        raise VoiceError(
            f"the voice's networks have the sizes {dataclasses.asdict(model.size)}, of which only "
            f"{', '.join(GROWING)} can grow, and none can shrink. Choose a configuration that fits."
        )
    torch.manual_seed(seed)
    if size != model.size:
        model = _larger(model, size)
    if dialect != spoken:
        _speak(model, spoken, dialect)
    return model


def _larger(model: SpectrogramDiffusion, size: Dimensions) -> SpectrogramDiffusion:
    """A model of another size with a smaller one's weights inside."""
    larger, old = SpectrogramDiffusion(size), dict(model.named_parameters())
    for name, weight in larger.named_parameters():
        if name.endswith(SILENT) and not name.startswith("time_embedding.out"):
            weight.zero_()
        if name in old:
            have, want = (_blocks(name, sizes) for sizes in (model.size, size))
            weight.view(want or weight.shape)[tuple(map(slice, have or old[name].shape))] = old[name].view(
                have or old[name].shape
            )
    return larger


def _blocks(name: str, size: Dimensions) -> tuple[int, ...] | None:
    """A weight's shape with its heads, layers and halves apart, each of which grows by itself; None: it has none."""
    heads = size.heads, size.head_width
    shapes: dict[str, tuple[int, ...]] = {
        ".qkv.weight": (3, *heads, size.width),
        ".attention.out.weight": (size.width, *heads),
        ".cross_queries.weight": (*heads, size.width),
        ".cross_out.weight": (size.width, *heads),
        ".gate_up.weight": (2, size.feed_forward, size.width),
        ".feed_forward.out.weight": (size.width, size.feed_forward),
        "cross_attention.projection.weight": (size.decoder_layers, 2, *heads, size.width),
        "time_embedding.film.weight": (size.decoder_layers, 4 * size.width, 4 * size.width),
    }
    return next((shape for ending, shape in shapes.items() if name.endswith(ending)), None)


def _speak(model: SpectrogramDiffusion, spoken: Dialect, dialect: Dialect) -> None:
    """Turn a model's token embeddings to another dialect, and let its copying heads tell what the tokens now say."""
    table, slot = model.note_encoder.embedding.weight, Slots.PITCH
    before, marks = table.clone(), slot.stop - slot.start
    loudness = torch.linspace(0, 1, dialect.velocities)[:, None] * torch.arange(1, VELOCITY_WAVES + 1)
    velocities = torch.zeros(dialect.velocities, marks)
    velocities[:, :VELOCITY_WAVES] = (loudness * torch.pi / 2).cos()
    programs = torch.randn(PROGRAMS, marks)
    table[SHIFT : VELOCITY + 1] = before[SHIFT : VELOCITY + 1]
    table[VELOCITY + 1 : dialect.tie] = before[VELOCITY + 1]
    table[VELOCITY + 1 : dialect.tie, slot] += CODE * velocities / VELOCITY_WAVES**0.5
    table[dialect.tie] = before[spoken.tie]
    sung = torch.from_numpy(spoken.sung_program(dialect.sung_program(torch.arange(PROGRAMS).numpy())))
    table[dialect.program : dialect.drum] = before[spoken.program + sung]
    table[dialect.program : dialect.drum, slot] += CODE * programs / programs.norm(dim=1, keepdim=True)
    table[dialect.drum : dialect.end] = before[spoken.drum : spoken.drum + DRUMS]
    layers: Any = model.note_encoder.layers
    rows = model.size.head_width // 2  # the upper half of what a head brings: the structured start left it free
    chosen = torch.zeros(rows, marks)
    chosen[:VELOCITY_WAVES, :VELOCITY_WAVES] = torch.eye(VELOCITY_WAVES)
    _copy(layers[0].attention, model.size, VELOCITY_HEAD, chosen)
    _copy(layers[0].attention, model.size, PROGRAM_HEAD, torch.randn(rows, marks) / rows**0.5)


def _copy(attention: Any, size: Dimensions, head: int, read: Tensor) -> None:
    """Let the upper half of a head's values read marks [K / 2, marks] and add them to a note in some directions."""
    last = (head + 1) * size.head_width
    rows = slice(last - len(read), last)
    inner = size.heads * size.head_width
    values = attention.qkv.weight[2 * inner :]
    values[rows] = 0.0
    values[rows, Slots.PITCH] = read
    directions = torch.randn(size.width, len(read))
    attention.out.weight[:, rows] = TOLD * directions / (directions.norm() * CODE) * len(read) ** 0.5
