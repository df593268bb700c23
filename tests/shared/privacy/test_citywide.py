"""The city-wide worst case: composition for noise at each department, a mixture of Gaussians for shared noise."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest

from shared.privacy.accountant import MechanismEvent, calibrate_noise, epsilon
from shared.privacy.citywide import city_worst_case
from shared.privacy.plan import PrivacyBudget

DELTA = 1e-5
RATE, STEPS = 0.05, 300


@functools.cache
def calibrated(mechanism: str, target: float = 1.0) -> MechanismEvent:
    noise = calibrate_noise(budget=PrivacyBudget(epsilon=target, delta=DELTA), sample_rate=RATE, total_steps=STEPS)
    return MechanismEvent(
        mechanism=mechanism,  # type: ignore[arg-type]  # one of the two names
        noise_multiplier=noise,
        noise_shares=3 if mechanism == "shared-noise" else 1,
        sample_rate=RATE,
        steps=STEPS,
    )


def test_p3_shared_noise_over_four_departments_is_4_76_where_adding_says_4() -> None:
    found = city_worst_case([calibrated("shared-noise")], 4, DELTA)
    assert round(found.epsilon, 2) == 4.76
    assert round(found.added, 2) == 4.0


def test_noise_at_each_department_composes() -> None:
    event = calibrated("poisson-dpsgd")
    found = city_worst_case([event], 4, DELTA)
    assert found.epsilon == epsilon([event] * 4, DELTA)
    assert found.epsilon < found.added


@pytest.mark.parametrize("mechanism", ["shared-noise", "poisson-dpsgd"])
def test_one_department_is_its_own_worst_case(mechanism: str) -> None:
    event = calibrated(mechanism)
    assert city_worst_case([event], 1, DELTA).epsilon == epsilon([event], DELTA)


def test_more_departments_cost_more_and_both_mechanisms_may_meet_in_one_run() -> None:
    shared, local = calibrated("shared-noise"), calibrated("poisson-dpsgd", 0.2)
    found = [city_worst_case([shared, local], number, DELTA).epsilon for number in (1, 2, 3)]
    assert found == sorted(found)
    assert found[1] > city_worst_case([shared], 2, DELTA).epsilon


def moments_epsilon(noise: float, rates: tuple[float, ...], steps: int, delta: float) -> float:
    """An independent witness: the loss of a mixture, binned finely and convolved by our own Fourier transform."""
    grid, half = 1e-3, 60_000
    x, width = np.linspace(-14 * noise, 14 * noise + len(rates), 400_001, retstep=True)
    shares = np.poly1d([1.0])
    for rate in rates:
        shares *= np.poly1d([rate, 1 - rate])
    density = [np.exp(-((x - shift) ** 2) / (2 * noise**2)) / (noise * math.sqrt(2 * math.pi)) for shift in range(5)]
    mixed = sum(share * part for share, part in zip(shares.coeffs[::-1], density, strict=True))
    worst = 0.0
    for p, q in ((mixed, density[0]), (density[0], mixed)):
        loss = np.log(p / q)
        place = np.rint(loss / grid).astype(int)
        bins = np.bincount((place + half) % (2 * half), weights=p * width, minlength=2 * half)
        spectrum = np.fft.rfft(np.roll(bins, -half))
        whole = np.fft.irfft(spectrum**steps, 2 * half)
        values = grid * np.where(np.arange(2 * half) < half, np.arange(2 * half), np.arange(2 * half) - 2 * half)
        low, high = 0.0, 40.0
        for _ in range(60):
            middle = (low + high) / 2
            above = values > middle
            missing = float((whole[above] * -np.expm1(middle - values[above])).sum())
            low, high = (middle, high) if missing > delta else (low, middle)
        worst = max(worst, high)
    return worst


def test_the_mixture_agrees_with_a_fourier_transform_of_our_own() -> None:
    event = calibrated("shared-noise")
    found = city_worst_case([event], 4, DELTA).epsilon
    assert moments_epsilon(event.noise_multiplier, (RATE,) * 4, STEPS, DELTA) == pytest.approx(found, rel=0.002)


@pytest.mark.parametrize(("events", "departments", "delta"), [(0, 4, DELTA), (1, 0, DELTA), (1, 4, 0.0), (1, 4, 1.0)])
def test_impossible_questions_are_refused(events: int, departments: int, delta: float) -> None:
    with pytest.raises(ValueError, match="departments"):
        city_worst_case([calibrated("shared-noise")] * events, departments, delta)
