"""The mechanisms of differential privacy in one table: what their names mean for a plan and its encrypted sum.

Sampling, clip, noise and charge of a mechanism stand in one frozen object,
:class:`~shared.privacy.plan.PrivacyParams`. What a department does with it stands in
``clients/training/mechanisms.py``, what the coordinator does with the sum in ``server/aggregation.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from shared.plan import AggregationParams, Plan
from shared.privacy.plan import MechanismName
from shared.privacy.shared_noise import honest_shares, ring_range


class Mechanism(NamedTuple):
    """What a mechanism means for a plan.

    Attributes:
        noise_shares: numbers of the encrypted sum -> h, how many departments' noise the charge counts on.
        weight: (public size, largest public size) -> what a department multiplies its update with.
        range: (plan, participants) -> what a participant is allotted in the ring, an exact float32.
    """

    noise_shares: Callable[[AggregationParams], int]
    weight: Callable[[int, int], float]
    range: Callable[[Plan, int], float]


def _bound(plan: Plan, _participants: int) -> float:
    """R: the update is projected onto it after its noise."""
    return float(np.float32(plan.aggregation.bound))


def _bound_and_noise(plan: Plan, participants: int) -> float:
    """R and room for the noise, which is added in the ring."""
    size = plan.layout.total_size
    return ring_range(plan.privacy, bound=plan.aggregation.bound, participants=participants, dimension=size)


MECHANISMS: Mapping[MechanismName, Mechanism] = {
    "poisson-dpsgd": Mechanism(
        noise_shares=lambda _params: 1, weight=lambda size, largest: size / largest, range=_bound
    ),
    # No weights: a small department's share of the noise would shrink with its weight (privacy 4.3).
    "shared-noise": Mechanism(
        noise_shares=lambda params: honest_shares(params.min_contributors, params.max_colluders),
        weight=lambda _size, _largest: 1.0,
        range=_bound_and_noise,
    ),
}
