"""The journal: entries in order, chained and durable, in a file of its owner's."""

from __future__ import annotations

import datetime as dt
import stat
from pathlib import Path

import pytest

from shared.codec import decode
from shared.journal import EntryKind, Journal, genesis, verify_journal
from tests.shared.journal_files import NOW, Note, code_of, fill


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


def test_entries_come_back_in_order_after_reopening(path: Path) -> None:
    with Journal.open(path, owner="health") as journal:
        assert journal.head == genesis("health")
        fill(journal, 3)
        journal.append(EntryKind.REFUSAL, Note(number=9), now=NOW)
        head = journal.head
    with Journal.open(path, owner="health") as journal:
        assert journal.head == head
        assert [decode(entry.body, Note).number for entry in journal.entries()] == [0, 1, 2, 9]
        assert [entry.sequence for entry in journal.entries(EntryKind.REFUSAL)] == [4]
        assert [entry.sequence for entry in journal.entries(after=2)] == [3, 4]
        assert journal.head_at(4) == head
        assert journal.head_at(0) == genesis("health")
        assert code_of(lambda: journal.head_at(5)) == "journal-behind-receipt"


def test_more_entries_than_a_page_are_all_read(path: Path) -> None:
    with Journal.open(path, owner="health") as journal:
        heads = fill(journal, 700)
        assert [entry.sequence for entry in journal.entries()] == list(range(1, 701))
        assert len(list(journal.entries(EntryKind.DECISION, after=100))) == 600
    assert verify_journal(path, owner="health", receipts=heads).entries == 700


def test_entries_may_be_appended_while_others_are_read(path: Path) -> None:
    with Journal.open(path, owner="health") as journal:
        fill(journal, 2)
        for entry in journal.entries():
            if entry.sequence <= 2:
                journal.append(EntryKind.REFUSAL, Note(number=entry.sequence), now=NOW)
        assert journal.head.sequence == 4


def test_a_journal_is_read_beside_its_writer_and_takes_no_entry_there(path: Path) -> None:
    assert code_of(lambda: Journal.read(path, owner="health")) == "journal-missing"
    with Journal.open(path, owner="health") as writer:
        writer.append(EntryKind.DECISION, Note(number=1), now=NOW)
        with Journal.read(path, owner="health") as reader:
            assert reader.head == writer.head
            with pytest.raises(RuntimeError, match="opened to read"):
                reader.append(EntryKind.DECISION, Note(number=2), now=NOW)
        writer.append(EntryKind.DECISION, Note(number=2), now=NOW)
    assert code_of(lambda: Journal.read(path, owner="somebody else")) == "journal-corrupt"


def test_time_is_stored_as_utc_and_needs_a_zone(path: Path) -> None:
    with Journal.open(path, owner="health") as journal:
        paris = dt.datetime(2026, 3, 1, 13, 0, tzinfo=dt.timezone(dt.timedelta(hours=1)))
        entry = journal.append(EntryKind.RUN, Note(number=1), now=paris)
        assert entry.time == "2026-03-01T12:00:00.000000+00:00"
        with pytest.raises(ValueError, match="time zone"):
            journal.append(EntryKind.RUN, Note(number=1), now=paris.replace(tzinfo=None))


def test_equal_entries_have_unequal_digests_because_of_the_salt(tmp_path: Path) -> None:
    digests = set()
    for name in ("a", "b"):
        with Journal.open(tmp_path / name, owner="health") as journal:
            entry = journal.append(EntryKind.RUN, Note(number=1), now=NOW)
            assert len(entry.salt) == 16
            digests.add(entry.digest)
    assert len(digests) == 2


def test_files_are_readable_by_the_owner_alone(path: Path) -> None:
    with Journal.open(path, owner="health") as journal:
        fill(journal, 1)
        modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
    assert set(modes.values()) == {0o600}
    assert {"journal.db", "journal.db-wal", "journal.db.lock"} <= set(modes)


def test_commits_are_synchronous(path: Path) -> None:
    with Journal.open(path, owner="health") as journal:
        assert journal._connection.execute("PRAGMA synchronous").fetchone() == (2,)
        assert journal._connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_closed_journal_is_a_callers_mistake(path: Path) -> None:
    journal = Journal.open(path, owner="health")
    journal.close()
    journal.close()
    with pytest.raises(RuntimeError, match="closed"):
        fill(journal, 1)
    assert "health" in repr(journal)


def test_a_missing_folder_is_one_sentence(tmp_path: Path) -> None:
    assert code_of(lambda: Journal.open(tmp_path / "none" / "journal.db", owner="health")) == "journal-unwritable"
