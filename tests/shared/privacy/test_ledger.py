"""The ledger: a run is reserved in full, its attempts are burned once, and what is left is given back (promise P3)."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from shared.codec import Record
from shared.errors import InsufficientBudgetError, JournalError, ProtocolError
from shared.journal import EntryKind, Journal
from shared.privacy.accountant import MechanismEvent, epsilon, filter_epsilon
from shared.privacy.ledger import AttemptBurned, PrivacyLedger, RunSettled
from tests.ledger_history import history
from tests.refusals import code_of
from tests.shared.privacy.ledger_charges import AMPLE, DELTA, EVENT, Note, budgets, charge, now


def test_p3_a_reserved_run_counts_in_full_until_it_is_settled(ledger: PrivacyLedger) -> None:
    reservation = ledger.reserve(charge(), AMPLE)
    assert history(ledger, "calls") == (EVENT.times(4),)
    reservation.burn(1)
    reservation.burn(3)
    assert history(ledger, "calls") == (EVENT.times(4),)
    reservation.settle()
    assert history(ledger, "calls") == (EVENT.times(2),)
    assert history(ledger, "other") == ()


def test_p3_a_run_settled_without_an_attempt_spent_nothing(ledger: PrivacyLedger) -> None:
    ledger.reserve(charge(), AMPLE).settle()
    assert history(ledger, "calls") == ()


def test_settling_twice_writes_one_entry(ledger: PrivacyLedger, journal: Journal) -> None:
    reservation = ledger.reserve(charge(), AMPLE)
    reservation.settle()
    reservation.settle()
    assert [entry.kind for entry in journal.entries()] == ["charge-reserved", "charge-settled"]


def test_p3_attempts_are_burned_once_and_no_more_than_were_reserved(ledger: PrivacyLedger) -> None:
    reservation = ledger.reserve(charge(attempts=2), AMPLE)
    reservation.burn(1)
    assert code_of(lambda: reservation.burn(1), ProtocolError) == "attempt-already-burned"
    reservation.burn(2)
    assert code_of(lambda: reservation.burn(3), InsufficientBudgetError) == "attempts-exhausted"
    reservation.settle()
    assert code_of(lambda: reservation.burn(4), ProtocolError) == "run-already-settled"
    assert reservation.burned == {1, 2}


def test_reserving_again_gives_the_same_reservation_only_for_the_same_charge(
    ledger: PrivacyLedger, journal: Journal
) -> None:
    ledger.reserve(charge(), AMPLE).burn(1)
    again = ledger.reserve(charge(), AMPLE)
    assert again.burned == {1}
    assert journal.head.sequence == 2
    assert code_of(lambda: ledger.reserve(charge(attempts=5), AMPLE), ProtocolError) == "run-already-reserved"
    again.settle()
    assert code_of(lambda: ledger.reserve(charge(), AMPLE), ProtocolError) == "run-already-settled"


@pytest.mark.parametrize("wrong", [{"attempts": 0}, {"public_size": 0}, {"delta": 0.0}, {"delta": 1.0}])
def test_an_impossible_charge_cannot_be_written_down(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"`attempts`|`delta`"):
        charge(**wrong)


def test_another_accountant_is_refused(ledger: PrivacyLedger) -> None:
    foreign = charge(accountant="gdp 1.0")
    assert code_of(lambda: ledger.reserve(foreign, AMPLE), ProtocolError) == "accountant-unknown"
    assert ledger.reservation(foreign.run) is None


def test_status_tells_spent_reserved_left_and_the_next_run(ledger: PrivacyLedger) -> None:
    empty = ledger.status("calls", AMPLE)
    assert (empty.runs, empty.spent_epsilon, empty.left, empty.next_epsilon) == (0, 0.0, 8.0, None)
    reservation = ledger.reserve(charge(), AMPLE)
    reservation.burn(1)
    status = ledger.status("calls", AMPLE)
    assert status.spent_epsilon == epsilon([EVENT], DELTA)
    assert status.reserved_epsilon == epsilon([EVENT.times(4)], DELTA)
    assert status.left == 8 - filter_epsilon([EVENT.times(4)], DELTA)
    assert status.next_epsilon == filter_epsilon([EVENT.times(8)], DELTA)
    assert status.next_fits is True
    assert ledger.status("calls", budgets(lifetime=status.filter_epsilon)).next_fits is False


def test_the_export_can_be_recomputed_by_dp_accounting(ledger: PrivacyLedger) -> None:
    import dp_accounting
    from dp_accounting import pld

    first = ledger.reserve(charge(b"a"), AMPLE)
    first.burn(1)
    first.settle()
    ledger.reserve(charge(b"b", event=MechanismEvent(noise_multiplier=6.0, sample_rate=0.1, steps=7)), AMPLE)
    accountant = pld.PLDAccountant()
    lines = [msgspec.json.encode(record) for record in ledger.export()]
    for line in map(json.loads, lines):
        gaussian = dp_accounting.GaussianDpEvent(line["noise_multiplier"])
        step = dp_accounting.PoissonSampledDpEvent(line["sample_rate"], gaussian)
        accountant.compose(dp_accounting.SelfComposedDpEvent(step, line["counted_steps"]))
    assert [json.loads(line)["counted_steps"] for line in lines] == [10, 28]
    assert accountant.get_epsilon(DELTA) == pytest.approx(epsilon(history(ledger, "calls"), DELTA), rel=1e-4)
    assert not any(b"epsilon" in line for line in lines)


def test_entries_of_others_are_passed_over(ledger: PrivacyLedger, journal: Journal) -> None:
    journal.append(EntryKind.DECISION, Note(text="a"), now=now())
    reservation = ledger.reserve(charge(), AMPLE)
    journal.append(EntryKind.REFUSAL, Note(text="b"), now=now())
    reservation.burn(1)
    assert history(PrivacyLedger(journal, now), "calls") == history(ledger, "calls") == (EVENT.times(4),)


@pytest.mark.parametrize(
    ("kind", "body", "code"),
    [
        (EntryKind.RESERVED, Note(text="not a charge"), "message-malformed"),
        (EntryKind.BURNED, AttemptBurned(run=b"never", round=1), "ledger-inconsistent"),
        (EntryKind.SETTLED, RunSettled(run=b"never"), "ledger-inconsistent"),
    ],
)
def test_an_entry_that_makes_no_sense_stops_the_ledger(
    journal: Journal, kind: EntryKind, body: Record, code: str
) -> None:
    journal.append(kind, body, now=now())
    assert code_of(lambda: PrivacyLedger(journal, now), JournalError) == code
