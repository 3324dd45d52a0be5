"""Samplers against what is known without them: the exact flow of a Gaussian, the papers' identities, the bounds."""

from __future__ import annotations

import math

import numpy as np
import pytest

from notewave.errors import SamplingError
from notewave.kernels.reference import sampler_step
from notewave.sampling.samplers import SAMPLERS, SamplerTable, sampler_table
from notewave.sampling.schedule import NoiseSchedule, alpha_bars, cosine_log_snr
from notewave.voice.folder import PREDICTIONS

SCHEDULES = [NoiseSchedule("squaredcos_cap_v2"), NoiseSchedule("cosine")]
MEAN, SPREAD = 0.3, 0.1  # of the Gaussian that the ideal network below knows


def ideal_prediction(x: np.ndarray, alpha_bar: float, prediction: str) -> np.ndarray:
    """What a perfect network says of x = alpha x0 + sigma eps when x0 is N(MEAN, SPREAD^2)."""
    alpha, sigma = math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar)
    x0 = MEAN + alpha * SPREAD**2 / (alpha_bar * SPREAD**2 + sigma**2) * (x - alpha * MEAN)
    eps = (x - alpha * x0) / sigma
    return {"epsilon": eps, "x0": x0, "v": alpha * eps - sigma * x0}[prediction]


def run(table: SamplerTable, bars: list[float], prediction: str, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The initial noise and the result of a table whose steps stand at these alpha_bars."""
    generator = np.random.default_rng(seed)
    start = generator.standard_normal((4000,)).astype(np.float32)
    x, previous = start.copy(), np.zeros_like(start)
    for row, bar in zip(table.rows, bars, strict=True):
        model = ideal_prediction(x.astype(np.float64), bar, prediction).astype(np.float32)
        sampler_step(x, previous, model, row, generator.standard_normal(x.shape).astype(np.float32))
    return start, x


def bars_of(name: str, schedule: NoiseSchedule, steps: int) -> list[float]:
    return [update.alpha_bar for update in SAMPLERS[name](schedule, steps)]


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: s.name)
@pytest.mark.parametrize("name", SAMPLERS)
def test_samples_have_the_distribution_of_the_data(name: str, schedule: NoiseSchedule, prediction: str) -> None:
    table = sampler_table(name, 200, schedule, prediction)
    _, result = run(table, bars_of(name, schedule, 200), prediction)
    assert abs(result.mean() - MEAN) < 0.01
    assert result.std() == pytest.approx(SPREAD, rel=0.1)


@pytest.mark.parametrize(("name", "order"), [("ddim", 1), ("dpmpp-2m", 2)])
def test_deterministic_samplers_converge_at_their_order(name: str, order: int) -> None:
    """The exact flow maps the initial noise z to about MEAN + SPREAD z; the error falls by 2^order as steps double."""
    schedule = NoiseSchedule("cosine", 100_000)

    def error(steps: int) -> float:
        start, result = run(sampler_table(name, steps, schedule, "x0"), bars_of(name, schedule, steps), "x0")
        inside = np.abs(start) < 2
        return float(np.abs(result - (MEAN + SPREAD * start))[inside].mean())

    assert error(20) / error(40) > 0.75 * 2**order


@pytest.mark.parametrize("name", SAMPLERS)
def test_predictions_are_interchangeable(name: str) -> None:
    schedule = SCHEDULES[0]
    bars = bars_of(name, schedule, 25)
    results = [run(sampler_table(name, 25, schedule, kind), bars, kind)[1] for kind in PREDICTIONS]
    for other in results[1:]:
        np.testing.assert_allclose(other, results[0], atol=2e-4)


@pytest.mark.parametrize("name", SAMPLERS)
def test_last_step_is_clean_and_draws_are_counted(name: str) -> None:
    table = sampler_table(name, 10, SCHEDULES[0], "epsilon")
    _, _, a, b, c, d, e = table.rows[-1]
    assert (a, b, c, d, e) == pytest.approx((0, 1, 0, 0, 0), abs=1e-6)
    assert table.draws == (10 if name in ("ddpm", "ancestral") else 1)
    assert (np.diff(table.time) < 0).all()


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("schedule", ["squaredcos_cap_v2", "cosine"])
@pytest.mark.parametrize("train_steps", [1, 2, 3, 10, 1000])
def test_every_step_count_makes_a_table(name: str, schedule: str, train_steps: int) -> None:
    near = {1, 2, 3, train_steps // 2, train_steps // 2 + 1, *range(train_steps - 2, train_steps + 1)}
    for steps in sorted(count for count in near if 1 <= count <= train_steps):
        for prediction in PREDICTIONS:
            table = sampler_table(name, steps, NoiseSchedule(schedule, train_steps), prediction)
            assert table.steps == steps
            assert np.isfinite(table.rows).all()
            assert (np.diff(table.time) < 0).all(), "no time comes twice"


def test_step_counts_of_numpy_are_taken() -> None:
    one, two = (sampler_table("ddpm", steps, SCHEDULES[0], "epsilon") for steps in (np.int64(10), 10))
    np.testing.assert_array_equal(one.rows, two.rows)


def test_squaredcos_is_the_cosine_curve_until_its_cap() -> None:
    times, bars = alpha_bars(SCHEDULES[0])
    curve = np.cos((times + 1 / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2 / math.cos(0.008 / 1.008 * np.pi / 2) ** 2
    np.testing.assert_allclose(bars[:-1], curve[:-1], rtol=1e-9)
    assert bars[-1] == pytest.approx(bars[-2] * 0.001)  # beta is capped at 0.999


def test_cosine_log_snr_runs_from_20_to_minus_20() -> None:
    assert cosine_log_snr(np.array([0.0, 0.5, 1.0])) == pytest.approx([20, 0, -20], abs=1e-6)


def test_clipping_keeps_x0_in_range() -> None:
    x, previous = np.full(3, 5.0, np.float32), np.zeros(3, np.float32)
    sampler_step(x, previous, np.zeros(3, np.float32), np.array([1, 0, 0, 1, 0, 0, 0], np.float32))
    np.testing.assert_array_equal(previous, np.ones(3))


def test_guidance_extrapolates_from_the_unconditional_pass() -> None:
    x, previous = np.zeros(2, np.float32), np.zeros(2, np.float32)
    row = np.array([0, -1, 0, 1, 0, 0, 0], np.float32)  # x' = x0 = m
    conditional, unconditional = np.float32([0.2, 0.4]), np.float32([0.1, 0.5])
    sampler_step(x, previous, conditional, row, unconditional=unconditional, guidance=2.0)
    np.testing.assert_allclose(x, [0.3, 0.3], rtol=1e-6)


@pytest.mark.parametrize("name", ["euler", ["ddpm"], None, b"ddpm", 10**5000], ids=lambda name: type(name).__name__)
def test_bad_samplers_are_refused(name: object) -> None:
    with pytest.raises(SamplingError, match="Choose"):
        sampler_table(name, 10, SCHEDULES[0], "epsilon")  # type: ignore[arg-type]


@pytest.mark.parametrize("steps", [0, 1001, 2.5, "9", True, None, [9], -(10**5000)], ids=lambda s: type(s).__name__)
def test_bad_step_counts_are_refused(steps: object) -> None:
    with pytest.raises(SamplingError, match="Choose"):
        sampler_table("ddim", steps, SCHEDULES[0], "epsilon")  # type: ignore[arg-type]
