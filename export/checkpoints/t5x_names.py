"""What T5X calls the parameters of the original's models, one table for each of its kinds of configurations.

Parameter here: T5X's array, in the notation of ``notewave.export.checkpoints.assemble``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from notewave.export.autoregressive import SpectrogramAutoregression
from notewave.export.networks import T5, Family, SpectrogramDiffusion

POSITIONS = "FixedEmbed_0.embedding"  # of a network whose sinusoids are no parameters: T5X stores none under this name


@dataclass(frozen=True)
class Layout:
    """One kind of configuration: its arrays, and the networks that they make."""

    notes: str  # what the note encoder is called
    names: Mapping[str, str]
    kind: type[SpectrogramDiffusion] | type[SpectrogramAutoregression]
    family: Family = T5

    @property
    def is_autoregressive(self) -> bool:
        """Whether it has the other decoder."""
        return self.kind is SpectrogramAutoregression


def _encoder(ours: str, theirs: str, positions: str) -> dict[str, str]:
    """An encoder of notes or of the context, but for what it takes."""
    blocks = {
        "positions": positions,
        "layers.*.attention_norm.weight": "layers_*.pre_attention_layer_norm.scale",
        "layers.*.attention.qkv.weight": "layers_*.attention.{query,key,value}.kernel",
        "layers.*.attention.out.weight": "layers_*.attention.out.kernel",
        "layers.*.feed_forward_norm.weight": "layers_*.pre_mlp_layer_norm.scale",
        "layers.*.feed_forward.gate_up.weight": "layers_*.mlp.{wi_0,wi_1}.kernel",
        "layers.*.feed_forward.out.weight": "layers_*.mlp.wo.kernel",
        "norm.weight": "encoder_norm.scale",
    }
    return {f"{ours}.{name}": f"{theirs}.{array}" for name, array in blocks.items()}


def _notes(theirs: str, positions: str) -> dict[str, str]:
    return {
        "note_encoder.embedding.weight": f"{theirs}.token_embedder.embedding",
        **_encoder("note_encoder", theirs, positions),
    }


def _decoder(cross: str, positions: str) -> dict[str, str]:
    """A decoder and its cross-attention, whose module has this name."""
    return {
        "cross_attention.projection.weight": f"decoder.layers_*.{cross}.{{key,value}}.kernel",
        "decoder.input.weight": "decoder.continuous_inputs_projection.kernel",
        "decoder.positions": f"decoder.{positions}",
        "decoder.layers.*.attention_norm.weight": "decoder.layers_*.pre_self_attention_layer_norm.scale",
        "decoder.layers.*.attention.qkv.weight": "decoder.layers_*.self_attention.{query,key,value}.kernel",
        "decoder.layers.*.attention.out.weight": "decoder.layers_*.self_attention.out.kernel",
        "decoder.layers.*.cross_norm.weight": "decoder.layers_*.pre_cross_attention_layer_norm.scale",
        "decoder.layers.*.cross_queries.weight": f"decoder.layers_*.{cross}.query.kernel",
        "decoder.layers.*.cross_out.weight": f"decoder.layers_*.{cross}.out.kernel",
        "decoder.layers.*.feed_forward_norm.weight": "decoder.layers_*.pre_mlp_layer_norm.scale",
        "decoder.layers.*.feed_forward.gate_up.weight": "decoder.layers_*.mlp.{wi_0,wi_1}.kernel",
        "decoder.layers.*.feed_forward.out.weight": "decoder.layers_*.mlp.wo.kernel",
        "decoder.norm.weight": "decoder.decoder_norm.scale",
        "decoder.output.weight": "decoder.spec_out_dense.kernel",
    }


_STORED = "Embed_0.embedding"
_DIFFUSION = {
    "time_embedding.hidden.weight": "decoder.time_emb_dense0.kernel",
    "time_embedding.out.weight": "decoder.time_emb_dense1.kernel",
    "time_embedding.film.weight": "decoder.layers_*.{FiLMLayer_0,FiLMLayer_1}.DenseGeneral_0.kernel",
    **_decoder("MultiHeadDotProductAttention_0", _STORED),
}

WITH_CONTEXT = Layout(  # gin/models/diffusion/context
    "token_encoder",
    {
        **_notes("token_encoder", _STORED),
        "context_encoder.input.weight": "continuous_encoder.input_proj.kernel",
        **_encoder("context_encoder", "continuous_encoder", _STORED),
        **_DIFFUSION,
    },
    SpectrogramDiffusion,
)
BASIC = Layout(
    "encoder", {**_notes("encoder", _STORED), **_DIFFUSION}, SpectrogramDiffusion
)  # gin/models/diffusion/basic
AUTOREGRESSIVE = Layout(  # gin/models/autoregressive/deterministic, whose encoder masks no padding
    "encoder",
    {**_notes("encoder", POSITIONS), **_decoder("encoder_decoder_attention", POSITIONS)},
    SpectrogramAutoregression,
    replace(T5, sees_padding=True),
)
LAYOUTS = (WITH_CONTEXT, BASIC, AUTOREGRESSIVE)
