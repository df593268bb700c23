"""The ledger: written ahead, never under-counted, gated by both budgets; promises P3 and P5."""

from __future__ import annotations

import datetime as dt
import itertools
import json
import math
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.codec import Record
from shared.errors import CityFedError, InsufficientBudgetError, JournalError, ProtocolError
from shared.journal import EntryKind, Journal, verify_journal
from shared.privacy.accountant import ACCOUNTANT, MechanismEvent, epsilon, filter_epsilon
from shared.privacy.ledger import AttemptBurned, Budgets, PlanCharge, PrivacyLedger, RunSettled
from shared.privacy.plan import PrivacyBudget

ROOT = Path(__file__).resolve().parents[3]
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


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal.open(tmp_path / "journal.db", owner="health") as opened:
        yield opened


@pytest.fixture
def ledger(journal: Journal) -> PrivacyLedger:
    return PrivacyLedger(journal, now)


def code_of(family: type[CityFedError], action: Callable[[], object]) -> str:
    with pytest.raises(family) as caught:
        action()
    return caught.value.code


def test_p3_a_reserved_run_counts_in_full_until_it_is_settled(ledger: PrivacyLedger) -> None:
    reservation = ledger.reserve(charge(), AMPLE)
    assert ledger.history("calls") == (EVENT.times(4),)
    reservation.burn(1)
    reservation.burn(3)
    assert ledger.history("calls") == (EVENT.times(4),)
    assert reservation.attempts_left == 2
    reservation.settle()
    assert ledger.history("calls") == (EVENT.times(2),)
    assert reservation.attempts_left == 0
    assert ledger.history("other") == ()


def test_p3_a_run_settled_without_an_attempt_spent_nothing(ledger: PrivacyLedger) -> None:
    ledger.reserve(charge(), AMPLE).settle()
    assert ledger.history("calls") == ()


def test_settling_twice_writes_one_entry(ledger: PrivacyLedger, journal: Journal) -> None:
    reservation = ledger.reserve(charge(), AMPLE)
    reservation.settle()
    reservation.settle()
    assert [entry.kind for entry in journal.entries()] == ["charge-reserved", "charge-settled"]


def test_p3_attempts_are_burned_once_and_no_more_than_were_reserved(ledger: PrivacyLedger) -> None:
    reservation = ledger.reserve(charge(attempts=2), AMPLE)
    reservation.burn(1)
    assert code_of(ProtocolError, lambda: reservation.burn(1)) == "attempt-already-burned"
    reservation.burn(2)
    assert code_of(InsufficientBudgetError, lambda: reservation.burn(3)) == "attempts-exhausted"
    reservation.settle()
    assert code_of(ProtocolError, lambda: reservation.burn(4)) == "run-already-settled"
    assert reservation.burned == {1, 2}


def test_reserving_again_gives_the_same_reservation_only_for_the_same_charge(
    ledger: PrivacyLedger, journal: Journal
) -> None:
    ledger.reserve(charge(), AMPLE).burn(1)
    again = ledger.reserve(charge(), AMPLE)
    assert again.burned == {1}
    assert journal.head.sequence == 2
    assert code_of(ProtocolError, lambda: ledger.reserve(charge(attempts=5), AMPLE)) == "run-already-reserved"
    again.settle()
    assert code_of(ProtocolError, lambda: ledger.reserve(charge(), AMPLE)) == "run-already-settled"


@pytest.mark.parametrize("wrong", [{"attempts": 0}, {"public_size": 0}, {"delta": 0.0}, {"delta": 1.0}])
def test_an_impossible_charge_cannot_be_written_down(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"`attempts`|`delta`"):
        charge(**wrong)


def test_another_accountant_is_refused(ledger: PrivacyLedger) -> None:
    foreign = charge(accountant="gdp 1.0")
    assert code_of(ProtocolError, lambda: ledger.reserve(foreign, AMPLE)) == "accountant-unknown"
    assert ledger.reservation(foreign.run) is None


