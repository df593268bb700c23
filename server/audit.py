"""What the authority's journal proves about the departments' journals."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from server.records import Countersigned
from shared.audit import ReceiptLine, receipt_line
from shared.codec import decode
from shared.errors import JournalError, ProtocolError
from shared.journal import EntryKind, Journal
from shared.messages import HeadReceipt

OWNER = "authority"
"""The owner's name in the authority's journal."""


def open_existing(path: Path) -> Journal:
    """Open the authority's journal to look at it; a wrong path must not make a new one.

    Raises:
        JournalError: ``journal-missing``; the journal is in use or does not verify.
    """
    if not path.is_file():
        raise JournalError("journal-missing", f"There is no journal at {path}.")
    return Journal.open(path, owner=OWNER)


def department_receipts(path: Path) -> Iterator[ReceiptLine]:
    """Yield every department's countersigned heads; the signatures were checked when they arrived.

    Raises:
        JournalError: ``journal-missing``; the journal is in use or does not verify.
    """
    with open_existing(path) as journal:
        for entry in journal.entries(EntryKind.COUNTERSIGNED):
            for signed in decode(entry.body, Countersigned, error=JournalError).receipts.values():
                head = decode(signed.body, HeadReceipt, error=ProtocolError)
                yield receipt_line(head.department, head.journal_sequence, head.journal_head)
