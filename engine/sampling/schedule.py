"""Noise schedules: how much of the clean mel is left at each time.

alpha_bar is the share of the clean mel's variance in x; log-SNR is log(alpha_bar / (1 - alpha_bar)).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from notewave.checks import is_integer, require

CLOSED = "cosine-closed"
SCHEDULES = ("squaredcos_cap_v2", "cosine", CLOSED)
MAX_TRAIN_STEPS = 100_000
LOG_SNR_MAX = 20.0  # of the original's continuous schedule


@dataclass(frozen=True)
class NoiseSchedule:
    """How much noise the voice was trained to see at each time."""

    # diffusers' discrete schedule, or a continuous one with log-SNR clipped to +-20: "cosine", whose times end at 1 and
    # begin a step above 0, or "cosine-closed", whose times have both ends of [0, 1].
    name: str = "squaredcos_cap_v2"
    train_steps: int = 1000  # discrete times t / train_steps; a continuous schedule is sampled as finely

    def __post_init__(self) -> None:
        """Refuse unknown schedules, with VoiceError."""
        require(self.name in SCHEDULES, "noise schedule", self.name, f"must be one of {', '.join(SCHEDULES)}")
        in_range = is_integer(self.train_steps, 1, MAX_TRAIN_STEPS)
        require(in_range, "train_steps", self.train_steps, f"must be 1 to {MAX_TRAIN_STEPS}")


def alpha_bars(schedule: NoiseSchedule) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Noise times [train_steps] and alpha_bar [train_steps] of a schedule, from the least to the most noise."""
    index = np.arange(schedule.train_steps)
    if schedule.name != "squaredcos_cap_v2":
        times = cosine_times(schedule, schedule.train_steps)
        return times, sigmoid(cosine_log_snr(times))
    curve = np.cos((np.arange(schedule.train_steps + 1) / schedule.train_steps + 0.008) / 1.008 * np.pi / 2) ** 2
    betas = np.minimum(1.0 - curve[1:] / curve[:-1], 0.999)  # Nichol & Dhariwal 2021, capped as in diffusers
    return index / schedule.train_steps, np.cumprod(1.0 - betas)


def cosine_times(schedule: NoiseSchedule, steps: int) -> NDArray[np.float64]:
    """So many even noise times [steps] of a continuous schedule, from the least to the most noise."""
    if schedule.name == CLOSED and steps > 1:
        # To the last bit as torch.linspace gives them, from both ends in float32: the fastest sinusoid of the time
        # embedding turns by a thousandth of a radian in the least that a float32 near 1 can change.
        index, step = np.arange(steps, dtype=np.float32), np.float32(1.0) / np.float32(steps - 1)
        return np.where(index < steps // 2, index * step, 1.0 - index[::-1] * step).astype(np.float64)
    return np.arange(1, steps + 1) / steps


def cosine_log_snr(time: NDArray[np.float64]) -> NDArray[np.float64]:
    """log(alpha_bar / (1 - alpha_bar)) at continuous times in [0, 1], clipped smoothly to +-20, as in the original."""
    low = math.atan(math.exp(-0.5 * LOG_SNR_MAX))
    high = math.atan(math.exp(0.5 * LOG_SNR_MAX))
    return -2.0 * np.log(np.tan((high - low) * time + low))


def half_log_snr(alpha_bar: float) -> float:
    """lambda = log(alpha / sigma), of DPM-Solver's papers."""
    return 0.5 * math.log(alpha_bar / (1.0 - alpha_bar))


def sigmoid(log_snr: NDArray[np.float64]) -> NDArray[np.float64]:
    """alpha_bar of a log-SNR."""
    bars: NDArray[np.float64] = 1.0 / (1.0 + np.exp(-log_snr))
    return bars
