"""The shapes that networks run at on a GPU: a few padded lengths, so that a few captured graphs serve all songs.

Letters as in ``notewave.voice.contracts``.
"""

from __future__ import annotations

from dataclasses import dataclass

from notewave.sound.mel import FRAMES
from notewave.voice.contracts import Tensor
from notewave.voice.folder import Voice

TOKEN_BUCKETS = (256, 512, 1024, 2048)  # lengths that tokens are padded to
MAX_BATCH = 4  # songs side by side
SCHEDULE_ROWS = 64  # noise times that the time embedding takes at once
ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int32": 4, "int64": 8}  # by a data type's name in contracts

Shape = tuple[int, ...]
Range = tuple[int, int, int]  # smallest, most frequent, largest


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


def extents(voice: Voice, inputs: tuple[Tensor, ...], padded: bool = True) -> dict[str, Extent]:
    """Optimisation profile of a network's inputs.

    padded: whether tokens fill one of ``token_buckets`` and a song's first segment has a context too, under a mask.
    """
    lengths = token_buckets(voice)
    usual = lengths[min(1, len(lengths) - 1)]
    tokens, context = (lengths[0], FRAMES) if padded else (1, 0)  # the fewest
    ranges: dict[str, Range] = {
        "B": (1, 1, MAX_BATCH),
        "N": (tokens, usual, lengths[-1]),
        "C": (context, FRAMES, FRAMES),
        "J": (tokens + context, usual + FRAMES, lengths[-1] + FRAMES),
        "S": (1, SCHEDULE_ROWS, SCHEDULE_ROWS),
        "V": (1, FRAMES, vocoder_frames(voice)),
    }

    least, most_frequent, most = ({axis: sizes[which] for axis, sizes in ranges.items()} for which in range(3))
    return {
        tensor.name: Extent(tensor.shape_at(least), tensor.shape_at(most_frequent), tensor.shape_at(most))
        for tensor in inputs
    }
