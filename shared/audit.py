"""Reading a journal as a person, and checking it against heads that the other side holds (promise P5)."""

from __future__ import annotations

import base64
import datetime as dt
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from shared.codec import Record, decode
from shared.errors import ConfigError, JournalError, ProtocolError
from shared.identity import Signed, verify_bytes
from shared.journal import Head, JournalEntry, genesis
from shared.messages import ClosedRound, HeadReceipt, KeyAdvert, Receipt

AUTHORITY = "authority"
"""The owner's name in the authority's journal."""

_LONG_AGO = dt.datetime.min.replace(tzinfo=dt.UTC)


class ReceiptLine(Record, frozen=True, kw_only=True):
    """One line of a receipts file: a position in somebody's journal, as its owner signed it.

    Attributes:
        digest: of that position, in hex; empty where only the position is known.
        run: in which run it was told, in hex; empty where that is not known. Position 0 says no more than that the
            owner took part in the run.
        until: at position 0, when the run ended, ISO 8601; empty while it may go on. Nobody signed that.
        label: what the owner signed; empty where only a position is known, which proves nothing.
        signed: that.
    """

    owner: str
    sequence: int
    digest: str
    run: str = ""
    until: str = ""
    label: str = ""
    signed: Signed | None = None

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


_POSITIONS: dict[str, tuple[type[Record], Callable[[Any], tuple[str, Head]]]] = {
    "key-advert": (KeyAdvert, lambda body: (body.department, genesis(body.department))),
    "receipt": (Receipt, lambda body: (body.department, Head(sequence=body.ledger_sequence, digest=body.ledger_head))),
    "head-receipt": (
        HeadReceipt,
        lambda body: (body.department, Head(sequence=body.journal_sequence, digest=body.journal_head)),
    ),
    "round-closed": (
        ClosedRound,
        lambda body: (AUTHORITY, Head(sequence=body.journal_sequence, digest=body.journal_head)),
    ),
}
"""What each signed record says about its owner's journal."""


class EntryView(Record, frozen=True, kw_only=True):
    """One journal entry for a person: bytes in base64."""

    sequence: int
    time: str
    kind: str
    body: object


def receipt_line(label: str, signed: Signed, *, run: bytes, until: str = "") -> ReceiptLine:
    """Return what somebody signed as a line; owner and position are what the record says.

    Args:
        label: one of ``key-advert``, ``receipt``, ``head-receipt`` and ``round-closed``.
        signed: the record.
        run: in which it was signed; an advert and a closed round say so themselves.
        until: when the run ended, if it has.

    Raises:
        JournalError: ``message-malformed``.
        ValueError: another label.
    """
    if label not in _POSITIONS:
        raise ValueError(f"no position follows from a record of label {label!r}")
    record, position_of = _POSITIONS[label]
    body = decode(signed.body, record, error=JournalError)
    owner, head = position_of(body)
    told = body.run if isinstance(body, KeyAdvert | ClosedRound) else run
    return ReceiptLine(
        owner=owner,
        sequence=head.sequence,
        digest=head.digest.hex(),
        run=told.hex(),
        until=until,
        label=label,
        signed=signed,
    )


def verify_line(line: ReceiptLine, keys: Iterable[bytes]) -> None:
    """Require that the owner of a journal signed what a line says about it.

    Nobody signed ``until``, nor in which run a position was told: that is the word of whoever hands the line on.

    Args:
        line: the line.
        keys: every key that is or was the owner's.

    Raises:
        ConfigError: ``receipt-unsigned``, ``receipt-forged``.
    """
    if line.signed is None:
        raise ConfigError("receipt-unsigned", f"A receipt about entry {line.sequence} of {line.owner} is not signed.")
    if not any(_is_signed(line.label, line.signed, key) for key in keys) or line != _told_again(line, line.signed):
        raise ConfigError(
            "receipt-forged",
            f"A receipt about entry {line.sequence} of {line.owner} is not what a known key of {line.owner} signed.",
        )


def _told_again(line: ReceiptLine, signed: Signed) -> ReceiptLine:
    """Make the line anew from what was signed; a head names no run, so the line's own word is taken for it."""
    return receipt_line(line.label, signed, run=line.run_id(), until=line.until)


def _is_signed(label: str, signed: Signed, key: bytes) -> bool:
    """Whether a key signed a record of a known label."""
    try:
        verify_bytes(key, label, signed.body, signed.signature)
    except ProtocolError:
        return False
    return label in _POSITIONS


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
