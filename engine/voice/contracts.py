"""What every network of a voice takes and gives: names, dtypes and shapes, written once.

Export names its graphs by these contracts, the backends size and bind their buffers by them, the tests hold both to
them.

Letters: B batch (songs side by side), N tokens of a segment, T its frames, or the first of them where no more matter, C
context frames (0 or all of a segment), J = N + C keys that the decoder attends to, M mel bins, D width, H heads, K head
width, L decoder layers, S denoising steps, V frames given to the vocoder at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

from notewave.checks import is_integer, quoted
from notewave.errors import VoiceError
from notewave.song.codec import MAX_TOKENS
from notewave.song.dialect import VOCABULARY
from notewave.sound.mel import FRAMES, HOP, MELS

Axis = int | str  # a fixed size, or the letter of a dynamic axis


@dataclass(frozen=True)
class Dimensions:
    """Sizes of a voice's networks; the defaults hold for every known voice."""

    width: int  # D, of the residual stream
    heads: int  # H
    head_width: int  # K; H * K may differ from D
    feed_forward: int  # hidden width of the gated feed-forward
    note_encoder_layers: int
    context_encoder_layers: int  # 0: there is none, and no segment is told of the one before it
    decoder_layers: int  # L
    vocabulary: int = VOCABULARY  # rows of the token embedding table
    max_tokens: int = MAX_TOKENS  # rows of the note encoder's position table
    frames: int = FRAMES  # of a segment, the most that T can be
    mels: int = MELS  # M

    def __post_init__(self) -> None:
        """Refuse sizes that no network can have, so that an untrusted voice cannot ask for absurd buffers."""
        for field in fields(self):
            size = getattr(self, field.name)
            least = 0 if field.name == "context_encoder_layers" else 1
            if not is_integer(size, least, 1 << 16):
                raise VoiceError(
                    f"dimension {field.name} is {quoted(size)}; it must be an integer from {least} to 65536."
                )
        if (self.frames, self.mels) != (FRAMES, MELS):
            raise VoiceError(
                f"segments have {self.frames} frames of {self.mels} bins; this engine runs {FRAMES} of {MELS} only."
            )

    @property
    def context_frames(self) -> int:
        """The most frames that C can be: those of a segment, or none."""
        return self.frames if self.context_encoder_layers else 0


