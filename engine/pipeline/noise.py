"""The noise that a run starts from and adds: drawn as diffusers draws it, segment by segment."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

from notewave.checks import is_integer, quoted
from notewave.kernels.reference import philox_normal
from notewave.pipeline.networks import Device
from notewave.pipeline.refusal import PipelineError
from notewave.sampling.options import MAX_SEED
from notewave.sound.mel import FRAMES, MELS, FloatArray

Draw: TypeAlias = Callable[[int, int], FloatArray]  # a segment's number, and draws -> noise [draws, FRAMES, MELS]


def noise_source(generator: Any, device: Device, dtype: str) -> Draw:
    """What draws each segment's noise; segments are to be asked for one after another.

    generator: a torch.Generator, or a list of which diffusers uses the first; it, or PyTorch's own where it is None,
    draws as for diffusers' pipeline on ``device`` in ``dtype``. A seed gives the noise of ``Synthesizer``'s. PyTorch is
    not imported: without it, None is a seed that nobody knows. Raises PipelineError for anything else.
    """
    if isinstance(generator, (list, tuple)) and generator:
        generator = generator[0]
    torch = sys.modules.get("torch")
    if torch is not None and (generator is None or isinstance(generator, torch.Generator)):
        return _from_torch(torch, generator, device, dtype)
    if isinstance(generator, np.random.Generator):
        return lambda _, draws: generator.standard_normal((draws, FRAMES, MELS), np.float32)
    seed = secrets.randbits(64) if generator is None else generator
    if not is_integer(seed, 0, MAX_SEED):
        raise PipelineError(
            f"the generator is {quoted(generator)}; it must be a torch.Generator, NumPy's, a seed from 0 to 2**64 - 1, "
            "or None."
        )
    return lambda segment, draws: _from_seed(int(seed), segment, draws)


def _from_torch(torch: Any, generator: Any, device: Device, dtype: str) -> Draw:
    own = str(device) if torch.cuda.is_available() else "cpu"  # where PyTorch's own generator draws
    where = own if generator is None else generator.device
    kind = getattr(torch, dtype)  # another kind of number is other noise

    def draw(_: int, draws: int) -> FloatArray:
        noise = np.empty((draws, FRAMES, MELS), np.float32)
        for row in noise:  # drawn at once, they would be others
            drawn = torch.randn((1, FRAMES, MELS), generator=generator, device=where, dtype=kind)
            row[:] = drawn[0].float().cpu().numpy()
        return noise

    return draw


def _from_seed(seed: int, segment: int, draws: int) -> FloatArray:
    noise = np.empty((draws, FRAMES, MELS), np.float32)
    for draw, row in enumerate(noise):
        philox_normal(seed, segment, draw, row)
    return noise
