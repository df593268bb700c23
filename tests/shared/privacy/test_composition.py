"""Composition on adaptive grids: always from above, close to the finest grid, and mixtures against plain integration."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.privacy.composition import COARSEST, FINEST, Composition, Step, composed_epsilon, copies, grid_step

DELTA = 1e-5


def on_grid(parts: Composition, delta: float, grid: float) -> float:
    """The library's own figure on a fixed grid."""
    from dp_accounting import pld

    accountant = pld.PLDAccountant(value_discretization_interval=grid)
    import dp_accounting

    for step, count in parts:
        gaussian = dp_accounting.GaussianDpEvent(step.noise_multiplier)
        accountant.compose(dp_accounting.PoissonSampledDpEvent(step.sample_rates[0], gaussian), count)
    return float(accountant.get_epsilon(delta))


def unlike(count: int) -> Composition:
    chance = random.Random(5)
    return tuple(
        sorted(
            (Step(round(chance.uniform(2, 6), 4), (round(chance.uniform(0.01, 0.1), 4),)), chance.randint(50, 600))
            for _ in range(count)
        )
    )


@pytest.mark.parametrize(
    "parts",
    [
        ((Step(1.0, (0.01,)), 1000),),
        ((Step(0.7, (0.02,)), 500),),
        ((Step(8.0, (0.06,)), 2000),),
        ((Step(20.0, (0.01,)), 300),),
        unlike(3),
    ],
)
def test_p3_few_mechanisms_lie_just_above_a_much_finer_grid(parts: Composition) -> None:
    exact = on_grid(parts, DELTA, grid_step(parts) / 4)
    assert exact * (1 - 1e-9) <= composed_epsilon(parts, DELTA) <= exact * 1.0002


def test_p3_many_mechanisms_lie_just_above_a_much_finer_grid() -> None:
    parts = unlike(12)
    assert grid_step(parts) == COARSEST
    exact = on_grid(parts, DELTA, 2e-4)
    assert exact * (1 - 1e-9) <= composed_epsilon(parts, DELTA) <= exact * 1.001


@given(noise=st.floats(0.3, 1e6), rate=st.floats(1e-6, 1.0), count=st.integers(1, 10**6), crowd=st.integers(0, 20))
def test_a_grid_exists_for_every_mechanism_that_can_be_written_down(
    noise: float, rate: float, count: int, crowd: int
) -> None:
    parts = ((Step(noise, (rate,)), count), *((Step(2.0 + index, (0.1,)), 5) for index in range(crowd)))
    assert FINEST <= grid_step(parts) <= COARSEST
    assert math.log2(grid_step(parts) / FINEST).is_integer()


def test_coins_of_unlike_rates_are_counted_exactly() -> None:
    assert copies([0.3]) == [0.7, 0.3]
    assert copies([0.5, 0.5]) == [0.25, 0.5, 0.25]
    assert copies([0.1, 0.2, 0.0]) == pytest.approx([0.72, 0.26, 0.02, 0.0])


@settings(max_examples=30, deadline=None)
@given(rates=st.lists(st.floats(0.001, 1.0), min_size=1, max_size=6))
def test_the_numbers_of_copies_are_a_distribution(rates: list[float]) -> None:
    found = copies(rates)
    assert math.fsum(found) == pytest.approx(1)
    assert math.fsum(number * share for number, share in enumerate(found)) == pytest.approx(math.fsum(rates))


def integrated_delta(noise: float, rates: list[float], eps: float) -> float:
    """The hockey-stick divergence of one step in both directions by a plain sum over the line."""
    x, width = np.linspace(-15 * noise, 15 * noise + len(rates), 40_001, retstep=True)
    densities = [
        np.exp(-((x - shift) ** 2) / (2 * noise**2)) / (noise * math.sqrt(2 * math.pi))
        for shift in range(len(rates) + 1)
    ]
    with_record = sum(share * density for share, density in zip(copies(rates), densities, strict=True))
    without = densities[0]
    sides = ((with_record, without), (without, with_record))
    return max(float(np.maximum(p - math.exp(eps) * q, 0).sum() * width) for p, q in sides)


@pytest.mark.parametrize(("noise", "rates"), [(1.0, [0.1, 0.1, 0.1, 0.1]), (0.8, [0.3, 0.05]), (2.0, [0.5] * 3)])
def test_one_step_with_several_copies_is_the_integral_of_its_mixture(noise: float, rates: list[float]) -> None:
    delta = 1e-4
    found = composed_epsilon(((Step(noise, tuple(rates)), 1),), delta)
    assert integrated_delta(noise, rates, found) <= delta
    assert integrated_delta(noise, rates, found * 0.998) > delta


def test_more_copies_cost_more() -> None:
    once, twice = ((Step(1.5, (0.1,)), 50),), ((Step(1.5, (0.1, 0.1)), 50),)
    assert composed_epsilon(once, DELTA) < composed_epsilon(twice, DELTA)


def test_replace_one_of_a_full_batch_is_twice_the_distance() -> None:
    assert composed_epsilon(((Step(4.0, (1.0,), "replace-one"), 9),), DELTA) == pytest.approx(
        composed_epsilon(((Step(2.0, (1.0,)), 9),), DELTA), rel=1e-4
    )


def test_several_copies_are_not_defined_for_replacement() -> None:
    with pytest.raises(ValueError, match="add-remove only"):
        composed_epsilon(((Step(1.0, (0.1, 0.1), "replace-one"), 1),), DELTA)
