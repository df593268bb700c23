"""What a run charges to a data set, and the judgement of a charge against a department's caps (privacy 5)."""

from __future__ import annotations

from typing import Literal

from shared.codec import Record
from shared.privacy.accountant import MechanismEvent, epsilon, filter_admits, filter_epsilon
from shared.privacy.plan import PrivacyBudget


class PlanCharge(Record, frozen=True, kw_only=True):
    """What one run will do to one data set; ``event`` is one attempt of it."""

    run: bytes
    dataset: str
    unit: Literal["record"] = "record"
    event: MechanismEvent
    attempts: int
    delta: float
    accountant: str
    public_size: int

    def __post_init__(self) -> None:
        if self.attempts < 1 or self.public_size < 1:
            raise ValueError("`attempts` and `public_size` are at least 1")
        if not 0 < self.delta < 1:
            raise ValueError("`delta` lies in (0, 1)")


class Budgets(Record, frozen=True, kw_only=True):
    """The caps of a department's policy: for one run, and for everything a data set ever takes part in."""

    run: PrivacyBudget
    lifetime: PrivacyBudget


class BudgetQuote(Record, frozen=True, kw_only=True):
    """What a charge would do to the budgets.

    ``epsilon_lifetime_after`` is the PLD figure "if all plans had been fixed beforehand"; the gate of a shared
    lifetime is ``filter_lifetime_after``. ``closes_lifetime``: only PLD admits this first plan, so it is the last.
    ``code`` is empty when the charge fits, else the stable reason that ``reserve`` would raise.
    """

    epsilon_run: float
    cap_run: float
    delta: float
    cap_delta: float
    epsilon_lifetime_after: float
    filter_lifetime_after: float
    cap_lifetime: float
    closes_lifetime: bool
    fits: bool
    code: str
    reason: str


class BudgetStatus(Record, frozen=True, kw_only=True):
    """A data set's lifetime budget: spent (burned), with reservations, left, and one more run like the last.

    ``left`` is what the Renyi filter leaves of the cap; 0 when a first plan closed the budget. The ``next_``
    figures are None before the first run; ``next_epsilon`` is the PLD figure after one more.
    """

    dataset: str
    runs: int
    spent_epsilon: float
    reserved_epsilon: float
    filter_epsilon: float
    cap: float
    delta: float
    left: float
    closed: bool
    next_epsilon: float | None
    next_fits: bool | None


class ExportedCharge(Record, frozen=True, kw_only=True):
    """One run's mechanisms, enough to recompute its cost with dp-accounting; ``counted_steps`` is what counts."""

    sequence: int
    time: str
    run: str
    dataset: str
    unit: str
    relation: str
    mechanism: str
    noise_multiplier: float
    sample_rate: float
    steps_per_attempt: int
    attempts_reserved: int
    attempts_burned: int
    settled: bool
    counted_steps: int
    delta: float
    accountant: str
    public_size: int


def quote_charge(
    charge: PlanCharge, budgets: Budgets, spent: tuple[MechanismEvent, ...], *, closed: bool
) -> BudgetQuote:
    """Hold a charge against both budgets (privacy 5).

    Args:
        charge: the run.
        budgets: the caps; a figure above one by the smallest representable amount is refused.
        spent: what counts already, without this run.
        closed: whether an earlier run closed the lifetime budget.
    """
    whole, lifetime = charge.event.times(charge.attempts), budgets.lifetime
    run_cost = epsilon([whole], charge.delta)
    after = epsilon([*spent, whole], lifetime.delta)
    shared = filter_admits(spent, whole, lifetime)
    # A plan fixed before anything was spent may use the budget by PLD alone, and then closes it.
    alone = not spent and after <= lifetime.epsilon
    shared_cost = filter_epsilon([*spent, whole], lifetime.delta)
    refusals = {
        "budget-delta": charge.delta > budgets.run.delta and _over("delta of the run", charge.delta, budgets.run.delta),
        "budget-run": run_cost > budgets.run.epsilon and _over("epsilon of the run", run_cost, budgets.run.epsilon),
        "budget-closed": closed and "An earlier run took the whole lifetime budget of the data set and closed it.",
        "budget-lifetime": not (shared or alone)
        and _over("lifetime epsilon", shared_cost if spent else after, lifetime.epsilon),
    }
    code, reason = next(((code, text) for code, text in refusals.items() if text), ("", ""))
    return BudgetQuote(
        epsilon_run=run_cost,
        cap_run=budgets.run.epsilon,
        delta=charge.delta,
        cap_delta=budgets.run.delta,
        epsilon_lifetime_after=after,
        filter_lifetime_after=shared_cost,
        cap_lifetime=lifetime.epsilon,
        closes_lifetime=alone and not shared,
        fits=not code,
        code=code,
        reason=reason,
    )


def _over(what: str, found: float, limit: float) -> str:
    """One sentence with found and limit, at full precision where rounding would hide the difference."""
    shown, allowed = f"{found:.4g}", f"{limit:.4g}"
    if shown == allowed:
        shown, allowed = repr(found), repr(limit)
    return f"The {what} would be {shown}, the limit is {allowed}."
