"""Networks that grow, or learn another dialect, keep what they do."""

import dataclasses

import numpy as np
import pytest
import torch

from notewave.errors import VoiceError
from notewave.export.material.pieces import as_notes
from notewave.export.networks import SpectrogramDiffusion, masked_bias
from notewave.export.training.codes import Slots
from notewave.export.training.growth import grow
from notewave.export.training.structure import structure
from notewave.export.training.symbolic import token_batch
from notewave.song.codec import encode_notes
from notewave.song.dialect import PUBLISHED, SLAKH_PROGRAM, VELOCITY, Dialect
from notewave.sound.mel import FRAMES, MELS
from notewave.voice.contracts import Dimensions

SMALL = Dimensions(256, 4, 64, 64, note_encoder_layers=2, context_encoder_layers=1, decoder_layers=2)
LARGE = dataclasses.replace(
    SMALL, heads=5, feed_forward=96, note_encoder_layers=3, context_encoder_layers=2, decoder_layers=4
)
GM = Dialect(32, "gm")


def networks(size: Dimensions = SMALL) -> SpectrogramDiffusion:
    torch.manual_seed(1)
    return SpectrogramDiffusion(size)


def prediction(model: SpectrogramDiffusion) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    x, context = torch.randn(2, 2, FRAMES, MELS, generator=generator)
    tokens = torch.randint(3, PUBLISHED.end, (2, 40), generator=generator)
    yes = torch.ones(2, dtype=torch.bool)
    with torch.no_grad():
        return model(x, torch.tensor([0.3, 0.9]), tokens, context, yes, yes)


def test_larger_networks_do_what_the_smaller_did() -> None:
    model = networks()
    larger = grow(model, PUBLISHED, LARGE, PUBLISHED, seed=0)
    assert larger.size == LARGE
    torch.testing.assert_close(prediction(larger), prediction(model), rtol=1e-4, atol=1e-4)


def test_new_parts_can_learn() -> None:
    larger = grow(networks(), PUBLISHED, LARGE, PUBLISHED, seed=0)
    yes = torch.ones(1, dtype=torch.bool)
    larger(
        torch.randn(1, FRAMES, MELS), torch.rand(1), torch.ones(1, 9, dtype=torch.long), None, yes, yes
    ).sum().backward()
    layers = larger.decoder.layers
    assert layers[0].feed_forward.out.weight.grad[:, SMALL.feed_forward :].abs().max() > 0
    assert layers[0].attention.out.weight.grad[:, SMALL.heads * SMALL.head_width :].abs().max() > 0
    assert layers[3].feed_forward.out.weight.grad.abs().max() > 0


@pytest.mark.parametrize("change", [{"feed_forward": 63}, {"decoder_layers": 1}, {"width": 512}, {"head_width": 32}])
def test_what_cannot_grow_is_refused(change: dict[str, int]) -> None:
    with pytest.raises(VoiceError, match="can grow, and none can shrink"):
        grow(networks(), PUBLISHED, dataclasses.replace(SMALL, **change), PUBLISHED, seed=0)


def test_tokens_of_a_new_dialect_begin_as_the_nearest_known_with_marks_of_their_own() -> None:
    model = networks()
    before = model.note_encoder.embedding.weight.detach().clone()
    grow(model, PUBLISHED, SMALL, GM, seed=0)
    table = model.note_encoder.embedding.weight.detach()
    torch.testing.assert_close(table[: VELOCITY + 1], before[: VELOCITY + 1])
    torch.testing.assert_close(table[GM.tie], before[PUBLISHED.tie])
    torch.testing.assert_close(table[GM.drum : GM.end], before[PUBLISHED.drum : PUBLISHED.end])
    outside = torch.ones(256, dtype=torch.bool)
    outside[Slots.PITCH] = False
    loud = table[VELOCITY + 1 : GM.tie]
    torch.testing.assert_close(loud[:, outside], before[VELOCITY + 1, outside].expand(32, -1))
    steps = (loud[1:] - loud[:-1]).norm(dim=1)
    apart = (loud[0] - loud[-1]).norm()
    assert steps.min() > 0 and steps.max() < 0.3 * apart  # neighbours are alike
    programs = table[GM.program : GM.drum]
    known = before[PUBLISHED.program + torch.from_numpy(SLAKH_PROGRAM)]
    torch.testing.assert_close(programs[:, outside], known[:, outside])
    assert torch.pdist(programs).min() > 1


def test_notes_are_told_their_velocity_and_program() -> None:
    """After the first layer of a structured start, notes that differ in one of these alone differ."""
    torch.manual_seed(0)
    model = SpectrogramDiffusion(SMALL)
    structure(model)
    model = grow(model, PUBLISHED, SMALL, GM, seed=0)
    encoder = model.note_encoder

    def told(velocity: int, program: int) -> torch.Tensor:
        notes = as_notes([(0.5, 1.0, 60, program, False), (2.0, 2.5, 64, program, False)])
        notes = dataclasses.replace(notes, velocity=np.full(2, velocity))
        tokens = token_batch(encode_notes(notes, GM))
        x = encoder.embedding(tokens) + encoder.positions[: tokens.shape[1]]
        return encoder.layers[0](x, masked_bias(tokens != 0))[0, 4]  # the first note

    with torch.no_grad():
        plain = told(100, 0)
        softer, softest, other = (told(*kind) - plain for kind in ((70, 0), (20, 0), (100, 3)))
    assert 0.3 < softer.norm() < softest.norm() and other.norm() > 0.7
