"""What the `audit` commands of both sides do with a journal; a side says which journal, and whose."""

from __future__ import annotations

from pathlib import Path

from shared.audit import read_receipts, view_entries
from shared.cli import print_json, print_json_lines, print_lines
from shared.journal import Journal, verify_journal


def verify_and_print(journal: Path, *, owner: str, receipts: Path | None, as_json: bool) -> None:
    """Recompute a journal's hash chain, compare it with a file of receipts, and print what was found.

    Raises:
        ConfigError: ``receipts-unreadable``.
        JournalError: as :func:`shared.journal.verify_journal`.
    """
    heads = read_receipts(receipts, owner) if receipts else ()
    verified = verify_journal(journal, owner=owner, receipts=heads)
    if as_json:
        print_json(verified)
    else:
        print_lines(
            [f"{verified.entries} entries, head {verified.head.digest.hex()}, {len(heads)} receipts: in order."]
        )


def print_entries(journal: Journal) -> None:
    """Print every entry as a line of JSON.

    Raises:
        JournalError: as :meth:`shared.journal.Journal.entries`.
    """
    print_json_lines(view_entries(journal.entries()))