def test_p3_a_run_over_its_cap_by_the_smallest_amount_is_refused(ledger: PrivacyLedger) -> None:
    cost = epsilon([EVENT.times(4)], DELTA)
    tight, too_tight = budgets(run=cost), budgets(run=below(cost))
    assert ledger.quote(charge(), tight).fits
    quote = ledger.quote(charge(), too_tight)
    assert (quote.fits, quote.code, quote.epsilon_run) == (False, "budget-run", cost)
    assert repr(cost) in quote.reason
    assert repr(below(cost)) in quote.reason
    assert code_of(InsufficientBudgetError, lambda: ledger.reserve(charge(), too_tight)) == "budget-run"
    assert ledger.history("calls") == ()


def test_p3_a_delta_above_the_cap_is_refused(ledger: PrivacyLedger) -> None:
    loose = charge(delta=math.nextafter(DELTA, 1))
    assert code_of(InsufficientBudgetError, lambda: ledger.reserve(loose, AMPLE)) == "budget-delta"


def test_p3_a_shared_lifetime_is_gated_by_the_filter_and_not_by_pld(ledger: PrivacyLedger) -> None:
    both = [EVENT.times(4), EVENT.times(4)]
    needed = filter_epsilon(both, DELTA)
    assert epsilon(both, DELTA) < needed
    ledger.reserve(charge(b"a"), budgets(lifetime=needed))
    short = budgets(lifetime=below(needed))
    assert code_of(InsufficientBudgetError, lambda: ledger.reserve(charge(b"b"), short)) == "budget-lifetime"
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
    assert code_of(InsufficientBudgetError, lambda: ledger.reserve(charge(b"b"), AMPLE)) == "budget-closed"
    assert ledger.status("calls", whole).closed
    assert ledger.status("calls", whole).left == 0
    ledger.reserve(charge(b"b", dataset="other"), whole)


def test_p3_a_closing_plan_that_released_nothing_leaves_the_lifetime_empty(ledger: PrivacyLedger) -> None:
    whole = budgets(lifetime=epsilon([EVENT.times(4)], DELTA))
    ledger.reserve(charge(), whole).settle()
    assert ledger.reserve(charge(b"b"), whole).attempts_left == 4
    assert code_of(InsufficientBudgetError, lambda: ledger.reserve(charge(b"c"), whole)) == "budget-closed"


def test_p3_pld_alone_does_not_admit_a_second_plan(ledger: PrivacyLedger) -> None:
    small = MechanismEvent(noise_multiplier=20.0, sample_rate=0.05, steps=1)
    ledger.reserve(charge(b"a", event=small, attempts=1), AMPLE)
    after = epsilon([small, EVENT.times(4)], DELTA)
    tight = budgets(lifetime=after)
    assert code_of(InsufficientBudgetError, lambda: ledger.reserve(charge(b"b"), tight)) == "budget-lifetime"


def test_a_quote_changes_nothing_and_counts_a_reserved_run_once(ledger: PrivacyLedger, journal: Journal) -> None:
    first = ledger.quote(charge(), AMPLE)
    assert journal.head.sequence == 0
    ledger.reserve(charge(), AMPLE)
    assert ledger.quote(charge(), AMPLE) == first
    assert journal.head.sequence == 1


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
    assert accountant.get_epsilon(DELTA) == pytest.approx(epsilon(ledger.history("calls"), DELTA), rel=1e-4)
    assert not any(b"epsilon" in line for line in lines)


