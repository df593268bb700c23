"""The accountant against its oracle table and independent witnesses (privacy 5)."""

from __future__ import annotations

import importlib.metadata
import math
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.errors import ConfigError
from shared.privacy.accountant import (
    ACCOUNTANT,
    NOISE_GRID,
    ORDERS,
    MechanismEvent,
    calibrate_noise,
    calibrate_within,
    epsilon,
    event_of,
    filter_constant,
    filter_epsilon,
    rdp,
    replace_one_epsilon,
)
from shared.privacy.plan import PrivacyBudget, PrivacyParams

ORACLE = [
    (1.0, 0.01, 1000, 1e-5, 1.828),
    (0.7, 0.02, 500, 1e-5, 6.654),
    (2.0, 0.2, 200, 1e-4, 6.429),
    (0.5, 0.001, 2000, 1e-6, 4.655),
]


def event(noise_multiplier: float, sample_rate: float, steps: int) -> MechanismEvent:
    return MechanismEvent(noise_multiplier=noise_multiplier, sample_rate=sample_rate, steps=steps)


def gaussian_epsilon(noise_multiplier: float, steps: int, delta: float) -> float:
    """Epsilon of composed full-batch Gaussians in closed form (Balle and Wang 2018, Theorem 8), by bisection."""
    sensitivity = math.sqrt(steps) / noise_multiplier

    def normal_cdf(x: float) -> float:
        return math.erfc(-x / math.sqrt(2)) / 2

    def delta_at(eps: float) -> float:
        first = normal_cdf(sensitivity / 2 - eps / sensitivity)
        return first - math.exp(eps) * normal_cdf(-sensitivity / 2 - eps / sensitivity)

    low, high = 0.0, 200.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if delta_at(middle) > delta else (low, middle)
    return high


@pytest.mark.parametrize(("noise_multiplier", "sample_rate", "steps", "delta", "expected"), ORACLE)
def test_epsilon_is_the_oracles(
    noise_multiplier: float, sample_rate: float, steps: int, delta: float, expected: float
) -> None:
    assert round(epsilon([event(noise_multiplier, sample_rate, steps)], delta), 3) == expected


@pytest.mark.parametrize(("noise_multiplier", "sample_rate", "steps", "delta", "expected"), ORACLE)
def test_opacus_prv_accountant_agrees_within_one_percent(
    noise_multiplier: float, sample_rate: float, steps: int, delta: float, expected: float
) -> None:
    from opacus.accountants import PRVAccountant

    witness = PRVAccountant()
    witness.history = [(noise_multiplier, sample_rate, steps)]
    assert witness.get_epsilon(delta) == pytest.approx(expected, rel=0.01)
    assert epsilon([event(noise_multiplier, sample_rate, steps)], delta) == pytest.approx(
        witness.get_epsilon(delta), rel=0.01
    )


@pytest.mark.parametrize("noise_multiplier", [1.0, 5.0, 20.0])
@pytest.mark.parametrize("steps", [1, 12, 100])
@pytest.mark.parametrize("delta", [1e-4, 1e-9])
def test_full_batch_epsilon_is_the_closed_formula_from_above(noise_multiplier: float, steps: int, delta: float) -> None:
    exact = gaussian_epsilon(noise_multiplier, steps, delta)
    found = epsilon([event(noise_multiplier, 1.0, steps)], delta)
    assert exact <= found <= exact * 1.01


def test_twelve_runs_of_three_quarters_compose_to_2_73() -> None:
    noise_multiplier = calibrate_noise(budget=PrivacyBudget(epsilon=0.75, delta=1e-5), sample_rate=0.05, total_steps=60)
    runs = [event(noise_multiplier, 0.05, 60)] * 12
    assert round(epsilon(runs, 1e-5), 2) == 2.73


def test_composition_depends_neither_on_order_nor_on_how_steps_are_split() -> None:
    mixed = [event(2.0, 0.1, 30), event(3.0, 0.05, 50), event(2.0, 0.1, 20)]
    together = [event(3.0, 0.05, 50), event(2.0, 0.1, 50)]
    assert epsilon(mixed, 1e-5) == epsilon(together, 1e-5)
    assert epsilon(mixed, 1e-5) > epsilon([event(2.0, 0.1, 50)], 1e-5)


