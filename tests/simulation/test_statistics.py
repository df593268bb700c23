from __future__ import annotations

import math
import statistics as stdlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulation.statistics import (
    arm_summary,
    gain_summary,
    mean_interval,
    overall_verdict,
    paired_difference,
    verdict,
)

scores = st.lists(st.floats(0, 1), min_size=2, max_size=20)


def student_t_mass(half_width: float, degrees_of_freedom: int) -> float:
    """Probability of [-half_width, half_width] by Simpson's rule on the density: an independent witness."""
    n = degrees_of_freedom
    constant: float = math.exp(math.lgamma((n + 1) / 2) - math.lgamma(n / 2)) / math.sqrt(n * math.pi)
    steps = 4000
    width = half_width / steps
    density = [constant * math.pow(1 + (k * width) ** 2 / n, -(n + 1) / 2) for k in range(steps + 1)]
    weights = [1, *([4, 2] * (steps // 2))[: steps - 1], 1]
    return 2 * width / 3 * math.fsum(weight * value for weight, value in zip(weights, density, strict=True))


@pytest.mark.parametrize("count", [2, 3, 10, 30])
@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_the_interval_covers_what_the_t_density_integrates_to(count: int, confidence: float) -> None:
    values = [0.7 + 0.01 * math.sin(3 * k) for k in range(count)]
    mean, interval = mean_interval(values, confidence)
    assert interval is not None
    standard_error = stdlib.stdev(values) / math.sqrt(count)
    assert mean == pytest.approx(stdlib.mean(values))
    assert (interval[0] + interval[1]) / 2 == pytest.approx(mean)
    half = (interval[1] - interval[0]) / 2
    assert student_t_mass(half / standard_error, count - 1) == pytest.approx(confidence, abs=1e-4)


def test_ten_seeds_use_the_printed_table_value() -> None:
    _, interval = mean_interval([float(k) for k in range(10)])
    assert interval is not None
    assert (interval[1] - 4.5) / (stdlib.stdev(range(10)) / math.sqrt(10)) == pytest.approx(2.262, abs=5e-4)


def test_one_value_has_a_mean_and_no_interval() -> None:
    assert mean_interval([0.7]) == (0.7, None)


@pytest.mark.parametrize("values", [[], [0.1, math.nan], [math.inf, 1.0]])
def test_missing_or_non_finite_values_are_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match="finite"):
        mean_interval(values)


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95.0])
def test_a_confidence_outside_its_range_is_refused(confidence: float) -> None:
    with pytest.raises(ValueError, match="confidence"):
        mean_interval([0.1, 0.2], confidence)


@given(scores, st.floats(-0.5, 0.5))
def test_a_shift_of_every_pair_is_found_exactly(values: list[float], shift: float) -> None:
    mean, interval = paired_difference([value + shift for value in values], values)
    assert mean == pytest.approx(shift, abs=1e-12)
    assert interval is not None
    assert interval[1] - interval[0] < 1e-12


@given(scores)
def test_swapping_the_arms_mirrors_the_interval(values: list[float]) -> None:
    other = list(reversed(values))
    mean, interval = paired_difference(values, other)
    mirrored_mean, mirrored = paired_difference(other, values)
    assert interval is not None
    assert mirrored is not None
    assert mirrored_mean == pytest.approx(-mean, abs=1e-12)
    assert mirrored == pytest.approx((-interval[1], -interval[0]), abs=1e-12)


def test_pairing_removes_the_spread_that_both_arms_share() -> None:
    local = [0.60, 0.70, 0.80, 0.65]
    federated = [0.61, 0.712, 0.811, 0.66]
    _, paired = paired_difference(federated, local)
    _, alone = mean_interval(federated)
    assert paired is not None
    assert alone is not None
    assert paired[0] > 0
    assert paired[1] - paired[0] < (alone[1] - alone[0]) / 10


def test_unequal_lengths_cannot_be_paired() -> None:
    with pytest.raises(ValueError, match="paired"):
        paired_difference([0.1, 0.2], [0.1])


@pytest.mark.parametrize(
    ("interval", "expected", "overall"),
    [
        ((0.001, 0.02), "gain", "gain"),
        ((-0.02, -0.001), "loss", "loss"),
        ((-0.01, 0.02), "no clear difference", "no clear gain"),
        ((0.0, 0.02), "no clear difference", "no clear gain"),
        ((-0.02, 0.0), "no clear difference", "no clear gain"),
        (None, "no clear difference", "no clear gain"),
    ],
)
def test_a_verdict_needs_the_whole_interval_on_one_side(
    interval: tuple[float, float] | None, expected: str, overall: str
) -> None:
    assert verdict(interval) == expected
    assert overall_verdict(interval) == overall


def test_an_arm_is_the_plain_mean_over_departments_seed_by_seed() -> None:
    arm = arm_summary({"police": [0.6, 0.8], "health": [0.8, 0.8]})
    assert arm.mean == pytest.approx(0.75)
    assert arm.departments == pytest.approx({"police": 0.7, "health": 0.8})
    assert arm.interval == mean_interval([0.7, 0.8])[1]


def test_gain_pairs_by_department_name_whatever_the_order() -> None:
    federated = {"police": [0.62, 0.83, 0.71], "health": [0.70, 0.79, 0.60]}
    local = {"health": [0.75, 0.85, 0.64], "police": [0.60, 0.80, 0.70]}
    gain = gain_summary(federated, local)
    assert gain.departments["police"].mean == pytest.approx(0.02)
    assert gain.departments["health"].verdict == "loss"
    assert gain.mean == pytest.approx((0.02 - 0.05) / 2)
    assert gain.verdict == overall_verdict(gain.interval)


def test_arms_with_other_departments_or_seeds_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="same departments"):
        gain_summary({"police": [0.1]}, {"health": [0.1]})
    with pytest.raises(ValueError, match="every seed"):
        arm_summary({"police": [0.1, 0.2], "health": [0.1]})
    with pytest.raises(ValueError, match="every department"):
        arm_summary({})
