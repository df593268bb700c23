"""The journal: durable, append-only, chained, one writer; promise P5."""

from __future__ import annotations

import datetime as dt
import itertools
import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from shared.codec import Record, decode
from shared.errors import JournalError
from shared.journal import EntryKind, Head, Journal, genesis, verify_journal

NOW = dt.datetime(2026, 3, 1, 12, 0, tzinfo=dt.UTC)
ROOT = Path(__file__).resolve().parents[2]


class Note(Record, frozen=True, kw_only=True):
    """A body."""

    number: int


def fill(journal: Journal, count: int) -> list[Head]:
    heads = []
    for number in range(count):
        journal.append(EntryKind.DECISION, Note(number=number), now=NOW)
        heads.append(journal.head)
    return heads


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


@pytest.fixture
def filled(path: Path) -> tuple[Path, list[Head]]:
    with Journal.open(path, owner="health") as journal:
        return path, fill(journal, 6)


def tamper(path: Path, *statements: str) -> None:
    """Do what somebody with the file and an SQL shell can do."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("DROP TRIGGER IF EXISTS no_update")
    connection.execute("DROP TRIGGER IF EXISTS no_delete")
    for statement in statements:
        connection.execute(statement)
    connection.close()


def code_of(action: Callable[[], object]) -> str:
    with pytest.raises(JournalError) as caught:
        action()
    return caught.value.code


def run_python(program: str, *arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=False,
    )


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


OPEN = """
import sys
from pathlib import Path
from shared.errors import JournalError
from shared.journal import Journal
try:
    Journal.open(Path(sys.argv[1]), owner="health").close()
    print("opened")
except JournalError as error:
    print(error.diagnostics())
"""


def test_a_second_process_is_locked_out_until_the_first_closes(path: Path) -> None:
    with Journal.open(path, owner="health") as journal:
        fill(journal, 1)
        assert "[journal-locked]" in run_python(OPEN, str(path)).stdout
        assert code_of(lambda: Journal.open(path, owner="health")) == "journal-locked"
        assert verify_journal(path, owner="health").entries == 1
        fill(journal, 1)
    assert run_python(OPEN, str(path)).stdout == "opened\n"


def test_a_failed_open_leaves_no_lock_behind(path: Path) -> None:
    path.write_bytes(b"x" * 4096)
    assert code_of(lambda: Journal.open(path, owner="health")) == "journal-corrupt"
    path.unlink()
    Journal.open(path, owner="health").close()


def test_a_closed_journal_is_a_callers_mistake(path: Path) -> None:
    journal = Journal.open(path, owner="health")
    journal.close()
    journal.close()
    with pytest.raises(RuntimeError, match="closed"):
        fill(journal, 1)
    assert "health" in repr(journal)


def test_a_missing_folder_is_one_sentence(tmp_path: Path) -> None:
    assert code_of(lambda: Journal.open(tmp_path / "none" / "journal.db", owner="health")) == "journal-unwritable"


READ_ONLY = """
import os
from pathlib import Path
from shared.errors import JournalError
from shared.journal import Journal, verify_journal
if os.getuid() == 0:
    os.setuid(65534)
print(verify_journal(Path(os.getcwd(), "old.db"), owner="health").entries)
try:
    Journal.open(Path(os.getcwd(), "new.db"), owner="health")
except JournalError as error:
    print(error.diagnostics())
"""


def test_a_read_only_folder_can_be_verified_and_not_written() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with Journal.open(folder / "old.db", owner="health") as journal:
            fill(journal, 4)
        (folder / "old.db").chmod(0o444)
        folder.chmod(0o555)
        result = run_python(READ_ONLY, cwd=folder)
        folder.chmod(0o755)
    assert result.stdout.splitlines()[0] == "4", result.stderr
    assert "cannot be written: Permission denied. [journal-unwritable]" in result.stdout


DISK_FULL = """
import datetime as dt, resource, sys
from pathlib import Path
from shared.codec import Record
from shared.errors import JournalError
from shared.journal import EntryKind, Journal
class Blob(Record, frozen=True, kw_only=True):
    data: bytes
