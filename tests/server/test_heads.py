"""What the authority remembers of departments' journals: the newest position, over runs, and not the round at work."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.heads import KnownHeads
from server.records import Countersigned, RoundDone
from shared.errors import ProtocolError
from shared.identity import DepartmentId, IdentityKey, Roster, sign_record
from shared.journal import EntryKind, Journal
from shared.messages import HeadReceipt, MaskedUpdate
from tests.empty_update import empty_update

NOW = dt.datetime(2026, 3, 1, tzinfo=dt.UTC)
POLICE = DepartmentId("police")
KEY = IdentityKey.from_private_bytes(bytes([7]) * 32)
ROSTER = Roster(city="town", serial=1, members={POLICE: KEY.public})
RUN, OTHER = bytes([1]) * 32, bytes([2]) * 32
ONE, TWO = bytes([1]) * 32, bytes([2]) * 32


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal.open(tmp_path / "journal.sqlite", owner="authority") as opened:
        yield opened


def update(sequence: int, head: bytes = ONE, key: IdentityKey = KEY) -> MaskedUpdate:
    return empty_update(POLICE, key, sequence=sequence, head=head)


def close(
    journal: Journal, sequence: int, *, run: bytes = RUN, round_number: int = 1, countersigned: bool = True
) -> None:
    """A round whose update was at this position and whose countersignature, if any, is two further."""
    receipts = {POLICE: update(sequence).receipt}
    done = RoundDone(
        run=run, round=round_number, sid=bytes(32), survivors=(POLICE,), model_hash=bytes(32), receipts=receipts
    )
    journal.append(EntryKind.ROUND, done, now=NOW)
    if not countersigned:
        return
    head = HeadReceipt(department=POLICE, closed_hash=bytes(32), journal_sequence=sequence + 2, journal_head=ONE)
    signed = Countersigned(run=run, round=round_number, receipts={POLICE: sign_record(KEY, "head-receipt", head)})
    journal.append(EntryKind.COUNTERSIGNED, signed, now=NOW)


def verdict(heads: KnownHeads, round_number: int, sent: MaskedUpdate) -> str:
    taken: list[str] = []
    receive = heads.guard(round_number, ROSTER, lambda name, _: taken.append(name))
    try:
        receive(POLICE, sent)
    except ProtocolError as error:
        assert not taken
        return error.code
    assert taken == [POLICE]
    return "taken"


def test_p5_a_position_before_the_last_countersigned_one_is_refused(journal: Journal) -> None:
    heads = KnownHeads(journal, RUN)
    assert verdict(heads, 1, update(1)) == "taken"
    close(journal, 10)
    for sequence, said in ((9, "journal-rolled-back"), (11, "journal-rolled-back"), (13, "taken")):
        assert verdict(heads, 2, update(sequence)) == said


def test_p5_another_entry_at_the_last_position_is_refused(journal: Journal) -> None:
    close(journal, 10)
    heads = KnownHeads(journal, RUN)
    assert verdict(heads, 2, update(12, ONE)) == "taken"
    assert verdict(heads, 2, update(12, TWO)) == "journal-rolled-back"


def test_p5_a_round_that_was_not_countersigned_is_later_than_the_countersignature_of_the_one_before(
    journal: Journal,
) -> None:
    close(journal, 10)
    close(journal, 20, round_number=2, countersigned=False)
    heads = KnownHeads(journal, RUN)
    assert verdict(heads, 3, update(19)) == "journal-rolled-back"
    assert verdict(heads, 3, update(20)) == "taken"


def test_p5_other_runs_count_whatever_their_rounds_are(journal: Journal) -> None:
    close(journal, 10, run=OTHER, round_number=40)
    assert verdict(KnownHeads(journal, RUN), 1, update(11)) == "journal-rolled-back"


def test_a_round_that_is_conducted_again_takes_the_update_that_it_took_before(journal: Journal) -> None:
    """Its account was written, and the process was killed before the checkpoint."""
    close(journal, 10, round_number=3)
    heads = KnownHeads(journal, RUN)
    assert verdict(heads, 3, update(10)) == "taken"
    close(journal, 10, round_number=3)
    assert verdict(heads, 4, update(10, TWO)) == "journal-rolled-back"


@pytest.mark.parametrize("again", [False, True])
def test_p5_a_round_that_was_conducted_again_counts_from_the_next_one_on(journal: Journal, again: bool) -> None:
    """Its account stands in the log of the round, so that no second one is written."""
    close(journal, 10, round_number=3)
    heads = KnownHeads(journal, RUN)
    if again:
        assert verdict(heads, 3, update(10)) == "taken"
    assert verdict(heads, 4, update(7, TWO)) == "journal-rolled-back"
    assert verdict(heads, 4, update(13)) == "taken"


def test_a_receipt_that_the_department_did_not_sign_is_not_compared(journal: Journal) -> None:
    assert verdict(KnownHeads(journal, RUN), 1, update(1, key=IdentityKey.generate())) == "signature-invalid"
