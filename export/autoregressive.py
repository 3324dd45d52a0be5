"""The networks of the paper's other decoder, which writes a mel frame by frame (Hawthorne et al., ISMIR 2022, 3.1).

A T5 decoder: causal self-attention over the frames so far, cross-attention to the notes, a linear read-out of the next
frame. Each segment begins with a frame of zeros and is told of no other. Letters as in ``notewave.voice.contracts``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from notewave.export.networks import (
    T5,
    TRIED_TOKENS,
    CrossAttention,
    DecoderLayer,
    Family,
    NoteEncoder,
    SpectrogramDiffusion,
    masked_bias,
    split_heads,
)
from notewave.song.dialect import PAD
from notewave.voice.contracts import Contract, Dimensions, contracts

Pair = tuple[Tensor, Tensor]  # keys and values


class FrameLayer(DecoderLayer):
    """A decoder layer whose self-attention sees the frames so far; nothing is FiLMed."""

    def whole(self, x: Tensor, keys_values: Pair, mask: Tensor | None, causal: Tensor | None) -> Tensor:
        """All frames at once: x [B, T, D], the notes' keys and values, their mask, causal [1, 1, T, T] or none.

        Returns [B, T, D].
        """
        x = x + self.attention(self.attention_norm(x), causal)
        return self._from_notes(x, keys_values, mask)

    def next(
        self, x: Tensor, own: Pair, past: Tensor, keys_values: Pair, mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One frame x [B, 1, D], after those whose keys and values are its own [B, H, T, K], under a bias past [T].

        Returns [B, 1, D], and the frame's keys and values [B, H, 1, K].
        """
        attention = self.attention
        parts = attention.qkv(self.attention_norm(x)).chunk(3, dim=-1)
        queries, keys, values = (split_heads(part, self.heads) for part in parts)
        # The new frame is not put beside the others: that would copy all of them, of every layer, at every frame.
        before = queries @ own[0].transpose(-1, -2) + past
        itself = (queries * keys).sum(-1, keepdim=True)
        shares = torch.cat([before, itself], dim=-1).softmax(dim=-1)
        mixed = shares[..., :-1] @ own[1] + shares[..., -1:] * values
        x = x + attention.out(mixed.transpose(1, 2).flatten(2))
        return self._from_notes(x, keys_values, mask), keys, values

    def _from_notes(self, x: Tensor, keys_values: Pair, mask: Tensor | None) -> Tensor:
        x = self.attend_to_notes(x, keys_values, mask)
        return x + self.feed_forward(self.feed_forward_norm(x))


class FrameDecoder(nn.Module):
    """Writes a frame, given the one before; ``whole`` does so for all frames at once, where all before are known."""

    def __init__(self, size: Dimensions, family: Family = T5) -> None:
        super().__init__()
        self.bounded = family.bounded
        self.input = family.linear(size.mels, size.width)
        self.positions = nn.Parameter(torch.randn(size.frames, size.width) * 0.02)
        self.layers = nn.ModuleList(FrameLayer(size, family) for _ in range(size.decoder_layers))
        self.norm = family.norm(size.width)
        self.output = family.linear(size.width, size.mels)

    def forward(self, x: Tensor, frame: Tensor, mask: Tensor, *keys_values: Tensor) -> tuple[Tensor, ...]:
        """The frame before x [B, 1, M], the new one's number [1], the notes' mask [B, 1, 1, J], 2 L keys and values of
        its own frames [B, H, T, K], of which those before that number count, and 2 L of the notes [B, H, J, K] ->
        the frame [B, 1, M], and its 2 L keys and values [B, H, 1, K].
        """
        own, of_notes = keys_values[: 2 * len(self.layers)], keys_values[2 * len(self.layers) :]
        every = torch.arange(len(self.positions), device=x.device)
        past = torch.where(every < frame, 0.0, torch.finfo(torch.float32).min)
        hidden = self.input(x) + F.embedding(frame, self.positions)
        new: list[Tensor] = []
        for index, layer in enumerate(self.layers):
            assert isinstance(layer, FrameLayer)
            pair = slice(2 * index, 2 * index + 2)
            hidden, keys, values = layer.next(hidden, own[pair], past, of_notes[pair], mask)  # type: ignore[arg-type]
            new += [keys, values]
        return self._read_out(hidden), *new

    def whole(self, x: Tensor, mask: Tensor, keys_values: Sequence[Tensor], *, causal: bool = True) -> Tensor:
        """The frames before x [B, T, M] of all frames at once -> those [B, T, M].

        causal: whether no frame sees those after it, which is how such decoders are trained.
        """
        frames = x.shape[1]
        lowest = torch.finfo(torch.float32).min
        later = torch.full((1, 1, frames, frames), lowest, device=x.device).triu(1) if causal else None
        hidden = self.input(x) + self.positions[:frames]
        for index, layer in enumerate(self.layers):
            assert isinstance(layer, FrameLayer)
            hidden = layer.whole(hidden, (keys_values[2 * index], keys_values[2 * index + 1]), mask, later)
        return self._read_out(hidden)

    def _read_out(self, hidden: Tensor) -> Tensor:
        frame: Tensor = self.output(self.norm(hidden))
        return frame.clamp(-1.0, 1.0) if self.bounded else frame


class SpectrogramAutoregression(nn.Module):
    """All networks of an autoregressive voice but the vocoder, under the names of ``notewave.voice.contracts``."""

    def __init__(self, size: Dimensions, family: Family = T5) -> None:
        super().__init__()
        self.size = size
        self.note_encoder = NoteEncoder(size, family)
        self.cross_attention = CrossAttention(size)
        self.decoder = FrameDecoder(size, family)

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        """Training's view: mels x [B, T, M] of segments of tokens [B, N] -> each frame as those before foretell it."""
        before = torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], dim=1)
        keys_values, mask = self.condition(tokens)
        return self.decoder.whole(before, mask, keys_values)

    def condition(self, tokens: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        """What the decoder attends to: 2 L keys and values [B, H, N, K], and their mask [B, 1, 1, N]."""
        keys_values: tuple[Tensor, ...] = self.cross_attention(self.note_encoder(tokens))
        return keys_values, masked_bias(tokens != PAD)

    def networks(self) -> dict[str, nn.Module]:
        """The module behind each network but the vocoder."""
        return dict(self.named_children())

    def contracts(self) -> dict[str, Contract]:
        """The contract of each."""
        return contracts(self.size, autoregressive=True)

    def realistic_inputs(self) -> dict[str, tuple[Tensor, ...]]:
        """Inputs of each as a render would give them, midway in a segment: seeded random tokens [1, N] and mel."""
        generator = torch.Generator().manual_seed(0)
        size = self.size
        tokens = min(TRIED_TOKENS, size.max_tokens)
        ids = torch.randint(1, size.vocabulary, (1, tokens), generator=generator, dtype=torch.int32)
        frame = torch.rand(1, 1, size.mels, generator=generator) * 2 - 1
        own = (size.heads, size.frames, size.head_width)
        with torch.inference_mode():
            notes = self.note_encoder(ids)
            keys_values, mask = self.condition(ids)
            past = [torch.randn(1, *own, generator=generator) for _ in range(2 * size.decoder_layers)]
            return {
                "note_encoder": (ids,),
                "cross_attention": (notes,),
                "decoder": (frame, torch.tensor([100]), mask, *past, *keys_values),
            }


VoiceNetworks: TypeAlias = SpectrogramDiffusion | SpectrogramAutoregression  # of either decoder
