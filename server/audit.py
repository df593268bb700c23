"""What the authority's journal proves about the departments' journals."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from server.records import Countersigned, EpochReady, RoundDone, RunEnded, RunOpened, RunResumed
from shared.audit import AUTHORITY, ReceiptLine, receipt_line
from shared.codec import decode
from shared.errors import JournalError
from shared.journal import EntryKind, Journal

OWNER = AUTHORITY
"""The owner's name in the authority's journal."""

_BEGIN_OR_END: Final[Mapping[EntryKind, type[RunOpened | RunResumed | RunEnded]]] = {
    EntryKind.RUN: RunOpened,
    EntryKind.RESUMED: RunResumed,
    EntryKind.ENDED: RunEnded,
}


def department_receipts(path: Path) -> Iterator[ReceiptLine]:
    """Yield what departments signed: once a run that they take part, and every position of their journals.

    The signatures were checked when they arrived.

    Raises:
        JournalError: ``journal-missing``, ``journal-unreadable``, ``journal-corrupt``, ``message-malformed``.
    """
    with Journal.read(path, owner=OWNER) as journal:
        yield from _adverts(journal)
        for entry in journal.entries(EntryKind.ROUND):
            done = decode(entry.body, RoundDone, error=JournalError)
            yield from (receipt_line("receipt", signed, run=done.run) for signed in done.receipts.values())
        for entry in journal.entries(EntryKind.COUNTERSIGNED):
            closed = decode(entry.body, Countersigned, error=JournalError)
            yield from (receipt_line("head-receipt", signed, run=closed.run) for signed in closed.receipts.values())


def ends_of_runs(journal: Journal) -> dict[bytes, str]:
    """Return for each run when it ended, ISO 8601; empty while it may go on, as one does that began again since.

    Raises:
        JournalError: ``message-malformed``.
    """
    ends: dict[bytes, str] = {}
    for entry in journal.entries():
        if entry.kind in _BEGIN_OR_END:
            said = decode(entry.body, _BEGIN_OR_END[EntryKind(entry.kind)], error=JournalError)
            ends[said.run] = entry.time if entry.kind == EntryKind.ENDED else ""
    return ends


def _adverts(journal: Journal) -> Iterator[ReceiptLine]:
    """Yield the first advert of every department in a run, with the run's end."""
    ended = ends_of_runs(journal)
    told: set[tuple[bytes, str]] = set()
    for entry in journal.entries(EntryKind.EPOCH):
        ready = decode(entry.body, EpochReady, error=JournalError)
        for name, advert in ready.adverts.items():
            if (ready.run, name) not in told:
                told.add((ready.run, name))
                yield receipt_line("key-advert", advert, run=ready.run, until=ended.get(ready.run, ""))
