"""Budgets of a round, run, lifetime, window and population, each recomputed from exported lines (promise P3)."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest

from shared.errors import InsufficientBudgetError
from shared.journal import Journal
from shared.privacy.accountant import ACCOUNTANT, NOISE_GRID, MechanismEvent, epsilon, filter_epsilon
from shared.privacy.ledger import BudgetQuote, Budgets, PlanCharge, PrivacyLedger, WindowBudget
from shared.privacy.plan import PrivacyBudget
from tests import refusals
from tests.ledger_history import exported

DELTA = 1e-5
EVENT = MechanismEvent(noise_multiplier=4.0, sample_rate=0.05, steps=10)
WHOLE = EVENT.times(4)
YEAR = dt.timedelta(days=365)


@dataclass
class Clock:
    """A clock that tests set, backwards too."""

    time: dt.datetime = dt.datetime(2026, 3, 1, tzinfo=dt.UTC)

    def __call__(self) -> dt.datetime:
        return self.time


def cap(value: float) -> PrivacyBudget:
    return PrivacyBudget(epsilon=value, delta=DELTA)


def budgets(**caps: Any) -> Budgets:
    return Budgets(**{"run": cap(99), "lifetime": cap(99), "population": cap(99)} | caps)


def yearly(value: float, days: int = 365) -> WindowBudget:
    return WindowBudget(days=days, budget=cap(value))


def charge(run: str = "a", *, dataset: str = "calls-2026", **changes: Any) -> PlanCharge:
    fields: dict[str, Any] = {"event": EVENT, "delta": DELTA, "accountant": ACCOUNTANT, "public_size": 500}
    return PlanCharge(run=run.encode(), dataset=dataset, attempts=4, **(fields | changes))


def of_persons(run: str, dataset: str, population: str = "residents", **changes: Any) -> PlanCharge:
    return charge(run, dataset=dataset, unit="person", population=population, **changes)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ledger(tmp_path: Path, clock: Clock) -> Iterator[PrivacyLedger]:
    with Journal.open(tmp_path / "journal.db", owner="health") as journal:
        yield PrivacyLedger(journal, clock)


def run_through(ledger: PrivacyLedger, charge: PlanCharge, caps: Budgets, attempts: int = 4) -> None:
    """A run that ends cleanly."""
    reservation = ledger.reserve(charge, caps)
    for number in range(1, attempts + 1):
        reservation.burn(number)
    reservation.settle()


def code_of(action: Callable[[], object]) -> str:
    return refusals.code_of(action, InsufficientBudgetError)


def line(quote: BudgetQuote, budget: str) -> tuple[float, float]:
    """Found and limit of one budget."""
    (found,) = (item for item in quote.lines if item.budget == budget)
    return found.found, found.limit


TWICE = filter_epsilon([WHOLE, WHOLE], DELTA)
SHARED = MechanismEvent(mechanism="shared-noise", noise_multiplier=4.0, noise_shares=2, sample_rate=0.05, steps=1)
TWICE_ALONE = filter_epsilon([SHARED.times(8).lone_share()], DELTA)
FITS: dict[str, tuple[float, Callable[[float], dict[str, Any]], PlanCharge]] = {
    "round": (epsilon([EVENT], DELTA), lambda value: {"round": cap(value)}, charge("b")),
    "run": (epsilon([WHOLE], DELTA), lambda value: {"run": cap(value)}, charge("b")),
    "lifetime": (TWICE, lambda value: {"lifetime": cap(value)}, charge("b")),
    "window": (TWICE, lambda value: {"window": yearly(value)}, charge("b")),
    "population": (TWICE, lambda value: {"population": cap(value)}, of_persons("b", "calls-2025")),
    "lone-share": (TWICE, lambda value: {"lone_share": cap(value)}, charge("b")),
    "population-lone-share": (
        TWICE_ALONE,
        lambda value: {"lone_share": cap(value)},
        of_persons("b", "calls-2025", event=SHARED),
    ),
}
"""Budget: what it would be, the caps with a limit in its place, and the charge that meets it after an earlier run."""


@pytest.mark.parametrize("budget", FITS)
def test_p3_a_figure_above_any_cap_by_the_smallest_amount_is_refused_with_found_and_limit(
    ledger: PrivacyLedger, budget: str
) -> None:
    found, caps, next_charge = FITS[budget]
    first = charge("a")
    if "population" in budget:
        first = of_persons("a", "calls-2024", event=next_charge.event)
    ledger.reserve(first, budgets(lone_share=cap(99)))
    assert ledger.quote(next_charge, budgets(**caps(found))).fits
    short = budgets(**caps(math.nextafter(found, 0)))
    quote = ledger.quote(next_charge, short)
    assert (quote.code, line(quote, budget)) == (f"budget-{budget}", (found, math.nextafter(found, 0)))
    assert repr(found) in quote.reason
    assert repr(math.nextafter(found, 0)) in quote.reason
    assert code_of(lambda: ledger.reserve(next_charge, short)) == f"budget-{budget}"
    assert ledger.reservation(next_charge.run) is None
    ledger.reserve(next_charge, budgets(**caps(found)))


def test_p3_every_attempt_of_a_round_is_held_against_the_cap_of_a_round(ledger: PrivacyLedger) -> None:
    quote = ledger.quote(charge(), budgets(round=cap(0.5)))
    assert line(quote, "round") == (epsilon([EVENT], DELTA), 0.5)
    assert "round" not in {item.budget for item in ledger.quote(charge(), budgets()).lines}


# --- a window of days ----------------------------------------------------------------------------------------


def test_a_settled_run_leaves_the_window_after_its_days_and_never_the_lifetime(
    ledger: PrivacyLedger, clock: Clock
) -> None:
    tight = budgets(window=yearly(TWICE * 0.99))
    run_through(ledger, charge("a"), tight)
    assert code_of(lambda: ledger.reserve(charge("b"), tight)) == "budget-window"
    clock.time += YEAR
    assert code_of(lambda: ledger.reserve(charge("b"), tight)) == "budget-window"  # the first and last moment count
    clock.time += dt.timedelta(microseconds=1)
    quote = ledger.quote(charge("b"), tight)
    assert quote.fits
    assert line(quote, "window")[0] == filter_epsilon([WHOLE], DELTA)
    assert line(quote, "lifetime")[0] == TWICE


def test_p3_a_run_that_may_still_release_stays_in_the_window(ledger: PrivacyLedger, clock: Clock) -> None:
    tight = budgets(window=yearly(TWICE * 0.99))
    reservation = ledger.reserve(charge("a"), tight)
    clock.time += 3 * YEAR
    assert code_of(lambda: ledger.reserve(charge("b"), tight)) == "budget-window"
    reservation.burn(1)
    reservation.settle()
    clock.time += YEAR
    # What counts is the day of its last attempt, not of its reservation.
    assert line(ledger.quote(charge("b"), tight), "window")[0] == filter_epsilon([EVENT, WHOLE], DELTA)
    clock.time += YEAR
    assert ledger.quote(charge("b"), tight).fits


def test_p3_a_clock_that_goes_back_refills_nothing(ledger: PrivacyLedger, clock: Clock) -> None:
    tight = budgets(window=yearly(TWICE * 0.99))
    run_through(ledger, charge("a"), tight)
    for back in (dt.timedelta(seconds=1), 0.5 * YEAR, 30 * YEAR):
        clock.time -= back
        assert code_of(lambda: ledger.reserve(charge("b"), tight)) == "budget-window"


def test_p3_a_run_made_under_a_clock_that_had_gone_back_is_as_young_as_the_newest_entry(
    ledger: PrivacyLedger, clock: Clock
) -> None:
    caps = budgets(window=yearly(TWICE * 0.99))
    run_through(ledger, charge("other", dataset="elsewhere"), budgets())
    clock.time -= 2 * YEAR
    run_through(ledger, charge("a"), caps)
    clock.time += 2 * YEAR  # right again: by its own entry's time the run would be two years old
    assert code_of(lambda: ledger.reserve(charge("b"), caps)) == "budget-window"


@pytest.mark.parametrize("days", [10**6, 2**40])
def test_p3_a_window_may_be_longer_than_the_calendar(ledger: PrivacyLedger, clock: Clock, days: int) -> None:
    tight = budgets(window=yearly(TWICE * 0.99, days))
    run_through(ledger, charge("a"), tight)
    clock.time += 30 * YEAR
    assert code_of(lambda: ledger.reserve(charge("b"), tight)) == "budget-window"


def test_a_window_is_at_least_a_day() -> None:
    with pytest.raises(ValueError, match="days"):
        yearly(1.0, days=0)


# --- a population over several data sets ---------------------------------------------------------------------


def test_p3_persons_are_charged_over_all_data_sets_of_their_population(ledger: PrivacyLedger) -> None:
    tight = budgets(population=cap(TWICE * 0.99))
    ledger.reserve(of_persons("a", "calls-2025"), tight)
    assert code_of(lambda: ledger.reserve(of_persons("b", "calls-2026"), tight)) == "budget-population"
    quote = ledger.quote(of_persons("b", "calls-2026"), tight)
    assert line(quote, "population")[0] == TWICE
    assert line(quote, "lifetime")[0] == filter_epsilon([WHOLE], DELTA)
    assert ledger.quote(of_persons("b", "calls-2026", "visitors"), tight).fits
    assert ledger.quote(charge("b", dataset="pumps"), tight).fits


def test_p3_no_first_plan_takes_a_population_by_pld(ledger: PrivacyLedger) -> None:
    alone = epsilon([WHOLE], DELTA)
    assert alone < filter_epsilon([WHOLE], DELTA)
    assert ledger.quote(charge(), budgets(lifetime=cap(alone))).closes_lifetime
    assert code_of(lambda: ledger.reserve(of_persons("a", "calls"), budgets(population=cap(alone)))) == (
        "budget-population"
    )


def test_p3_persons_without_a_population_are_refused(ledger: PrivacyLedger) -> None:
    quote = ledger.quote(of_persons("a", "calls"), budgets(population=None))
    assert (quote.code, quote.fits) == ("budget-population", False)


def test_p3_a_person_in_two_data_sets_pays_lone_shares_for_both(ledger: PrivacyLedger) -> None:
    """The sums of both files fit the population; a person in both must also fit if the sums were taken apart."""
    alone = filter_epsilon([SHARED.times(4).lone_share()], DELTA)
    tight = budgets(lone_share=cap(alone), population=cap(filter_epsilon([SHARED.times(8)], DELTA)))
    ledger.reserve(of_persons("a", "calls-2025", event=SHARED), tight)
    second = of_persons("b", "calls-2026", event=SHARED)
    quote = ledger.quote(second, tight)
    assert (quote.code, quote.lone_share_after) == ("budget-population-lone-share", TWICE_ALONE)
    assert line(quote, "lone-share") == (alone, alone)
    assert code_of(lambda: ledger.reserve(second, tight)) == "budget-population-lone-share"
    assert ledger.quote(of_persons("b", "calls-2026", "visitors", event=SHARED), tight).fits


def test_p3_no_first_plan_takes_the_lone_shares_of_a_population_by_pld(ledger: PrivacyLedger) -> None:
    whole = SHARED.times(4)
    caps = budgets(lifetime=cap(epsilon([whole], DELTA)), lone_share=cap(99))
    quote = ledger.quote(of_persons("a", "calls", event=SHARED), caps)
    assert quote.closes_lifetime
    assert line(quote, "lone-share")[0] == epsilon([whole.lone_share()], DELTA)
    assert line(quote, "population-lone-share")[0] == filter_epsilon([whole.lone_share()], DELTA)


@pytest.mark.parametrize("first", ["record", "person"])
def test_p3_a_data_set_is_charged_per_record_or_per_person_and_never_both(ledger: PrivacyLedger, first: str) -> None:
    charges = {"record": charge("r"), "person": of_persons("p", "calls-2026")}
    then = charges["person" if first == "record" else "record"]
    reservation = ledger.reserve(charges[first], budgets())
    assert code_of(lambda: ledger.reserve(then, budgets())) == "budget-unit"
    reservation.settle()  # nothing was released, so nothing stands in the way
    ledger.reserve(then, budgets())


def test_p3_a_population_is_charged_per_person_or_per_device_and_never_both(ledger: PrivacyLedger) -> None:
    """A person may have several devices, so what one lost says nothing about the other."""
    device = charge("d", dataset="sensors", unit="device", population="residents")
    reservation = ledger.reserve(of_persons("p", "calls-2026"), budgets())
    quote = ledger.quote(device, budgets())
    assert quote.code == "budget-unit"
    assert quote.reason.endswith("charged per person before, the plan charges per device.")
    assert code_of(lambda: ledger.reserve(device, budgets())) == "budget-unit"
    assert ledger.quote(msgspec.structs.replace(device, population="vehicles"), budgets()).fits
    reservation.settle()  # nothing was released, so nothing stands in the way
    ledger.reserve(device, budgets())


# --- what the department sees --------------------------------------------------------------------------------


def recomputed(lines: Sequence[dict[str, Any]]) -> float:
    """The filter's figure by dp-accounting alone."""
    import dp_accounting
    from dp_accounting import rdp

    orders = (3, 4, 6, 8, 12, 16, 32, 64)
    accountant = rdp.RdpAccountant(orders=orders)
    for item in lines:
        step = dp_accounting.PoissonSampledDpEvent(
            item["sample_rate"], dp_accounting.GaussianDpEvent(item["noise_multiplier"])
        )
        accountant.compose(step, item["counted_steps"])
    constant = sum((1 - 1 / order) ** order / (order - 1) for order in orders)
    return min(
        float(cost) + math.log(constant / DELTA) / (order - 1)
        for order, cost in zip(orders, accountant.rdp, strict=True)
    )


