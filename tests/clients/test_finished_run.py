"""After a clean run: nothing of a record got out, the charge is what ran, and both sides' journals agree."""

from __future__ import annotations

import csv
import re
import sqlite3
from collections.abc import Iterator

import pytest

from clients.records import HeadsSeen, RoundFinished
from server.records import Countersigned
from shared.codec import decode
from shared.identity import DepartmentId, open_signed
from shared.journal import EntryKind, Head, verify_journal
from shared.messages import ClosedRound, HeadReceipt, KeyAdvert
from simulation.network import InMemoryTransport
from tests.city import FOUR, MESSAGES, City, open_city
from tests.clients.participant_city import POLICE
from tests.eavesdropper import Eavesdropper
from tests.ledger_history import history


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[City, Eavesdropper]]:
    """A city after a clean run, journals still open, with everything that was said."""
    with open_city(tmp_path_factory.mktemp("finished")) as city:
        ear = Eavesdropper()
        city.coordinator(InMemoryTransport(ear.listen(city.peers))).run(city.basis.initial)
        yield city, ear


# --- nothing of a record gets out ----------------------------------------------------------------------------


def private_words() -> set[bytes]:
    """Every id, name, local column name and run of three words in any department's file, and every local name."""
    words: set[str] = set()
    for name in FOUR:
        with (MESSAGES / f"{name}.csv").open(newline="") as file:
            header, *rows = csv.reader(file)
        words |= set(header)
        for row in rows:
            for cell in row:
                parts = cell.split()
                words |= {" ".join(parts[at : at + 3]) for at in range(len(parts) - 2)}
                words |= {cell} if len(parts) < 3 and re.search(r"[A-Z]-\d|never", cell) else set()
    return {word.encode() for word in words if len(word) > 4}


def test_p1_no_message_that_leaves_a_department_holds_a_word_of_a_record(
    finished: tuple[City, Eavesdropper],
) -> None:
    _, ear = finished
    words = private_words()
    assert len(words) > 500
    assert b"never-read" in words
    assert b"narrative" in words
    said = b"\n".join(item.reply for item in ear.heard)
    assert [word for word in words if word in said] == []


def test_p1_no_column_name_of_a_contract_leaves_either(finished: tuple[City, Eavesdropper]) -> None:
    city, ear = finished
    said = b"\n".join(item.reply for item in ear.heard)
    for department in city.world.departments.values():
        for name in department.binding.columns:
            assert name.encode() not in said


def test_p1_no_journal_holds_a_text(finished: tuple[City, Eavesdropper]) -> None:
    city, _ = finished
    words = private_words()
    journals = [city.world.authority_journal, *(item.memory.journal for item in city.world.participants.values())]
    for journal in journals:
        rows = sqlite3.connect(f"file:{journal.path}?mode=ro", uri=True)
        content = b"\n".join(body for (body,) in rows.execute("SELECT body FROM entry"))
        rows.close()
        assert len(content) > 1000
        assert [word for word in words if word in content] == []


# --- what is written down ------------------------------------------------------------------------------------


def test_p3_a_clean_end_leaves_the_rounds_that_ran(finished: tuple[City, Eavesdropper]) -> None:
    city, _ = finished
    plan = city.world.plan
    assert plan.attempts == plan.rounds + 1
    for participant in city.world.participants.values():
        (event,) = history(participant.ledger, participant.department.declaration.dataset)
        assert event.steps == plan.rounds * plan.privacy.steps


def head_of(receipt: ClosedRound | HeadReceipt) -> Head:
    return Head(sequence=receipt.journal_sequence, digest=receipt.journal_head)


def test_p5_both_sides_journals_verify_against_the_other_sides_receipts(
    finished: tuple[City, Eavesdropper],
) -> None:
    city, _ = finished
    world, journal = city.world, city.world.authority_journal
    held = [decode(entry.body, Countersigned).receipts for entry in journal.entries(EntryKind.COUNTERSIGNED)]
    for name, participant in world.participants.items():
        own = participant.memory.journal
        kept = [decode(entry.body, RoundFinished).closed for entry in own.entries(EntryKind.ROUND)]
        closed = [open_signed(world.authority.public, "round-closed", signed, ClosedRound) for signed in kept]
        heads = [open_signed(world.roster.members[name], "head-receipt", signed[name], HeadReceipt) for signed in held]
        assert len(closed) == len(heads) == world.plan.rounds
        of_authority = verify_journal(journal.path, owner="authority", receipts=map(head_of, closed))
        of_department = verify_journal(own.path, owner=name, receipts=map(head_of, heads))
        assert (of_authority.head, of_department.head) == (journal.head, own.head)


def test_p5_each_peer_keeps_the_others_adverts_once_an_epoch(finished: tuple[City, Eavesdropper]) -> None:
    city, _ = finished
    entries = city.world.participants[POLICE].memory.journal.entries(EntryKind.HEADS)
    first, second = [decode(entry.body, HeadsSeen) for entry in entries]
    assert set(first.adverts) == set(first.heads) == set(FOUR) - {POLICE}
    for name, signed in first.adverts.items():
        advert = open_signed(city.world.roster.members[DepartmentId(name)], "key-advert", signed, KeyAdvert)
        assert (advert.department, advert.run) == (name, city.world.plan.run_id())
    assert second.adverts == {}
