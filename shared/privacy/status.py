"""A data set's budgets as they stand, for the department's own people (privacy 6)."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Iterator, Sequence

import msgspec

from shared.codec import Record
from shared.errors import ConfigError
from shared.privacy.accountant import calibrate_noise, calibrate_within, epsilon, filter_epsilon, replace_one_epsilon
from shared.privacy.accounts import Account, spent_by
from shared.privacy.charges import Budgets, PlanCharge
from shared.privacy.plan import PrivacyBudget
from shared.privacy.quotes import BudgetLine, Spent, lone_share_lines, quote_charge, shared_lines


class BudgetStatus(Record, frozen=True, kw_only=True):
    """A data set's budgets as they stand: spent (burned), with reservations, left, and one more run like the last.

    ``lines`` are the budgets that several runs share, and ``left`` what the Renyi filter leaves of the lifetime; 0
    when a first plan closed it, or ``lost`` says that nobody knows what was spent. ``lone_share_epsilon`` counts as
    ``filter_epsilon`` does, as if all updates could be read one by one, over the data set or its population, whichever
    is more. ``replace_one_epsilon`` is
    ``reserved_epsilon`` for one record exchanged for another. The ``next_`` figures are None before the first run;
    ``next_epsilon`` is what would count against the lifetime after one more, and ``next_noise_multiplier`` the least
    with which a run as long would fit every budget, None if none does.
    """

    dataset: str
    runs: int
    spent_epsilon: float
    reserved_epsilon: float
    replace_one_epsilon: float
    filter_epsilon: float
    cap: float
    delta: float
    left: float
    closed: bool
    lost: bool
    lone_share_epsilon: float
    cap_lone_share: float | None
    lines: tuple[BudgetLine, ...]
    next_epsilon: float | None
    next_fits: bool | None
    next_noise_multiplier: float | None


def status_of(
    accounts: Sequence[Account],
    dataset: str,
    budgets: Budgets,
    now: dt.datetime,
    *,
    population: str = "",
    lost: bool = False,
) -> BudgetStatus:
    """Report a data set's budgets.

    Args:
        accounts: every account of the ledger.
        dataset: whose budgets.
        budgets: the caps.
        now: the present time.
        population: the population that the policy names, if any.
        lost: whether the ledger was closed because a disk was lost.
    """
    mine = [account for account in accounts if account.charge.dataset == dataset]
    spent = spent_by(accounts, dataset, budgets, now, population=population, lost=lost)
    counted, cap, delta = spent.dataset, budgets.lifetime.epsilon, budgets.lifetime.delta
    used = filter_epsilon(counted, delta)
    burned = [event for item in mine for event in item.charge.events(item.attempts_made)]
    lone = lone_share_lines(budgets, spent, population=population, fixed=spent.closed)
    last = mine[-1].charge if mine else None
    after = None if last is None else quote_charge(last, budgets, spent)
    return BudgetStatus(
        dataset=dataset,
        runs=len(mine),
        spent_epsilon=epsilon(burned, delta),
        reserved_epsilon=epsilon(counted, delta),
        replace_one_epsilon=replace_one_epsilon(counted, delta),
        filter_epsilon=used,
        cap=cap,
        delta=delta,
        left=0.0 if spent.closed or lost else max(0.0, cap - used),
        closed=spent.closed or lost,
        lost=lost,
        lone_share_epsilon=max(line.found for line in lone),
        cap_lone_share=None if budgets.lone_share is None else budgets.lone_share.epsilon,
        lines=(*shared_lines(budgets, spent, population=population), *(lone if budgets.lone_share else ())),
        next_epsilon=None if after is None else after.counted_after,
        next_fits=None if after is None else after.fits,
        next_noise_multiplier=None if last is None else least_noise(last, budgets, spent),
    )


def least_noise(charge: PlanCharge, budgets: Budgets, spent: Spent) -> float | None:
    """Return the least noise multiplier with which such a run would fit every budget on top of what is spent.

    None when no noise would do: a budget is used up, closed, or does not admit the plan whatever its noise.
    """
    unhindered = msgspec.structs.replace(charge, event=msgspec.structs.replace(charge.event, noise_multiplier=1e6))
    if not quote_charge(unhindered, budgets, spent).fits:
        return None
    try:
        return max(_demands(charge, budgets, spent))
    except ConfigError:
        return None


def _demands(charge: PlanCharge, budgets: Budgets, spent: Spent) -> Iterator[float]:
    """Yield the least noise multiplier for each budget by itself; extra coordinates keep the noise that they have."""
    rate, attempts = charge.event.sample_rate, charge.attempts
    steps = charge.event.steps * attempts
    extras = charge.events(attempts)[1:]
    own = PrivacyBudget(epsilon=budgets.run.epsilon, delta=charge.delta)
    yield calibrate_noise(budget=own, sample_rate=rate, total_steps=steps, beside=extras)
    if budgets.round is not None:
        own = PrivacyBudget(epsilon=budgets.round.epsilon, delta=charge.delta)
        yield calibrate_noise(budget=own, sample_rate=rate, total_steps=charge.event.steps, beside=charge.events(1)[1:])
    shared = [(spent.dataset, budgets.lifetime), (spent.population, budgets.population)]
    if budgets.window is not None:
        shared.append((spent.window, budgets.window.budget))
    for events, cap in shared:
        if cap is not None:
            yield calibrate_within(spent=[*events, *extras], budget=cap, sample_rate=rate, total_steps=steps)
    if budgets.lone_share is not None:
        for events in (spent.dataset, *([spent.population] if charge.population else [])):
            lone = [event.lone_share() for event in (*events, *extras)]
            least = calibrate_within(spent=lone, budget=budgets.lone_share, sample_rate=rate, total_steps=steps)
            yield least * math.sqrt(charge.event.noise_shares)
