"""Whoever edits, deletes or rolls back a journal's file is found out (promise P5)."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pytest

from shared.journal import Head, Journal, genesis, verify_journal
from tests.shared.journal_files import code_of, fill, tamper


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


@pytest.fixture
def filled(path: Path) -> tuple[Path, list[Head]]:
    with Journal.open(path, owner="health") as journal:
        return path, fill(journal, 6)


@pytest.mark.parametrize("statement", ["UPDATE entry SET kind = 'x'", "DELETE FROM entry WHERE sequence = 6"])
def test_the_table_is_append_only(filled: tuple[Path, list[Head]], statement: str) -> None:
    connection = sqlite3.connect(filled[0])
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        connection.execute(statement)
    connection.close()


EDITS = {
    "body": "UPDATE entry SET body = x'81a66e756d62657207' WHERE sequence = 3",
    "kind": "UPDATE entry SET kind = 'refusal' WHERE sequence = 3",
    "time": "UPDATE entry SET time = '2020-01-01T00:00:00.000000+00:00' WHERE sequence = 1",
    "salt": "UPDATE entry SET salt = zeroblob(16) WHERE sequence = 6",
    "digest": "UPDATE entry SET digest = zeroblob(32) WHERE sequence = 6",
    "previous": "UPDATE entry SET previous = zeroblob(32) WHERE sequence = 1",
    "renumbered": "UPDATE entry SET sequence = 9 WHERE sequence = 6",
    "deleted first": "DELETE FROM entry WHERE sequence = 1",
    "deleted middle": "DELETE FROM entry WHERE sequence = 4",
    "hidden below one": "INSERT INTO entry SELECT -7, kind, time, salt, body, previous, digest FROM entry LIMIT 1",
    "doubled": "INSERT INTO entry SELECT 7, kind, time, salt, body, previous, digest FROM entry WHERE sequence = 6",
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS.keys())
def test_p5_an_edit_or_deletion_is_found_by_anyone(filled: tuple[Path, list[Head]], edit: str) -> None:
    path, _ = filled
    tamper(path, edit)
    assert code_of(lambda: verify_journal(path, owner="health")) == "journal-chain-broken"
    assert code_of(lambda: Journal.open(path, owner="health")) == "journal-corrupt"


def test_p5_a_table_rebuilt_with_other_types_is_found(filled: tuple[Path, list[Head]]) -> None:
    path, _ = filled
    tamper(path, "CREATE TABLE copy AS SELECT * FROM entry", "DROP TABLE entry", "ALTER TABLE copy RENAME TO entry")
    assert verify_journal(path, owner="health").entries == 6
    tamper(path, "UPDATE entry SET salt = 7 WHERE sequence = 2")
    assert code_of(lambda: verify_journal(path, owner="health")) == "journal-chain-broken"


def test_p5_a_truncated_tail_is_found_by_a_later_receipt(filled: tuple[Path, list[Head]]) -> None:
    path, heads = filled
    tamper(path, "DELETE FROM entry WHERE sequence > 4")
    assert verify_journal(path, owner="health", receipts=heads[:4]).entries == 4
    assert code_of(lambda: verify_journal(path, owner="health", receipts=heads[4:5])) == "journal-behind-receipt"
    with Journal.open(path, owner="health") as journal:
        assert code_of(lambda: journal.check_receipts(heads)) == "journal-behind-receipt"


def test_p5_a_rollback_is_found_even_after_the_same_entries_were_written_again(path: Path, tmp_path: Path) -> None:
    old = tmp_path / "backup.db"
    with Journal.open(path, owner="health") as journal:
        fill(journal, 3)
    shutil.copy(path, old)
    with Journal.open(path, owner="health") as journal:
        later = fill(journal, 2)
    shutil.copy(old, path)
    assert code_of(lambda: verify_journal(path, owner="health", receipts=later)) == "journal-behind-receipt"
    with Journal.open(path, owner="health") as journal:
        fill(journal, 2)
        assert code_of(lambda: journal.check_receipts(later)) == "journal-receipt-mismatch"
    assert code_of(lambda: verify_journal(path, owner="health", receipts=later[-1:])) == "journal-receipt-mismatch"


def test_p5_a_journal_emptied_to_nothing_is_found(filled: tuple[Path, list[Head]]) -> None:
    path, heads = filled
    path.write_bytes(b"")
    with Journal.open(path, owner="health") as journal:
        assert journal.head.sequence == 0
    assert code_of(lambda: verify_journal(path, owner="health", receipts=heads[:1])) == "journal-behind-receipt"


def test_p5_a_receipt_of_the_empty_journal_names_its_owner(filled: tuple[Path, list[Head]]) -> None:
    path, heads = filled
    verify_journal(path, owner="health", receipts=[genesis("health"), *heads, heads[0]])
    assert code_of(lambda: verify_journal(path, owner="police")) == "journal-chain-broken"
    wrong = [genesis("police")]
    assert code_of(lambda: verify_journal(path, owner="health", receipts=wrong)) == "journal-receipt-mismatch"


def test_a_file_that_is_no_journal_is_refused(path: Path, tmp_path: Path) -> None:
    path.write_bytes(b"not a database, but long enough to be looked at as one" * 100)
    assert code_of(lambda: Journal.open(path, owner="health")) == "journal-corrupt"
    assert code_of(lambda: verify_journal(path, owner="health")) == "journal-corrupt"
    assert code_of(lambda: verify_journal(tmp_path / "none.db", owner="health")) == "journal-missing"
    other = tmp_path / "other.db"
    connection = sqlite3.connect(other)
    connection.execute("CREATE TABLE entry (sequence INTEGER)")
    connection.close()
    assert code_of(lambda: Journal.open(other, owner="health")) == "journal-corrupt"
    assert code_of(lambda: verify_journal(other, owner="health")) == "journal-corrupt"
