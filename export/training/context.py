"""What the mel stage starts from: layers that the symbolic stage left alone begin where those that it trained stand."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from notewave.export.networks import SpectrogramDiffusion, masked_bias
from notewave.song.dialect import EOS, PAD

EOS_LOGIT, NOTES_LOGIT, CONTEXT_LOGIT = 8.0, -12.0, -14.0  # of a context head: late in a segment it rests on EOS,
END_LOGIT, END_FRAMES, EARLY_FRAMES = 50.0, 4.0, 16.0  # early, this comes on top at the context's end
EARLY_WEIGHT = 30.0  # of the first frames when their query is fitted
MEL_GAIN = 16.0  # of the mel in a context head's values: loud, so that small weights, soon learned, make use of it
END_WEIGHT, NOTES_WEIGHT = 50.0, 0.005  # in their fit: EOS must bring no mel, while no head rests on other tokens
AWAY_LOGIT = -20.0  # of context frames, for all other heads


@torch.no_grad()
def pass_on_heads(model: SpectrogramDiffusion, trained_layers: int) -> None:
    """Give the later decoder layers the cover and the start head that the last trained layer has learned."""
    count, source = model.size.head_width, trained_layers - 1
    layers: Any = model.decoder.layers
    queries = [_trained_weight(layer.cross_queries) for layer in layers]
    keys = model.cross_attention.projection.weight.chunk(2 * model.size.decoder_layers)[::2]
    for layer in range(trained_layers, model.size.decoder_layers):
        for head, learned in ((0, 0), (1, 2)):
            rows, from_rows = slice(head * count, (head + 1) * count), slice(learned * count, (learned + 1) * count)
            queries[layer][rows] = queries[source][from_rows]
            keys[layer][rows] = keys[source][from_rows]


@torch.no_grad()
def attend_to_context(model: SpectrogramDiffusion, tokens: Tensor, context: Tensor, first_layer: int) -> None:
    """Let one head of each later decoder layer carry the context's end to a segment's first frames, and no other head.

    tokens int64 [B, N], context mel [B, T, M] in network range: segments to fit the logits on, whatever the residual
    streams hold by now. Left to themselves, the heads that were trained on notes alone find some context frames more
    alluring than any note; a head that brings the context to all frames, of which most can't use it, is as bad, and so
    is one that adds it in some random way. Each time training rids them of the context for good. So it is brought to
    the frames that need it, and adds nothing until training has learned how.
    """
    size, head = model.size, model.size.heads - 1
    notes, frames = model.note_encoder(tokens), model.context_encoder(context)
    fit = _fit(tokens, context, notes, frames, size.head_width)
    parts = model.cross_attention.projection.weight.chunk(2 * size.decoder_layers)
    film = model.time_embedding(torch.ones(1, device=tokens.device))
    layers: Any = model.decoder.layers

    def turn(index: int, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Turn a layer's heads, for the frames that come to it; its keys and values then."""
        layer, values = layers[index], parts[2 * index + 1]
        normed = layer.cross_norm(layer.attend_to_itself(hidden, film[:, index]))
        keys = parts[2 * index].unflatten(0, (size.heads, -1))
        mean_query = layer.cross_queries(normed).mean(dim=(0, 1)).unflatten(0, (size.heads, -1))
        keys += (mean_query / mean_query.square().sum(dim=1, keepdim=True))[..., None] * fit.away
        if index >= first_layer:
            rows = slice(head * size.head_width, (head + 1) * size.head_width)
            _bring_context(layer, rows, normed, keys[head], values[rows], fit)
        return model.cross_attention(notes, frames)[2 * index : 2 * index + 2]

    seen = torch.cat([tokens != PAD, torch.ones_like(context[..., 0], dtype=torch.bool)], dim=1)
    model.decoder.walk(torch.randn_like(context), film, masked_bias(seen), turn)


@dataclass(frozen=True)
class _Fit:
    """What heads are set to, as weights of the encoders' D dimensions."""

    always: Tensor  # [D], keys of the context head: it rests on EOS
    at_first: Tensor  # [D], on top of them in the first frames: it attends to the context's end
    away: Tensor  # [D], keys of all other heads: away from the context
    mel: Tensor  # [K - 1, D], values: the mel of a context frame, by its principal components
    end: Tensor  # [D], what EOS is encoded as


