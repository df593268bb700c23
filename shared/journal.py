"""The journal: one append-only, hash-chained, fsynced table per side (design 5, promise P5).

Privacy charges, the once-per-(run, round) record of the protocol and audit decisions are entry kinds of it.
A chain alone does not show a deleted tail: heads travel in receipts, and whoever holds a later receipt finds
an edit, a deletion or a rollback (privacy 6). Readers may verify while the one writer is at work.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Self

from shared import journal_file as file
from shared.codec import Record, encode, sha256
from shared.errors import JournalError

SALT_BYTES = 16

_TYPES = (int, str, str, bytes, bytes, bytes, bytes)


class EntryKind(StrEnum):
    """What an entry records; its body is a :class:`~shared.codec.Record` that the writer of the kind defines."""

    RESERVED = "charge-reserved"
    BURNED = "charge-burned"
    SETTLED = "charge-settled"
    ANSWERED = "step-answered"
    RESTORED = "charge-restored"
    CLOSED = "ledger-closed"
    REGAINED = "journal-restored"
    DECISION = "decision"
    REFUSAL = "refusal"
    HEADS = "heads-seen"
    APPROVAL = "approval"
    RUN = "run-opened"
    RESUMED = "run-resumed"
    ROSTER = "roster-seen"
    ISSUED = "roster-issued"
    PLAN_SIGNED = "plan-signed"
    PLAN_PUBLISHED = "plan-published"
    MODEL_RELEASED = "model-released"
    PLAN_REFUSED = "plan-refused"
    KEY = "key-approved"
    EPOCH = "epoch-opened"
    ROUND = "round-closed"
    COUNTERSIGNED = "round-countersigned"
    FAILED = "round-failed"
    ENDED = "run-ended"


class Head(Record, frozen=True, kw_only=True):
    """A position in the chain; sequence 0 is the empty journal, whose digest names its owner."""

    sequence: int
    digest: bytes


class JournalEntry(Record, frozen=True, kw_only=True):
    """One link: ``digest`` covers every other field, and ``previous`` is the digest before it."""

    sequence: int
    kind: str
    time: str
    salt: bytes
    body: bytes
    previous: bytes
    digest: bytes


class VerifiedJournal(Record, frozen=True, kw_only=True):
    """What a verification found: the number of entries and the last position."""

    entries: int
    head: Head


class Journal:
    """The open journal of one owner; one writer at a time, across processes.

    Guarantees:
        An entry is on disk when :meth:`append` returns. After an exception at any point, a KeyboardInterrupt
        included, the journal holds each entry entirely or not at all and can be appended to.
    """

    def __init__(self, path: Path, owner: str, connection: sqlite3.Connection, lock_file: int | None) -> None:
        self.path = path
        self.owner = owner
        self._connection = connection
        self._lock_file = lock_file
        self._lock = threading.RLock()
        self._process = os.getpid()
        self._open = True
        self._head: Head | None = None

    @classmethod
    def open(cls, path: Path, *, owner: str) -> Journal:
        """Open or create the journal and verify its chain.

        Args:
            path: database file, made with mode 0600; a ``.lock`` file lies beside it.
            owner: name of the side whose journal this is; it is the chain's first link.

        Raises:
            JournalError: ``journal-locked`` when another opener has it, ``journal-unwritable`` when the folder
                or disk refuses, ``journal-corrupt`` when the file or its chain does not verify.
        """
        with contextlib.ExitStack() as undo:
            lock_file = file.lock(path)
            undo.callback(os.close, lock_file)
            with file.storage_errors(path):
                connection = file.connect_writer(path)
                undo.callback(connection.close)
                try:
                    _verify_chain(file.pages(connection), owner, path)
                except JournalError as broken:
                    raise JournalError("journal-corrupt", broken.message) from broken
            undo.pop_all()
            return cls(path, owner, connection, lock_file)

    @classmethod
    def read(cls, path: Path, *, owner: str) -> Journal:
        """Open an existing journal to look at it, beside the writer that holds it; its chain is verified.

        Raises:
            JournalError: ``journal-missing``, ``journal-unreadable``, ``journal-corrupt``.
        """
        if not path.is_file():
            raise JournalError("journal-missing", f"There is no journal at {path}.")
        with contextlib.ExitStack() as undo, file.storage_errors(path, "journal-unreadable", "read"):
            connection = file.connect_reader(path)
            undo.callback(connection.close)
            file.require_format(connection, path)
            try:
                _verify_chain(file.pages(connection), owner, path)
            except JournalError as broken:
                raise JournalError("journal-corrupt", broken.message) from broken
            undo.pop_all()
            return cls(path, owner, connection, None)

    @property
    def head(self) -> Head:
        """The last position."""
        with self._lock:
            if self._head is None:
                with self._storage():
                    last = file.last(self._connection)
                self._head = genesis(self.owner) if last is None else Head(sequence=last[0], digest=last[1])
            return self._head

    def append(self, kind: EntryKind, body: Record, *, now: dt.datetime) -> JournalEntry:
        """Append one entry and make it durable.

        Args:
            kind: what the entry records.
            body: its content, encoded with the codec.
            now: time with a zone; stored as UTC.

        Raises:
            ValueError: when ``now`` has no zone.
            JournalError: ``journal-unwritable``; nothing was appended then. ``journal-corrupt``: the file was damaged
                since it was opened.
            RuntimeError: the journal was opened with :meth:`read`.
        """
        if self._lock_file is None:
            raise RuntimeError("a journal that was opened to read takes no entry")
        if now.tzinfo is None:
            raise ValueError("`now` needs a time zone")
        time = now.astimezone(dt.UTC).isoformat(timespec="microseconds")
        with self._lock, self._storage():
            entry = _link(self.head, kind.value, time, os.urandom(SALT_BYTES), encode(body))
            # Unknown until the insert is known to have happened: an interrupt may fall right after the commit,
            # and then the next caller reads the head from the table.
            self._head = None
            file.insert(self._connection, _row(entry))
            self._head = Head(sequence=entry.sequence, digest=entry.digest)
        return entry

    def entries(self, kind: EntryKind | None = None, *, after: int = 0) -> Iterator[JournalEntry]:
        """Yield entries in order, read page by page: of one kind or all, with a sequence above ``after``."""
        while True:
            with self._lock, self._storage():
                rows = file.page(self._connection, after=after, kind=kind)
            yield from map(_entry, rows)
            if len(rows) < file.PAGE:
                return
            after = rows[-1][0]

    def head_at(self, sequence: int) -> Head:
        """Return the position with this sequence number.

        Raises:
            JournalError: ``journal-unwritable``, ``journal-corrupt``; ``journal-behind-receipt`` when the journal does
                not reach so far.
        """
        if sequence == 0:
            return genesis(self.owner)
        with self._lock, self._storage():
            digest = file.digest_at(self._connection, sequence)
        if digest is None:
            raise _behind(self.path, sequence, self.head.sequence)
        return Head(sequence=sequence, digest=digest)

    def check_receipts(self, receipts: Iterable[Head]) -> None:
        """Refuse to go on if a receipt shows that this journal lost or changed entries (privacy 6).

        Raises:
            JournalError: ``journal-behind-receipt`` or ``journal-receipt-mismatch``.
        """
        for receipt in receipts:
            _check_receipt(receipt, self.head_at(receipt.sequence).digest, self.path)

    def copy_to(self, target: Path) -> None:
        """Copy the journal as it is now into a new file with mode 0600, beside the writer that may hold it.

        Raises:
            JournalError: ``journal-unwritable``, ``journal-corrupt``.
        """
        with self._lock, self._storage():
            file.copy(self._connection, target)

    def close(self) -> None:
        """Close the database and release the lock; closing twice is harmless."""
        with self._lock:
            if self._open:
                self._open = False
                self._connection.close()
                if self._lock_file is not None:
                    os.close(self._lock_file)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Journal({self.path.name}, owner={self.owner})"

    def _storage(self) -> contextlib.AbstractContextManager[None]:
        """Refuse a closed or forked journal; turn storage failures into one sentence."""
        if not self._open:
            raise RuntimeError("the journal is closed")
        if os.getpid() != self._process:
            raise RuntimeError("a journal cannot be used after a fork")
        return file.storage_errors(self.path)


def genesis(owner: str) -> Head:
    """Return the position of an owner's empty journal."""
    return Head(sequence=0, digest=sha256(b"journal", str(file.FORMAT).encode(), owner.encode()))


