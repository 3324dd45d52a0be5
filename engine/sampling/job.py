"""How a batch of songs is to be denoised: everything that its caller chose, ready for a backend."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from notewave.errors import SamplingError
from notewave.kernels.reference import philox_normal
from notewave.sampling.options import Sampling, SamplingOptions, Watch, check_noise, check_options, check_seed
from notewave.sampling.samplers import SamplerTable, sampler_table
from notewave.sampling.schedule import NoiseSchedule
from notewave.sampling.windows import Windows
from notewave.sound.mel import FloatArray


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
    options: SamplingOptions,
    recommended: Sampling,
    schedule: NoiseSchedule,
    prediction: str,
    *,
    segments: int | None = None,
    seeds: Sequence[int] | None = None,
) -> Job:
    """The job of these options for a voice of this schedule and prediction, which recommends what they leave out.

    segments: of the song, where it is known. seeds: of songs side by side, in the place of the option. Raises
    SamplingError for what cannot be.
    """
    chosen = {**vars(recommended), "seed": 0, **check_options(options)}
    table = sampler_table(chosen["sampler"], chosen["steps"], schedule, prediction)
    noise = chosen.get("noise")
    if noise is not None:
        noise = check_noise(noise, segments, table.draws)
    given = (chosen["seed"],) if seeds is None else tuple(check_seed("a seed", seed) for seed in seeds)
    if not given or (noise is not None and len(given) != 1):
        raise SamplingError(f"there are {len(given)} seeds; there must be one a song, and with given noise one song.")
    return Job(table, chosen["guidance"], given, noise, *map(chosen.get, ("context", "on_step", "on_network")))
