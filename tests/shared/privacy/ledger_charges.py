"""A charge, and caps for it, as the ledger's tests vary them."""

from __future__ import annotations

import datetime as dt
import math
from typing import Any

from shared.codec import Record
from shared.privacy.accountant import ACCOUNTANT, MechanismEvent
from shared.privacy.ledger import Budgets, PlanCharge
from shared.privacy.plan import PrivacyBudget

DELTA = 1e-5
EVENT = MechanismEvent(noise_multiplier=4.0, sample_rate=0.05, steps=10)
AMPLE = Budgets(run=PrivacyBudget(epsilon=2, delta=DELTA), lifetime=PrivacyBudget(epsilon=8, delta=DELTA))


class Note(Record, frozen=True, kw_only=True):
    """An entry of somebody else."""

    text: str


def now() -> dt.datetime:
    return dt.datetime(2026, 3, 1, tzinfo=dt.UTC)


def charge(run: bytes = b"run-1", *, dataset: str = "calls", attempts: int = 4, **changes: Any) -> PlanCharge:
    fields: dict[str, Any] = {"event": EVENT, "delta": DELTA, "accountant": ACCOUNTANT, "public_size": 500}
    return PlanCharge(run=run, dataset=dataset, attempts=attempts, **(fields | changes))


def budgets(*, run: float = 1e2, lifetime: float = 1e2) -> Budgets:
    return Budgets(run=PrivacyBudget(epsilon=run, delta=DELTA), lifetime=PrivacyBudget(epsilon=lifetime, delta=DELTA))


def below(value: float) -> float:
    """The next smaller number."""
    return math.nextafter(value, 0)
