"""Samplers as tables: one row of coefficients a denoising step, computed once in float64, run by one branch-free loop.

Each sampler is a function from a noise schedule and a step count to its ``Update`` list, to be read beside its paper.
Notation: alpha_bar is the share of the clean mel's variance in x, alpha = sqrt(alpha_bar), sigma = sqrt(1 - alpha_bar),
x = alpha x0 + sigma eps; a prime marks the next, less noisy time; lambda = log(alpha / sigma).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from notewave.checks import is_integer, quoted
from notewave.errors import SamplingError
from notewave.kernels.layout import COEFFICIENTS
from notewave.sampling.schedule import (
    CLOSED,
    NoiseSchedule,
    alpha_bars,
    cosine_log_snr,
    cosine_times,
    half_log_snr,
    sigmoid,
)

PREDICTIONS = ("epsilon", "x0", "v")  # what a network may give: the noise, the clean mel, the velocity
AUTOREGRESSIVE = "autoregressive"  # or the next frame, in the place of which there is no sampler


@dataclass(frozen=True)
class Update:
    """x' = x_ x + x0 x0 + x0_previous x0_previous + noise noise + eps eps, at one time of one sampler."""

    time: float  # noise time t in [0, 1] given to the network
    alpha_bar: float  # at this time
    x: float = 0.0
    x0: float = 0.0
    x0_previous: float = 0.0
    noise: float = 0.0
    eps: float = 0.0


@dataclass(frozen=True)
class SamplerTable:
    """The whole of a sampler, S steps: see ``notewave.kernels.reference.sampler_step`` for what a row means."""

    time: NDArray[np.float32]  # [S], noise time for the time embedding
    rows: NDArray[np.float32]  # [S, 7], COEFFICIENTS

    @property
    def steps(self) -> int:
        """S."""
        return len(self.rows)

    @property
    def noisy(self) -> NDArray[np.bool_]:
        """Which steps add noise [S]."""
        added: NDArray[np.bool_] = self.rows[:, COEFFICIENTS.index("d")] != 0.0
        return added

    @property
    def draws(self) -> int:
        """Noise tensors drawn for one segment: the initial one, and one for each step that adds noise."""
        return 1 + int(np.count_nonzero(self.noisy))


def sampler_table(sampler: str, steps: int, schedule: NoiseSchedule, prediction: str) -> SamplerTable:
    """Table of a sampler by name for a voice's schedule and prediction ("epsilon", "x0" or "v").

    Raises SamplingError for an unknown sampler or a step count that it cannot take.
    """
    if not isinstance(sampler, str) or sampler not in SAMPLERS:
        raise SamplingError(f"there is no sampler {quoted(sampler)}. Choose one of {', '.join(SAMPLERS)}.")
    if not is_integer(steps, 1, schedule.train_steps):
        raise SamplingError(
            f"{sampler} cannot take {quoted(steps)} steps: the voice's schedule has {schedule.train_steps}. "
            f"Choose an integer from 1 to {schedule.train_steps}."
        )
    updates = SAMPLERS[sampler](schedule, int(steps))
    rows = [_row(update, prediction) for update in updates]
    return SamplerTable(np.array([update.time for update in updates], np.float32), np.array(rows, np.float32))


def _row(update: Update, prediction: str) -> tuple[float, ...]:
    """Express x0 and eps by x and what the network gives (Ho et al. 2020 for eps, Salimans & Ho 2022 for v)."""
    alpha, sigma = math.sqrt(update.alpha_bar), math.sqrt(1.0 - update.alpha_bar)
    p, q, eps_by_x, eps_by_model = {
        "epsilon": (1.0 / alpha, sigma / alpha, 0.0, 1.0),
        "v": (alpha, sigma, sigma, alpha),
        "x0": (0.0, -1.0, 1.0 / sigma, -alpha / sigma),
    }[prediction]
    a = update.x + update.eps * eps_by_x
    return p, q, a, update.x0, update.x0_previous, update.noise, update.eps * eps_by_model


