"""The lower bound on epsilon against independent evaluations, and its coverage."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from clients.training.audit.bound import bound_of_scores, lower_bound, p_value
from clients.training.audit.diagnostic import gaussian_epsilon


def p_value_in_fractions(canaries: int, guesses: int, right: int, odds: Fraction, delta: Fraction) -> Fraction:
    """The p-value in exact arithmetic; ``odds`` is e^epsilon."""
    rate = odds / (1 + odds)
    mass = [math.comb(guesses, k) * rate**k * (1 - rate) ** (guesses - k) for k in range(guesses + 1)]
    tail = sum(mass[right:], Fraction(0))
    alpha = max((sum(mass[right - i : right], Fraction(0)) / i for i in range(1, right + 1)), default=Fraction(0))
    return min(Fraction(1), tail + 2 * canaries * delta * alpha)


@given(
    guesses=st.integers(0, 12),
    right=st.integers(0, 12),
    more=st.integers(0, 9),
    odds=st.fractions(1, 40, max_denominator=50),
    delta=st.fractions(0, 1, max_denominator=1000),
)
def test_the_p_value_is_the_formulas_in_exact_arithmetic(
    guesses: int, right: int, more: int, odds: Fraction, delta: Fraction
) -> None:
    right, canaries = min(right, guesses), guesses + more
    exact = p_value_in_fractions(canaries, guesses, right, odds, delta)
    found = p_value(canaries=canaries, guesses=guesses, right=right, epsilon=math.log(odds), delta=float(delta))
    assert found == pytest.approx(float(exact), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(("guesses", "right"), [(408, 254), (408, 330), (2048, 1100), (2048, 2048), (2048, 1500)])
@pytest.mark.parametrize("epsilon", [0.0, 0.3, 1.0, 3.0, 6.0])
@pytest.mark.parametrize("delta", [0.0, 1e-5, 1e-3])
def test_the_p_value_agrees_with_scipys_binomial(guesses: int, right: int, epsilon: float, delta: float) -> None:
    law = stats.binom(guesses, 1 / (1 + math.exp(-epsilon)))
    alpha, added = 0.0, 0.0
    for i in range(1, right + 1):
        added += law.pmf(right - i)
        alpha = max(alpha, added / i)
    expected = min(1.0, law.sf(right - 1) + 2 * 2048 * delta * alpha)
    found = p_value(canaries=2048, guesses=guesses, right=right, epsilon=epsilon, delta=delta)
    assert found == pytest.approx(expected, rel=1e-7, abs=1e-12)


@given(
    right=st.integers(0, 60),
    delta=st.sampled_from([0.0, 1e-6, 1e-4, 1e-2]),
    confidence=st.sampled_from([0.9, 0.95, 0.975]),
)
def test_the_bound_is_where_the_p_value_reaches_the_error_probability(
    right: int, delta: float, confidence: float
) -> None:
    bound = lower_bound(canaries=60, guesses=60, right=right, delta=delta, confidence=confidence)

    def at(epsilon: float) -> float:
        return p_value(canaries=60, guesses=60, right=right, epsilon=epsilon, delta=delta)

    assert at(bound + 1e-5) >= 1 - confidence
    if bound > 0:
        assert all(at(share * bound) < 1 - confidence for share in (0.0, 0.25, 0.5, 0.9, 1.0))


@given(right=st.integers(0, 99), delta=st.sampled_from([0.0, 1e-5, 1e-3]))
def test_more_right_guesses_never_lower_the_bound_and_a_larger_delta_never_raises_it(right: int, delta: float) -> None:
    here, more = (lower_bound(canaries=120, guesses=100, right=k, delta=delta) for k in (right, right + 1))
    assert here <= more
    assert lower_bound(canaries=120, guesses=100, right=right, delta=10 * delta + 1e-6) <= here


def test_half_of_the_guesses_right_says_nothing() -> None:
    assert lower_bound(canaries=2048, guesses=2048, right=1024, delta=1e-5) == 0


def test_the_highest_bound_of_pure_differential_privacy_is_that_of_the_closed_form() -> None:
    # With all of r guesses right and delta 0, the bound solves (1 + e^-eps)^-r = 0.05.
    closed = -math.log(0.05 ** (-1 / 2048) - 1)
    assert lower_bound(canaries=2048, guesses=2048, right=2048, delta=0.0) == pytest.approx(closed, abs=1e-5)


@pytest.mark.parametrize(("delta", "ceiling"), [(1e-5, 6.24), (1e-4, 5.22)])
def test_the_ceiling_of_the_canary_block_is_about_six(delta: float, ceiling: float) -> None:
    members = np.arange(2048) % 2 == 0
    found = bound_of_scores(members.astype(np.float64), members, delta)
    assert found.epsilon == found.ceiling == pytest.approx(ceiling, abs=0.01)
    assert found.right == found.guesses


def test_scores_without_information_give_no_bound_and_do_not_lower_the_ceiling() -> None:
    generator = np.random.default_rng(1)
    members = generator.random(2048) < 0.5
    found = bound_of_scores(np.zeros(2048), members, 1e-5)
    assert found.epsilon == 0
    assert found.ceiling > 6


def test_the_bound_is_above_the_truth_in_at_most_one_run_in_twenty() -> None:
    # Randomised response attains the bound: the error of both guess counts together stays below 5 %. With 400 runs,
    # 35 or more errors have a probability below 0.1 % even at exactly 5 %.
    generator = np.random.default_rng(2)
    too_high = 0
    for _ in range(400):
        members = generator.random(500) < 0.5
        answers = members ^ (generator.random(500) >= 1 / (1 + math.exp(-1.0)))
        scores = answers + 0.5 * generator.random(500)
        too_high += bound_of_scores(scores, members, 1e-9).epsilon > 1.0
    assert too_high < 35


def test_the_bound_of_a_gaussian_mechanism_stays_below_its_epsilon() -> None:
    generator = np.random.default_rng(3)
    for separation in (0.3, 1.0, 2.0):
        truth = gaussian_epsilon(separation, 1e-5)
        for _ in range(20):
            members = generator.random(2048) < 0.5
            scores = separation * members + generator.standard_normal(2048)
            assert bound_of_scores(scores, members, 1e-5).epsilon < truth


def test_the_gaussian_reading_is_that_of_the_closed_formula() -> None:
    # delta(eps) = Phi(mu/2 - eps/mu) - e^eps Phi(-mu/2 - eps/mu), by scipy
    for separation, delta in ((0.25, 1e-5), (1.0, 1e-5), (4.0, 1e-3), (12.0, 1e-5)):
        epsilon = gaussian_epsilon(separation, delta)
        left = stats.norm.cdf(separation / 2 - epsilon / separation)
        right = math.exp(epsilon + stats.norm.logcdf(-separation / 2 - epsilon / separation))
        assert left - right == pytest.approx(delta, rel=1e-6)
    assert gaussian_epsilon(0.0, 1e-5) == gaussian_epsilon(-1.0, 1e-5) == 0


@pytest.mark.parametrize(
    "numbers",
    [
        {"right": 11},
        {"right": -1},
        {"guesses": 21, "right": 5},
        {"epsilon": -0.1},
        {"epsilon": math.nan},
        {"delta": 1.1},
    ],
)
def test_impossible_numbers_are_refused(numbers: dict[str, float]) -> None:
    good: dict[str, float] = {"canaries": 20, "guesses": 10, "right": 5, "epsilon": 1.0, "delta": 1e-5}
    with pytest.raises(ValueError):
        p_value(**{**good, **numbers})  # type: ignore[arg-type]  # parametrised
