"""What the authority's journal proves about the departments' journals."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from server.records import Countersigned, RoundDone, RunEnded, RunOpened
from shared.audit import ReceiptLine, receipt_line
from shared.codec import decode
from shared.errors import JournalError, ProtocolError
from shared.journal import EntryKind, Journal, genesis
from shared.messages import HeadReceipt, Receipt

OWNER = "authority"
"""The owner's name in the authority's journal."""


def department_receipts(path: Path) -> Iterator[ReceiptLine]:
    """Yield every position of a department's journal that it signed, and for each run whom it asked.

    The signatures were checked when they arrived.

    Raises:
        JournalError: ``journal-missing``, ``journal-unreadable``, ``journal-corrupt``.
    """
    with Journal.read(path, owner=OWNER) as journal:
        for entry in journal.entries(EntryKind.ROUND):
            done = decode(entry.body, RoundDone, error=JournalError)
            for signed in done.receipts.values():
                receipt = decode(signed.body, Receipt, error=ProtocolError)
                yield receipt_line(receipt.department, receipt.ledger_sequence, receipt.ledger_head, run=done.run)
        for entry in journal.entries(EntryKind.COUNTERSIGNED):
            closed = decode(entry.body, Countersigned, error=JournalError)
            for signed in closed.receipts.values():
                head = decode(signed.body, HeadReceipt, error=ProtocolError)
                yield receipt_line(head.department, head.journal_sequence, head.journal_head, run=closed.run)
        yield from _cohorts(journal)


def _cohorts(journal: Journal) -> Iterator[ReceiptLine]:
    """Yield position 0 for every department that a run asked, with the run's end."""
    ended = {
        decode(item.body, RunEnded, error=JournalError).run: item.time for item in journal.entries(EntryKind.ENDED)
    }
    for entry in journal.entries(EntryKind.RUN):
        opened = decode(entry.body, RunOpened, error=JournalError)
        for name in opened.cohort:
            line = receipt_line(name, 0, genesis(name).digest, run=opened.run)
            yield msgspec.structs.replace(line, until=ended.get(opened.run, ""))
