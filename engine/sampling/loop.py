"""The denoising loop on the host: the one that the CPU backend runs, training listens by, and benchmarks compare."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from notewave.kernels.reference import sampler_step
from notewave.sampling.samplers import SamplerTable
from notewave.sound.mel import FloatArray


def denoise(
    table: SamplerTable,
    x: FloatArray,
    predict: Callable[[int], tuple[FloatArray, FloatArray | None]],
    draw: Callable[[int], FloatArray] | None = None,
    *,
    guidance: float = 1.0,
    x0_previous: FloatArray | None = None,
    played: FloatArray | None = None,
    on_step: Callable[[], object] | None = None,
) -> None:
    """Denoise x [B, T, M], in place, from its initial noise to the mel.

    predict: by step, the network's output for x as it is then, and its unconditional one where guided. draw: noise
    [B, T, M] by its number, 1 being the first after the initial one; needed by samplers that add noise. x0_previous:
    memory like x. played [B, P, M]: the mel of the first frames, where it is known.
    """
    x0_previous = np.zeros_like(x) if x0_previous is None else x0_previous
    x0_previous.fill(0.0)
    drawn = 0
    for step, (row, noisy) in enumerate(zip(table.rows, table.noisy, strict=True)):
        prediction, unconditional = predict(step)
        drawn += bool(noisy)
        noise = draw(drawn) if noisy and draw is not None else None
        sampler_step(x, x0_previous, prediction, row, noise, unconditional, guidance, played)
        if on_step is not None:
            on_step()