def _fit(tokens: Tensor, context: Tensor, notes: Tensor, frames: Tensor, head_width: int) -> _Fit:
    """Fit the weights to tokens [B, N], context mel [B, T, M] and their encodings [B, N, D] and [B, T, D]."""
    memory = torch.cat([notes, frames], dim=1)
    seen = torch.cat([tokens != PAD, torch.ones_like(context[..., 0], dtype=torch.bool)], dim=1)

    def key(of_tokens: Tensor, of_frames: Tensor) -> Tensor:
        """Weights that give each token and each context frame its logit."""
        return _least_squares(memory[seen], torch.cat([of_tokens, of_frames.expand(len(tokens), -1)], dim=1)[seen])

    age = torch.arange(context.shape[1] - 1, -1, -1, device=tokens.device)
    nothing, ones = torch.zeros_like(tokens, dtype=frames.dtype), torch.ones(context.shape[1], device=tokens.device)
    ends, others = notes[tokens == EOS], notes[(tokens != PAD) & (tokens != EOS)]
    mel = _principal_components(context.flatten(0, 1), head_width - 1) * MEL_GAIN
    vectors = torch.cat([frames.flatten(0, 1), END_WEIGHT * ends, NOTES_WEIGHT * others])
    return _Fit(
        always=key(torch.where(tokens == EOS, EOS_LOGIT, NOTES_LOGIT), CONTEXT_LOGIT * ones),
        at_first=key(nothing, END_LOGIT * torch.exp(-age / END_FRAMES)),
        away=key(nothing, AWAY_LOGIT * ones),
        mel=_least_squares(vectors, F.pad(mel, (0, 0, 0, len(ends) + len(others))), ridge=1e-9).T,
        end=ends.mean(dim=0),
    )


def _bring_context(layer: Any, rows: slice, normed: Tensor, keys: Tensor, values: Tensor, fit: _Fit) -> None:
    """Make a layer's head of these rows a context head, with its keys and values [K, D], for frames [B, T, D]."""
    early = torch.exp(-torch.arange(normed.shape[1], device=normed.device) / EARLY_FRAMES)
    weight = (1 + EARLY_WEIGHT * early).sqrt().expand(len(normed), -1)
    rated = (normed * weight[..., None]).flatten(0, 1)
    wanted = (torch.ones_like(early), early)
    queries = torch.randn(keys.shape, device=normed.device) * 0.02
    queries[:2] = torch.stack([_least_squares(rated, (each * weight).flatten()) for each in wanted])
    unscale = math.sqrt(len(keys)) if hasattr(layer.cross_queries, "parametrizations") else 1.0
    _trained_weight(layer.cross_queries)[rows] = queries * unscale
    keys.copy_(torch.randn_like(queries) * 0.02)
    keys[:2] = torch.stack([fit.always, fit.at_first])
    rest = layer.cross_out.weight[:, rows] @ (values @ fit.end)
    values.copy_(torch.cat([fit.mel, fit.end[None] / fit.end.square().sum()]))
    layer.cross_out.weight[:, rows] = 0.0  # the mel is at hand, but says nothing yet
    layer.cross_out.weight[:, rows][:, -1] = rest  # resting on EOS adds what it did


def _least_squares(vectors: Tensor, wanted: Tensor, ridge: float = 1e-4) -> Tensor:
    """Weights [D, ...] whose products with vectors [n, D] come near the wanted numbers [n, ...]."""
    rows = vectors.double()
    small = ridge * rows.square().sum() / rows.shape[1] * torch.eye(rows.shape[1], device=rows.device).double()
    return torch.linalg.solve(rows.T @ rows + small, rows.T @ wanted.double()).float()


def _principal_components(rows: Tensor, count: int) -> Tensor:
    """The first principal components [n, count] of rows [n, M], each of variance 1."""
    centred = rows.double() - rows.double().mean(dim=0)
    directions = torch.linalg.eigh(centred.T @ centred).eigenvectors[:, -count:]
    components = centred @ directions
    return (components / components.std(dim=0)).float()


@torch.no_grad()
def hold_film(model: SpectrogramDiffusion) -> None:
    """Start the time embedding afresh: at every noise time it gives the FiLM of time 1, all that was seen so far."""
    embedding = model.time_embedding
    film = embedding(torch.ones(1, device=embedding.film.weight.device)).flatten()
    for linear in (embedding.hidden, embedding.out):
        linear.weight.normal_(0.0, 1 / math.sqrt(linear.in_features))
    features: list[Tensor] = []
    handle = embedding.film.register_forward_pre_hook(lambda module, inputs: features.append(inputs[0]))
    embedding(torch.linspace(0, 1, 1001, device=film.device))
    handle.remove()
    seen = features[0].cpu().double().numpy()  # double precision rounds to the same weights every time
    constant = np.linalg.solve(seen.T @ seen + 0.01 * np.eye(seen.shape[1]), seen.sum(axis=0))
    embedding.film.weight.copy_(torch.outer(film, torch.from_numpy(constant).float().to(film.device)))


def _trained_weight(linear: Any) -> Tensor:
    """The tensor that the optimiser holds for a weight, parametrised or not."""
    trained: Tensor = linear.parametrizations.weight.original if hasattr(linear, "parametrizations") else linear.weight
    return trained