def ddpm(schedule: NoiseSchedule, steps: int) -> list[Update]:
    """Ho et al. 2020, eq. 7, with the larger variance beta ("fixed_large"), as diffusers' DDPMScheduler."""
    updates = []
    for time, now, after in _leading(schedule, steps):
        alpha_step = now / after
        beta = 1.0 - alpha_step
        updates.append(
            Update(
                time,
                now,
                x=math.sqrt(alpha_step) * (1.0 - after) / (1.0 - now),
                x0=math.sqrt(after) * beta / (1.0 - now),
                noise=math.sqrt(beta) if after < 1.0 else 0.0,
            )
        )
    return updates


def ddim(schedule: NoiseSchedule, steps: int) -> list[Update]:
    """Song et al. 2021, eq. 12 with eta = 0; eps stays the network's own when x0 is clipped, as in diffusers."""
    return [
        Update(time, now, x0=math.sqrt(after), eps=math.sqrt(1.0 - after))
        for time, now, after in _leading(schedule, steps)
    ]


def dpmpp_2m(schedule: NoiseSchedule, steps: int) -> list[Update]:
    """DPM-Solver++(2M), Lu et al. 2022, algorithm 2; first order at both ends; times evenly spaced, none twice."""
    times, bars = alpha_bars(schedule)
    last = schedule.train_steps - 1
    grid = np.linspace(last, 0, min(steps, last) + 1).round().astype(int)[:steps]
    ladder = [float(bars[index]) for index in grid] + [1.0]
    updates: list[Update] = []
    h_before = 0.0
    for index, now, after in zip(grid, ladder[:-1], ladder[1:], strict=True):
        if after == 1.0:  # to the clean mel itself, where lambda is infinite
            updates.append(Update(float(times[index]), now, x0=1.0))
            continue
        h = half_log_snr(after) - half_log_snr(now)
        extrapolation = 0.5 * h / h_before if updates else 0.0  # 1 / (2 r), r = h_before / h
        gain = math.sqrt(after) * -math.expm1(-h)
        updates.append(
            Update(
                float(times[index]),
                now,
                x=math.sqrt((1.0 - after) / (1.0 - now)),
                x0=gain * (1.0 + extrapolation),
                x0_previous=-gain * extrapolation,
            )
        )
        h_before = h
    return updates


def ancestral(schedule: NoiseSchedule, steps: int) -> list[Update]:
    """The original's sampler: continuous time, cosine log-SNR; Kingma et al. 2021, eq. 32 to 34.

    The noise's variance is "large" as in the original, or the posterior's own ("small") as in the PyTorch port, whose
    times the schedule "cosine-closed" has. It ignores the discrete times of a voice that has such: the same weights
    take any time in [0, 1].
    """
    times = cosine_times(schedule, steps)
    snrs = cosine_log_snr(times)
    bars = sigmoid(snrs)
    updates = [Update(float(times[0]), float(bars[0]), x0=1.0)]
    for index in range(1, steps):
        now, after = float(bars[index]), float(bars[index - 1])
        change = float(snrs[index] - snrs[index - 1])
        kept, replaced = math.exp(change), -math.expm1(change)
        noise = math.sqrt(replaced * (1.0 - (after if schedule.name == CLOSED else now)))
        x, x0 = kept * math.sqrt(after / now), replaced * math.sqrt(after)
        updates.append(Update(float(times[index]), now, x=x, x0=x0, noise=noise))
    return updates[::-1]


SAMPLERS: dict[str, Callable[[NoiseSchedule, int], list[Update]]] = {
    "ddpm": ddpm,
    "ddim": ddim,
    "dpmpp-2m": dpmpp_2m,
    "ancestral": ancestral,
}


def _leading(schedule: NoiseSchedule, steps: int) -> list[tuple[float, float, float]]:
    """(time, alpha_bar, next alpha_bar) at diffusers' "leading" times: multiples of train_steps // steps."""
    times, bars = alpha_bars(schedule)
    stride = schedule.train_steps // steps
    indices = [step * stride for step in reversed(range(steps))]
    return [(float(times[i]), float(bars[i]), float(bars[i - stride]) if i else 1.0) for i in indices]
