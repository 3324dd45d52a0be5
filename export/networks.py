"""The networks of Spectrogram Diffusion in PyTorch (Hawthorne et al., ISMIR 2022), of either family of checkpoints.

Blocks are those of T5 1.1, pre-norm with gated GELU; a ``Family`` says in what its checkpoints differ from others.
Letters as in ``notewave.voice.contracts``. They are split where work stops being constant: ``TimeEmbedding`` depends
only on the noise schedule, the encoders and ``CrossAttention`` only on the segment, ``Decoder`` on what moves at each
step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from notewave.song.dialect import PAD
from notewave.voice.contracts import Contract, Dimensions, contracts

Pairs = Callable[[int, Tensor], tuple[Tensor, Tensor] | None]  # a layer's number and its input: its keys and values
TRIED_TOKENS = 200  # of a segment, with which graphs are held against their modules
MAX_NOISE_TIME = (
    20000.0  # noise time t in [0, 1) reaches the sinusoids as t * 20000; also their longest period / (2 pi)
)


def masked_bias(keep: Tensor) -> Tensor:
    """Additive attention bias [B, 1, 1, J]: 0 where ``keep`` [B, J] is true, the lowest finite number elsewhere."""
    lowest = torch.finfo(torch.float32).min
    return torch.where(keep, 0.0, lowest)[:, None, None, :]


def sinusoids(positions: Tensor, width: int, longest: float) -> Tensor:
    """Sine half, then cosine half [..., width] of positions [...], at frequencies from 1 down to 1 / longest."""
    half = width // 2
    exponents = -math.log(longest) * torch.arange(half, dtype=torch.float32, device=positions.device) / (half - 1)
    frequencies = exponents.double().exp().float()  # the same to the last bit everywhere: positions reach 20000
    angles = positions[..., None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


@dataclass(frozen=True)
class Family:
    """What the networks of one origin have in common beside their sizes."""

    biases: bool = False  # whether all products but attention's add one
    norm_eps: float | None = None  # of LayerNorm with biases; None: T5's root-mean-square norm, weight only
    gelu: str = "tanh"  # approximation of the feed-forward's gate; "none": exact
    sees_padding: bool = False  # whether the note encoder attends to padding, up to its most tokens, as it was trained
    bounded: bool = False  # whether an autoregressive decoder's frames are held to [-1, 1]

    def linear(self, inputs: int, outputs: int) -> nn.Linear:
        """A product of a feed-forward or of what networks take and give."""
        return nn.Linear(inputs, outputs, bias=self.biases)

    def norm(self, width: int) -> nn.Module:
        """A norm over the width."""
        return RMSNorm(width) if self.norm_eps is None else nn.LayerNorm(width, self.norm_eps)


class RMSNorm(nn.Module):
    """Root-mean-square norm over the width, weight only, eps 1e-6."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        return F.rms_norm(x, self.weight.shape, self.weight, 1e-6)


T5 = Family()  # Google's checkpoints, and what is trained here


def port_family(norm_eps: float) -> Family:
    """The family of yoyolicoris/music-spectrogram-diffusion-pytorch, the PyTorch port."""
    return Family(biases=True, norm_eps=norm_eps, gelu="none", bounded=True)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[B, T, H K] -> [B, H, T, K]."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def attend(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
    """T5 attention: no scaling of the dot products, additive mask. [B, H, T, K] x [B, H, J, K] -> [B, T, H K]."""
    if mask is not None:
        mask = mask.expand(-1, -1, queries.shape[2], -1)  # ONNX Runtime broadcasts masks over batch and heads only
    mixed = F.scaled_dot_product_attention(queries, keys, values, mask, scale=1.0)
    return mixed.transpose(1, 2).flatten(2)


class SelfAttention(nn.Module):
    """Multi-head attention of a sequence to itself, one product for queries, keys and values."""

    def __init__(self, size: Dimensions) -> None:
        super().__init__()
        self.heads = size.heads
        inner = size.heads * size.head_width
        self.qkv = nn.Linear(size.width, 3 * inner, bias=False)
        self.out = nn.Linear(inner, size.width, bias=False)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        queries, keys, values = (split_heads(part, self.heads) for part in self.qkv(x).chunk(3, dim=-1))
        return self.out(attend(queries, keys, values, mask))


