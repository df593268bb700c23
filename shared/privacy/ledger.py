"""The privacy ledger: charges as entries of the journal, written before a record is touched (privacy 6).

A run is reserved in full, each attempt is burned before it starts, and only a clean end settles the rest. A
crash, a retry or a reopened journal can therefore only over-count (promise P3). The state in memory is a fold
over the journal's entries: what is not durable does not exist.
"""

from __future__ import annotations

import datetime as dt
import threading
from collections.abc import Callable, Iterator

from shared.codec import Record, decode, encode
from shared.errors import InsufficientBudgetError, JournalError, ProtocolError
from shared.journal import EntryKind, Journal, JournalEntry
from shared.privacy.accountant import ACCOUNTANT
from shared.privacy.accounts import (
    Account,
    AttemptBurned,
    ChargeReserved,
    ChargeRestored,
    LedgerClosed,
    RunSettled,
    exported,
    spent_by,
)
from shared.privacy.charges import Budgets, ExportedCharge, ExtraCharge, PlanCharge, WindowBudget
from shared.privacy.quotes import BudgetLine, BudgetQuote, quote_charge
from shared.privacy.status import BudgetStatus, status_of

__all__ = [
    "AttemptBurned",
    "BudgetLine",
    "BudgetQuote",
    "BudgetStatus",
    "Budgets",
    "ChargeReserved",
    "ChargeRestored",
    "ExportedCharge",
    "ExtraCharge",
    "LedgerClosed",
    "PlanCharge",
    "PrivacyLedger",
    "Reservation",
    "RunSettled",
    "WindowBudget",
]


class Reservation:
    """A run's durable reservation; the trainer holds it and burns an attempt before each round."""

    def __init__(self, ledger: PrivacyLedger, account: Account) -> None:
        self._ledger = ledger
        self._account = account

    @property
    def charge(self) -> PlanCharge:
        """What was reserved."""
        return self._account.charge

    @property
    def burned(self) -> frozenset[int]:
        """Rounds whose attempt was burned."""
        return self._account.burned

    @property
    def settled(self) -> bool:
        """Whether the run ended cleanly."""
        return self._account.settled

    @property
    def restored(self) -> bool:
        """Whether the run was charged in full after a disk was lost; it does not go on here."""
        return self._account.restored

    def burn(self, round_number: int) -> None:
        """Count one attempt for this round; durable when it returns, and never given back.

        Raises:
            ProtocolError: ``run-restored``, ``run-already-settled``, ``attempt-already-burned``.
            InsufficientBudgetError: ``attempts-exhausted``.
            JournalError: when the entry could not be made durable; the attempt must not start.
        """
        self._ledger._burn(self._account, round_number)  # noqa: SLF001 - one state machine in two classes

    def settle(self) -> None:
        """End the run cleanly: from now on only burned attempts count. Settling twice is harmless.

        Raises:
            JournalError: when the entry could not be made durable; the full charge stays.
        """
        self._ledger._settle(self._account)  # noqa: SLF001 - as above


