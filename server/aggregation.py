"""From the decoded ring sum to the mean update: public weights only."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from shared.identity import DepartmentId
from shared.parameters import Vector
from shared.plan import Plan


def weighted_mean(total: NDArray[np.float64], plan: Plan, survivors: Sequence[str]) -> Vector:
    """Divide the sum of the weighted updates by the sum of the survivors' public weights.

    Args:
        total: decoded sum over the survivors, shape (layout.total_size,), dtype float64; each department
            multiplied its update by its public weight before it encoded it.
        plan: holds the weights, which are constants of the plan and never depend on rows.
        survivors: the departments in the sum.

    Returns:
        The mean update, shape (layout.size,), dtype float32.
    """
    weights = sum(plan.datasets[DepartmentId(name)].weight for name in survivors)
    return (total[: plan.layout.size] / weights).astype(np.float32)
