"""Calibrate and sign plans at the authority."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from shared.identity import IdentityKey, Signed, sign_record
from shared.mechanisms import MECHANISMS
from shared.parameters import ExtraSpec
from shared.plan import (
    PLAN_LABEL,
    AggregationParams,
    Plan,
)
from shared.privacy.accountant import MechanismEvent, calibrate_noise
from shared.privacy.extras import KNOWN
from shared.privacy.plan import MechanismName, PrivacyBudget, PrivacyParams


def calibrated_privacy(
    budget: PrivacyBudget,
    *,
    sample_rate: float,
    steps: int,
    attempts: int,
    max_grad_norm: float,
    mechanism: MechanismName = "poisson-dpsgd",
    aggregation: AggregationParams | None = None,
    beside: Sequence[MechanismEvent] = (),
) -> PrivacyParams:
    """Return privacy parameters whose noise meets the budget over all rounds and spare attempts.

    Args:
        budget: what the whole run may cost.
        sample_rate: Poisson rate of one step.
        steps: noisy steps of one round.
        attempts: rounds plus spare attempts; all of them are charged before the first round.
        max_grad_norm: clip norm per unit.
        mechanism: who adds how much of the noise.
        aggregation: numbers of the encrypted sum, from which the shares of the noise follow; without a sum there is
            one.
        beside: the events of the run's extra coordinates, which the same budget holds.
    """
    noise = calibrate_noise(budget=budget, sample_rate=sample_rate, total_steps=steps * attempts, beside=beside)
    return PrivacyParams(
        mechanism=mechanism,
        budget=budget,
        sample_rate=sample_rate,
        steps=steps,
        max_grad_norm=max_grad_norm,
        noise_multiplier=noise,
        noise_shares=MECHANISMS[mechanism].noise_shares(aggregation) if aggregation else 1,
    )


def extras_noise(budget: PrivacyBudget, *, share: float, extras: int, attempts: int) -> float:
    """Return the noise multiplier with which all extra coordinates of a run cost a share of its epsilon.

    Args:
        budget: what the whole run may cost.
        share: part of its epsilon, in (0, 1), that the extras alone would cost.
        extras: how many are declared, each over all units.
        attempts: rounds plus spare attempts.

    Raises:
        ConfigError: ``noise-unreachable``.
    """
    part = PrivacyBudget(epsilon=share * budget.epsilon, delta=budget.delta)
    return calibrate_noise(budget=part, sample_rate=1.0, total_steps=extras * attempts)


def declare_extras(
    names: Sequence[str], *, noise_multiplier: float, public_sizes: Iterable[int], bound: float
) -> tuple[ExtraSpec, ...]:
    """Declare extra coordinates over all units, with a range that noise and public sizes hardly ever leave.

    Args:
        names: from :data:`shared.privacy.extras.KNOWN`.
        noise_multiplier: of each of them.
        public_sizes: of the departments in the plan.
        bound: R of the encrypted sum.
    """
    most_units = 2 * max(public_sizes)
    ranges = {name: KNOWN[name] * (most_units + 10 * noise_multiplier) for name in names}
    return tuple(
        ExtraSpec(
            name=name,
            unit_bound=KNOWN[name],
            sample_rate=1.0,
            noise_multiplier=noise_multiplier,
            max_abs=max_abs,
            scale=bound / max_abs * (1 - 2.0**-20),  # the rounding to float32 stays within the bound
        )
        for name, max_abs in ranges.items()
    )


def sign_plan(plan: Plan, authority: IdentityKey) -> Signed:
    """Sign a plan; departments approve the digest of exactly these bytes."""
    return sign_record(authority, PLAN_LABEL, plan)
