"""Whenever the process or the machine stops, the ledger counts at least what was burned (promises P3 and P5)."""

from __future__ import annotations

import itertools
import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from shared.errors import InsufficientBudgetError, JournalError, ProtocolError
from shared.journal import Journal, verify_journal
from shared.privacy.accountant import filter_epsilon
from shared.privacy.ledger import PrivacyLedger
from tests.interrupts import ran_through
from tests.ledger_history import history
from tests.refusals import code_of
from tests.shared.privacy.ledger_charges import AMPLE, DELTA, EVENT, charge, now


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
            assert history(PrivacyLedger(journal, now), "calls") == (counted,)


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
    assert code_of(lambda: verify_journal(path, owner="health", receipts=[receipt]), JournalError) == (
        "journal-receipt-mismatch"
    )


OPS = st.lists(
    st.tuples(
        st.sampled_from(["reserve", "burn", "settle", "crash"]),
        st.integers(0, 2),  # run
        st.integers(1, 4),  # round
    ),
    max_size=25,
)


@settings(max_examples=40)
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
            counted = sum(event.steps for event in history(ledger, "calls"))
            assert counted >= EVENT.steps * len(burned)
            assert filter_epsilon(history(ledger, "calls"), DELTA) <= AMPLE.lifetime.epsilon
        journal.close()


def test_p3_an_interrupt_at_any_line_never_forgets_a_burned_attempt(tmp_path: Path) -> None:
    with Journal.open(tmp_path / "journal.db", owner="health") as journal:
        ledger = PrivacyLedger(journal, now)
        for at in itertools.count(1):
            reservation = ledger.reserve(charge(at.to_bytes(2, "big"), dataset=str(at)), AMPLE)
            done = ran_through(partial(reservation.burn, 1), at, "shared/journal", "shared/privacy")
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
