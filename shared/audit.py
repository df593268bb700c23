"""Reading a journal as a person, and checking it against heads that the other side holds (promise P5)."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path

import msgspec

from shared.codec import Record, decode
from shared.errors import ConfigError, JournalError
from shared.journal import Head, JournalEntry


class ReceiptLine(Record, frozen=True, kw_only=True):
    """One line of a receipts file: a position in somebody's journal, as the other side was told."""

    owner: str
    sequence: int
    digest: str

    def head(self) -> Head:
        """Return it as the journal compares it."""
        return Head(sequence=self.sequence, digest=bytes.fromhex(self.digest))


class EntryView(Record, frozen=True, kw_only=True):
    """One journal entry for a person: bytes in base64."""

    sequence: int
    time: str
    kind: str
    body: object


def receipt_line(owner: str, sequence: int, digest: bytes) -> ReceiptLine:
    """Return a receipt as a line."""
    return ReceiptLine(owner=owner, sequence=sequence, digest=digest.hex())


def read_receipts(path: Path, owner: str) -> tuple[Head, ...]:
    """Read the receipts of one owner from a file of JSON lines.

    Raises:
        ConfigError: ``receipts-unreadable``.
    """
    try:
        lines = path.read_bytes().splitlines()
        receipts = [msgspec.json.decode(line, type=ReceiptLine) for line in lines if line.strip()]
        return tuple(receipt.head() for receipt in receipts if receipt.owner == owner)
    except (OSError, ValueError) as cause:
        raise ConfigError("receipts-unreadable", f"{path} is not a readable file of receipt lines.") from cause


def view_entries(entries: Iterator[JournalEntry]) -> Iterator[EntryView]:
    """Decode entries for a person.

    Raises:
        JournalError: ``message-malformed``, for an entry that this package did not write.
    """
    for entry in entries:
        body = decode(entry.body, object, error=JournalError)
        yield EntryView(sequence=entry.sequence, time=entry.time, kind=entry.kind, body=_printable(body))


def _printable(value: object) -> object:
    """Replace bytes, which JSON does not have."""
    if isinstance(value, bytes):
        return value.hex() if len(value) <= 64 else base64.b64encode(value).decode()
    if isinstance(value, dict):
        return {str(_printable(key)): _printable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_printable(item) for item in value]
    return value
