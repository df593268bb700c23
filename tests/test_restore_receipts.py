"""Which receipts a restoration believes (P5): those that this department signed, and all of them."""

from __future__ import annotations

import datetime as dt
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from clients.backup import make_backup, read_backup
from clients.config import open_journal
from clients.explain import others_receipts
from clients.records import KeyApproved
from clients.restore import MOST_LOST
from server.city import load_roster_key
from server.roster import load_members
from shared.audit import ReceiptLine
from shared.codec import encode
from shared.identity import IdentityKey, sign_record
from shared.journal import EntryKind, Head, Journal
from shared.roster import endorse_key
from tests.deployed_city import now
from tests.lost_city import POLICE, Lost, lose


@pytest.fixture(scope="module")
def lost(tmp_path_factory: pytest.TempPathFactory) -> Lost:
    return lose(tmp_path_factory.mktemp("lost"))


def test_p5_receipts_of_another_journal_are_refused(lost: Lost, tmp_path: Path) -> None:
    first = min((line for line in lost.lines if line.owner == POLICE and line.sequence), key=lambda line: line.sequence)
    other = lost.head(first.sequence, first.run_id())
    lost.assert_refused("journal-receipt-mismatch", tmp_path / "home", lost.after, (*lost.lines, other))


def test_p5_receipts_that_do_not_name_a_run_which_ended_here_are_refused(lost: Lost, tmp_path: Path) -> None:
    others = (ReceiptLine(owner="health", sequence=0, digest=""),)
    lost.assert_refused("receipts-incomplete", tmp_path / "home", lost.after, others)


def test_p5_a_later_entry_that_no_run_explains_is_refused_and_closes_nothing(lost: Lost, tmp_path: Path) -> None:
    bare = ReceiptLine(owner=POLICE, sequence=400, digest="")
    lost.assert_refused("receipts-incomplete", tmp_path / "home", lost.after, (*lost.lines, bare))


@pytest.mark.parametrize(("beyond", "code"), [(0, "receipts-incomplete"), (1, "receipts-implausible")])
def test_p5_a_position_that_no_journal_reaches_is_refused_before_anything_is_made_of_it(
    lost: Lost, tmp_path: Path, beyond: int, code: str
) -> None:
    bare = ReceiptLine(owner=POLICE, sequence=read_backup(lost.after).sequence + MOST_LOST + beyond, digest="")
    lost.assert_refused(code, tmp_path / "home", lost.after, (*lost.lines, bare))


def test_bare_positions_that_the_backup_reaches_say_nothing(lost: Lost, tmp_path: Path) -> None:
    bare = tuple(ReceiptLine(owner=POLICE, sequence=sequence, digest="") for sequence in (0, 3))
    restored = lost.restore(tmp_path / "home", lost.after, (*lost.lines, *bare))
    assert (restored.charged, restored.closed) == ((), "")


def last_of(backup: Path) -> Head:
    with Journal.read(backup / "journal.sqlite", owner=POLICE) as journal:
        return journal.head


def test_a_backup_that_reaches_the_newest_known_position_lost_nothing(lost: Lost, tmp_path: Path) -> None:
    last = last_of(lost.after)
    newest = lost.head(last.sequence, lost.plan.run_id(), digest=last.digest)
    restored = lost.restore(tmp_path / "home", lost.after, (*lost.lines, newest))
    assert restored.newest == restored.sequence
    with open_journal(tmp_path / "home" / "client.toml") as journal:
        assert journal.head == last
        assert list(journal.entries(EntryKind.REGAINED)) == []


def test_p5_the_last_entry_of_a_backup_is_compared_as_every_other(lost: Lost, tmp_path: Path) -> None:
    other = lost.head(last_of(lost.after).sequence, lost.plan.run_id())
    lost.assert_refused("journal-receipt-mismatch", tmp_path / "home", lost.after, (*lost.lines, other))


def test_p5_a_home_that_was_restored_once_is_compared_outside_of_what_was_lost_then(lost: Lost, tmp_path: Path) -> None:
    first = lost.restore(tmp_path / "first", lost.before)
    again, run = tmp_path / "again", lost.plan.run_id()
    make_backup(tmp_path / "first" / "client.toml", again, keys=True, now=now() + dt.timedelta(days=2))
    assert first.sequence + 1 < first.newest < last_of(again).sequence
    for sequence, code in (
        (first.sequence, "journal-receipt-mismatch"),
        (first.sequence + 1, ""),
        (first.newest, ""),
        (first.newest + 1, "journal-receipt-mismatch"),
    ):
        home, lines = tmp_path / f"at-{sequence}", (*lost.lines, lost.head(sequence, run))
        if code:
            lost.assert_refused(code, home, again, lines)
        else:
            assert lost.restore(home, again, lines).closed == ""


