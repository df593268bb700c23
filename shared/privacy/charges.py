"""What a run charges to a data set, and the caps that a department's policy sets (privacy 5)."""

from __future__ import annotations

from shared.codec import Record
from shared.privacy.accountant import MechanismEvent
from shared.privacy.plan import PrivacyBudget, PrivacyUnit


class ExtraCharge(Record, frozen=True, kw_only=True):
    """One extra coordinate's own event, one attempt of it (protocol 4)."""

    name: str
    event: MechanismEvent


class PlanCharge(Record, frozen=True, kw_only=True):
    """What one run will do to one data set; ``event`` is one attempt of its training, ``extras`` beside it.

    ``population`` names whom the persons of the data set belong to, across data sets; empty where records are charged.
    """

    run: bytes
    dataset: str
    unit: PrivacyUnit = "record"
    population: str = ""
    event: MechanismEvent
    extras: tuple[ExtraCharge, ...] = ()
    attempts: int
    delta: float
    accountant: str
    public_size: int

    def __post_init__(self) -> None:
        if self.attempts < 1 or self.public_size < 1:
            raise ValueError("`attempts` and `public_size` are at least 1")
        if not 0 < self.delta < 1:
            raise ValueError("`delta` lies in (0, 1)")

    def events(self, attempts: int) -> tuple[MechanismEvent, ...]:
        """Return everything that so many attempts run; no attempt, no event."""
        once = (self.event, *(extra.event for extra in self.extras))
        return tuple(event.times(attempts) for event in once) if attempts else ()


class WindowBudget(Record, frozen=True, kw_only=True):
    """A cap on what any ``days`` days in a row may see; the lifetime is counted beside it, for nothing comes back."""

    days: int
    budget: PrivacyBudget

    def __post_init__(self) -> None:
        if self.days < 1:
            raise ValueError("`days` is at least 1")


class Budgets(Record, frozen=True, kw_only=True):
    """The caps of a department's policy: for one run, and for everything a data set ever takes part in.

    ``lone_share`` is the cap on everything as well, as if every sum of shared noise could be taken apart, for a data
    set and for all data sets of a population; without one no plan with shared noise is admitted. ``round`` caps one
    attempt. ``population`` caps what all data sets of a population spent together; without one no plan is admitted
    whose unit is a person.
    """

    run: PrivacyBudget
    lifetime: PrivacyBudget
    lone_share: PrivacyBudget | None = None
    round: PrivacyBudget | None = None
    window: WindowBudget | None = None
    population: PrivacyBudget | None = None


class ExportedCharge(Record, frozen=True, kw_only=True):
    """One run's mechanisms, enough to recompute every budget with dp-accounting.

    ``counted_steps`` is what counts of the training, ``extras`` hold what counts of each extra coordinate. A window
    counts a run that is not settled always, and a settled one until its
    days have passed since ``last_active``. ``restored``: how many attempts were made is lost, so all count for ever.
    """

    sequence: int
    time: str
    last_active: str
    run: str
    dataset: str
    unit: str
    population: str
    relation: str
    mechanism: str
    noise_multiplier: float
    noise_shares: int
    sample_rate: float
    steps_per_attempt: int
    attempts_reserved: int
    attempts_burned: int
    settled: bool
    restored: bool
    closes_lifetime: bool
    counted_steps: int
    extras: tuple[ExtraCharge, ...]
    delta: float
    accountant: str
    public_size: int