def verify_journal(path: Path, *, owner: str, receipts: Iterable[Head] = ()) -> VerifiedJournal:
    """Recompute the whole chain without writing, and compare it with receipts that others hold.

    Args:
        path: the database file; its writer may be running.
        owner: whose journal it is.
        receipts: positions that somebody was shown earlier.

    Raises:
        JournalError: ``journal-missing``, ``journal-unreadable``, ``journal-corrupt`` (not a journal file),
            ``journal-chain-broken`` (edit or deletion), ``journal-behind-receipt`` (truncation or rollback),
            ``journal-receipt-mismatch`` (replaced entries).
    """
    if not path.is_file():
        raise JournalError("journal-missing", f"There is no journal at {path}.")
    wanted: dict[int, list[Head]] = {}
    for receipt in receipts:
        wanted.setdefault(receipt.sequence, []).append(receipt)

    def compare(head: Head) -> None:
        for receipt in wanted.pop(head.sequence, ()):
            _check_receipt(receipt, head.digest, path)

    with (
        file.storage_errors(path, "journal-unreadable", "read"),
        contextlib.closing(file.connect_reader(path)) as connection,
    ):
        file.require_format(connection, path)
        head = _verify_chain(file.pages(connection), owner, path, compare)
    if wanted:
        raise _behind(path, max(wanted), head.sequence)
    return VerifiedJournal(entries=head.sequence, head=head)


