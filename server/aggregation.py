"""From the decoded ring sum to the mean update: public numbers only."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from shared.identity import DepartmentId
from shared.parameters import Vector
from shared.plan import Plan
from shared.privacy.plan import MechanismName

_PART = 1 << 16  # coordinates that are decoded at a time: their float64 copies stay in the cache


class Decoded(Protocol):
    """A sum over the survivors, shape (layout.total_size,): an array, or a ring sum that decodes what is read."""

    def __getitem__(self, part: slice, /) -> NDArray[np.float64]:
        """Return the decoded coordinates of a slice."""
        ...


def mean_update(total: Decoded, plan: Plan, survivors: Sequence[str]) -> Vector:
    """Return what the server optimiser is given.

    Args:
        total: sum over the survivors. ``poisson-dpsgd``: updates, each multiplied with its department's public weight
            before it was encoded. ``shared-noise``: clipped sums of gradients.
        plan: holds weights and public sizes, which are constants and never depend on rows.
        survivors: the departments in the sum.

    Returns:
        The mean update, shape (layout.size,), dtype float32; for gradients it points against their mean.
    """
    share = sum(_SHARES[plan.privacy.mechanism](plan, DepartmentId(name)) for name in survivors)
    mean = np.empty(plan.layout.size, dtype=np.float32)
    for start in range(0, mean.size, _PART):
        part = slice(start, min(start + _PART, mean.size))
        mean[part] = total[part] / share
    return mean


_SHARES: Mapping[MechanismName, Callable[[Plan, DepartmentId], float]] = {
    "poisson-dpsgd": lambda plan, name: plan.datasets[name].weight,
    "shared-noise": lambda plan, name: -plan.denominator(name),  # minus: the model goes against the gradient
}
"""What a survivor adds to the divisor."""