def test_a_delta_lost_in_rounding_promises_nothing() -> None:
    assert epsilon([event(100.0, 0.01, 1)], 1e-12) == math.inf


def test_nothing_costs_nothing_and_delta_is_a_probability() -> None:
    assert epsilon([], 1e-5) == 0
    assert filter_epsilon([], 1e-5) == 0
    for wrong in (0.0, 1.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="delta"):
            epsilon([event(1.0, 0.1, 1)], wrong)
        with pytest.raises(ValueError, match="delta"):
            filter_epsilon([event(1.0, 0.1, 1)], wrong)


@pytest.mark.parametrize(
    "fields",
    [
        {"noise_multiplier": 0.0},
        {"noise_multiplier": math.nan},
        {"sample_rate": 0.0},
        {"sample_rate": 1.5},
        {"steps": 0},
    ],
)
def test_an_impossible_mechanism_cannot_be_written_down(fields: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"lies in|at least"):
        MechanismEvent(**({"noise_multiplier": 1.0, "sample_rate": 0.1, "steps": 1} | fields))  # type: ignore[arg-type]  # mixed on purpose


def test_event_of_a_plan_counts_every_attempt() -> None:
    privacy = PrivacyParams(
        budget=PrivacyBudget(epsilon=1, delta=1e-4), sample_rate=0.05, steps=30, max_grad_norm=0.1, noise_multiplier=2
    )
    assert event_of(privacy, 14) == event(2.0, 0.05, 420)
    assert event_of(privacy, 14) == event_of(privacy, 1).times(14)
    assert privacy.accountant == ACCOUNTANT


def test_the_accountants_name_is_the_installed_version() -> None:
    installed = importlib.metadata.version("dp-accounting")
    assert f"dp-accounting {'.'.join(installed.split('.')[:2])} PLD" == ACCOUNTANT


@pytest.mark.parametrize(
    ("target", "delta", "sample_rate", "total_steps"),
    [
        (1.0, 1e-4, 0.06, 360),
        (3.0, 1e-4, 0.06, 360),
        (0.1, 1e-5, 0.05, 100),
        (1.0, 1e-5, 1.0, 20),
        (4.0, 1e-5, 0.1, 100),
    ],
)
def test_calibrated_noise_is_the_least_of_its_grid(
    target: float, delta: float, sample_rate: float, total_steps: int
) -> None:
    budget = PrivacyBudget(epsilon=target, delta=delta)
    noise_multiplier = calibrate_noise(budget=budget, sample_rate=sample_rate, total_steps=total_steps)
    multiple = round(noise_multiplier * NOISE_GRID)
    assert multiple / NOISE_GRID == noise_multiplier
    assert epsilon([event(noise_multiplier, sample_rate, total_steps)], delta) <= target
    assert epsilon([event((multiple - 1) / NOISE_GRID, sample_rate, total_steps)], delta) > target


@settings(max_examples=5, deadline=None)
@given(
    target=st.floats(0.2, 3.0),
    sample_rate=st.floats(0.03, 0.3),
    total_steps=st.integers(20, 600),
)
def test_calibrated_noise_never_exceeds_the_budget(target: float, sample_rate: float, total_steps: int) -> None:
    budget = PrivacyBudget(epsilon=target, delta=1e-5)
    noise_multiplier = calibrate_noise(budget=budget, sample_rate=sample_rate, total_steps=total_steps)
    assert epsilon([event(noise_multiplier, sample_rate, total_steps)], 1e-5) <= target


def test_calibration_stops_at_what_a_plan_may_name() -> None:
    generous = PrivacyBudget(epsilon=50, delta=1e-3)
    assert calibrate_noise(budget=generous, sample_rate=0.001, total_steps=10) == 0.3
    with pytest.raises(ConfigError) as caught:
        calibrate_noise(budget=PrivacyBudget(epsilon=0.001, delta=1e-9), sample_rate=0.9, total_steps=10_000)
    assert caught.value.code == "noise-unreachable"


def test_filter_constant_is_at_most_one() -> None:
    assert round(filter_constant(), 2) == 0.44
    assert filter_constant() <= 1


def test_rdp_of_a_full_batch_is_the_closed_formula() -> None:
    assert rdp(event(3.0, 1.0, 7)) == pytest.approx([7 * order / (2 * 9.0) for order in ORDERS])


