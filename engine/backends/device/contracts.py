"""What a voice's networks take and give on a GPU, where it differs from ``notewave.voice.contracts``.

Keys, values and what attention adds for its mask lie as attention reads them; FiLM comes row by row, its scales folded
into norms' weights; what passes from graph to graph does so in the precision of products. Segments are always whole.
There is no unconditional decoder: the decoder's songs whose values are all zero are unconditional.
"""

from __future__ import annotations

import dataclasses

from notewave.backends.device.shapes import film_stride
from notewave.sound.mel import FRAMES
from notewave.voice.contracts import Contract, Tensor, keys_values
from notewave.voice.folder import Voice

FILM = "film_"  # beginning of the names of the decoder's inputs for rows of FiLM
PRECISIONS = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}  # data type of products, by its precision


def gpu_contracts(voice: Voice, precision: str) -> dict[str, Contract]:
    """Contract of each network of a voice at a precision, in the order in which they run."""
    known, size, low = voice.contracts(), voice.dimensions, PRECISIONS[precision]
    merged = tuple(Tensor(tensor.name, low, ("B", "J", size.heads * size.head_width)) for tensor in keys_values(size))
    decoder = known["decoder"].fixed({"T": FRAMES})
    x, _, mask, *_ = decoder.inputs
    bias = Tensor("bias", low, ("B", 1, FRAMES, "J"))
    rows = tuple(Tensor(film_row(row), low, (size.width,)) for row in range(film_rows(voice)))
    (prediction,) = decoder.outputs
    film = Tensor("film", low, ("S", size.decoder_layers, 2, 2, film_stride(size.width)))
    return {
        "note_encoder": known["note_encoder"],
        "context_encoder": known["context_encoder"],
        "cross_attention": Contract((*known["cross_attention"].inputs, mask), (*merged, bias)),
        "time_embedding": Contract(known["time_embedding"].inputs, (film,)),
        "decoder": Contract((x, *rows, bias, *merged), (dataclasses.replace(prediction, dtype=low),)),
        **({"vocoder": known["vocoder"]} if "vocoder" in known else {}),
    }


def film_rows(voice: Voice) -> int:
    """Rows of FiLM of one step: scale and shift, before attention and before the feed-forward, of every layer."""
    return 4 * voice.dimensions.decoder_layers


def film_row(row: int) -> str:
    """Name of the decoder's input for a row of FiLM."""
    return f"{FILM}{row}"
