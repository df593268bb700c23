"""The three arms of a comparison: every department alone, all together under encryption, all rows in one place.

``federated`` is the production path: Coordinator and Participants over a Transport. ``local`` and ``pooled``
are baselines of a simulation; they use the same trainer, plan numbers, accountant and ledger, and differ only
in whose rows one trainer sees.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from clients.training.noise import RandomSource
from clients.training.train import Trainer, TrainingSettings
from shared.codec import sha256
from shared.journal import Journal
from shared.parameters import Vector
from shared.plan import LocalOptimizer, Plan
from shared.privacy.ledger import Budgets, PlanCharge, PrivacyLedger
from shared.privacy.plan import PerformanceFlags, full_noise
from shared.tasks.text import Prepared


@dataclass(frozen=True, kw_only=True)
class Solo:
    """One trainer on its own: a department, or the fictitious holder of all rows.

    Attributes:
        charge: what the whole run costs; the ledger holds it as it holds a federated one.
        public_size: the frozen size that the denominator is made of.
    """

    plan: Plan
    optimizer: LocalOptimizer
    charge: PlanCharge
    budgets: Budgets
    public_size: int
    data: Prepared
    weights_dir: Path | None
    flags: PerformanceFlags

    def train(
        self,
        journal: Journal,
        *,
        initial: Vector,
        source: RandomSource,
        clock: Callable[[], dt.datetime],
        on_round: Callable[[int, Vector], None],
    ) -> Vector:
        """Run all rounds: reserve, burn before each round, settle at the end; returns the final model.

        Raises:
            InsufficientBudgetError: the plan does not fit the caps.
        """
        reservation = PrivacyLedger(journal, clock).reserve(self.charge, self.budgets)
        settings = TrainingSettings(
            privacy=full_noise(self.plan.privacy),
            denominator=self.plan.privacy.sample_rate * self.public_size,
            optimizer=self.optimizer,
            model=self.plan.model,
            layout=self.plan.layout.model_part(),
        )
        trainer = Trainer.prepare(settings=settings, data=self.data, weights_dir=self.weights_dir, flags=self.flags)
        model = initial
        for number in range(1, self.plan.rounds + 1):
            reservation.burn(number)
            update = trainer.train(model, self.data, source)
            model = (model + update.delta).astype(np.float32)
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
