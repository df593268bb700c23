"""A diagnostic of the canary run under a Gaussian model: it estimates, it proves nothing (privacy 7).

The scores of canaries that were out are noise alone: their spread measures the noise that training really added.
The scores of those that were in lie higher by the share of steps that really sampled them. Both can be held against
the plan. Reading them as two normal laws also gives an epsilon; that one is an estimate only.
"""

from __future__ import annotations

import math
from statistics import NormalDist

from clients.training.audit.canaries import CanaryRun
from clients.training.clipping import CLIP_MARGIN
from shared.codec import Record

STANDARD_ERRORS = 5
"""Deviations up to this many standard errors are chance: one false alarm in more than a million audits."""

MAX_EPSILON = 1000.0

ONE_SIDED = NormalDist().inv_cdf(0.95)


class Diagnostic(Record, frozen=True, kw_only=True):
    """What the scores say about the two numbers on which the accountant relies.

    Attributes:
        noise: measured standard deviation of the noise over the plan's; 1 is right, below 1 is too little.
        noise_error: standard error of ``noise``.
        contribution: measured mean contribution of a canary over the plan's; above 1 is too much.
        contribution_error: standard error of ``contribution``.
        epsilon: estimate under the Gaussian model at the claim's delta.
        epsilon_low: the same one-sided 95 % below.
        deviates: noise too small or contribution too large by more than five standard errors.
    """

    noise: float
    noise_error: float
    contribution: float
    contribution_error: float
    epsilon: float
    epsilon_low: float
    deviates: bool


def diagnose(run: CanaryRun, delta: float) -> Diagnostic:
    """Measure noise and contribution of a canary run and estimate its epsilon.

    Args:
        run: with at least two canaries in and two out.
        delta: at which epsilon is estimated.
    """
    privacy, inside, outside = run.privacy, run.scores[run.members], run.scores[~run.members]
    spread = float(outside.std(ddof=1))
    expected_spread = privacy.noise_multiplier * math.sqrt(privacy.steps)
    expected_shift = privacy.sample_rate * privacy.steps * CLIP_MARGIN
    shift = float(inside.mean() - outside.mean())
    shift_error = math.sqrt(float(inside.var(ddof=1)) / inside.size + spread**2 / outside.size)
    noise, noise_error = spread / expected_spread, 1 / math.sqrt(2 * (outside.size - 1))
    contribution, contribution_error = shift / expected_shift, shift_error / expected_shift
    low = (shift - ONE_SIDED * shift_error) / (spread * (1 + noise_error))
    return Diagnostic(
        noise=noise,
        noise_error=noise_error,
        contribution=contribution,
        contribution_error=contribution_error,
        epsilon=gaussian_epsilon(shift / spread, delta),
        epsilon_low=gaussian_epsilon(low, delta),
        deviates=bool(
            noise < 1 - STANDARD_ERRORS * noise_error or contribution > 1 + STANDARD_ERRORS * contribution_error
        ),
    )


def gaussian_epsilon(separation: float, delta: float) -> float:
    """Return the epsilon at delta of two unit normals at this distance (0 for a distance not above 0).

    Source: Dong, Roth, Su 2022, Corollary 2.13. For a sampled mechanism it is a reading of the scores and not what
    the mechanism costs.
    """
    low, high = 0.0, MAX_EPSILON
    if _delta_of(separation, low) <= delta:
        return low
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if _delta_of(separation, middle) <= delta else (middle, high)
    return high


def _delta_of(separation: float, epsilon: float) -> float:
    """Return delta(epsilon) of two unit normals at this distance."""
    if separation <= 0:
        return 0.0
    reach = epsilon / separation
    lost = _below(separation / 2 - reach)
    tail = _below(-separation / 2 - reach)
    return lost - math.exp(epsilon + math.log(tail)) if tail > 0 else lost


def _below(value: float) -> float:
    """Return the normal distribution function; by erfc, which keeps its digits in the lower tail."""
    return 0.5 * math.erfc(-value / math.sqrt(2))