def test_every_shared_budget_comes_back_from_the_exported_lines(ledger: PrivacyLedger, clock: Clock) -> None:
    caps = budgets(window=yearly(50.0))
    run_through(ledger, of_persons("a", "calls-2025"), caps, attempts=2)
    run_through(ledger, of_persons("b", "calls-2026"), caps, attempts=3)
    clock.time += 2 * YEAR
    ledger.reserve(of_persons("c", "calls-2026"), caps)
    status = ledger.status("calls-2026", caps, population="residents")
    found = {item.budget: item.found for item in status.lines}
    lines = exported(ledger)
    of_dataset = [item for item in lines if item["dataset"] == "calls-2026"]
    start = clock.time - YEAR
    recent = [
        item for item in of_dataset if not item["settled"] or dt.datetime.fromisoformat(item["last_active"]) >= start
    ]
    assert [item["counted_steps"] for item in lines] == [20, 30, 40]
    assert len(recent) == 1
    assert found["lifetime"] == pytest.approx(recomputed(of_dataset), rel=1e-9)
    assert found["window"] == pytest.approx(recomputed(recent), rel=1e-9)
    assert found["population"] == pytest.approx(
        recomputed([item for item in lines if item["population"] == "residents"]), rel=1e-9
    )
    assert not any(item["closes_lifetime"] for item in lines)


