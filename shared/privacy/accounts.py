"""What the journal says of each run's charge: entry bodies, their fold, and what counts in which budget."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Sequence

from shared.codec import Record
from shared.journal import JournalEntry
from shared.privacy.accountant import MechanismEvent
from shared.privacy.charges import Budgets, ExportedCharge, ExtraCharge, PlanCharge
from shared.privacy.quotes import Spent


class ChargeReserved(Record, frozen=True, kw_only=True):
    """Body of ``charge-reserved``: the charge, the caps it was held against, and whether it closes the lifetime."""

    charge: PlanCharge
    budgets: Budgets
    closes_lifetime: bool


class AttemptBurned(Record, frozen=True, kw_only=True):
    """Body of ``charge-burned``: this round's attempt counts, whatever happens next."""

    run: bytes
    round: int


class RunSettled(Record, frozen=True, kw_only=True):
    """Body of ``charge-settled``: the run ended cleanly and only its burned attempts count."""

    run: bytes


class ChargeRestored(Record, frozen=True, kw_only=True):
    """Body of ``charge-restored``: how many attempts were made is lost, so all of them count for ever."""

    charge: PlanCharge


class LedgerClosed(Record, frozen=True, kw_only=True):
    """Body of ``ledger-closed``: what left before the disk was lost cannot be established; nothing is charged any more.

    ``reason`` is a stable, lower-case, hyphenated code.
    """

    reason: str


class Account:
    """The fold of one run's entries; each step may be applied twice without harm.

    Attributes:
        sequence: position of the reservation in the journal, and ``time`` its time.
        last_active: the latest time that any entry bore up to this run's newest one. A clock that was once ahead
            makes a run look younger than it is, which only lets it count longer.
    """

    def __init__(self, entry: JournalEntry, charge: PlanCharge, latest: str, *, closes_lifetime: bool = False) -> None:
        self.sequence = entry.sequence
        self.time = entry.time
        self.last_active = latest
        self.charge = charge
        self.closes_lifetime = closes_lifetime
        self.burned: frozenset[int] = frozenset()
        self.settled = False
        self.restored = False

    @property
    def counted_attempts(self) -> int:
        """Attempts that count as spent: all of them until the run is settled, and for ever if its end was lost."""
        return len(self.burned) if self.settled and not self.restored else self.charge.attempts

    @property
    def attempts_made(self) -> int:
        """Attempts that were made, as far as anybody knows; where that was lost, all of them."""
        return self.charge.attempts if self.restored else len(self.burned)

    def in_window(self, days: int, now: dt.datetime) -> bool:
        """Return whether this run counts in the ``days`` days before ``now``.

        Guarantees:
            A run that may still release counts always. Nothing stops counting because a clock went back.
        """
        window = dt.timedelta(days=min(days, dt.timedelta.max.days))  # longer than any calendar
        return not self.settled or self.restored or now - dt.datetime.fromisoformat(self.last_active) <= window


def events_of(accounts: Iterable[Account]) -> tuple[MechanismEvent, ...]:
    """Return what counts as spent for these runs."""
    return tuple(event for account in accounts for event in account.charge.events(account.counted_attempts))


def is_closed(accounts: Iterable[Account]) -> bool:
    """Return whether a run that counts closed the lifetime budget; one that released nothing left it empty."""
    return any(account.closes_lifetime and account.counted_attempts for account in accounts)


def spent_by(
    accounts: Sequence[Account],
    dataset: str,
    budgets: Budgets,
    now: dt.datetime,
    *,
    population: str,
    lost: bool = False,
) -> Spent:
    """Return what of these accounts counts in the budgets of a data set and its population."""
    mine = [account for account in accounts if account.charge.dataset == dataset]
    others = [account for account in accounts if population and account.charge.population == population]
    days = budgets.window.days if budgets.window is not None else 0
    return Spent(
        dataset=events_of(mine),
        window=events_of(account for account in mine if days and account.in_window(days, now)),
        population=events_of(others),
        units=tuple(sorted({account.charge.unit for account in (*mine, *others) if account.counted_attempts})),
        closed=is_closed(mine),
        lost=lost,
    )


def exported(account: Account) -> ExportedCharge:
    """Return one run for the export."""
    charge = account.charge
    return ExportedCharge(
        sequence=account.sequence,
        time=account.time,
        last_active=account.last_active,
        run=charge.run.hex(),
        dataset=charge.dataset,
        unit=charge.unit,
        population=charge.population,
        relation=charge.event.relation,
        mechanism=charge.event.mechanism,
        noise_multiplier=charge.event.noise_multiplier,
        noise_shares=charge.event.noise_shares,
        sample_rate=charge.event.sample_rate,
        steps_per_attempt=charge.event.steps,
        attempts_reserved=charge.attempts,
        attempts_burned=account.attempts_made,
        settled=account.settled and not account.restored,
        restored=account.restored,
        closes_lifetime=account.closes_lifetime,
        counted_steps=charge.event.steps * account.counted_attempts,
        extras=tuple(
            ExtraCharge(name=extra.name, event=extra.event.times(account.counted_attempts))
            for extra in charge.extras
            if account.counted_attempts
        ),
        delta=charge.delta,
        accountant=charge.accountant,
        public_size=charge.public_size,
    )
