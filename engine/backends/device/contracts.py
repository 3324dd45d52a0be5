"""What a voice's networks take and give on a GPU, where it differs from ``notewave.voice.contracts``.

Keys, values and what attention adds for its mask lie as attention reads them; FiLM comes row by row, its scales folded
into norms' weights; what passes from graph to graph does so in the precision of products. Segments are always whole.
There is no unconditional decoder: the decoder's songs whose values are all zero are unconditional. An autoregressive
decoder takes and gives a frame, whose heads need no moving about, and so takes keys and values as the voice does; of
its own frames all that any can follow: the last one's are no other's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from notewave.backends.device.shapes import film_stride
from notewave.sound.mel import FRAMES
from notewave.voice.contracts import Contract, Tensor, keys_values, own_keys_values
from notewave.voice.folder import Voice

FILM = "film_"  # beginning of the names of the decoder's inputs for rows of FiLM
KEPT_FRAMES = FRAMES - 1  # of a segment, that an autoregressive decoder keeps keys and values of: none follows the last
PRECISIONS = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}  # data type of products, by its precision


def gpu_contracts(voice: Voice, precision: str) -> dict[str, Contract]:
    """Contract of each network of a voice at a precision, in the order in which they run."""
    known, low = voice.contracts(), PRECISIONS[precision]
    known |= _frame_by_frame(voice, known, low) if voice.is_autoregressive else _denoising(voice, known, low)
    return {network: contract for network, contract in known.items() if network != "unconditional_decoder"}


def _denoising(voice: Voice, known: Mapping[str, Contract], low: str) -> dict[str, Contract]:
    """Contracts that differ where mels are denoised. known: the voice's. low: the data type of products."""
    size = voice.dimensions
    merged = tuple(Tensor(tensor.name, low, ("B", "J", size.heads * size.head_width)) for tensor in keys_values(size))
    decoder = known["decoder"].fixed({"T": FRAMES})
    x, _, mask, *_ = decoder.inputs
    bias = Tensor("bias", low, ("B", 1, FRAMES, "J"))
    rows = tuple(Tensor(film_row(row), low, (size.width,)) for row in range(film_rows(voice)))
    film = Tensor("film", low, ("S", size.decoder_layers, 2, 2, film_stride(size.width)))
    return {
        "cross_attention": Contract((*known["cross_attention"].inputs, mask), (*merged, bias)),
        "time_embedding": Contract(known["time_embedding"].inputs, (film,)),
        "decoder": Contract((x, *rows, bias, *merged), _typed(decoder.outputs, low)),
    }


def _frame_by_frame(voice: Voice, known: Mapping[str, Contract], low: str) -> dict[str, Contract]:
    """Contracts that differ where mels are written frame by frame; see ``_denoising``."""
    size, decoder = voice.dimensions, known["decoder"]
    of_notes, own = (_typed(tensors, low) for tensors in (keys_values(size), own_keys_values(size, KEPT_FRAMES)))
    x, frame, mask, *_ = decoder.inputs
    prediction = decoder.outputs[0]
    new = [Tensor(one.name, low, ("B", 1, size.heads * size.head_width)) for one in decoder.outputs[1:]]
    bias = Tensor("bias", low, ("B", 1, 1, "J"))
    return {
        "cross_attention": Contract((*known["cross_attention"].inputs, mask), (*of_notes, bias)),
        "decoder": Contract((x, frame, bias, *own, *of_notes), (prediction, *new)),
    }


def _typed(tensors: Sequence[Tensor], dtype: str) -> tuple[Tensor, ...]:
    return tuple(dataclasses.replace(tensor, dtype=dtype) for tensor in tensors)


def film_rows(voice: Voice) -> int:
    """Rows of FiLM of one step: scale and shift, before attention and before the feed-forward, of every layer."""
    return 0 if voice.is_autoregressive else 4 * voice.dimensions.decoder_layers


def film_row(row: int) -> str:
    """Name of the decoder's input for a row of FiLM."""
    return f"{FILM}{row}"
