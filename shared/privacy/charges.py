"""What a run charges to a data set, and the judgement of a charge against a department's caps (privacy 5)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from shared.codec import Record
from shared.privacy.accountant import MechanismEvent, epsilon, filter_admits, filter_epsilon
from shared.privacy.plan import PrivacyBudget, PrivacyUnit


class PlanCharge(Record, frozen=True, kw_only=True):
    """What one run will do to one data set; ``event`` is one attempt of it."""

    run: bytes
    dataset: str
    unit: PrivacyUnit = "record"
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
    """The caps of a department's policy: for one run, and for everything a data set ever takes part in.

    ``lone_share`` is the cap on everything as well, as if every sum of shared noise could be taken apart; without one
    no plan with shared noise is admitted.
    """

    run: PrivacyBudget
    lifetime: PrivacyBudget
    lone_share: PrivacyBudget | None = None


class BudgetQuote(Record, frozen=True, kw_only=True):
    """What a charge would do to the budgets.

    ``epsilon_lifetime_after`` is the PLD figure "if all plans had been fixed beforehand"; the gate of a shared
    lifetime is ``filter_lifetime_after``. ``closes_lifetime``: only PLD admits this first plan, so it is the last.
    ``epsilon_lone_share`` is the run's epsilon if its updates could be read one by one, ``lone_share_after`` what that
    makes of the whole data set and is held against ``cap_lone_share``; both equal the figures of the sum where all
    noise is added in full. ``code`` is empty when the charge fits, else the stable reason that ``reserve`` would raise.
    """

    epsilon_run: float
    cap_run: float
    delta: float
    cap_delta: float
    epsilon_lifetime_after: float
    filter_lifetime_after: float
    cap_lifetime: float
    epsilon_lone_share: float
    lone_share_after: float
    cap_lone_share: float | None
    closes_lifetime: bool
    fits: bool
    code: str
    reason: str


class BudgetStatus(Record, frozen=True, kw_only=True):
    """A data set's lifetime budget: spent (burned), with reservations, left, and one more run like the last.

    ``left`` is what the Renyi filter leaves of the cap; 0 when a first plan closed the budget. ``lone_share_epsilon``
    counts as ``filter_epsilon`` does, as if all updates could be read one by one. The ``next_``
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
    lone_share_epsilon: float
    cap_lone_share: float | None
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
    noise_shares: int
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
    closes = alone and not shared
    lone_after = lone_share_cost([*spent, whole], budgets, fixed=closes)
    refusals = {
        "budget-delta": charge.delta > budgets.run.delta and _over("delta of the run", charge.delta, budgets.run.delta),
        "budget-run": run_cost > budgets.run.epsilon and _over("epsilon of the run", run_cost, budgets.run.epsilon),
        "budget-closed": closed and "An earlier run took the whole lifetime budget of the data set and closed it.",
        "budget-lifetime": not (shared or alone)
        and _over("lifetime epsilon", shared_cost if spent else after, lifetime.epsilon),
        "budget-lone-share": _lone_share_refusal(charge.event, lone_after, budgets.lone_share),
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
        epsilon_lone_share=epsilon([whole.lone_share()], charge.delta),
        lone_share_after=lone_after,
        cap_lone_share=None if budgets.lone_share is None else budgets.lone_share.epsilon,
        closes_lifetime=closes,
        fits=not code,
        code=code,
        reason=reason,
    )


def lone_share_cost(events: Sequence[MechanismEvent], budgets: Budgets, *, fixed: bool) -> float:
    """Return what the events cost if every update could be read alone (privacy 4.3).

    Args:
        events: what counts.
        budgets: the caps; without one on lone shares the lifetime's delta counts.
        fixed: whether the events are one plan that closes its budget, and PLD may judge it.
    """
    lone, delta = [event.lone_share() for event in events], (budgets.lone_share or budgets.lifetime).delta
    return epsilon(lone, delta) if fixed else filter_epsilon(lone, delta)


def _lone_share_refusal(event: MechanismEvent, cost: float, cap: PrivacyBudget | None) -> str | Literal[False]:
    """Say why lone shares do not fit; a policy without a cap on them admits no shared noise."""
    if cap is None:
        return (
            event.mechanism == "shared-noise"
            and "The policy sets no `epsilon_lone_share`, so it admits no shared noise."
        )
    return cost > cap.epsilon and _over("epsilon of lone shares", cost, cap.epsilon)


def _over(what: str, found: float, limit: float) -> str:
    """One sentence with found and limit, at full precision where rounding would hide the difference."""
    shown, allowed = f"{found:.4g}", f"{limit:.4g}"
    if shown == allowed:
        shown, allowed = repr(found), repr(limit)
    return f"The {what} would be {shown}, the limit is {allowed}."
