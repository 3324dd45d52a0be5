"""What the maker of a voice recommends, and what the caller of a render may choose."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, TypeAlias, TypedDict

import numpy as np

from notewave.checks import as_array, is_integer, is_number, quoted, require
from notewave.errors import SamplingError
from notewave.sampling.context import Context
from notewave.sampling.samplers import AUTOREGRESSIVE, SAMPLERS
from notewave.sampling.schedule import MAX_TRAIN_STEPS
from notewave.sound.mel import FRAMES, MELS, FloatArray

MAX_GUIDANCE = 1000.0  # either way: beyond it, float32 products could overflow
MAX_SEED = (1 << 64) - 1
Watch: TypeAlias = "Callable[[str], AbstractContextManager[object]]"  # from a network's name to what its run is in


@dataclass(frozen=True)
class Sampling:
    """What the voice's maker recommends; the caller of a render may choose otherwise."""

    sampler: str = "ddpm"  # a name in notewave.sampling.samplers.SAMPLERS
    steps: int = 100  # denoising steps of a segment
    guidance: float = 1.0  # classifier-free guidance weight; 1 is none, and needs no unconditional pass

    def __post_init__(self) -> None:
        """Refuse numbers that no render can use, with VoiceError."""
        known = isinstance(self.sampler, str) and self.sampler in (*SAMPLERS, AUTOREGRESSIVE)
        require(known, "sampler", self.sampler, f"must be one of {', '.join(SAMPLERS)}")
        require(is_integer(self.steps, 1, MAX_TRAIN_STEPS), "steps", self.steps, f"must be 1 to {MAX_TRAIN_STEPS}")
        in_range = is_number(self.guidance, -MAX_GUIDANCE, MAX_GUIDANCE)
        require(in_range, "guidance", self.guidance, f"must be a number from {-MAX_GUIDANCE:g} to {MAX_GUIDANCE:g}")


FRAME_BY_FRAME = Sampling(AUTOREGRESSIVE, FRAMES)  # all that an autoregressive voice can recommend: a frame a step


class SamplingOptions(TypedDict, total=False):
    """What ``render``, ``stream`` and ``spectrogram`` take beside the song; what is left out comes from the voice."""

    sampler: str | None  # a name in notewave.sampling.samplers.SAMPLERS
    steps: int | None  # denoising steps of a segment
    guidance: float | None  # classifier-free guidance weight; 1 is none, and costs nothing
    seed: int  # 0 (the default) to 2**64 - 1; the same seed gives the same song on every backend
    noise: FloatArray | None  # [draws, FRAMES, MELS] in drawing order, instead of the seed's noise
    context: Context | None  # sound, a file of it or a log-mel, whose last 5.12 s the song goes on from
    on_step: Callable[[], object] | None  # called after every denoising step
    on_network: Watch | None  # by a network's name, the context that each run of it is in which the host waits for


def check_options(options: SamplingOptions) -> dict[str, Any]:
    """The options that are given, checked but for sampler, steps, noise and context. Raises SamplingError."""
    unknown = set(options) - set(SamplingOptions.__annotations__)
    if unknown:
        raise SamplingError(
            f"unknown option {', '.join(sorted(unknown))}. Known: {', '.join(SamplingOptions.__annotations__)}."
        )
    given = {name: value for name, value in options.items() if value is not None}
    for name, check in _CHECKS.items():
        if name in given:
            given[name] = check(name, given[name])
    return given


def check_noise(noise: Any, segments: int | None, draws: int) -> FloatArray:
    """Given noise, enough for these segments of so many draws; for segments yet to come (None), for some."""
    array = as_array(noise)
    count = len(array) - len(array) % draws if segments is None and array.ndim else (segments or 0) * draws
    if array.shape != (count, FRAMES, MELS) or array.dtype != np.float32 or not np.isfinite(array).all():
        due = f"a multiple of {draws}" if segments is None else count
        raise SamplingError(
            f"noise is {quoted(array)}; this song, sampler and step count draw finite float32 "
            f"[{due}, {FRAMES}, {MELS}]."
        )
    return array


def check_seed(name: str, seed: Any) -> int:
    """A seed. Raises SamplingError."""
    if not is_integer(seed, 0, MAX_SEED):
        raise SamplingError(f"{name} is {quoted(seed)}; it must be an integer from 0 to 2**64 - 1.")
    return int(seed)


def _check_guidance(name: str, guidance: Any) -> float:
    if not is_number(guidance, -MAX_GUIDANCE, MAX_GUIDANCE):
        raise SamplingError(
            f"{name} is {quoted(guidance)}; it must be a number from {-MAX_GUIDANCE:g} to {MAX_GUIDANCE:g}, 1 for none."
        )
    return float(guidance)


def _check_call(name: str, call: Any) -> Any:
    if not callable(call):
        takes = "without arguments" if name == "on_step" else "of a network's name"
        raise SamplingError(f"{name} is {quoted(call)}; it must be a function {takes}, or None.")
    return call


_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "guidance": _check_guidance,
    "seed": check_seed,
    "on_step": _check_call,
    "on_network": _check_call,
}
