"""What fits: a run's cap, its delta, and the lifetime that several plans share or one closes (promise P3)."""

from __future__ import annotations

import math

from shared.errors import InsufficientBudgetError
from shared.journal import Journal
from shared.privacy.accountant import MechanismEvent, epsilon, filter_epsilon
from shared.privacy.ledger import PrivacyLedger
from tests.ledger_history import history
from tests.refusals import code_of
from tests.shared.privacy.ledger_charges import AMPLE, DELTA, EVENT, below, budgets, charge


def test_p3_a_run_over_its_cap_by_the_smallest_amount_is_refused(ledger: PrivacyLedger) -> None:
    cost = epsilon([EVENT.times(4)], DELTA)
    tight, too_tight = budgets(run=cost), budgets(run=below(cost))
    assert ledger.quote(charge(), tight).fits
    quote = ledger.quote(charge(), too_tight)
    assert (quote.fits, quote.code, quote.epsilon_run) == (False, "budget-run", cost)
    assert repr(cost) in quote.reason
    assert repr(below(cost)) in quote.reason
    assert code_of(lambda: ledger.reserve(charge(), too_tight), InsufficientBudgetError) == "budget-run"
    assert history(ledger, "calls") == ()


def test_p3_a_delta_above_the_cap_is_refused(ledger: PrivacyLedger) -> None:
    loose = charge(delta=math.nextafter(DELTA, 1))
    assert code_of(lambda: ledger.reserve(loose, AMPLE), InsufficientBudgetError) == "budget-delta"


def test_p3_a_shared_lifetime_is_gated_by_the_filter_and_not_by_pld(ledger: PrivacyLedger) -> None:
    both = [EVENT.times(4), EVENT.times(4)]
    needed = filter_epsilon(both, DELTA)
    assert epsilon(both, DELTA) < needed
    ledger.reserve(charge(b"a"), budgets(lifetime=needed))
    short = budgets(lifetime=below(needed))
    assert code_of(lambda: ledger.reserve(charge(b"b"), short), InsufficientBudgetError) == "budget-lifetime"
    quote = ledger.quote(charge(b"b"), budgets(lifetime=needed))
    assert quote.fits
    assert quote.filter_lifetime_after == needed
    assert quote.epsilon_lifetime_after == epsilon(both, DELTA)
    assert not quote.closes_lifetime
    ledger.reserve(charge(b"b"), budgets(lifetime=needed))


def test_p3_the_first_plan_may_take_the_whole_lifetime_by_pld_and_then_closes_it(ledger: PrivacyLedger) -> None:
    alone = epsilon([EVENT.times(4)], DELTA)
    whole = budgets(lifetime=alone)
    assert alone < filter_epsilon([EVENT.times(4)], DELTA)
    quote = ledger.quote(charge(), budgets(lifetime=below(alone)))
    assert (quote.fits, quote.code) == (False, "budget-lifetime")
    assert ledger.quote(charge(), whole).closes_lifetime
    reservation = ledger.reserve(charge(), whole)
    reservation.burn(1)
    reservation.settle()
    # Closed for good, even under a cap that would have room.
    assert code_of(lambda: ledger.reserve(charge(b"b"), AMPLE), InsufficientBudgetError) == "budget-closed"
    assert ledger.status("calls", whole).closed
    assert ledger.status("calls", whole).left == 0
    ledger.reserve(charge(b"b", dataset="other"), whole)


def test_p3_a_closing_plan_that_released_nothing_leaves_the_lifetime_empty(ledger: PrivacyLedger) -> None:
    whole = budgets(lifetime=epsilon([EVENT.times(4)], DELTA))
    ledger.reserve(charge(), whole).settle()
    assert not ledger.reserve(charge(b"b"), whole).settled
    assert code_of(lambda: ledger.reserve(charge(b"c"), whole), InsufficientBudgetError) == "budget-closed"


def test_p3_pld_alone_does_not_admit_a_second_plan(ledger: PrivacyLedger) -> None:
    small = MechanismEvent(noise_multiplier=20.0, sample_rate=0.05, steps=1)
    ledger.reserve(charge(b"a", event=small, attempts=1), AMPLE)
    after = epsilon([small, EVENT.times(4)], DELTA)
    tight = budgets(lifetime=after)
    assert code_of(lambda: ledger.reserve(charge(b"b"), tight), InsufficientBudgetError) == "budget-lifetime"


def test_a_quote_changes_nothing_and_counts_a_reserved_run_once(ledger: PrivacyLedger, journal: Journal) -> None:
    first = ledger.quote(charge(), AMPLE)
    assert journal.head.sequence == 0
    ledger.reserve(charge(), AMPLE)
    assert ledger.quote(charge(), AMPLE) == first
    assert journal.head.sequence == 1
