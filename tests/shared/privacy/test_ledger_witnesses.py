"""Epsilon computed again from exported JSON lines, by dp-accounting directly and by Opacus' PRV accountant (privacy 5)."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from shared.journal import Journal
from shared.privacy.accountant import ACCOUNTANT, MechanismEvent, epsilon
from shared.privacy.ledger import Budgets, PlanCharge, PrivacyLedger
from shared.privacy.plan import PrivacyBudget
from tests.ledger_history import exported, history
from tests.shared.privacy.ledger_charges import now

TABLE = [
    (1.0, 0.01, 1000, 1e-5, 1.828),
    (0.7, 0.02, 500, 1e-5, 6.654),
    (2.0, 0.2, 200, 1e-4, 6.429),
    (0.5, 0.001, 2000, 1e-6, 4.655),
]
"""Noise multiplier, sampling rate, steps, delta, epsilon."""

HISTORIES, CHEAP = 50, 4

pytestmark = pytest.mark.filterwarnings("ignore:Optimal order:UserWarning")  # PRV's first guess, which it improves


def generous(delta: float) -> Budgets:
    cap = PrivacyBudget(epsilon=999, delta=delta)
    return Budgets(run=cap, lifetime=cap)


def charge(number: int, event: MechanismEvent, attempts: int, delta: float) -> PlanCharge:
    return PlanCharge(
        run=number.to_bytes(2, "big"),
        dataset="calls",
        event=event,
        attempts=attempts,
        delta=delta,
        accountant=ACCOUNTANT,
        public_size=1000,
    )


def dp_accounting_epsilon(lines: Sequence[dict[str, Any]], delta: float) -> float:
    """The library with its own settings and none of our code."""
    import dp_accounting
    from dp_accounting import pld

    accountant = pld.PLDAccountant()
    for line in lines:
        gaussian = dp_accounting.GaussianDpEvent(line["noise_multiplier"])
        step = dp_accounting.PoissonSampledDpEvent(line["sample_rate"], gaussian)
        accountant.compose(dp_accounting.SelfComposedDpEvent(step, line["counted_steps"]))
    return float(accountant.get_epsilon(delta))


def prv_epsilon(lines: Sequence[dict[str, Any]], delta: float, tolerance: float) -> float:
    """Opacus' accountant, another algorithm by other people; its upper bound with an absolute tolerance."""
    from opacus.accountants import PRVAccountant

    accountant = PRVAccountant()
    accountant.history = [(line["noise_multiplier"], line["sample_rate"], line["counted_steps"]) for line in lines]
    return float(accountant.get_epsilon(delta, eps_error=tolerance))


@pytest.mark.parametrize("row", TABLE)
def test_the_table_comes_back_from_exported_lines(
    ledger: PrivacyLedger, row: tuple[float, float, int, float, float]
) -> None:
    noise_multiplier, sample_rate, steps, delta, expected = row
    event = MechanismEvent(noise_multiplier=noise_multiplier, sample_rate=sample_rate, steps=steps // 10)
    ledger.reserve(charge(1, event, 10, delta), generous(delta))
    lines = exported(ledger)
    assert dp_accounting_epsilon(lines, delta) == pytest.approx(expected, rel=0.01)
    assert prv_epsilon(lines, delta, 0.002 * expected) == pytest.approx(expected, rel=0.01)
    assert epsilon(history(ledger, "calls"), delta) == pytest.approx(expected, rel=0.001)


def random_history(ledger: PrivacyLedger, seed: int) -> float:
    """Write one to five unlike runs, some of them ended early; returns delta."""
    chance = random.Random(seed)
    delta = 10.0 ** -chance.randint(4, 6)
    for number in range(chance.randint(1, 5)):
        rate = round(10 ** chance.uniform(-2.3, -0.6), 4)
        steps, attempts = chance.randint(5, 60), chance.randint(4, 12)
        least = max(0.8, rate * (steps * attempts) ** 0.5)
        event = MechanismEvent(
            noise_multiplier=round(least * chance.uniform(1.0, 4.0), 4), sample_rate=rate, steps=steps
        )
        reservation = ledger.reserve(charge(number, event, attempts, delta), generous(delta))
        for attempt in range(chance.randint(1, attempts)):
            reservation.burn(attempt + 1)
        if chance.random() < 0.5:
            reservation.settle()
    return delta


def deviations(ledger: PrivacyLedger, seed: int) -> tuple[float, float]:
    """How far the two witnesses are from our figure, relative to it."""
    delta = random_history(ledger, seed)
    lines, ours = exported(ledger), epsilon(history(ledger, "calls"), delta)
    return (
        dp_accounting_epsilon(lines, delta) / ours - 1,
        prv_epsilon(lines, delta, 0.002 * ours) / ours - 1,
    )


@pytest.mark.parametrize("seed", range(CHEAP))
def test_both_witnesses_agree_on_a_random_history_within_one_percent(ledger: PrivacyLedger, seed: int) -> None:
    assert max(map(abs, deviations(ledger, seed))) <= 0.01


@pytest.mark.soak
def test_both_witnesses_agree_on_fifty_random_histories_within_one_percent(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    found = []
    for seed in range(HISTORIES):
        with Journal.open(tmp_path / f"{seed}.db", owner="health") as journal:
            found.append(deviations(PrivacyLedger(journal, now), seed))
    for name, column in zip(("dp-accounting", "Opacus PRV"), zip(*found, strict=True), strict=True):
        record_property(f"widest deviation of {name}", (min(column), max(column)))
        assert max(map(abs, column)) <= 0.01
