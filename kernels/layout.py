"""What host and kernels share, said once: the structures that kernels read, and each kernel's arguments in order.

``notewave.cu`` declares the same; a test holds its text to this.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

COEFFICIENTS = ("p", "q", "a", "b", "c", "d", "e")  # of a row of a sampler's table; see reference.sampler_step
ROW = np.dtype([*((name, "<f4") for name in COEFFICIENTS), ("draw", "<u4")])  # draw: which is the step's noise
POINTER, UINT32, FLOAT32 = "P", "I", "f"  # types of arguments, as struct's letters

_STEP = {
    "x": POINTER,
    "x0_previous": POINTER,
    "prediction": POINTER,
    "unconditional": POINTER,  # null without guidance
    "noise": POINTER,  # null to draw it in the kernel
    "played": POINTER,  # null where none is given
    "row": POINTER,
    "control": POINTER,
    "size": UINT32,
}
STEP_KERNELS = {"float32": "sampler_step_fp32", "float16": "sampler_step_fp16", "bfloat16": "sampler_step_bf16"}
KERNELS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "philox_normal": {"out": POINTER, "control": POINTER, "draw": UINT32, "size": UINT32},
        **dict.fromkeys(STEP_KERNELS.values(), _STEP),
        "advance": {
            **dict.fromkeys(("x", "context", "played", "next_context", "control"), POINTER),
            "size": UINT32,
        },
        "mel_to_context": {"mel": POINTER, "context": POINTER, "size": UINT32},
        "keep_frame": {
            **dict.fromkeys(("prediction", "before", "mel", "new_rows", "own_rows", "begun", "frame"), POINTER),
            **dict.fromkeys(("offset", "songs", "frames", "mels", "layers", "rows", "kept", "size"), UINT32),
            **dict.fromkeys(("new_stride", "own_stride"), UINT32),
        },
        "from_network": {"mel": POINTER, "log_mel": POINTER, "scale": FLOAT32, "offset": FLOAT32, "size": UINT32},
        "carry_nan": {"audio": POINTER, "log_mel": POINTER, "mels": UINT32, "hop": UINT32, "size": UINT32},
    }
)
SIGNATURES = {name: "".join(arguments.values()) for name, arguments in KERNELS.items()}


def control_dtype(batch: int) -> np.dtype[np.void]:
    """What a batch of songs is told once a segment, or once a window of live play; see ``notewave.cu``."""
    place = [(name, "<u4") for name in ("first", "given", "moved", "unused")]
    return np.dtype([("segment", "<u4"), ("guidance", "<f4"), *place, ("seeds", "<u8", (batch,))])


def table_rows(rows: NDArray[np.float32], noisy: NDArray[np.bool_]) -> NDArray[np.void]:
    """A sampler's rows [S, 7] as kernels read them: ROW [S], each with the number of its draw, if it adds noise."""
    packed = np.zeros(len(rows), ROW)
    for name, column in zip(COEFFICIENTS, rows.T, strict=True):
        packed[name] = column
    packed["draw"] = np.cumsum(noisy)  # draw 0 is the initial noise
    return packed


def ordered(kernel: str, **values: float) -> tuple[float, ...]:
    """A kernel's arguments, given by name, in its order."""
    names = KERNELS[kernel]
    assert values.keys() == names.keys(), (kernel, sorted(values.keys() ^ names.keys()))
    return tuple(values[name] for name in names)