class PrivacyLedger:
    """Every privacy charge of one department, kept in its journal.

    Guarantees:
        What counts as spent (unsettled runs in full, settled runs with their burned attempts) is never less than the
        attempts burned, before and after a crash at any point.
        All charges of a data set together satisfy the lifetime budget that they were reserved under, those of any
        window of days its budget, and those of a population, whatever the data set, the population's; both also
        satisfy the cap on lone shares, if there is one.
    """

    def __init__(self, journal: Journal, clock: Callable[[], dt.datetime]) -> None:
        self._journal = journal
        self._clock = clock
        self._lock = threading.RLock()
        self._accounts: dict[bytes, Account] = {}
        self._closed = ""
        self._seen = 0
        self._latest = ""
        self._catch_up()

    def quote(self, charge: PlanCharge, budgets: Budgets) -> BudgetQuote:
        """Say what a charge would cost and whether it fits, without any effect.

        For a run that is reserved already the figures include it once.
        """
        with self._lock:
            self._catch_up()
            others = [account for account in self._accounts.values() if account.charge.run != charge.run]
            spent = spent_by(
                others, charge.dataset, budgets, self._clock(), population=charge.population, lost=bool(self._closed)
            )
            return quote_charge(charge, budgets, spent)

    def reserve(self, charge: PlanCharge, budgets: Budgets) -> Reservation:
        """Reserve all attempts of a run; durable when it returns.

        Reserving a run again gives the existing reservation, if the charge is the same.

        Raises:
            ProtocolError: ``run-restored``, ``run-already-reserved`` for another charge, ``run-already-settled``,
                ``accountant-unknown``.
            InsufficientBudgetError: ``budget-lost``, ``budget-delta``, ``budget-unit``, ``budget-population``,
                ``budget-closed``, ``budget-round``, ``budget-run``, ``budget-lifetime``, ``budget-window``,
                ``budget-lone-share``, ``budget-population-lone-share``.
            JournalError: when the entry could not be made durable; no record may be touched then.
        """
        with self._lock:
            existing = self.reservation(charge.run)
            if existing is not None:
                return _same(existing, charge)
            if charge.accountant != ACCOUNTANT:
                raise ProtocolError("accountant-unknown", f"The plan's accountant is not {ACCOUNTANT}, used here.")
            quote = self.quote(charge, budgets)
            if not quote.fits:
                raise InsufficientBudgetError(quote.code, quote.reason)
            body = ChargeReserved(charge=charge, budgets=budgets, closes_lifetime=quote.closes_lifetime)
            self._write(EntryKind.RESERVED, body)
            return Reservation(self, self._accounts[charge.run])

    def reservation(self, run: bytes) -> Reservation | None:
        """Return the reservation of a run, if it has one."""
        with self._lock:
            self._catch_up()
            account = self._accounts.get(run)
            return None if account is None else Reservation(self, account)

    def status(self, dataset: str, budgets: Budgets, *, population: str = "") -> BudgetStatus:
        """Report a data set's budgets, and that of the population that its policy names."""
        with self._lock:
            self._catch_up()
            accounts, lost = list(self._accounts.values()), bool(self._closed)
            return status_of(accounts, dataset, budgets, self._clock(), population=population, lost=lost)

    def open_charges(self) -> tuple[PlanCharge, ...]:
        """Return the charges of the runs that may still go on, in order of reservation."""
        with self._lock:
            self._catch_up()
            return tuple(item.charge for item in self._accounts.values() if not (item.settled or item.restored))

    def settled_charges(self) -> tuple[PlanCharge, ...]:
        """Return the charges of the runs that ended cleanly here, in order of reservation."""
        with self._lock:
            self._catch_up()
            return tuple(item.charge for item in self._accounts.values() if item.settled)

    def charge_of(self, run: bytes) -> PlanCharge | None:
        """Return the charge of a run, if it has one."""
        with self._lock:
            self._catch_up()
            account = self._accounts.get(run)
            return None if account is None else account.charge

    def restore(self, charge: PlanCharge) -> None:
        """Charge a run in full and for ever: nobody knows how many attempts were made before a disk was lost.

        Whether it fits is not asked, because it has happened. A run that was reserved keeps its charge.

        Raises:
            JournalError: when the entry could not be made durable.
        """
        with self._lock:
            self._catch_up()
            account = self._accounts.get(charge.run)
            if account is None or not account.restored:
                self._write(EntryKind.RESTORED, ChargeRestored(charge=charge if account is None else account.charge))

    def close(self, reason: str) -> None:
        """Refuse every charge from now on, whatever the data set: nobody knows what was spent.

        Raises:
            JournalError: when the entry could not be made durable.
        """
        with self._lock:
            self._catch_up()
            if not self._closed:
                self._write(EntryKind.CLOSED, LedgerClosed(reason=reason))

    def export(self) -> Iterator[ExportedCharge]:
        """Yield every run's mechanisms in order; encode each as one line of JSON."""
        with self._lock:
            self._catch_up()
            accounts = list(self._accounts.values())
        yield from map(exported, accounts)

    def _burn(self, account: Account, round_number: int) -> None:
        """See :meth:`Reservation.burn`."""
        with self._lock:
            self._catch_up()
            _require_goes_on(account)
            if self._closed:
                raise InsufficientBudgetError("budget-lost", "The ledger is closed: nobody knows what was spent.")
            if round_number in account.burned:
                raise ProtocolError(
                    "attempt-already-burned", f"The attempt of round {round_number} was made already; use a new round."
                )
            if len(account.burned) >= account.charge.attempts:
                raise InsufficientBudgetError(
                    "attempts-exhausted", f"All {account.charge.attempts} attempts reserved for the run are burned."
                )
            self._write(EntryKind.BURNED, AttemptBurned(run=account.charge.run, round=round_number))

    def _settle(self, account: Account) -> None:
        """See :meth:`Reservation.settle`."""
        with self._lock:
            self._catch_up()
            if not account.settled:
                self._write(EntryKind.SETTLED, RunSettled(run=account.charge.run))

    def _write(self, kind: EntryKind, body: Record) -> None:
        """Append durably, then read it back into the state."""
        self._journal.append(kind, body, now=self._clock())
        self._catch_up()

    def _catch_up(self) -> None:
        """Fold entries that are in the journal and not yet in the state; after an interrupt, too."""
        if self._journal.head.sequence > self._seen:
            for entry in self._journal.entries(after=self._seen):
                self._latest = max(self._latest, entry.time)  # one zone and width, so text order is time order
                self._apply(entry)
                self._seen = entry.sequence

    def _apply(self, entry: JournalEntry) -> None:
        """Fold one entry."""
        if entry.kind == EntryKind.RESERVED:
            reserved = decode(entry.body, ChargeReserved, error=JournalError)
            opened = Account(entry, reserved.charge, self._latest, closes_lifetime=reserved.closes_lifetime)
            self._accounts.setdefault(reserved.charge.run, opened)
        elif entry.kind == EntryKind.BURNED:
            burned = decode(entry.body, AttemptBurned, error=JournalError)
            account = self._account(burned.run, entry)
            account.burned |= {burned.round}
            account.last_active = self._latest
        elif entry.kind == EntryKind.SETTLED:
            settled = decode(entry.body, RunSettled, error=JournalError)
            account = self._account(settled.run, entry)
            account.settled = True
            account.last_active = self._latest
        elif entry.kind == EntryKind.RESTORED:
            charge = decode(entry.body, ChargeRestored, error=JournalError).charge
            self._accounts.setdefault(charge.run, Account(entry, charge, self._latest)).restored = True
        elif entry.kind == EntryKind.CLOSED:
            self._closed = decode(entry.body, LedgerClosed, error=JournalError).reason

    def _account(self, run: bytes, entry: JournalEntry) -> Account:
        """The account that an entry belongs to."""
        if run not in self._accounts:
            raise JournalError("ledger-inconsistent", f"Entry {entry.sequence} belongs to a run never reserved.")
        return self._accounts[run]


def _same(existing: Reservation, charge: PlanCharge) -> Reservation:
    """Return the reservation if the charge is byte-identical and the run still open."""
    if not existing.restored and encode(existing.charge) != encode(charge):
        raise ProtocolError("run-already-reserved", "The run was reserved with another charge; a new run is needed.")
    _require_goes_on(existing)
    return existing


def _require_goes_on(run: Account | Reservation) -> None:
    """Refuse another attempt of a run that is over here."""
    if run.restored:
        raise ProtocolError(
            "run-restored", "The run was charged in full after a disk was lost; it does not go on here."
        )
    if run.settled:
        raise ProtocolError("run-already-settled", "The run is settled; no further attempt can be made.")