def test_rdp_of_a_sampled_step_is_the_binomial_sum() -> None:
    """Mironov, Talwar and Zhang 2019, section 3.3, for integer orders."""
    noise_multiplier, rate = 1.3, 0.04
    for order, found in zip(ORDERS, rdp(event(noise_multiplier, rate, 1)), strict=True):
        terms = (
            math.comb(order, k)
            * (1 - rate) ** (order - k)
            * rate**k
            * math.exp(min(k * (k - 1) / (2 * noise_multiplier**2), 700))
            for k in range(order + 1)
        )
        if order <= 32:  # above, the plain sum overflows
            assert found == pytest.approx(math.log(math.fsum(terms)) / (order - 1), rel=1e-9)


def test_the_filters_figure_is_the_least_cap_that_an_order_admits() -> None:
    spent, plan = [event(4.0, 0.05, 100)], event(3.0, 0.05, 100)
    figure = filter_epsilon([*spent, plan], 1e-5)
    left = [
        figure - math.log(filter_constant() / 1e-5) / (order - 1) - a - b
        for order, a, b in zip(ORDERS, rdp(spent[0]), rdp(plan), strict=True)
    ]
    assert max(left) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize(("target", "low", "high"), [(3.0, 3.8, 4.1), (1.0, 1.36, 1.38)])
def test_a_fixed_plan_fits_a_filter_cap_of_one_point_four_times_its_epsilon(
    target: float, low: float, high: float
) -> None:
    budget = PrivacyBudget(epsilon=target, delta=1e-4)
    noise_multiplier = calibrate_noise(budget=budget, sample_rate=0.05, total_steps=300)
    figure = filter_epsilon([event(noise_multiplier, 0.05, 300)], 1e-4)
    assert low <= figure <= high
    assert figure <= 1.4 * target


@settings(max_examples=12, deadline=None)
@given(
    plans=st.lists(
        st.builds(
            event,
            st.sampled_from([1.5, 2.5, 4.0, 9.0]),
            st.sampled_from([0.05, 0.2]),
            st.integers(1, 400),
        ),
        max_size=8,
    ),
    cap=st.sampled_from([0.5, 1.0, 3.0]),
)
def test_p3_the_filter_never_admits_beyond_the_cap(plans: list[MechanismEvent], cap: float) -> None:
    spent: list[MechanismEvent] = []
    for plan in plans:
        if filter_epsilon([*spent, plan], 1e-5) <= cap:
            spent.append(plan)
    assert epsilon(spent, 1e-5) <= cap
    assert filter_epsilon(spent, 1e-5) <= cap


def test_importing_the_accountant_and_the_ledger_loads_no_heavy_module() -> None:
    program = (
        "import sys, shared.privacy.ledger;"
        "print([name for name in ('torch', 'opacus', 'flwr', 'pandas', 'dp_accounting', 'scipy') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"


def test_replace_one_is_6_43_against_13_6_and_never_the_smaller_figure() -> None:
    plan = [event(2.0, 0.2, 200)]
    assert round(epsilon(plan, 1e-4), 2) == 6.43
    assert round(replace_one_epsilon(plan, 1e-4), 1) == 13.6
    assert replace_one_epsilon([], 1e-4) == 0
    with pytest.raises(ValueError, match="delta"):
        replace_one_epsilon(plan, 0.0)


def test_noise_on_top_of_what_is_spent_is_the_least_that_the_filter_admits() -> None:
    spent, cap = [event(3.0, 0.05, 200)], PrivacyBudget(epsilon=3.0, delta=1e-5)
    least = calibrate_within(spent=spent, budget=cap, sample_rate=0.05, total_steps=300)
    assert filter_epsilon([*spent, event(least, 0.05, 300)], cap.delta) <= cap.epsilon
    assert filter_epsilon([*spent, event(least - 1 / NOISE_GRID, 0.05, 300)], cap.delta) > cap.epsilon
    assert least > calibrate_within(spent=[], budget=cap, sample_rate=0.05, total_steps=300)
    with pytest.raises(ConfigError) as caught:
        calibrate_within(spent=[event(0.5, 0.1, 500)], budget=cap, sample_rate=0.05, total_steps=300)
    assert caught.value.code == "noise-unreachable"