def test_lone_shares_come_back_from_the_exported_lines(ledger: PrivacyLedger) -> None:
    caps = budgets(lone_share=cap(50.0))
    run_through(ledger, of_persons("a", "calls-2025", event=SHARED), caps, attempts=2)
    run_through(ledger, of_persons("b", "calls-2026"), caps, attempts=3)
    ledger.reserve(of_persons("c", "calls-2026", event=SHARED), caps)
    status = ledger.status("calls-2026", caps, population="residents")
    found = {item.budget: item.found for item in status.lines}
    lines = [
        item | {"noise_multiplier": item["noise_multiplier"] / math.sqrt(item["noise_shares"])}
        for item in exported(ledger)
    ]
    of_dataset = [item for item in lines if item["dataset"] == "calls-2026"]
    assert found["lone-share"] == pytest.approx(recomputed(of_dataset), rel=1e-9)
    assert found["population-lone-share"] == pytest.approx(recomputed(lines), rel=1e-9)
    assert status.lone_share_epsilon == found["population-lone-share"] > found["lone-share"]


def test_the_noise_of_one_more_run_meets_the_lone_shares_of_the_population(ledger: PrivacyLedger) -> None:
    tight = budgets(lone_share=cap(0.95 * TWICE_ALONE))
    ledger.reserve(of_persons("a", "calls-2025", event=SHARED), tight)
    ledger.reserve(of_persons("b", "calls-2026", event=SHARED), budgets(lone_share=cap(99))).settle()
    least = ledger.status("calls-2026", tight, population="residents").next_noise_multiplier
    assert least is not None
    assert least > SHARED.noise_multiplier
    louder = of_persons("c", "calls-2026", event=msgspec.structs.replace(SHARED, noise_multiplier=least))
    assert ledger.quote(louder, tight).fits


