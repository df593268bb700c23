"""What a share of the noise costs if it is read alone (privacy 4.3)."""

from __future__ import annotations

import math

import msgspec
import pytest

from shared.errors import InsufficientBudgetError
from shared.privacy.accountant import MechanismEvent, epsilon, filter_epsilon
from shared.privacy.ledger import Budgets, PrivacyLedger
from shared.privacy.plan import PrivacyBudget
from tests.shared.privacy.ledger_charges import DELTA, EVENT, below, budgets, charge

SHARED = MechanismEvent(
    mechanism="shared-noise", noise_multiplier=4.0, noise_shares=2, sample_rate=0.05, steps=1
)  # four attempts of it cost half as much noise if a share is read alone


def with_lone_cap(cap: float, *, lifetime: float = 1e2) -> Budgets:
    return msgspec.structs.replace(budgets(lifetime=lifetime), lone_share=PrivacyBudget(epsilon=cap, delta=DELTA))


def test_a_lone_share_has_the_noise_of_one_share_and_its_own_figure(ledger: PrivacyLedger) -> None:
    quote = ledger.quote(charge(event=SHARED), with_lone_cap(1e2))
    lone = MechanismEvent(noise_multiplier=4.0 / math.sqrt(2), sample_rate=0.05, steps=4)
    assert quote.epsilon_run == epsilon([SHARED.times(4)], DELTA)
    assert quote.epsilon_lone_share == epsilon([lone], DELTA) > quote.epsilon_run
    assert quote.lone_share_after == filter_epsilon([lone], DELTA) > quote.filter_lifetime_after
    assert quote.cap_lone_share == 1e2


def test_p3_a_lone_share_above_its_cap_by_the_smallest_amount_is_refused(ledger: PrivacyLedger) -> None:
    cost = ledger.quote(charge(event=SHARED), with_lone_cap(1e2)).lone_share_after
    refused = ledger.quote(charge(event=SHARED), with_lone_cap(below(cost)))
    assert (refused.fits, refused.code) == (False, "budget-lone-share")
    with pytest.raises(InsufficientBudgetError, match="lone shares"):
        ledger.reserve(charge(event=SHARED), with_lone_cap(below(cost)))
    ledger.reserve(charge(event=SHARED), with_lone_cap(cost))


def test_p3_shared_noise_needs_a_cap_on_lone_shares(ledger: PrivacyLedger) -> None:
    quote = ledger.quote(charge(event=SHARED), budgets())
    assert (quote.fits, quote.code, quote.cap_lone_share) == (False, "budget-lone-share", None)
    assert ledger.quote(charge(), budgets()).fits


def test_p3_lone_shares_add_up_over_runs_and_mechanisms(ledger: PrivacyLedger) -> None:
    ledger.reserve(charge(b"a", event=SHARED), with_lone_cap(1e2))
    both = [SHARED.times(4).lone_share(), EVENT.times(4)]
    caps = with_lone_cap(below(filter_epsilon(both, DELTA)))
    assert ledger.quote(charge(b"b"), caps).code == "budget-lone-share"
    assert ledger.quote(charge(b"b"), with_lone_cap(filter_epsilon(both, DELTA))).fits


def test_a_plan_that_closes_the_lifetime_has_its_lone_share_judged_by_pld(ledger: PrivacyLedger) -> None:
    whole = SHARED.times(4)
    tight = epsilon([whole], DELTA)
    quote = ledger.quote(charge(event=SHARED), with_lone_cap(1e2, lifetime=tight))
    assert quote.closes_lifetime
    assert quote.lone_share_after == epsilon([whole.lone_share()], DELTA)


def test_status_and_export_carry_both_numbers(ledger: PrivacyLedger) -> None:
    caps = with_lone_cap(50.0)
    ledger.reserve(charge(event=SHARED), caps)
    status = ledger.status("calls", caps)
    assert status.lone_share_epsilon == filter_epsilon([SHARED.times(4).lone_share()], DELTA)
    assert status.cap_lone_share == 50.0
    (line,) = ledger.export()
    assert (line.mechanism, line.noise_multiplier, line.noise_shares) == ("shared-noise", 4.0, 2)
