"""How far each department's journal had gone when the authority last heard of it: a rolled-back one sends nothing (P5).

Departments compare each other's positions (protocol 2 and 3.3), which finds nothing where nobody who saw the later one
takes part. The authority takes part in every round, and its own journal remembers over all runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from server.records import Countersigned, RoundDone
from shared.codec import decode
from shared.errors import JournalError, ProtocolError
from shared.identity import DepartmentId, Roster, Signed, open_signed
from shared.journal import EntryKind, Head, Journal
from shared.messages import HeadReceipt, MaskedUpdate, Receipt
from shared.secagg.receipts import RECEIPT_LABEL


def _of_receipt(signed: Signed) -> tuple[str, Head]:
    """Whose journal stood where when an update was sent."""
    receipt = decode(signed.body, Receipt, error=JournalError)
    return receipt.department, Head(sequence=receipt.ledger_sequence, digest=receipt.ledger_head)


def _of_countersignature(signed: Signed) -> tuple[str, Head]:
    """Whose journal stood where when a round was closed."""
    receipt = decode(signed.body, HeadReceipt, error=JournalError)
    return receipt.department, Head(sequence=receipt.journal_sequence, digest=receipt.journal_head)


_SIGNED_IN: Final[dict[EntryKind, tuple[type[RoundDone | Countersigned], Callable[[Signed], tuple[str, Head]]]]] = {
    EntryKind.ROUND: (RoundDone, _of_receipt),
    EntryKind.COUNTERSIGNED: (Countersigned, _of_countersignature),
}
"""The entries of the authority's journal that hold positions which departments signed."""


class KnownHeads:
    """The newest signed position of every department, read from the authority's journal as that grows.

    Args:
        journal: the authority's own.
        run: the run at work.
    """

    def __init__(self, journal: Journal, run: bytes) -> None:
        self._journal = journal
        self._run = run
        self._read = dict.fromkeys(_SIGNED_IN, 0)
        self._heads: dict[str, Head] = {}
        self._open: list[tuple[int, str, Head]] = []  # of this run's rounds that may be conducted again

    def guard(
        self, round_number: int, roster: Roster, receive: Callable[[str, MaskedUpdate], None]
    ) -> Callable[[DepartmentId, MaskedUpdate], None]:
        """Return ``receive`` behind a check: an update whose journal is older than a position known here is refused.

        The returned function raises ProtocolError: ``signature-invalid``, ``message-malformed``,
        ``journal-rolled-back``, then what ``receive`` raises.
        """
        self._catch_up(round_number)

        def checked(name: DepartmentId, update: MaskedUpdate) -> None:
            receipt = open_signed(roster.members[name], RECEIPT_LABEL, update.receipt, Receipt)
            found, known = Head(sequence=receipt.ledger_sequence, digest=receipt.ledger_head), self._heads.get(name)
            if known is not None and found != known and found.sequence <= known.sequence:
                raise ProtocolError(
                    "journal-rolled-back", f"{name} signed a later position of its journal before: it was set back."
                )
            receive(name, update)

        return checked

    def _catch_up(self, round_number: int) -> None:
        """Take in what was written since; a round that is conducted again after a kill was not closed for anybody."""
        known = [*self._open, *self._new()]
        self._open = [item for item in known if item[0] >= round_number]
        for closed, name, head in known:
            if closed < round_number:
                self._see(name, head)

    def _new(self) -> Iterator[tuple[int, str, Head]]:
        """Yield what was written since with the round of this run, or 0 for another run's."""
        for kind, (record, head_of) in _SIGNED_IN.items():
            for entry in self._journal.entries(kind, after=self._read[kind]):
                done = decode(entry.body, record, error=JournalError)
                self._read[kind] = entry.sequence
                for signed in done.receipts.values():
                    yield done.round if done.run == self._run else 0, *head_of(signed)

    def _see(self, name: str, head: Head) -> None:
        """Keep the newest."""
        if name not in self._heads or head.sequence > self._heads[name].sequence:
            self._heads[name] = head
