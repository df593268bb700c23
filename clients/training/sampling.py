"""Poisson sampling of units: the only sampling that the accountant's analysis covers (privacy 2)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from clients.training.noise import StepStream


def poisson_sample(stream: StepStream, units: int, sample_rate: float) -> NDArray[np.int64]:
    """Return the indices of the units whose coin came up; often another number each time, possibly none.

    Args:
        stream: the step's randomness.
        units: number of units that the department holds.
        sample_rate: probability of each unit, independently.

    Returns:
        Increasing indices, shape (sampled,), dtype int64.
    """
    return np.flatnonzero(stream.coins(units, sample_rate)).astype(np.int64)
