"""What a plan costs whoever is in a department's data, as one record that goes with the model (privacy 1)."""

from __future__ import annotations

from typing import Literal

from shared.codec import Record
from shared.plan import Plan
from shared.privacy.accountant import epsilon
from shared.privacy.citywide import CityWorstCase, city_worst_case
from shared.privacy.extras import plan_events
from shared.privacy.plan import MechanismName, PrivacyParams, PrivacyUnit


class PrivacyTerms(Record, frozen=True, kw_only=True):
    """What an epsilon is about; :mod:`shared.report.promises` has words for each term.

    ``steps`` are the noisy steps of one round; with shared noise as many as ``noise_shares`` honest departments' noise
    adds up in every sum.
    """

    unit: PrivacyUnit
    relation: Literal["add-remove"]
    mechanism: MechanismName
    sampling: str
    sample_rate: float
    noise_multiplier: float
    max_grad_norm: float
    steps: int
    accountant: str
    noise_shares: int = 1


class MetricTerms(Record, frozen=True, kw_only=True):
    """One noised number that rode in every update: standard deviation of one department's noise on its sum."""

    name: str
    noise_stddev: float


class PrivacyStatement(PrivacyTerms, frozen=True, kw_only=True):
    """What a plan costs at one department and in the whole city, all rounds and spare attempts included.

    ``lone_share_epsilon`` is the cost if every update could be read alone; the same as ``epsilon`` where each
    department adds all noise itself.
    """

    epsilon: float
    delta: float
    rounds: int
    spare_attempts: int
    lone_share_epsilon: float
    city_worst_case: CityWorstCase
    metrics: tuple[MetricTerms, ...]


def sampling_of(privacy: PrivacyParams) -> str:
    """Say how units are drawn."""
    return f"Poisson over {privacy.unit}s"


def privacy_statement(plan: Plan) -> PrivacyStatement:
    """Return what a plan costs; everything follows from the plan."""
    privacy, delta = plan.privacy, plan.privacy.budget.delta
    events = plan_events(plan, plan.attempts)
    return PrivacyStatement(
        unit=privacy.unit,
        relation=privacy.relation,
        mechanism=privacy.mechanism,
        sampling=sampling_of(privacy),
        sample_rate=privacy.sample_rate,
        noise_multiplier=privacy.noise_multiplier,
        max_grad_norm=privacy.max_grad_norm,
        steps=privacy.steps,
        accountant=privacy.accountant,
        noise_shares=privacy.noise_shares,
        epsilon=epsilon(events, delta),
        delta=delta,
        rounds=plan.rounds,
        spare_attempts=plan.spare_attempts,
        lone_share_epsilon=epsilon([event.lone_share() for event in events], delta),
        city_worst_case=city_worst_case(events, len(plan.cohort), delta),
        metrics=tuple(MetricTerms(name=item.name, noise_stddev=item.noise_stddev) for item in plan.layout.extras),
    )