now = dt.datetime(2026, 3, 1, tzinfo=dt.UTC)
with Journal.open(Path(sys.argv[1]), owner="health") as journal:
    journal.append(EntryKind.RUN, Blob(data=b"1"), now=now)
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    try:
        for _ in range(1000):
            journal.append(EntryKind.RUN, Blob(data=bytes(5000)), now=now)
    except JournalError as error:
        print(error.diagnostics())
    full = journal.head.sequence
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    print(journal.append(EntryKind.RUN, Blob(data=b"2"), now=now).sequence == full + 1, full)
"""


def test_a_full_disk_is_one_sentence_and_the_journal_goes_on_when_there_is_room(path: Path) -> None:
    lines = run_python(DISK_FULL, str(path)).stdout.splitlines()
    assert "cannot be written" in lines[0]
    assert lines[0].endswith("[journal-unwritable]")
    worked, full = lines[1].split()
    assert worked == "True"
    assert verify_journal(path, owner="health").entries == int(full) + 1


WRITE_ON = """
import datetime as dt, sys
from pathlib import Path
from shared.codec import Record
from shared.journal import EntryKind, Journal
class Note(Record, frozen=True, kw_only=True):
    number: int
journal = Journal.open(Path(sys.argv[1]), owner="health")
for _ in range(20_000):  # far more than the test waits for, and still an end
    entry = journal.append(EntryKind.RUN, Note(number=1), now=dt.datetime(2026, 3, 1, tzinfo=dt.UTC))
    print(entry.sequence, entry.digest.hex(), flush=True)
"""


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_every_acknowledged_entry_survives_the_end_of_the_process(path: Path, end: signal.Signals) -> None:
    command = [sys.executable, "-c", WRITE_ON, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT) as writer:
        assert writer.stdout is not None
        lines = list(itertools.islice(writer.stdout, 60))
        writer.send_signal(end)
        lines += [line for line in writer.stdout if line.endswith("\n")]
    assert writer.returncode != 0, "the process was not ended by the signal"
    receipts = [Head(sequence=int(line.split()[0]), digest=bytes.fromhex(line.split()[1])) for line in lines]
    assert verify_journal(path, owner="health", receipts=receipts).entries >= 60
    with Journal.open(path, owner="health") as journal:
        fill(journal, 1)


class Interrupts:
    """Raise KeyboardInterrupt at the n-th line that code under ``shared`` executes, like Ctrl-C would."""

    def __init__(self, at: int) -> None:
        self.left = at

    def __call__(self, frame: FrameType, event: str, _argument: object) -> Any:
        if not frame.f_code.co_filename.startswith(str(ROOT / "shared" / "journal")):
            return None
        if event == "line":
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt
        return self


def interrupted(action: Callable[[], object]) -> Iterator[int]:
    """Run an action again and again, interrupting it one line later each time, until it runs through."""
    for at in itertools.count(1):
        before = sys.gettrace()
        sys.settrace(Interrupts(at))
        try:
            action()
        except KeyboardInterrupt:
            sys.settrace(before)
            yield at
        else:
            return
        finally:
            sys.settrace(before)


def test_an_interrupt_at_any_line_leaves_a_journal_that_can_be_appended_to(path: Path) -> None:
    with Journal.open(path, owner="health") as journal:
        points = 0
        for points in interrupted(lambda: fill(journal, 1)):
            head = journal.head
            entry = journal.append(EntryKind.DECISION, Note(number=points), now=NOW)
            assert entry.sequence == head.sequence + 1
        assert points > 10
        last = journal.head
    assert verify_journal(path, owner="health", receipts=[last]).head == last


FORK = """
import datetime as dt, os, sys
from pathlib import Path
from shared.codec import Record
from shared.journal import EntryKind, Journal
class Note(Record, frozen=True, kw_only=True):
    number: int
journal = Journal.open(Path(sys.argv[1]), owner="health")
append = lambda: journal.append(EntryKind.RUN, Note(number=1), now=dt.datetime(2026, 3, 1, tzinfo=dt.UTC))
child = os.fork()
if child == 0:
    try:
        append()
    except RuntimeError as error:
        os.write(1, f"{error}\\n".encode())
    os._exit(0)
os.waitpid(child, 0)
print(append().sequence)
journal.close()
"""


def test_a_journal_is_not_used_after_a_fork(path: Path) -> None:
    assert run_python(FORK, str(path)).stdout == "a journal cannot be used after a fork\n1\n"


def test_a_journal_is_read_beside_its_writer_and_takes_no_entry_there(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    with pytest.raises(JournalError) as caught:
        Journal.read(path, owner="health")
    assert caught.value.code == "journal-missing"
    with Journal.open(path, owner="health") as writer:
        writer.append(EntryKind.DECISION, Note(number=1), now=NOW)
        with Journal.read(path, owner="health") as reader:
            assert reader.head == writer.head
            with pytest.raises(RuntimeError, match="opened to read"):
                reader.append(EntryKind.DECISION, Note(number=2), now=NOW)
        writer.append(EntryKind.DECISION, Note(number=2), now=NOW)
    with pytest.raises(JournalError) as caught:
        Journal.read(path, owner="somebody else")
    assert caught.value.code == "journal-corrupt"
