"""A journal's file as tests fill it, damage it, and open it from another process."""

from __future__ import annotations

import datetime as dt
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from shared.codec import Record
from shared.errors import JournalError
from shared.journal import EntryKind, Head, Journal
from tests import refusals

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


def tamper(path: Path, *statements: str) -> None:
    """Do what somebody with the file and an SQL shell can do."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("DROP TRIGGER IF EXISTS no_update")
    connection.execute("DROP TRIGGER IF EXISTS no_delete")
    for statement in statements:
        connection.execute(statement)
    connection.close()


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


def code_of(action: Callable[[], object]) -> str:
    """The reason code of the journal's error."""
    return refusals.code_of(action, JournalError)