def test_the_status_says_how_much_noise_one_more_run_would_need(ledger: PrivacyLedger) -> None:
    tight = budgets(lifetime=cap(TWICE * 0.9), window=yearly(TWICE * 0.95), run=cap(1.0), round=cap(0.4))
    assert ledger.status("calls-2026", tight).next_noise_multiplier is None
    ledger.reserve(charge("a"), tight)
    status = ledger.status("calls-2026", tight)
    assert status.next_fits is False
    needed = status.next_noise_multiplier
    assert needed is not None
    louder = charge("b", event=msgspec.structs.replace(EVENT, noise_multiplier=needed))
    quieter = charge("b", event=msgspec.structs.replace(EVENT, noise_multiplier=needed - 1 / NOISE_GRID))
    assert ledger.quote(louder, tight).fits
    assert ledger.quote(quieter, tight).code == "budget-lifetime"


def test_a_budget_that_is_used_up_needs_noise_that_does_not_exist(ledger: PrivacyLedger) -> None:
    ledger.reserve(charge("a"), budgets())
    used_up = budgets(lifetime=cap(filter_epsilon([WHOLE], DELTA)))
    assert ledger.status("calls-2026", used_up).next_noise_multiplier is None


def test_the_status_states_the_figure_for_an_exchanged_record_too(ledger: PrivacyLedger) -> None:
    ledger.reserve(charge("a"), budgets())
    status = ledger.status("calls-2026", budgets())
    assert 1.5 * status.reserved_epsilon < status.replace_one_epsilon < 4 * status.reserved_epsilon
