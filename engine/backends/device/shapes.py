"""The shapes that networks run at on a GPU: a few padded lengths, so that a few captured graphs serve all songs.

Letters as in ``notewave.voice.contracts``.
"""

from __future__ import annotations

from dataclasses import dataclass

from notewave.sound.mel import FRAMES
from notewave.voice.contracts import Contract
from notewave.voice.folder import Voice

TOKEN_BUCKETS = (256, 512, 1024, 2048)  # lengths that tokens are padded to
MAX_BATCH = 16  # songs side by side; with guidance, a decoder runs twice as many: each with its notes, and without
VOCODER_BATCH = 4  # of them that are vocoded at once
SCHEDULE_ROWS = 64  # noise times that the time embedding takes at once
FILM_ALIGNMENT = 128  # elements: 256 bytes of float16
ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int32": 4, "int64": 8}  # by a data type's name in contracts

Shape = tuple[int, ...]
Range = tuple[int, int, int]  # smallest, most frequent, largest


def film_stride(width: int) -> int:
    """Elements from one row of FiLM [D] to the next, so that each begins where a device's memory is aligned."""
    return -(-width // FILM_ALIGNMENT) * FILM_ALIGNMENT


@dataclass(frozen=True)
class Extent:
    """Shapes that a plan takes for one input."""

    min: Shape
    opt: Shape
    max: Shape


def token_buckets(voice: Voice) -> tuple[int, ...]:
    """Padded token lengths of a voice, ascending."""
    limit = voice.dimensions.max_tokens
    return (*(length for length in TOKEN_BUCKETS if length < limit), limit)


def vocoder_frames(voice: Voice) -> int:
    """Most frames V that the vocoder is given at once: a segment and what it sees around it."""
    traits = voice.vocoder
    return FRAMES + (traits.left_frames + traits.right_frames if traits else 0)


def most_songs(voice: Voice, network: str) -> int:
    """Most songs side by side B in one run of a network."""
    decoded = MAX_BATCH if voice.is_autoregressive else 2 * MAX_BATCH  # with guidance, twice as many
    return {"decoder": decoded, "vocoder": VOCODER_BATCH}.get(network, MAX_BATCH)


def extents(voice: Voice, network: str, contract: Contract) -> dict[str, Extent]:
    """Optimisation profile of a network's inputs."""
    lengths, context = token_buckets(voice), voice.dimensions.context_frames
    usual = lengths[min(1, len(lengths) - 1)]
    ranges: dict[str, Range] = {
        "B": (1, 1, most_songs(voice, network)),
        "N": (lengths[0], usual, lengths[-1]),
        "C": (FRAMES, FRAMES, FRAMES),
        "J": (lengths[0] + context, usual + context, lengths[-1] + context),
        "S": (1, SCHEDULE_ROWS, SCHEDULE_ROWS),
        "V": (1, FRAMES, vocoder_frames(voice)),
    }

    least, most_frequent, most = ({axis: sizes[which] for axis, sizes in ranges.items()} for which in range(3))
    return {
        tensor.name: Extent(tensor.shape_at(least), tensor.shape_at(most_frequent), tensor.shape_at(most))
        for tensor in contract.inputs
    }