def test_p3_every_crash_point_leaves_at_least_what_was_burned(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    expected = [EVENT.times(3), EVENT.times(3), EVENT.times(3), EVENT.times(2)]
    actions: list[Callable[[PrivacyLedger], object]] = [
        lambda ledger: ledger.reserve(charge(attempts=3), AMPLE),
        lambda ledger: ledger.reserve(charge(attempts=3), AMPLE).burn(1),
        lambda ledger: ledger.reserve(charge(attempts=3), AMPLE).burn(2),
        lambda ledger: ledger.reserve(charge(attempts=3), AMPLE).settle(),
    ]
    for action, counted in zip(actions, expected, strict=True):
        with Journal.open(path, owner="health") as journal:
            action(PrivacyLedger(journal, now))
            # What a machine that stops right now would find on its disk.
            copy = tmp_path / f"crash-{journal.head.sequence}.db"
            shutil.copy(path, copy)
            shutil.copy(path.with_name(path.name + "-wal"), copy.with_name(copy.name + "-wal"))
        with Journal.open(copy, owner="health") as journal:
            assert PrivacyLedger(journal, now).history("calls") == (counted,)


def test_p5_a_ledger_rolled_back_to_forget_a_charge_is_found(tmp_path: Path) -> None:
    path, backup = tmp_path / "journal.db", tmp_path / "backup.db"
    with Journal.open(path, owner="health") as journal:
        PrivacyLedger(journal, now).reserve(charge(), AMPLE)
    shutil.copy(path, backup)
    with Journal.open(path, owner="health") as journal:
        PrivacyLedger(journal, now).reserve(charge(), AMPLE).burn(1)
        receipt = journal.head
    shutil.copy(backup, path)
    with Journal.open(path, owner="health") as journal:
        PrivacyLedger(journal, now).reserve(charge(), AMPLE).burn(1)
    assert code_of(JournalError, lambda: verify_journal(path, owner="health", receipts=[receipt])) == (
        "journal-receipt-mismatch"
    )


def test_entries_of_others_are_passed_over(ledger: PrivacyLedger, journal: Journal) -> None:
    journal.append(EntryKind.DECISION, Note(text="a"), now=now())
    reservation = ledger.reserve(charge(), AMPLE)
    journal.append(EntryKind.REFUSAL, Note(text="b"), now=now())
    reservation.burn(1)
    assert PrivacyLedger(journal, now).history("calls") == ledger.history("calls") == (EVENT.times(4),)


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
    assert code_of(JournalError, lambda: PrivacyLedger(journal, now)) == code


OPS = st.lists(
    st.tuples(
        st.sampled_from(["reserve", "burn", "settle", "crash"]),
        st.integers(0, 2),  # run
        st.integers(1, 4),  # round
    ),
    max_size=25,
)


@settings(max_examples=40, deadline=None)
@given(ops=OPS)
def test_p3_whatever_happens_history_is_never_less_than_what_was_burned(ops: list[tuple[str, int, int]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "journal.db")
        journal = Journal.open(path, owner="health")
        ledger = PrivacyLedger(journal, now)
        burned: set[tuple[int, int]] = set()
        for op, run, round_number in ops:
            if op == "crash":
                journal.close()
                journal = Journal.open(path, owner="health")
                ledger = PrivacyLedger(journal, now)
                continue
            try:
                reservation = ledger.reserve(charge(bytes([run]), attempts=3), AMPLE)
                if op == "burn":
                    reservation.burn(round_number)
                    burned.add((run, round_number))
                elif op == "settle":
                    reservation.settle()
            except (ProtocolError, InsufficientBudgetError):
                pass
            counted = sum(event.steps for event in ledger.history("calls"))
            assert counted >= EVENT.steps * len(burned)
            assert filter_epsilon(ledger.history("calls"), DELTA) <= AMPLE.lifetime.epsilon
        journal.close()


class Interrupts:
    """Raise KeyboardInterrupt at the n-th line executed in the journal or the ledger."""

    def __init__(self, at: int) -> None:
        self.left = at

    def __call__(self, frame: FrameType, event: str, _argument: object) -> Any:
        name = frame.f_code.co_filename
        if not name.startswith((str(ROOT / "shared" / "journal"), str(ROOT / "shared" / "privacy" / "ledger"))):
            return None
        if event == "line":
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt
        return self


def test_p3_an_interrupt_at_any_line_never_forgets_a_burned_attempt(tmp_path: Path) -> None:
    with Journal.open(tmp_path / "journal.db", owner="health") as journal:
        ledger = PrivacyLedger(journal, now)
        done = False
        for at in itertools.count(1):
            reservation = ledger.reserve(charge(at.to_bytes(2, "big"), dataset=str(at)), AMPLE)
            before = sys.gettrace()
            sys.settrace(Interrupts(at))
            try:
                reservation.burn(1)
                done = True
            except KeyboardInterrupt:
                pass
            finally:
                sys.settrace(before)
            fresh = PrivacyLedger(journal, now).reservation(at.to_bytes(2, "big"))
            seen = ledger.reservation(at.to_bytes(2, "big"))
            assert seen is not None
            assert fresh is not None
            assert seen.burned == fresh.burned == reservation.burned
            if done:
                break
            reservation.burn(2)
        assert at > 20
        assert reservation.burned == {1}


# --- lone shares (privacy 4.3) ------------------------------------------------------------------------------

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
