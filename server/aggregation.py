"""From the decoded ring sum to the mean update: public numbers only."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from shared.identity import DepartmentId
from shared.parameters import Vector
from shared.plan import Plan
from shared.privacy.plan import MechanismName


def mean_update(total: NDArray[np.float64], plan: Plan, survivors: Sequence[str]) -> Vector:
    """Return what the server optimiser is given.

    Args:
        total: decoded sum over the survivors, shape (layout.total_size,), dtype float64. ``poisson-dpsgd``: updates,
            each multiplied with its department's public weight before it was encoded. ``shared-noise``: clipped
            sums of gradients.
        plan: holds weights and public sizes, which are constants and never depend on rows.
        survivors: the departments in the sum.

    Returns:
        The mean update, shape (layout.size,), dtype float32; for gradients it points against their mean.
    """
    share = sum(_SHARES[plan.privacy.mechanism](plan, DepartmentId(name)) for name in survivors)
    return (total[: plan.layout.size] / share).astype(np.float32)


_SHARES: Mapping[MechanismName, Callable[[Plan, DepartmentId], float]] = {
    "poisson-dpsgd": lambda plan, name: plan.datasets[name].weight,
    "shared-noise": lambda plan, name: -plan.denominator(name),  # minus: the model goes against the gradient
}
"""What a survivor adds to the divisor."""
