"""A charge held against every budget of a department (privacy 5): what each would be, its cap, and the verdict."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Literal

import msgspec

from shared.codec import Record
from shared.privacy.accountant import MechanismEvent, epsilon, filter_epsilon
from shared.privacy.charges import Budgets, PlanCharge
from shared.privacy.plan import PrivacyBudget

BudgetName = Literal["round", "run", "lifetime", "window", "population", "lone-share", "population-lone-share"]


class Spent(Record, frozen=True, kw_only=True):
    """What counts already, without the run in question.

    Attributes:
        dataset: events of the data set's whole life.
        window: those of them that lie in the window, as far as anybody can tell.
        population: events of all data sets of the same population.
        units: privacy units that the data set and its population were charged for.
        closed: whether a first plan took the data set's lifetime by PLD alone.
        lost: whether nobody knows what was spent, because a disk was lost.
    """

    dataset: tuple[MechanismEvent, ...] = ()
    window: tuple[MechanismEvent, ...] = ()
    population: tuple[MechanismEvent, ...] = ()
    units: tuple[str, ...] = ()
    closed: bool = False
    lost: bool = False


class BudgetLine(Record, frozen=True, kw_only=True):
    """One budget: epsilon found at ``delta``, its limit, and how it is counted.

    ``method`` is ``pld`` for plans that were fixed beforehand and ``filter`` for those chosen after earlier models.
    ``scope`` says what it spans, in words.
    """

    budget: BudgetName
    scope: str
    found: float
    limit: float
    delta: float
    method: Literal["pld", "filter"]

    @property
    def left(self) -> float:
        """What is left below the limit."""
        return max(0.0, self.limit - self.found)


class BudgetQuote(Record, frozen=True, kw_only=True):
    """What a charge would do to the budgets.

    ``lines`` are all budgets with this charge in them. ``epsilon_lifetime_after`` is the PLD figure "if all plans had
    been fixed beforehand"; the gate of a shared lifetime is ``filter_lifetime_after``. ``closes_lifetime``: only PLD
    admits this first plan, so it is the last. ``epsilon_lone_share`` is the run's epsilon if its updates could be read
    one by one, ``lone_share_after`` what that makes of the whole data set, or of its population where that is more, and
    is held against ``cap_lone_share``; both equal the figures of the sum where all noise is added in full. ``code`` is
    empty when the charge fits, else the stable reason that ``reserve`` would raise.
    """

    lines: tuple[BudgetLine, ...]
    epsilon_run: float
    cap_run: float
    delta: float
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

    @property
    def counted_after(self) -> float:
        """What would count against the lifetime's cap: by the filter, or by PLD for a plan that closes it."""
        return next(line.found for line in self.lines if line.budget == "lifetime")


def shared_lines(
    budgets: Budgets, spent: Spent, new: Sequence[MechanismEvent] = (), *, population: str = ""
) -> Iterator[BudgetLine]:
    """Yield the budgets that plans share which were chosen after seeing earlier models, with ``new`` events in them."""
    counted: list[tuple[BudgetName, str, tuple[MechanismEvent, ...], PrivacyBudget | None]] = [
        ("lifetime", "the data set, for ever", spent.dataset, budgets.lifetime),
        ("population", f"population {population}, all its data sets", spent.population, budgets.population),
    ]
    if budgets.window is not None:
        scope = f"the data set, any {budgets.window.days} days"
        counted.insert(1, ("window", scope, spent.window, budgets.window.budget))
    for name, scope, events, cap in counted:
        if cap is not None:
            yield _line(name, scope, filter_epsilon([*events, *new], cap.delta), cap)


def quote_charge(charge: PlanCharge, budgets: Budgets, spent: Spent) -> BudgetQuote:
    """Hold a charge against all budgets (privacy 5).

    Args:
        charge: the run.
        budgets: the caps; a figure above one by the smallest representable amount is refused.
        spent: what counts already, without this run.
    """
    whole, lifetime = charge.events(charge.attempts), budgets.lifetime
    after = epsilon([*spent.dataset, *whole], lifetime.delta)
    lines = {line.budget: line for line in _own_lines(charge, budgets)}
    lines |= {line.budget: line for line in shared_lines(budgets, spent, whole, population=charge.population)}
    filtered = lines["lifetime"].found
    # A plan fixed before anything was spent may use the budget by PLD alone, and then closes it.
    by_pld = not spent.dataset and filtered > lifetime.epsilon
    closes = by_pld and after <= lifetime.epsilon
    if by_pld:
        lines["lifetime"] = msgspec.structs.replace(lines["lifetime"], found=after, method="pld")
    lone = lone_share_lines(budgets, spent, whole, population=charge.population, fixed=closes)
    if budgets.lone_share is not None:
        lines |= {line.budget: line for line in lone}
    code, reason = next(_refusals(charge, budgets, spent, lines), ("", ""))
    return BudgetQuote(
        lines=tuple(lines.values()),
        epsilon_run=lines["run"].found,
        cap_run=budgets.run.epsilon,
        delta=charge.delta,
        epsilon_lifetime_after=after,
        filter_lifetime_after=filtered,
        cap_lifetime=lifetime.epsilon,
        epsilon_lone_share=epsilon([event.lone_share() for event in whole], charge.delta),
        lone_share_after=max(line.found for line in lone),
        cap_lone_share=None if budgets.lone_share is None else budgets.lone_share.epsilon,
        closes_lifetime=closes,
        fits=not code,
        code=code,
        reason=reason,
    )


