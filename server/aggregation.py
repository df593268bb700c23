"""From the decoded ring sum to the mean update: public numbers only."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from shared.identity import DepartmentId
from shared.parameters import Vector
from shared.plan import Plan
from shared.privacy.plan import MechanismName
from shared.secagg.ring import RingSum

_PART = 1 << 16  # coordinates that are decoded at a time: their float64 copies stay in the cache


def take_mean(total: RingSum, plan: Plan, survivors: Sequence[str]) -> Vector:
    """Turn the sum into what the server optimiser is given, in the sum's own memory: there is no third vector.

    Args:
        total: sum over the survivors, shape (layout.total_size,); its coordinates of the model are gone afterwards.
            ``poisson-dpsgd``: updates, each multiplied with its department's public weight before it was encoded.
            ``shared-noise``: clipped sums of gradients.
        plan: holds weights and public sizes, which are constants and never depend on rows.
        survivors: the departments in the sum.

    Returns:
        The mean update, shape (layout.size,), dtype float32; for gradients it points against their mean.
    """
    share = sum(_SHARES[plan.privacy.mechanism](plan, DepartmentId(name)) for name in survivors)
    mean: Vector = total.words[: plan.layout.size].view(np.float32)
    for start in range(0, mean.size, _PART):
        part = slice(start, min(start + _PART, mean.size))
        mean[part] = total[part] / share  # decoded before it is written over
    return mean


_SHARES: Mapping[MechanismName, Callable[[Plan, DepartmentId], float]] = {
    "poisson-dpsgd": lambda plan, name: plan.datasets[name].weight,
    "shared-noise": lambda plan, name: -plan.denominator(name),  # minus: the model goes against the gradient
}
"""What a survivor adds to the divisor."""
