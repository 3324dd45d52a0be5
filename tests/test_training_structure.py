"""The structured start: with no training at all, attention already finds the notes."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor

from notewave.errors import TrainingError
from notewave.export.material.ensembles import DRUMS, PIANO, Instrument
from notewave.export.material.pieces import compose
from notewave.export.networks import SpectrogramDiffusion, masked_bias
from notewave.export.training.codes import TIME_FREQUENCIES, Slots, code, spread_codes
from notewave.export.training.context import attend_to_context
from notewave.export.training.structure import structure
from notewave.export.training.symbolic import SymbolicBatch, SymbolicHeads, collate, piano_rolls, symbolic_forward
from notewave.song.codec import encode_notes
from notewave.song.dialect import PAD, PUBLISHED, SLAKH_PROGRAM
from notewave.voice.contracts import Dimensions

BAND = (
    Instrument(33, role="bass", low=28, high=55),
    Instrument(24, role="harmony", low=40, high=84),
    Instrument(48, role="harmony", low=36, high=96),
    Instrument(73, role="melody", low=60, high=96),
    dataclasses.replace(DRUMS, role="drums"),
)
SIZE = Dimensions(256, 4, 64, 64, note_encoder_layers=2, context_encoder_layers=1, decoder_layers=3)


@pytest.fixture(scope="module")
def model() -> SpectrogramDiffusion:
    torch.manual_seed(0)
    model = SpectrogramDiffusion(SIZE)
    structure(model)
    return model


@pytest.fixture(scope="module")
def batch() -> SymbolicBatch:
    notes = compose(np.random.default_rng(3), PIANO, 30.0)
    tokens = encode_notes(notes)
    return collate(tokens, piano_rolls(notes, len(tokens)))


@pytest.fixture(scope="module")
def layers(model: SpectrogramDiffusion, batch: SymbolicBatch) -> list[Tensor]:
    """The note encoder's stream after each layer."""
    encoder = model.note_encoder
    x = encoder.embedding(batch.tokens) + encoder.positions[: batch.tokens.shape[1]]
    streams = []
    with torch.no_grad():
        for layer in encoder.layers:
            x = layer(x, masked_bias(batch.tokens != 0))
            streams.append(x)
    return streams


def nearest_frame(stream: Tensor) -> Tensor:
    """The frame whose time code is most like each row."""
    table = torch.from_numpy(code(np.arange(-10, 300), TIME_FREQUENCIES)).float()
    return (stream @ table.T).argmax(dim=-1) - 10


def test_every_token_starts_with_the_same_norm(model: SpectrogramDiffusion, batch: SymbolicBatch) -> None:
    x = model.note_encoder.embedding(batch.tokens) + model.note_encoder.positions[: batch.tokens.shape[1]]
    power = (x**2).sum(dim=-1)[batch.tokens > 1]
    torch.testing.assert_close(power, torch.full_like(power, 80.0), rtol=1e-3, atol=0)


def test_the_first_layer_gives_events_their_time_and_velocity(layers: list[Tensor], batch: SymbolicBatch) -> None:
    event = batch.targets_mask[..., 0] & (batch.targets[..., 0] >= 0)  # not a note held from before
    frame = nearest_frame(layers[0][..., Slots.TIME])
    true = batch.targets[..., 0] * 256
    assert ((frame - true).abs() <= 1)[event].float().mean() > 0.9
    started = layers[0][..., Slots.SIGN] > 0
    assert (started == (batch.targets[..., 2] > 0.5))[event].float().mean() > 0.95


def test_in_a_band_the_first_layer_tells_instruments_and_held_notes(model: SpectrogramDiffusion) -> None:
    notes = compose(np.random.default_rng(3), BAND, 20.0)
    tokens = encode_notes(notes)
    batch = collate(tokens, piano_rolls(notes, len(tokens)))
    encoder = model.note_encoder
    with torch.no_grad():
        x = encoder.embedding(batch.tokens) + encoder.positions[: batch.tokens.shape[1]]
        x = encoder.layers[0](x, masked_bias(batch.tokens != PAD))
    programs = torch.zeros_like(batch.tokens)
    for row, program in zip(batch.tokens, programs, strict=True):
        own = 0
        for index, token in enumerate(row.tolist()):
            own = token - PUBLISHED.program if PUBLISHED.program <= token < PUBLISHED.drum else own
            program[index] = own
    pitched = batch.targets_mask[..., 0]
    held, event = pitched & (batch.targets[..., 0] < 0), pitched & (batch.targets[..., 0] >= 0)
    codes = encoder.embedding.weight[PUBLISHED.program : PUBLISHED.drum, Slots.PROGRAM]
    nearest = torch.from_numpy(SLAKH_PROGRAM)[(x[..., Slots.PROGRAM] @ codes.T).argmax(dim=-1)]
    assert (nearest == programs)[pitched].float().mean() > 0.9
    frame, started = nearest_frame(x[..., Slots.TIME]), x[..., Slots.SIGN] > 0
    assert ((frame - batch.targets[..., 0] * 256).abs() <= 1)[event].float().mean() > 0.9
    assert (started == (batch.targets[..., 2] > 0.5))[event].float().mean() > 0.95
    assert held.sum() > 10 and (frame < 0)[held].float().mean() > 0.6 and started[held].float().mean() > 0.85


