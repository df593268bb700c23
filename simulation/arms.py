"""The three arms of a comparison: every department alone, all together under encryption, all rows in one place.

``federated`` is the production path: Coordinator and Participants over a Transport. ``local`` and ``pooled``
are baselines of a simulation; they use the same trainer, plan numbers, accountant and ledger, and differ only
in whose rows one trainer sees.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from clients.training.noise import RandomSource
from clients.training.train import Trainer, TrainingSettings
from shared.codec import sha256
from shared.parameters import Vector
from shared.plan import LocalOptimizer, Plan
from shared.privacy.ledger import Budgets, PlanCharge, PrivacyLedger
from shared.privacy.plan import PerformanceFlags, full_noise
from shared.tasks.text import Prepared


@dataclass(frozen=True, kw_only=True)
class Solo:
    """One trainer on its own: a department, or the fictitious holder of all rows.

    Attributes:
        public_size: the frozen size that the denominator is made of.
    """

    plan: Plan
    optimizer: LocalOptimizer
    public_size: int
    data: Prepared
    weights_dir: Path | None
    flags: PerformanceFlags

    def prepare(self) -> Trainer:
        """Return the trainer of all rounds."""
        settings = TrainingSettings(
            privacy=full_noise(self.plan.privacy),
            denominator=self.plan.privacy.sample_rate * self.public_size,
            optimizer=self.optimizer,
            model=self.plan.model,
            layout=self.plan.layout.model_part(),
        )
        return Trainer.prepare(settings=settings, data=self.data, weights_dir=self.weights_dir, flags=self.flags)

    def step(self, trainer: Trainer, model: Vector, source: RandomSource) -> Vector:
        """Train one round; return the new model."""
        return (model + trainer.train(model, self.data, source).delta).astype(np.float32)

    def run(
        self,
        ledger: PrivacyLedger,
        charge: PlanCharge,
        budgets: Budgets,
        *,
        initial: Vector,
        source: RandomSource,
        on_round: Callable[[int, Vector], None],
    ) -> Vector:
        """Run all rounds: reserve, burn before each round, settle at the end; returns the final model.

        Args:
            ledger: holds the charge as it holds a federated one.
            charge: what the whole run costs.
            budgets: the caps that it has to fit.
            initial: the model before the first round.
            source: randomness of sampling and noise.
            on_round: told each finished round and its model.

        Raises:
            InsufficientBudgetError: the plan does not fit the caps.
        """
        reservation = ledger.reserve(charge, budgets)
        trainer, model = self.prepare(), initial
        for number in range(1, self.plan.rounds + 1):
            reservation.burn(number)
            model = self.step(trainer, model, source)
            on_round(number, model)
        reservation.settle()
        return model


def solo_charge(charge: PlanCharge, arm: str, *, dataset: str, public_size: int) -> PlanCharge:
    """Return a baseline's charge: the federated training under a run name of its own, with all noise in one place.

    A baseline tells no metric.
    """
    return msgspec.structs.replace(
        charge,
        run=sha256(arm.encode(), charge.run),
        dataset=dataset,
        public_size=public_size,
        event=msgspec.structs.replace(charge.event, mechanism="poisson-dpsgd", noise_shares=1),
        extras=(),
    )
