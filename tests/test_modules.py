"""The PyTorch networks against diffusers' own, recorded in tests/data/reference, and the shape of every block."""

from pathlib import Path

import numpy as np
import pytest
import torch

from notewave.export import networks as modules
from notewave.export.checkpoints.diffusers import load_diffusers
from notewave.song.dialect import PAD
from notewave.voice.contracts import Dimensions

DATA = Path(__file__).parent / "data" / "reference"
SIZE = Dimensions(24, 3, 10, 40, 2, 1, 3)  # heads x head width is not the width
B, N, C, T, M, D, H, K, L = 2, 7, 4, 256, 128, 24, 3, 10, 3


@pytest.fixture(scope="module")
def model() -> modules.SpectrogramDiffusion:
    return load_diffusers(DATA / "checkpoint").model


@pytest.fixture(scope="module")
def reference() -> dict[str, np.ndarray]:
    return dict(np.load(DATA / "reference.npz"))


def relative(found: torch.Tensor, expected: np.ndarray) -> float:
    return float(np.abs(found.numpy() - expected).max() / np.abs(expected).max())


def song_tokens(reference: dict[str, np.ndarray]) -> torch.Tensor:
    tokens = torch.from_numpy(reference["tokens"][:1])
    return tokens[:, : reference["notes_encoding"].shape[1]]


def test_encoders_equal_diffusers(model, reference) -> None:
    assert relative(model.note_encoder(song_tokens(reference)), reference["notes_encoding"]) < 1e-5
    context = model.context_encoder(torch.from_numpy(reference["context_in"]))
    assert relative(context, reference["context_encoding"]) < 1e-5


def test_decoder_equals_diffusers_with_context_and_without(model, reference) -> None:
    x = torch.from_numpy(reference["x"])
    notes = torch.from_numpy(reference["notes_encoding"])
    context = torch.from_numpy(reference["context_encoding"])
    for time, memory, name in ((0.42, context, "eps_t042"), (0.97, context[:, :0], "eps_t097_no_context")):
        film = model.time_embedding(torch.tensor([time]))
        found = model.decoder(x, film, None, *model.cross_attention(notes, memory))
        assert relative(found, reference[name]) < 1e-5


def test_padding_and_masked_keys_change_nothing(model, reference) -> None:
    tokens = song_tokens(reference)
    padded = torch.nn.functional.pad(tokens, (0, 60), value=PAD)
    notes = model.note_encoder(padded)
    assert relative(notes[:, : tokens.shape[1]], reference["notes_encoding"]) < 1e-5
    keep = torch.cat([padded != PAD, torch.ones(1, T, dtype=torch.bool)], dim=1)
    keys_values = model.cross_attention(notes, torch.from_numpy(reference["context_encoding"]))
    film = model.time_embedding(torch.tensor([0.42]))
    found = model.decoder(torch.from_numpy(reference["x"]), film, modules.masked_bias(keep), *keys_values)
    assert relative(found, reference["eps_t042"]) < 1e-5


def test_unconditional_decoder_is_cross_attention_to_zero_values(model, reference) -> None:
    x, film = torch.from_numpy(reference["x"]), model.time_embedding(torch.tensor([0.3]))
    keys_values = list(model.cross_attention(torch.randn(1, 5, 64), torch.randn(1, 3, 64)))
    keys_values[1::2] = [torch.zeros_like(values) for values in keys_values[1::2]]
    torch.testing.assert_close(model.decoder(x, film), model.decoder(x, film, None, *keys_values))


def test_training_view_equals_the_split_networks(model, reference) -> None:
    x, context = torch.from_numpy(reference["x"]), torch.from_numpy(reference["context_in"])
    tokens, yes = song_tokens(reference), torch.tensor([True])
    with_context = model(x, torch.tensor([0.42]), tokens, context, yes, yes)
    assert relative(with_context, reference["eps_t042"]) < 1e-5
    without_context = model(x, torch.tensor([0.97]), tokens, context, ~yes, yes)
    assert relative(without_context, reference["eps_t097_no_context"]) < 1e-5
    unconditional = model(x, torch.tensor([0.97]), tokens, context, yes, ~yes)
    torch.testing.assert_close(unconditional, model.decoder(x, model.time_embedding(torch.tensor([0.97]))))


def test_shapes_of_every_block() -> None:
    x, film = torch.randn(B, T, D), torch.randn(1, L, 2, 2, D)
    keys, values = torch.randn(B, H, N + C, K), torch.randn(B, H, N + C, K)
    mask = modules.masked_bias(torch.ones(B, N + C, dtype=torch.bool))
    assert mask.shape == (B, 1, 1, N + C)
    assert modules.RMSNorm(D)(x).shape == (B, T, D)
    assert modules.split_heads(torch.randn(B, T, H * K), H).shape == (B, H, T, K)
    assert modules.attend(torch.randn(B, H, T, K), keys, values, mask).shape == (B, T, H * K)
    assert modules.SelfAttention(SIZE)(x).shape == (B, T, D)
    assert modules.FeedForward(SIZE)(x).shape == (B, T, D)
    assert modules.EncoderLayer(SIZE)(x).shape == (B, T, D)
    assert modules.modulate(x, film[:, 0, 0]).shape == (B, T, D)
    assert modules.DecoderLayer(SIZE)(x, film[:, 0], (keys, values), mask).shape == (B, T, D)
    assert modules.sinusoids(torch.rand(5), D, 20000.0).shape == (5, D)
    assert modules.TimeEmbedding(SIZE)(torch.rand(5)).shape == (5, L, 2, 2, D)
    assert modules.NoteEncoder(SIZE)(torch.ones(B, N, dtype=torch.int32)).shape == (B, N, D)
    assert modules.ContextEncoder(SIZE)(torch.randn(B, T, M)).shape == (B, T, D)
    cross = modules.CrossAttention(SIZE)(torch.randn(B, N, D), torch.randn(B, C, D))
    assert [part.shape for part in cross] == [(B, H, N + C, K)] * (2 * L)
    assert modules.Decoder(SIZE)(torch.randn(B, T, M), film, mask, *cross).shape == (B, T, M)


def test_sinusoids_start_with_sines_and_span_the_periods() -> None:
    waves = modules.sinusoids(torch.tensor([3.0]), 8, 20000.0)[0]
    frequencies = 20000.0 ** (-np.arange(4) / 3)
    np.testing.assert_allclose(waves, np.concatenate([np.sin(3 * frequencies), np.cos(3 * frequencies)]), atol=1e-6)