def lone_share_lines(
    budgets: Budgets, spent: Spent, new: Sequence[MechanismEvent] = (), *, population: str = "", fixed: bool = False
) -> tuple[BudgetLine, ...]:
    """Return what everything costs if every update could be read alone (privacy 4.3), ``new`` events included.

    Args:
        budgets: the caps; without one on lone shares the lifetime's delta counts, and no limit.
        spent: what counts already.
        new: events on top.
        population: whom the persons belong to; they may be in all its data sets, so its sum has a line of its own.
        fixed: whether the data set's events are one plan that closes its lifetime, and PLD may judge it.
    """
    cap, delta = budgets.lone_share, (budgets.lone_share or budgets.lifetime).delta
    counted: list[tuple[BudgetName, str, tuple[MechanismEvent, ...], bool]] = [
        ("lone-share", "the data set, updates read alone", spent.dataset, fixed)
    ]
    if population:
        scope = f"population {population}, all its data sets, updates read alone"
        counted.append(("population-lone-share", scope, spent.population, False))
    return tuple(
        BudgetLine(
            budget=name,
            scope=scope,
            found=(epsilon if by_pld else filter_epsilon)([event.lone_share() for event in (*events, *new)], delta),
            limit=math.inf if cap is None else cap.epsilon,
            delta=delta,
            method="pld" if by_pld else "filter",
        )
        for name, scope, events, by_pld in counted
    )


def _own_lines(charge: PlanCharge, budgets: Budgets) -> Iterator[BudgetLine]:
    """The budgets that this plan has for itself: one attempt, and the run."""
    own: tuple[tuple[BudgetName, str, int, PrivacyBudget | None], ...] = (
        ("round", "one attempt of a round", 1, budgets.round),
        ("run", "the run, spare attempts included", charge.attempts, budgets.run),
    )
    for name, scope, attempts, cap in own:
        if cap is not None:
            at_delta = PrivacyBudget(epsilon=cap.epsilon, delta=charge.delta)
            yield _line(name, scope, epsilon(charge.events(attempts), charge.delta), at_delta, method="pld")


def _line(
    name: BudgetName, scope: str, found: float, cap: PrivacyBudget, *, method: Literal["pld", "filter"] = "filter"
) -> BudgetLine:
    """One budget's line."""
    return BudgetLine(budget=name, scope=scope, found=found, limit=cap.epsilon, delta=cap.delta, method=method)


def _refusals(
    charge: PlanCharge, budgets: Budgets, spent: Spent, lines: dict[BudgetName, BudgetLine]
) -> Iterator[tuple[str, str]]:
    """Yield a code and a sentence for everything that speaks against a charge."""
    if spent.lost:
        yield "budget-lost", "What was spent before a disk was lost cannot be established, so the ledger is closed."
    if charge.delta > budgets.run.delta:
        yield "budget-delta", _over("delta of the run", charge.delta, budgets.run.delta)
    if other := sorted(set(spent.units) - {charge.unit}):
        # Neither figure could be added to the other: nobody knows how many records a person had.
        yield (
            "budget-unit",
            f"The data set or its population was charged per {other[0]} before, the plan charges per {charge.unit}.",
        )
    if charge.unit != "record" and budgets.population is None:
        yield (
            "budget-population",
            f"The policy names no population, so it admits no plan whose unit is a {charge.unit}.",
        )
    if spent.closed:
        yield "budget-closed", "An earlier run took the whole lifetime budget of the data set and closed it."
    for line in lines.values():
        if line.found > line.limit:
            yield f"budget-{line.budget}", _over(_IN_WORDS[line.budget], line.found, line.limit)
    if charge.event.mechanism == "shared-noise" and budgets.lone_share is None:
        yield "budget-lone-share", "The policy sets no `epsilon_lone_share`, so it admits no shared noise."


_IN_WORDS: dict[BudgetName, str] = {
    "round": "epsilon of a round",
    "run": "epsilon of the run",
    "lifetime": "lifetime epsilon",
    "window": "epsilon of the window",
    "population": "epsilon of the population",
    "lone-share": "epsilon of lone shares",
    "population-lone-share": "epsilon of the population's lone shares",
}


def _over(what: str, found: float, limit: float) -> str:
    """One sentence with found and limit, at full precision where rounding would hide the difference."""
    shown, allowed = f"{found:.4g}", f"{limit:.4g}"
    if shown == allowed:
        shown, allowed = repr(found), repr(limit)
    return f"The {what} would be {shown}, the limit is {allowed}."
