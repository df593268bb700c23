"""The journal's file: SQLite in WAL mode, made durable, append-only and held by one writer (design 5)."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from shared.errors import JournalError
from shared.private_files import lock_file

FORMAT = 1
"""``user_version`` of the database file."""

PAGE = 512
"""Rows that are read at once."""

Row = tuple[int, str, str, bytes, bytes, bytes, bytes]
"""Sequence, kind, time, salt, body, previous digest, digest."""

_SCHEMA = f"""
BEGIN IMMEDIATE;
CREATE TABLE entry (
    sequence INTEGER PRIMARY KEY, kind TEXT NOT NULL, time TEXT NOT NULL, salt BLOB NOT NULL,
    body BLOB NOT NULL, previous BLOB NOT NULL, digest BLOB NOT NULL
) STRICT;
CREATE TRIGGER no_update BEFORE UPDATE ON entry BEGIN SELECT RAISE(ABORT, 'the journal is append-only'); END;
CREATE TRIGGER no_delete BEFORE DELETE ON entry BEGIN SELECT RAISE(ABORT, 'the journal is append-only'); END;
PRAGMA user_version = {FORMAT};
COMMIT;
"""
_INSERT = "INSERT INTO entry (sequence, kind, time, salt, body, previous, digest) VALUES (?, ?, ?, ?, ?, ?, ?)"
_SELECT = """
SELECT sequence, kind, time, salt, body, previous, digest FROM entry
WHERE sequence > ? AND (? IS NULL OR kind = ?) ORDER BY sequence LIMIT ?
"""
_LAST = "SELECT sequence, digest FROM entry ORDER BY sequence DESC LIMIT 1"
_DIGEST = "SELECT digest FROM entry WHERE sequence = ?"


def lock(path: Path) -> int:
    """Take the exclusive lock beside the journal and return its descriptor; the lock ends with the process.

    A file of its own: closing any descriptor of the database would drop the locks that SQLite holds on it.

    Raises:
        JournalError: ``journal-unwritable``, ``journal-locked``.
    """
    with storage_errors(path):
        descriptor = lock_file(path.with_name(path.name + ".lock"))
    if descriptor is None:
        raise JournalError("journal-locked", f"The journal {path} is in use by another process.")
    return descriptor


def connect_writer(path: Path) -> sqlite3.Connection:
    """Open or create the database for durable appends, with mode 0600.

    Raises:
        JournalError: ``journal-corrupt`` when the file is no journal of this format.
        OSError, sqlite3.Error: for :func:`storage_errors`.
    """
    _create_file(path)
    # The journal's own lock guards this one connection, so it may serve several threads.
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA trusted_schema = OFF")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        if connection.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,):
            connection.executescript(_SCHEMA)
        require_format(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection


def connect_reader(path: Path) -> sqlite3.Connection:
    """Open read-only, beside a running writer if there is one.

    Where no index of the write-ahead log can be made, a journal without such a log is read as immutable.
    """
    has_log = path.with_name(path.name + "-wal").exists()
    immutable = "" if has_log or os.access(path.parent, os.W_OK) else "&immutable=1"
    return sqlite3.connect(f"file:{quote(str(path.absolute()))}?mode=ro{immutable}", uri=True, isolation_level=None)


def require_format(connection: sqlite3.Connection, path: Path) -> None:
    """Refuse a database that is not a journal of this format.

    Raises:
        JournalError: ``journal-corrupt``.
    """
    if connection.execute("PRAGMA user_version").fetchone() != (FORMAT,):
        raise JournalError("journal-corrupt", f"The file {path} is not a journal of format {FORMAT}.")


def insert(connection: sqlite3.Connection, row: Row) -> None:
    """Add one row and commit it to disk."""
    connection.execute(_INSERT, row)


def page(connection: sqlite3.Connection, *, after: int, kind: str | None = None) -> list[Row]:
    """Return up to :data:`PAGE` rows in order, of one kind or all."""
    return connection.execute(_SELECT, (after, kind, kind, PAGE)).fetchall()


def pages(connection: sqlite3.Connection) -> Iterator[Row]:
    """Yield every row, from the lowest number that can be stored, so that none hides below 1."""
    after = -(2**63)
    while rows := page(connection, after=after):
        yield from rows
        after = rows[-1][0]


def last(connection: sqlite3.Connection) -> tuple[int, bytes] | None:
    """Return sequence and digest of the last row."""
    row: tuple[int, bytes] | None = connection.execute(_LAST).fetchone()
    return row


def digest_at(connection: sqlite3.Connection, sequence: int) -> bytes | None:
    """Return the digest of one row."""
    row = connection.execute(_DIGEST, (sequence,)).fetchone()
    return None if row is None else row[0]


def copy(connection: sqlite3.Connection, target: Path) -> None:
    """Copy the database as it is now into a new file that needs no log beside it."""
    _create_file(target)
    with contextlib.closing(sqlite3.connect(target, isolation_level=None)) as copied:
        connection.backup(copied)
        copied.execute("PRAGMA journal_mode = DELETE")


def logs_beside(path: Path) -> list[Path]:
    """Return the logs that lie beside a journal: whoever opens a file of its name next to one takes it in."""
    logs = [path.with_name(path.name + ending) for ending in ("-wal", "-journal")]
    return [log for log in logs if log.exists()]


@contextlib.contextmanager
def storage_errors(path: Path, code: str = "journal-unwritable", verb: str = "written") -> Iterator[None]:
    """Turn failures of the database and the operating system into one sentence.

    Raises:
        JournalError: ``code`` when storage refused and the file may be fine, else ``journal-corrupt``.
    """
    try:
        yield
    except sqlite3.OperationalError as cause:
        raise JournalError(code, f"The journal {path} cannot be {verb}: {cause}.") from cause
    except (sqlite3.Error, UnicodeDecodeError) as cause:  # the database's own message may be no text
        raise JournalError("journal-corrupt", f"The file {path} is not an intact journal: {cause}.") from cause
    except OSError as cause:
        raise JournalError(code, f"The journal {path} cannot be {verb}: {cause.strerror}.") from cause


def _create_file(path: Path) -> None:
    """Make the file with its mode before the database writes to it, and make its name durable."""
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    path.chmod(0o600)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