class FeedForward(nn.Module):
    """Gated GELU: out(gelu(gate x) * up x), one product for gate and up."""

    def __init__(self, size: Dimensions, family: Family = T5) -> None:
        super().__init__()
        self.gelu = family.gelu
        self.gate_up = family.linear(size.width, 2 * size.feed_forward)
        self.out = family.linear(size.feed_forward, size.width)

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.out(F.gelu(gate, approximate=self.gelu) * up)


class EncoderLayer(nn.Module):
    """Pre-norm self-attention and feed-forward, each with a residual."""

    def __init__(self, size: Dimensions, family: Family = T5) -> None:
        super().__init__()
        self.attention_norm = family.norm(size.width)
        self.attention = SelfAttention(size)
        self.feed_forward_norm = family.norm(size.width)
        self.feed_forward = FeedForward(size, family)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        x = x + self.attention(self.attention_norm(x), mask)
        return x + self.feed_forward(self.feed_forward_norm(x))


class NoteEncoder(nn.Module):
    """Encodes the tokens of one segment; padding tokens are not attended to, but in families that were trained so."""

    def __init__(self, size: Dimensions, family: Family = T5) -> None:
        super().__init__()
        self.sees_padding = family.sees_padding
        self.embedding = nn.Embedding(size.vocabulary, size.width)
        self.positions = nn.Parameter(torch.randn(size.max_tokens, size.width) * 0.02)
        self.layers = nn.ModuleList(EncoderLayer(size, family) for _ in range(size.note_encoder_layers))
        self.norm = family.norm(size.width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens int [B, N] -> notes [B, N, D]."""
        given = tokens.shape[1]
        if self.sees_padding:
            tokens = F.pad(tokens, (0, len(self.positions) - given), value=PAD)
        x = self.embedding(tokens) + self.positions[: tokens.shape[1]]
        mask = None if self.sees_padding else masked_bias(tokens != PAD)
        for layer in self.layers:
            x = layer(x, mask)
        return self.norm(x)[:, :given]


class ContextEncoder(nn.Module):
    """Encodes the previous segment's mel, in the networks' range."""

    def __init__(self, size: Dimensions, family: Family = T5) -> None:
        super().__init__()
        self.input = family.linear(size.mels, size.width)
        self.positions = nn.Parameter(torch.randn(size.frames, size.width) * 0.02)
        self.layers = nn.ModuleList(EncoderLayer(size, family) for _ in range(size.context_encoder_layers))
        self.norm = family.norm(size.width)

    def forward(self, mel: Tensor) -> Tensor:
        """Mel [B, T, M] -> context [B, T, D]."""
        x = self.input(mel) + self.positions
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


class CrossAttention(nn.Module):
    """Keys and values of every decoder layer's cross-attention, for a whole segment at once."""

    def __init__(self, size: Dimensions) -> None:
        super().__init__()
        self.size = size
        self.projection = nn.Linear(size.width, 2 * size.decoder_layers * size.heads * size.head_width, bias=False)

    def forward(self, notes: Tensor, context: Tensor | None = None) -> tuple[Tensor, ...]:
        """Notes [B, N, D], context [B, C, D] -> keys, values of layer 0, of layer 1, ...: 2 L times [B, H, J, K]."""
        memory = notes if context is None else torch.cat([notes, context], dim=1)
        parts = self.projection(memory).chunk(2 * self.size.decoder_layers, dim=-1)
        return tuple(split_heads(part, self.size.heads) for part in parts)


class TimeEmbedding(nn.Module):
    """Noise time to the FiLM scales and shifts of every decoder layer."""

    def __init__(self, size: Dimensions, family: Family = T5) -> None:
        super().__init__()
        self.size = size
        self.hidden = family.linear(size.width, 4 * size.width)
        self.out = family.linear(4 * size.width, 4 * size.width)
        self.film = family.linear(4 * size.width, size.decoder_layers * 4 * size.width)

    def forward(self, time: Tensor) -> Tensor:
        """Noise time in [0, 1) [S] -> film [S, L, 2, 2, D]: (attention, feed-forward) x (scale, shift)."""
        x = sinusoids(time * MAX_NOISE_TIME, self.size.width, MAX_NOISE_TIME)
        x = F.silu(self.out(F.silu(self.hidden(x))))
        return self.film(x).unflatten(-1, (self.size.decoder_layers, 2, 2, self.size.width))


def modulate(x: Tensor, film: Tensor) -> Tensor:
    """FiLM: x (1 + scale) + shift, for x [B, T, D] and film [1 or B, 2, D]."""
    scale, shift = film[:, None, 0], film[:, None, 1]
    return x * (scale + 1.0) + shift


class DecoderLayer(nn.Module):
    """FiLMed self-attention, plain cross-attention, FiLMed feed-forward, each pre-norm with a residual.

    Of an autoregressive decoder, which knows no noise time, nothing is FiLMed.
    """

    def __init__(self, size: Dimensions, family: Family = T5) -> None:
        super().__init__()
        self.heads = size.heads
        inner = size.heads * size.head_width
        self.attention_norm = family.norm(size.width)
        self.attention = SelfAttention(size)
        self.cross_norm = family.norm(size.width)
        self.cross_queries = nn.Linear(size.width, inner, bias=False)
        self.cross_out = nn.Linear(inner, size.width, bias=False)
        self.feed_forward_norm = family.norm(size.width)
        self.feed_forward = FeedForward(size, family)

    def forward(
        self, x: Tensor, film: Tensor, keys_values: tuple[Tensor, Tensor] | None, mask: Tensor | None
    ) -> Tensor:
        """x [B, T, D], film [1 or B, 2, 2, D], keys and values [B, H, J, K] or none at all -> [B, T, D]."""
        x = self.attend_to_itself(x, film)
        if keys_values is not None:
            x = self.attend_to_notes(x, keys_values, mask)
        return x + self.feed_forward(modulate(self.feed_forward_norm(x), film[:, 1]))

    def attend_to_notes(self, x: Tensor, keys_values: tuple[Tensor, Tensor], mask: Tensor | None) -> Tensor:
        """The layer's cross-attention: x [B, T, D], keys and values [B, H, J, K], mask [B, 1, 1, J] -> [B, T, D]."""
        queries = split_heads(self.cross_queries(self.cross_norm(x)), self.heads)
        return x + self.cross_out(attend(queries, *keys_values, mask))

    def attend_to_itself(self, x: Tensor, film: Tensor) -> Tensor:
        """The layer up to its cross-attention: x [B, T, D], film [1 or B, 2, 2, D] -> [B, T, D]."""
        return x + self.attention(modulate(self.attention_norm(x), film[:, 0]))


def in_pairs(keys_values: Sequence[Tensor]) -> Pairs:
    """Keys and values of layer 0, of layer 1, ... as ``Decoder.walk`` asks for them; of none, that there are none."""
    return lambda index, hidden: (keys_values[2 * index], keys_values[2 * index + 1]) if keys_values else None


class Decoder(nn.Module):
    """One denoising step: predicts noise, clean mel or velocity, whichever the voice was trained for."""

    def __init__(self, size: Dimensions, family: Family = T5) -> None:
        super().__init__()
        self.input = family.linear(size.mels, size.width)
        self.positions = nn.Parameter(torch.randn(size.frames, size.width) * 0.02)
        self.layers = nn.ModuleList(DecoderLayer(size, family) for _ in range(size.decoder_layers))
        self.norm = family.norm(size.width)
        self.output = family.linear(size.width, size.mels)

    def forward(
        self, x: Tensor, film: Tensor, mask: Tensor | None = None, *keys_values: Tensor, frames: Tensor | None = None
    ) -> Tensor:
        """x [B, T, M], film [1 or B, L, 2, 2, D], mask [B, 1, 1, J], 2 L keys and values -> prediction [B, T, M].

        Without keys and values the cross-attention adds nothing: the unconditional pass of guidance. frames: int64
        [B, T], which frames of their segments x are, where not the first.
        """
        return self.output(self.norm(self.walk(x, film, mask, in_pairs(keys_values), frames)))

    def walk(
        self,
        x: Tensor,
        film: Tensor,
        mask: Tensor | None,
        pairs: Pairs,
        frames: Tensor | None = None,
        layers: int | None = None,
    ) -> Tensor:
        """Inputs as of ``forward`` -> what the first ``layers`` layers, or all, make of x, [B, T, D].

        pairs: asked for a layer's keys and values right before it, with the [B, T, D] that it is about to take.
        """
        hidden = self.input(x) + self.positions[slice(x.shape[1]) if frames is None else frames]
        for index in range(len(self.layers) if layers is None else layers):
            hidden = self.layers[index](hidden, film[:, index], pairs(index, hidden), mask)
        return hidden


class SpectrogramDiffusion(nn.Module):
    """All networks of a voice but the vocoder, under the names of ``notewave.voice.contracts``."""

    def __init__(self, size: Dimensions, family: Family = T5) -> None:
        super().__init__()
        self.size = size
        self.note_encoder = NoteEncoder(size, family)
        if size.context_frames:
            self.context_encoder = ContextEncoder(size, family)
        self.cross_attention = CrossAttention(size)
        self.time_embedding = TimeEmbedding(size, family)
        self.decoder = Decoder(size, family)

    def forward(
        self,
        x: Tensor,
        time: Tensor,
        tokens: Tensor,
        context: Tensor | None,
        context_keep: Tensor,
        conditioned: Tensor,
        offsets: Tensor | None = None,
    ) -> Tensor:
        """Training's view of one step, for crops of unrelated segments at unrelated noise times.

        Of B segments: tokens [B, N], context mel [B, T, M] or None, context_keep bool [B] (false: no previous segment),
        conditioned bool [B] (false: the cross-attention adds nothing, as in guidance). Of as many crops of each, side
        by side: x [B C, F, M], time [B C], offsets int64 [B C], their first frames (None: 0).
        Returns the prediction [B C, F, M].
        """
        keys_values, mask = self.condition(tokens, context, context_keep)
        keys_values[1::2] = [values * conditioned[:, None, None, None] for values in keys_values[1::2]]
        crops = len(x) // len(tokens)
        keys_values = [part.repeat_interleave(crops, dim=0) for part in keys_values]
        frames = None if offsets is None else offsets[:, None] + torch.arange(x.shape[1], device=x.device)
        mask, film = mask.repeat_interleave(crops, dim=0), self.time_embedding(time)
        return self.decoder(x, film, mask, *keys_values, frames=frames)

    def condition(self, tokens: Tensor, context: Tensor | None, context_keep: Tensor) -> tuple[list[Tensor], Tensor]:
        """What the decoder attends to at every step: 2 L keys and values [B, H, J, K], and their mask [B, 1, 1, J]."""
        notes, keep = self.note_encoder(tokens), tokens != PAD
        past = None
        if context is not None:
            past = self.context_encoder(context)
            keep = torch.cat([keep, context_keep[:, None].expand(-1, context.shape[1])], dim=1)
        return list(self.cross_attention(notes, past)), masked_bias(keep)

    def networks(self) -> dict[str, nn.Module]:
        """The module behind each network but the vocoder; the unconditional decoder is the decoder without keys."""
        return {**dict(self.named_children()), "unconditional_decoder": self.decoder}

    def contracts(self) -> dict[str, Contract]:
        """The contract of each."""
        return contracts(self.size)

    def realistic_inputs(self) -> dict[str, tuple[Tensor, ...]]:
        """Inputs of each as a render would give them: seeded random tokens [1, N], mel, noise and noise times."""
        generator = torch.Generator().manual_seed(0)
        size, tokens = self.size, min(TRIED_TOKENS, self.size.max_tokens)
        ids = torch.randint(1, size.vocabulary, (1, tokens), generator=generator, dtype=torch.int32)
        mel = torch.rand(1, size.frames, size.mels, generator=generator) * 2 - 1
        x = torch.randn(1, size.frames, size.mels, generator=generator)
        times = torch.tensor([0.05, 0.5, 0.95])
        keep = torch.ones(1, tokens + size.context_frames, dtype=torch.bool)
        keep[:, max(1, tokens - 8) : tokens] = False
        with torch.inference_mode():
            context = {"context_encoder": (mel,)} if size.context_frames else {}
            memory = (self.note_encoder(ids), *(self.context_encoder(*given) for given in context.values()))
            film = self.time_embedding(times)[1:2]
            return {
                "note_encoder": (ids,),
                **context,
                "cross_attention": memory,
                "time_embedding": (times,),
                "decoder": (x, film, masked_bias(keep), *self.cross_attention(*memory)),
                "unconditional_decoder": (x, film),
            }
