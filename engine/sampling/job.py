"""How a batch of songs is to be denoised: everything that its caller chose, ready for a backend."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from notewave.errors import SamplingError
from notewave.kernels.layout import COEFFICIENTS
from notewave.kernels.reference import philox_normal
from notewave.sampling.context import Context, network_context
from notewave.sampling.options import (
    FRAME_BY_FRAME,
    Sampling,
    SamplingOptions,
    Watch,
    check_noise,
    check_options,
    check_seed,
)
from notewave.sampling.samplers import AUTOREGRESSIVE, SamplerTable, sampler_table
from notewave.sampling.schedule import NoiseSchedule
from notewave.sampling.windows import Windows
from notewave.sound.mel import FRAMES, MELS, FloatArray, MelRange

FIRST_CONTEXTS = ("none", "silence")


class Described(Protocol):
    """What a voice says of how its mels are drawn; ``notewave.voice.folder.Voice`` says what each means."""

    @property
    def prediction(self) -> str: ...  # noqa: D102

    @property
    def schedule(self) -> NoiseSchedule: ...  # noqa: D102

    @property
    def sampling(self) -> Sampling: ...  # noqa: D102

    @property
    def mel_range(self) -> MelRange: ...  # noqa: D102

    @property
    def first_context(self) -> str: ...  # noqa: D102

    @property
    def takes_context(self) -> bool: ...  # noqa: D102


@dataclass(frozen=True)
class Job:
    """How a batch of B songs is to be denoised, the same from its first segment to its last."""

    table: SamplerTable
    guidance: float
    seeds: tuple[int, ...]  # one a song: B
    noise: FloatArray | None  # [draws, T, M] in drawing order, instead of the seeds' noise; B is 1 then
    context: FloatArray | None = None  # [T, M] in the networks' range, that each song goes on from
    on_step: Callable[[], object] | None = None  # called after every denoising step
    on_network: Watch | None = None
    windows: Windows | None = None  # of live play, in the place of segments

    @property
    def guided(self) -> bool:
        """Whether every step also needs the unconditional decoder."""
        return self.guidance != 1.0

    def draw(self, segment: int, draw: int, out: FloatArray) -> None:
        """Fill out [B, T, M] with one draw of one segment."""
        if self.noise is not None:
            out[0] = self.noise[segment * self.table.draws + draw]
            return
        for seed, row in zip(self.seeds, out, strict=True):
            philox_normal(seed, segment, draw, row)

    def watched(self, network: str) -> AbstractContextManager[object]:
        """What a run of a network is in, where the host waits for it: whatever the caller asked for."""
        return contextlib.nullcontext() if self.on_network is None else self.on_network(network)


def make_job(
    options: SamplingOptions, voice: Described, *, segments: int | None = None, seeds: Sequence[int] | None = None
) -> Job:
    """The job of these options for a voice, which recommends what they leave out.

    segments: of the song, where it is known. seeds: of songs side by side, in the place of the option. Raises
    SamplingError for what cannot be.
    """
    chosen = {**vars(voice.sampling), "seed": 0, **check_options(options)}
    table = _table(chosen, voice)
    noise = chosen.get("noise")
    if noise is not None:
        noise = check_noise(noise, segments, table.draws)
    given = (chosen["seed"],) if seeds is None else tuple(check_seed("a seed", seed) for seed in seeds)
    if not given or (noise is not None and len(given) != 1):
        raise SamplingError(f"there are {len(given)} seeds; there must be one a song, and with given noise one song.")
    context = _context(chosen.get("context"), voice)
    return Job(table, chosen["guidance"], given, noise, context, *map(chosen.get, ("on_step", "on_network")))


def _table(chosen: Mapping[str, Any], voice: Described) -> SamplerTable:
    """The sampler's, which is empty for a voice that has none."""
    if voice.prediction != AUTOREGRESSIVE:
        return sampler_table(chosen["sampler"], chosen["steps"], voice.schedule, voice.prediction)
    others = [name for name, value in vars(FRAME_BY_FRAME).items() if chosen[name] != value]
    if others := others + ["noise"] * (chosen.get("noise") is not None):
        raise SamplingError(
            f"this voice writes its mel frame by frame, without noise: there is no {others[0]} to choose. Leave it out."
        )
    return SamplerTable(np.empty(0, np.float32), np.empty((0, len(COEFFICIENTS)), np.float32))


def _context(given: Context | None, voice: Described) -> FloatArray | None:
    """What a song goes on from [T, M], in the networks' range. Raises SamplingError for what it can't."""
    if given is None:
        is_silence = voice.first_context == "silence"
        return np.full((FRAMES, MELS), voice.mel_range.silence, np.float32) if is_silence else None
    if not voice.takes_context:
        raise SamplingError("this voice has no context encoder: its songs go on from nothing. Leave the context out.")
    return network_context(given, voice.mel_range)