RUN, OTHER = bytes([1]) * 32, bytes([2]) * 32
FORGED: dict[str, tuple[Callable[[Lost], tuple[ReceiptLine, ...]], str]] = {
    "a run that nobody signed": (
        lambda _: (ReceiptLine(owner=POLICE, sequence=0, digest="", run=RUN.hex()),),
        "receipt-unsigned",
    ),
    "a position that nobody signed": (
        lambda _: (ReceiptLine(owner=POLICE, sequence=400, digest="ab" * 32),),
        "receipt-unsigned",
    ),
    "a label and nothing else": (
        lambda _: (ReceiptLine(owner=POLICE, sequence=0, digest="", label="key-advert"),),
        "receipt-unsigned",
    ),
    "a run that somebody else signed": (lambda lost: (lost.advert(RUN, key=IdentityKey.generate()),), "receipt-forged"),
    "a run under another run's advert": (
        lambda lost: (msgspec.structs.replace(lost.advert(RUN), run=OTHER.hex()),),
        "receipt-forged",
    ),
    "a later position than was signed": (
        lambda lost: (msgspec.structs.replace(lost.head(3, RUN), sequence=400),),
        "receipt-forged",
    ),
    "another digest than was signed": (
        lambda lost: (msgspec.structs.replace(lost.head(3, RUN), digest="ab" * 32),),
        "receipt-forged",
    ),
    "an advert as if it were a head": (
        lambda lost: (msgspec.structs.replace(lost.advert(RUN), label="head-receipt"),),
        "receipt-forged",
    ),
    "a label that says nothing": (
        lambda lost: (msgspec.structs.replace(lost.advert(RUN), label="plan"),),
        "receipt-forged",
    ),
    "another department's advert": (
        lambda lost: tuple(msgspec.structs.replace(x, owner=POLICE) for x in lost.lines if x.owner == "health")[:1],
        "receipt-forged",
    ),
    "a later position of a run without its advert": (lambda lost: (lost.head(400, RUN),), "receipts-incomplete"),
    "a later position of a run that had ended": (lambda lost: (lost.head(400, lost.plan.run_id()),), "receipt-forged"),
}


@pytest.mark.parametrize("name", FORGED)
def test_p5_what_this_department_did_not_sign_neither_charges_nor_closes(lost: Lost, tmp_path: Path, name: str) -> None:
    lines, code = FORGED[name]
    lost.assert_refused(code, tmp_path / "home", lost.after, (*lost.lines, *lines(lost)))
    restored = lost.restore(tmp_path / "home", lost.after)
    assert (restored.charged, restored.closed) == ((), "")


def test_p5_a_key_from_after_the_backup_counts_with_the_roster_on_which_the_old_one_vouches_for_it(
    lost: Lost, tmp_path: Path
) -> None:
    new, run = IdentityKey.generate(), lost.plan.run_id()
    members = load_members(lost.city.authority).roster
    rosters = []
    for name, old in (("vouched", lost.identity), ("swapped", IdentityKey.generate())):
        word = endorse_key(old, city=members.city, department=POLICE, key=new.public)
        later = msgspec.structs.replace(
            members,
            serial=members.serial + 1,
            members=members.members | {POLICE: new.public},
            endorsements={POLICE: word},
        )
        rosters.append(tmp_path / name)
        rosters[-1].write_bytes(encode(sign_record(load_roster_key(lost.city.authority), "roster", later)))
    vouched, swapped = rosters
    lines = (*lost.lines, lost.advert(run, key=new))
    lost.assert_refused("receipt-forged", tmp_path / "without", lost.before, lines)
    lost.assert_refused("receipt-forged", tmp_path / "office", lost.before, lines, [swapped])
    assert lost.restore(tmp_path / "with", lost.before, lines, [vouched]).charged == (run.hex(),)


@pytest.mark.parametrize(("owner", "code"), [(POLICE, ""), ("health", "receipt-forged")])
def test_p5_a_key_that_people_here_approved_as_their_own_counts(
    lost: Lost, tmp_path: Path, owner: str, code: str
) -> None:
    backup, key, run = tmp_path / "backup", IdentityKey.generate(), lost.plan.run_id()
    shutil.copytree(lost.before, backup)
    with Journal.open(backup / "journal.sqlite", owner=POLICE) as journal:
        journal.append(EntryKind.KEY, KeyApproved(department=owner, key=key.public, means="fingerprint"), now=now())
    lines = (*lost.lines, lost.advert(run, key=key))
    if code:
        lost.assert_refused(code, tmp_path / "home", backup, lines)
    else:
        assert lost.restore(tmp_path / "home", backup, lines).charged == (run.hex(),)


def test_p3_a_run_is_charged_under_its_own_policy_whatever_another_run_was_under(lost: Lost, tmp_path: Path) -> None:
    """The other run's data set is known to nobody, so the ledger is closed all the same."""
    other = lost.advert(OTHER, policy=bytes([1]) * 32)
    restored = lost.restore(tmp_path / "home", lost.before, (*lost.lines, other))
    assert (restored.charged, restored.closed) == ((lost.plan.run_id().hex(),), "restore-plan-unknown")


def test_p3_what_a_peer_kept_names_the_run_if_the_authority_says_nothing(lost: Lost, tmp_path: Path) -> None:
    told = tuple(line for line in others_receipts(lost.city.config("health")) if line.owner == POLICE)
    restored = lost.restore(tmp_path / "home", lost.before, told)
    assert restored.charged == (lost.plan.run_id().hex(),)
    assert restored.newest == max(line.sequence for line in told)
