"""Reading a journal as a person, and checking it against heads that the other side holds (promise P5)."""

from __future__ import annotations

import base64
import datetime as dt
from collections.abc import Iterator
from pathlib import Path

import msgspec

from shared.codec import Record, decode
from shared.errors import ConfigError, JournalError
from shared.journal import Head, JournalEntry

_LONG_AGO = dt.datetime.min.replace(tzinfo=dt.UTC)


class ReceiptLine(Record, frozen=True, kw_only=True):
    """One line of a receipts file: a position in somebody's journal, as the other side was told.

    Attributes:
        digest: of that position, in hex; empty where only the position is known.
        run: in which run it was told, in hex; empty where that is not known. Position 0 says no more than that the run
            was opened with this owner in its cohort.
        until: at position 0, when the run ended, ISO 8601; empty while it may go on.
    """

    owner: str
    sequence: int
    digest: str
    run: str = ""
    until: str = ""

    def head(self) -> Head:
        """Return it as the journal compares it."""
        return Head(sequence=self.sequence, digest=bytes.fromhex(self.digest))

    def run_id(self) -> bytes:
        """Return the run."""
        return bytes.fromhex(self.run)

    def still_open(self, since: dt.datetime) -> bool:
        """Return whether this line says that its run may have been at work after a moment."""
        ended = dt.datetime.fromisoformat(self.until) if self.until else None
        return self.sequence == 0 and (ended is None or ended.replace(tzinfo=ended.tzinfo or dt.UTC) >= since)


class EntryView(Record, frozen=True, kw_only=True):
    """One journal entry for a person: bytes in base64."""

    sequence: int
    time: str
    kind: str
    body: object


def receipt_line(owner: str, sequence: int, digest: bytes, *, run: bytes = b"") -> ReceiptLine:
    """Return a receipt as a line."""
    return ReceiptLine(owner=owner, sequence=sequence, digest=digest.hex(), run=run.hex())


def read_receipts(path: Path, owner: str) -> tuple[Head, ...]:
    """Read the receipts of one owner from a file of JSON lines.

    Raises:
        ConfigError: ``receipts-unreadable``.
    """
    return tuple(line.head() for line in read_receipt_lines(path) if line.owner == owner and line.digest)


def read_receipt_lines(path: Path) -> tuple[ReceiptLine, ...]:
    """Read a whole file of receipt lines.

    Raises:
        ConfigError: ``receipts-unreadable``.
    """
    try:
        lines = path.read_bytes().splitlines()
        receipts = tuple(msgspec.json.decode(line, type=ReceiptLine) for line in lines if line.strip())
        for receipt in receipts:
            _ = receipt.head(), receipt.run_id(), receipt.still_open(_LONG_AGO)
    except (OSError, ValueError) as cause:
        raise ConfigError("receipts-unreadable", f"{path} is not a readable file of receipt lines.") from cause
    return receipts


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
