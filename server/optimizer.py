"""Server optimisers: what the authority does with the mean update (Reddi et al. 2021, Algorithm 2).

All of them are post-processing of a released sum, so none changes the privacy guarantee.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from shared.parameters import Vector
from shared.plan import ServerOptimizerSpec


@dataclass(frozen=True)
class ServerOptimizer:
    """A server optimiser and its moments; :meth:`step` returns the successor.

    Attributes:
        spec: kind and rates from the plan.
        momentum: first moment, shape (layout.size,), dtype float32; zeros at the start, and empty where there are none.
        variance: second moment, same shape; ``tau`` squared at the start, as in the paper.
    """

    spec: ServerOptimizerSpec
    momentum: Vector
    variance: Vector

    @classmethod
    def start(cls, spec: ServerOptimizerSpec, size: int) -> ServerOptimizer:
        """Return the optimiser before its first step."""
        size = 0 if spec.kind == "fedavg" else size
        zeros = np.zeros(size, dtype=np.float32)
        return cls(spec=spec, momentum=zeros, variance=np.full(size, spec.tau**2, dtype=np.float32))

    def moments(self) -> dict[str, Vector]:
        """Return what the next step depends on, by name; nothing for an optimiser without memory."""
        if self.spec.kind == "fedavg":
            return {}
        return {"momentum": self.momentum, "variance": self.variance}

    def restored(self, moments: Mapping[str, Vector]) -> ServerOptimizer:
        """Return this optimiser as it was when :meth:`moments` was asked; other names are ignored.

        Raises:
            KeyError: when a moment is missing.
        """
        if not self.moments():
            return self
        return replace(self, momentum=moments["momentum"], variance=moments["variance"])

    def step(self, model: Vector, mean_update: Vector) -> tuple[ServerOptimizer, Vector]:
        """Apply one mean update.

        Args:
            model: shape (layout.size,), dtype float32.
            mean_update: weighted mean of the departments' updates, same shape; its memory may become the new model's.

        Returns:
            The successor and the new model.
        """
        spec = self.spec
        if spec.kind == "fedavg":
            mean_update *= spec.learning_rate
            mean_update += model
            return self, mean_update
        momentum = spec.beta1 * self.momentum + (1 - spec.beta1) * mean_update
        square = np.square(mean_update)
        if spec.kind == "fedadam":
            variance = spec.beta2 * self.variance + (1 - spec.beta2) * square
        else:
            variance = self.variance - (1 - spec.beta2) * square * np.sign(self.variance - square)
        moved = model + spec.learning_rate * momentum / (np.sqrt(variance) + spec.tau)
        successor = replace(self, momentum=momentum.astype(np.float32), variance=variance.astype(np.float32))
        return successor, moved.astype(np.float32)
