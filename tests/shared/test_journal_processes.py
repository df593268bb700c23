"""A journal has one writer, and outlives the end of its process, a full disk and Ctrl-C at any line."""

from __future__ import annotations

import itertools
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from shared.journal import EntryKind, Head, Journal, verify_journal
from tests.interrupts import interrupted
from tests.shared.journal_files import NOW, ROOT, Note, code_of, fill, run_python


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


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


def test_an_interrupt_at_any_line_leaves_a_journal_that_can_be_appended_to(path: Path) -> None:
    with Journal.open(path, owner="health") as journal:
        points = 0
        for points in interrupted(lambda: fill(journal, 1), "shared/journal"):
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