@dataclass(frozen=True)
class Tensor:
    """One input or output of a graph."""

    name: str
    dtype: str  # NumPy's name for it
    shape: tuple[Axis, ...]

    def shape_at(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Its shape when the axes of these letters have these sizes. Raises KeyError where one has none."""
        return tuple(_size(axis, sizes) for axis in self.shape)

    def fixed(self, sizes: Mapping[str, int]) -> Tensor:
        """The same, its axes of these letters being of these sizes."""
        return replace(self, shape=tuple(sizes.get(str(axis), axis) for axis in self.shape))

    def takes(self, shape: Sequence[int], sizes: Mapping[str, int]) -> bool:
        """Whether an array of this shape fits; axes of letters without a size take any."""
        known = [axis if isinstance(axis, int) or axis.rpartition("*")[2] in sizes else None for axis in self.shape]
        return len(known) == len(shape) and all(
            axis is None or _size(axis, sizes) == have for axis, have in zip(known, shape, strict=True)
        )


@dataclass(frozen=True)
class Contract:
    """Inputs and outputs of one graph, in order."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]

    def fixed(self, sizes: Mapping[str, int]) -> Contract:
        """The same, axes of these letters being of these sizes."""
        return Contract(*(tuple(one.fixed(sizes) for one in each) for each in (self.inputs, self.outputs)))

    def sizes(self, inputs: Mapping[str, Sequence[int]]) -> dict[str, int]:
        """Sizes of the dynamic axes, by letter, that inputs of these shapes give."""
        return {
            axis: size
            for tensor in self.inputs
            for axis, size in zip(tensor.shape, inputs[tensor.name], strict=True)
            if isinstance(axis, str)
        }


NETWORKS = (
    "note_encoder",
    "context_encoder",
    "cross_attention",
    "time_embedding",
    "decoder",
    "unconditional_decoder",
    "vocoder",
)


def contracts(size: Dimensions, positional_vocoder: bool = False, autoregressive: bool = False) -> dict[str, Contract]:
    """Contract of each network in NETWORKS that a voice of these dimensions has, or can have.

    Of an autoregressive voice the decoder writes a frame, given the one before; there is no noise whose time it were
    told. It takes keys and values of its own frames so far, of which those from ``frame`` on may be anything but no
    numbers, and gives the new frame's.
    A positional vocoder also takes the index of its first frame in the song, for phases that run through.
    """
    frames, mels, width = size.frames, size.mels, size.width
    notes = Tensor("notes", "float32", ("B", "N", width))
    context = Tensor("context", "float32", ("B", "C", width))
    x = Tensor("x", "float32", ("B", "T", mels))
    film = Tensor("film", "float32", (1, size.decoder_layers, 2, 2, width))
    prediction = Tensor("prediction", "float32", ("B", "T", mels))
    mask = Tensor("mask", "float32", ("B", 1, 1, "J"))
    position = (Tensor("frame", "int64", (1,)),) if positional_vocoder else ()
    known = {
        "note_encoder": Contract((Tensor("tokens", "int32", ("B", "N")),), (notes,)),
        "context_encoder": Contract((Tensor("mel", "float32", ("B", frames, mels)),), (context,)),
        "cross_attention": Contract((notes, context) if size.context_frames else (notes,), keys_values(size)),
        "time_embedding": Contract(
            (Tensor("time", "float32", ("S",)),), (Tensor("film", "float32", ("S", *film.shape[1:])),)
        ),
        "decoder": Contract((x, film, mask, *keys_values(size)), (prediction,)),
        "unconditional_decoder": Contract((x, film), (prediction,)),
        "vocoder": Contract(
            (Tensor("mel", "float32", ("B", "V", mels)), *position),
            (Tensor("audio", "float32", ("B", f"{HOP}*V")),),
        ),
    }
    absent = set() if size.context_frames else {"context_encoder"}
    if autoregressive:
        absent |= {"time_embedding", "unconditional_decoder"}
        one = {"T": 1}
        frame = Tensor("frame", "int64", (1,))  # its number in the segment
        taken = (x.fixed(one), frame, mask, *own_keys_values(size, frames), *keys_values(size))
        known["decoder"] = Contract(taken, (prediction.fixed(one), *own_keys_values(size, 1, "new_")))
    return {network: contract for network, contract in known.items() if network not in absent}


def _size(axis: Axis, sizes: Mapping[str, int]) -> int:
    """Size of an axis: a number, a letter's, or a multiple of it ("320*V")."""
    if isinstance(axis, int):
        return axis
    factor, _, letter = axis.rpartition("*")
    return int(factor or 1) * sizes[letter]


def own_keys_values(size: Dimensions, frames: int, name: str = "own_") -> tuple[Tensor, ...]:
    """Keys and values of layer 0, of layer 1, ... of so many frames of an autoregressive decoder's own."""
    return tuple(
        Tensor(f"{name}{kind}_{layer}", "float32", ("B", size.heads, frames, size.head_width))
        for layer in range(size.decoder_layers)
        for kind in ("keys", "values")
    )


def keys_values(size: Dimensions) -> tuple[Tensor, ...]:
    """Keys and values of layer 0, of layer 1, and so on: what the cross-attention gives and the decoder takes."""
    return tuple(
        Tensor(f"{kind}_{layer}", "float32", ("B", size.heads, "J", size.head_width))
        for layer in range(size.decoder_layers)
        for kind in ("keys", "values")
    )