def test_the_second_layer_gives_notes_their_end(layers: list[Tensor], batch: SymbolicBatch) -> None:
    start = batch.targets_mask[..., 1]
    ends_here = start & (batch.targets[..., 1] <= 1)
    frame = nearest_frame(layers[1][..., Slots.OFF_TIME])
    assert ((frame - batch.targets[..., 1] * 256).abs() <= 1)[ends_here].float().mean() > 0.6


def test_decoder_frames_receive_the_pitches_that_sound(model: SpectrogramDiffusion, batch: SymbolicBatch) -> None:
    heads = SymbolicHeads(SIZE.width)
    with torch.no_grad():  # read the slots out as they are
        heads.frames.weight.zero_()
        heads.frames.bias.zero_()
        for index, slot in enumerate((Slots.COVER, Slots.START)):
            rows = index * 128 + 21 + torch.arange(88)
            heads.frames.weight[rows, slot.start + torch.arange(88)] = 1.0
        noise = torch.randn(len(batch.tokens), 256, SIZE.mels, generator=torch.Generator().manual_seed(0))
        read = symbolic_forward(model, heads, batch.tokens, noise, torch.zeros(len(batch.tokens), dtype=torch.long))
    for index, least in ((0, 0.75), (1, 0.75)):
        truth, score = batch.rolls[:, :, index] > 0, read.pitches[:, :, index]
        pairs = score[truth][:, None] > score[~truth][None, :: max(1, int((~truth).sum()) // 2000)]
        assert pairs.float().mean() > least  # area under the ROC curve; 0.5 would be chance


@pytest.mark.parametrize(("count", "width", "most"), [(88, 38, 0.2), (128, 88, 0.15), (34, 15, 0.3)])
def test_spread_codes_hardly_overlap(count: int, width: int, most: float) -> None:
    codes = spread_codes(count, width)
    overlap = codes @ codes.T - np.eye(count)
    assert np.abs(np.linalg.norm(codes, axis=1) - 1).max() < 1e-9 and overlap.max() < most


def test_networks_too_small_for_it_are_refused() -> None:
    with pytest.raises(TrainingError, match="width 256"):
        structure(SpectrogramDiffusion(Dimensions(64, 4, 64, 64, 2, 1, 2)))


def test_later_layers_attend_to_the_contexts_end_and_earlier_ones_not_at_all(batch: SymbolicBatch) -> None:
    torch.manual_seed(0)
    model = SpectrogramDiffusion(SIZE)
    structure(model)
    count, size = len(batch.tokens), model.size
    context = torch.rand(count, 256, size.mels) - 0.5
    attend_to_context(model, batch.tokens, context, 2)
    last = slice((size.heads - 1) * size.head_width, size.heads * size.head_width - 1)  # but for what EOS adds
    with torch.no_grad():
        for layer in model.decoder.layers[2:]:
            assert not layer.cross_out.weight[:, last].any()  # until training has learned what to do with it
            layer.cross_out.weight[:, last] = torch.randn(size.width, size.head_width - 1) * 0.02
    noise = torch.randn(count, 256, size.mels)

    def hidden(past: Tensor) -> list[Tensor]:
        keep = torch.cat([batch.tokens != PAD, torch.ones(count, 256, dtype=torch.bool)], dim=1)
        keys_values = model.cross_attention(model.note_encoder(batch.tokens), model.context_encoder(past))
        film = model.time_embedding(torch.ones(1))
        x, outputs = model.decoder.input(noise) + model.decoder.positions, []
        for index, layer in enumerate(model.decoder.layers):
            x = layer(x, film[:, index], (keys_values[2 * index], keys_values[2 * index + 1]), masked_bias(keep))
            outputs.append(x)
        return outputs

    def change(first: int, last: int) -> list[float]:
        other = context.clone()
        other[:, first:last] = torch.rand(count, last - first, size.mels) - 0.5
        return [float((a - b).abs().mean()) for a, b in zip(hidden(context), hidden(other), strict=True)]

    with torch.no_grad():
        end, middle = change(236, 256), change(110, 130)
    assert max(end[:2]) < 1e-3 < min(end[2:])
    assert end[2] > 3 * middle[2]