def _row(entry: JournalEntry) -> file.Row:
    """An entry's columns in table order."""
    return (entry.sequence, entry.kind, entry.time, entry.salt, entry.body, entry.previous, entry.digest)


def _entry(row: file.Row) -> JournalEntry:
    """The entry of a row."""
    return JournalEntry(
        sequence=row[0], kind=row[1], time=row[2], salt=row[3], body=row[4], previous=row[5], digest=row[6]
    )


def _link(previous: Head, kind: str, time: str, salt: bytes, body: bytes) -> JournalEntry:
    """Build the entry that follows a position."""
    sequence = previous.sequence + 1
    number = sequence.to_bytes(8, "big")
    digest = sha256(b"journal-entry", number, kind.encode(), time.encode(), salt, body, previous.digest)
    return JournalEntry(
        sequence=sequence, kind=kind, time=time, salt=salt, body=body, previous=previous.digest, digest=digest
    )


def _verify_chain(
    rows: Iterable[file.Row], owner: str, path: Path, visit: Callable[[Head], None] = lambda _: None
) -> Head:
    """Recompute every link and show each position to ``visit``; a wrong one is ``journal-chain-broken``."""
    head = genesis(owner)
    visit(head)
    for row in rows:
        entry = _entry(row)
        # A changed file may have lost its STRICT column types.
        if tuple(map(type, row)) != _TYPES or entry != _link(head, entry.kind, entry.time, entry.salt, entry.body):
            raise JournalError(
                "journal-chain-broken",
                f"The journal {path} of {owner} was changed: its chain breaks at entry {head.sequence + 1}.",
            )
        head = Head(sequence=entry.sequence, digest=entry.digest)
        visit(head)
    return head


def _check_receipt(receipt: Head, digest: bytes, path: Path) -> None:
    """Compare one receipt with the chain."""
    if receipt.digest != digest:
        raise JournalError(
            "journal-receipt-mismatch",
            f"Entry {receipt.sequence} of the journal {path} is not the one that a receipt names: it was replaced.",
        )


def _behind(path: Path, sequence: int, last: int) -> JournalError:
    """The error for a chain that ends before a receipt."""
    return JournalError(
        "journal-behind-receipt",
        f"The journal {path} ends at entry {last}, but a receipt names entry {sequence}: it was cut or rolled back.",
    )
