"""Charges after a lost disk: in full and for ever, or none any more (promise P3)."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.errors import CityFedError, InsufficientBudgetError
from shared.journal import Journal
from shared.privacy.accountant import ACCOUNTANT, MechanismEvent
from shared.privacy.ledger import Budgets, PlanCharge, PrivacyLedger
from shared.privacy.plan import PrivacyBudget

BUDGET = PrivacyBudget(epsilon=8, delta=1e-5)
BUDGETS = Budgets(run=BUDGET, lifetime=BUDGET)
EVENT = MechanismEvent(noise_multiplier=4.0, sample_rate=0.05, steps=10)


def now() -> dt.datetime:
    return dt.datetime(2026, 3, 1, tzinfo=dt.UTC)


def charge(run: bytes = b"run-1", dataset: str = "calls") -> PlanCharge:
    return PlanCharge(
        run=run, dataset=dataset, event=EVENT, attempts=4, delta=1e-5, accountant=ACCOUNTANT, public_size=500
    )


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal.open(tmp_path / "journal.db", owner="health") as opened:
        yield opened


@pytest.mark.parametrize("known", ["unknown", "reserved", "burned", "settled", "settled after"])
def test_p3_a_restored_run_counts_in_full_for_ever_whatever_the_backup_knew(journal: Journal, known: str) -> None:
    ledger = PrivacyLedger(journal, now)
    if known != "unknown":
        reservation = ledger.reserve(charge(), BUDGETS)
        if known != "reserved":
            reservation.burn(1)
        if known == "settled":
            reservation.settle()
    ledger.restore(charge())
    ledger.restore(charge())
    if known == "settled after":
        reservation.settle()
    for looked_at in (ledger, PrivacyLedger(journal, now)):
        assert [event.steps for event in looked_at.history("calls")] == [40]
        assert looked_at.status("calls", BUDGETS).spent_epsilon == looked_at.status("calls", BUDGETS).reserved_epsilon
        (line,) = looked_at.export()
        assert (line.restored, line.settled, line.attempts_burned, line.counted_steps) == (True, False, 4, 40)
        assert looked_at.open_charges() == ()
    with pytest.raises(CityFedError) as caught:
        ledger.reserve(charge(), BUDGETS)
    assert caught.value.code == "run-restored"


def test_p3_a_run_that_cannot_fit_is_restored_all_the_same(journal: Journal) -> None:
    ledger = PrivacyLedger(journal, now)
    tiny = PrivacyBudget(epsilon=1e-3, delta=1e-5)
    budgets = Budgets(run=tiny, lifetime=tiny)
    assert not ledger.quote(charge(), budgets).fits
    ledger.restore(charge())
    status = ledger.status("calls", budgets)
    assert (len(ledger.history("calls")), status.left, status.next_fits) == (1, 0.0, False)


def test_p3_a_closed_ledger_charges_nothing_any_more_for_any_data_set(journal: Journal) -> None:
    ledger = PrivacyLedger(journal, now)
    reservation = ledger.reserve(charge(), BUDGETS)
    ledger.close("restore-plan-unknown")
    sequence = journal.head.sequence
    ledger.close("restore-plan-unknown")
    again = PrivacyLedger(journal, now)
    for dataset in ("calls", "another"):
        with pytest.raises(InsufficientBudgetError) as caught:
            again.reserve(charge(b"run-2", dataset), BUDGETS)
        assert caught.value.code == "budget-lost"
        assert again.status(dataset, BUDGETS).left == 0
    with pytest.raises(InsufficientBudgetError) as caught:
        reservation.burn(1)
    assert caught.value.code == "budget-lost"
    assert journal.head.sequence == sequence
