"""What the authority's journal proves about the departments' journals."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from server.records import Countersigned, EpochReady, RoundDone, RunEnded
from shared.audit import AUTHORITY, ReceiptLine, receipt_line
from shared.codec import decode
from shared.errors import JournalError
from shared.journal import EntryKind, Journal

OWNER = AUTHORITY
"""The owner's name in the authority's journal."""


def department_receipts(path: Path) -> Iterator[ReceiptLine]:
    """Yield what departments signed: once a run that they take part, and every position of their journals.

    The signatures were checked when they arrived.

    Raises:
        JournalError: ``journal-missing``, ``journal-unreadable``, ``journal-corrupt``.
    """
    with Journal.read(path, owner=OWNER) as journal:
        yield from _adverts(journal)
        for entry in journal.entries(EntryKind.ROUND):
            done = decode(entry.body, RoundDone, error=JournalError)
            yield from (receipt_line("receipt", signed, run=done.run) for signed in done.receipts.values())
        for entry in journal.entries(EntryKind.COUNTERSIGNED):
            closed = decode(entry.body, Countersigned, error=JournalError)
            yield from (receipt_line("head-receipt", signed, run=closed.run) for signed in closed.receipts.values())


def _adverts(journal: Journal) -> Iterator[ReceiptLine]:
    """Yield the first advert of every department in a run, with the run's end."""
    ended = {
        decode(item.body, RunEnded, error=JournalError).run: item.time for item in journal.entries(EntryKind.ENDED)
    }
    told: set[tuple[bytes, str]] = set()
    for entry in journal.entries(EntryKind.EPOCH):
        ready = decode(entry.body, EpochReady, error=JournalError)
        for name, advert in ready.adverts.items():
            if (ready.run, name) not in told:
                told.add((ready.run, name))
                yield receipt_line("key-advert", advert, run=ready.run, until=ended.get(ready.run, ""))
