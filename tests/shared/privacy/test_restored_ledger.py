"""Charges after a lost disk: in full and for ever, or none any more (promise P3)."""

from __future__ import annotations

from functools import partial

import pytest

from shared.errors import InsufficientBudgetError, ProtocolError
from shared.journal import Journal
from shared.privacy.ledger import PrivacyLedger
from tests.ledger_history import history
from tests.refusals import code_of
from tests.shared.privacy.ledger_charges import budgets, charge, now

BUDGETS = budgets(run=8, lifetime=8)


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
        assert [event.steps for event in history(looked_at, "calls")] == [40]
        assert looked_at.status("calls", BUDGETS).spent_epsilon == looked_at.status("calls", BUDGETS).reserved_epsilon
        (line,) = looked_at.export()
        assert (line.restored, line.settled, line.attempts_burned, line.counted_steps) == (True, False, 4, 40)
        assert looked_at.open_charges() == ()
    assert code_of(lambda: ledger.reserve(charge(), BUDGETS), ProtocolError) == "run-restored"


def test_p3_a_run_that_cannot_fit_is_restored_all_the_same(journal: Journal) -> None:
    ledger = PrivacyLedger(journal, now)
    tiny = budgets(run=1e-3, lifetime=1e-3)
    assert not ledger.quote(charge(), tiny).fits
    ledger.restore(charge())
    status = ledger.status("calls", tiny)
    assert (len(history(ledger, "calls")), status.left, status.next_fits) == (1, 0.0, False)


def test_p3_a_closed_ledger_charges_nothing_any_more_for_any_data_set(journal: Journal) -> None:
    ledger = PrivacyLedger(journal, now)
    reservation = ledger.reserve(charge(), BUDGETS)
    ledger.close("restore-plan-unknown")
    sequence = journal.head.sequence
    ledger.close("restore-plan-unknown")
    again = PrivacyLedger(journal, now)
    for dataset in ("calls", "another"):
        late = charge(b"run-2", dataset=dataset)
        assert code_of(partial(again.reserve, late, BUDGETS), InsufficientBudgetError) == "budget-lost"
        assert again.status(dataset, BUDGETS).left == 0
    assert code_of(lambda: reservation.burn(1), InsufficientBudgetError) == "budget-lost"
    assert journal.head.sequence == sequence
