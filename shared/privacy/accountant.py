"""The accountant: what a list of mechanisms costs, by dp-accounting (privacy 5).

Epsilon is never stored: mechanisms are, and it is computed from them. One fixed plan is checked by its
privacy loss distribution (PLD); plans chosen after seeing earlier models share a budget through a Renyi filter.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Literal

import msgspec

from shared.codec import Record
from shared.errors import ConfigError
from shared.privacy.composition import Composition, Step, composed_epsilon
from shared.privacy.plan import MechanismName, PrivacyBudget, PrivacyParams, require_noise_shares

ACCOUNTANT = "dp-accounting 0.6 PLD"
"""Name and version of the run-time accountant; a plan that names another one is refused."""

ORDERS = (3, 4, 6, 8, 12, 16, 32, 64)
"""Orders of the Renyi filter (privacy 5)."""

NOISE_GRID = 10_000
"""Calibrated noise multipliers are multiples of 1 / NOISE_GRID, rounded up."""

MIN_NOISE_MULTIPLIER = 0.3
MAX_NOISE_MULTIPLIER = 1e6

_SECANT_TURNS = 8
"""Turns of the search for a noise multiplier before it halves the interval instead."""


class MechanismEvent(Record, frozen=True, kw_only=True):
    """One mechanism as it ran: enough for anyone to recompute what it cost.

    ``noise_multiplier`` is noise standard deviation over sensitivity, ``sample_rate`` the Poisson rate.
    ``noise_shares`` says how many honest departments' shares make up that noise: 1 where each adds all of it.
    """

    mechanism: MechanismName = "poisson-dpsgd"
    noise_multiplier: float
    noise_shares: int = 1
    sample_rate: float
    steps: int
    relation: Literal["add-remove"] = "add-remove"

    def __post_init__(self) -> None:
        if not 0 < self.noise_multiplier <= MAX_NOISE_MULTIPLIER:
            raise ValueError("`noise_multiplier` lies in (0, 1000000]")
        if not 0 < self.sample_rate <= 1:
            raise ValueError("`sample_rate` lies in (0, 1]")
        if self.steps < 1:
            raise ValueError("`steps` is at least 1")
        require_noise_shares(self.mechanism, self.noise_shares)

    def times(self, count: int) -> MechanismEvent:
        """Return the same mechanism run ``count`` times as long."""
        return msgspec.structs.replace(self, steps=self.steps * count)

    def lone_share(self) -> MechanismEvent:
        """Return what one department's masked update would cost if it could be read alone (privacy 4.3).

        Its noise is one share, noise multiplier over sqrt(``noise_shares``); with noise added in full it is the same
        event.
        """
        return msgspec.structs.replace(
            self,
            mechanism="poisson-dpsgd",
            noise_multiplier=self.noise_multiplier / math.sqrt(self.noise_shares),
            noise_shares=1,
        )


def event_of(privacy: PrivacyParams, attempts: int) -> MechanismEvent:
    """Return what ``attempts`` rounds of a plan run: the event that is charged for them."""
    return MechanismEvent(
        mechanism=privacy.mechanism,
        noise_multiplier=privacy.noise_multiplier,
        noise_shares=privacy.noise_shares,
        sample_rate=privacy.sample_rate,
        steps=privacy.steps * attempts,
    )


def epsilon(events: Sequence[MechanismEvent], delta: float) -> float:
    """Return the epsilon of all events together under add-remove, had they been fixed beforehand.

    Args:
        events: what ran; no events cost 0.
        delta: in (0, 1).

    Raises:
        ValueError: when ``delta`` is outside (0, 1).

    Guarantees:
        An upper bound: the privacy loss is discretised pessimistically, and rounding has its own part of delta
        (:mod:`shared.privacy.composition`); infinite for a delta not above that.

    Source: privacy 5; Doroshenko et al. 2022, "Connect the dots".
    """
    if not 0 < delta < 1:
        raise ValueError("`delta` lies in (0, 1)")
    return composed_epsilon(_composition(events, "add-remove"), delta) if events else 0.0


def replace_one_epsilon(events: Sequence[MechanismEvent], delta: float) -> float:
    """Return what :func:`epsilon` becomes when one record is exchanged for another, instead of added or removed.

    Both records may pull in opposite directions, so the figure is up to twice as large and more. Nothing is gated by
    it; it is stated beside the add-remove figure.

    Raises:
        ValueError: when ``delta`` is outside (0, 1).
    """
    if not 0 < delta < 1:
        raise ValueError("`delta` lies in (0, 1)")
    return composed_epsilon(_composition(events, "replace-one"), delta) if events else 0.0


def calibrate_noise(
    *, budget: PrivacyBudget, sample_rate: float, total_steps: int, beside: Sequence[MechanismEvent] = ()
) -> float:
    """Return the smallest noise multiplier, rounded up to 4 decimals, with which one fixed plan satisfies the budget.

    Args:
        budget: what all steps together must satisfy.
        sample_rate: Poisson sampling rate in (0, 1].
        total_steps: noisy steps of all rounds and spare attempts.
        beside: everything else that the same budget has to hold.

    Raises:
        ConfigError: ``noise-unreachable`` when no multiplier up to 1000000 satisfies the budget.

    Guarantees:
        ``epsilon`` of the returned multiplier, with what stands beside it, is at most ``budget.epsilon``; one grid
        step less exceeds it, unless that would be below 0.3, the least that a plan may name.
    """

    def cost(noise_multiplier: float) -> float:
        event = MechanismEvent(noise_multiplier=noise_multiplier, sample_rate=sample_rate, steps=total_steps)
        return epsilon([event, *beside], budget.delta)

    return _least_noise(cost, budget, sample_rate, total_steps)


def calibrate_within(
    *, spent: Sequence[MechanismEvent], budget: PrivacyBudget, sample_rate: float, total_steps: int
) -> float:
    """Return the smallest noise multiplier with which the Renyi filter admits one more plan on top of what is spent.

    Args:
        spent: what counts already against the shared budget.
        budget: the shared cap.
        sample_rate: Poisson sampling rate in (0, 1] of the new plan.
        total_steps: its noisy steps.

    Raises:
        ConfigError: ``noise-unreachable``, also when the budget is used up.

    Guarantees:
        As :func:`calibrate_noise`, for :func:`filter_epsilon` of everything together.
    """

    def cost(noise_multiplier: float) -> float:
        new = MechanismEvent(noise_multiplier=noise_multiplier, sample_rate=sample_rate, steps=total_steps)
        return filter_epsilon([*spent, new], budget.delta)

    return _least_noise(cost, budget, sample_rate, total_steps)


def rdp(event: MechanismEvent) -> tuple[float, ...]:
    """Return the Renyi divergence of an event at each of :data:`ORDERS`."""
    return _rdp(event.noise_multiplier, event.sample_rate, event.steps)


def filter_constant() -> float:
    """Return K = sum over the orders of (1 - 1/a)^a / (a - 1), the union over orders (privacy 5)."""
    return math.fsum((1 - 1 / order) ** order / (order - 1) for order in ORDERS)


def filter_epsilon(events: Sequence[MechanismEvent], delta: float) -> float:
    """Return the smallest cap with which the Renyi filter admits the events; 0 for none.

    This is the number to report for a shared budget: it holds although later plans were chosen after seeing
    earlier models, which :func:`epsilon` does not. It is at most a cap exactly if some order has
    spent(a) + plan(a) <= cap - log(K / delta) / (a - 1).

    Guarantees:
        However plans are chosen, those that were admitted because this figure with them was at most a cap together
        satisfy the cap.

    Source: privacy 5; Feldman and Zrnic 2021 (Renyi filter); Canonne et al. 2020, Proposition 12 (conversion).
    """
    if not 0 < delta < 1:
        raise ValueError("`delta` lies in (0, 1)")
    if not events:
        return 0.0
    spent = [math.fsum(at_order) for at_order in zip(*map(rdp, events), strict=True)]
    overhead = math.log(filter_constant() / delta)
    return min(cost + overhead / (order - 1) for order, cost in zip(ORDERS, spent, strict=True))


def _composition(events: Sequence[MechanismEvent], relation: Literal["add-remove", "replace-one"]) -> Composition:
    """Add the steps of equal mechanisms, in an order that does not depend on history."""
    steps: Counter[Step] = Counter()
    for event in events:
        steps[Step(event.noise_multiplier, (event.sample_rate,), relation)] += event.steps
    return tuple(sorted(steps.items()))


@lru_cache(maxsize=4096)
def _rdp(noise_multiplier: float, sample_rate: float, steps: int) -> tuple[float, ...]:
    """Renyi divergence at the filter's orders."""
    from dp_accounting import rdp as library  # noqa: PLC0415 - as above

    accountant = library.RdpAccountant(orders=ORDERS)
    accountant.compose(_dp_event(noise_multiplier, sample_rate), steps)
    return tuple(float(cost) for cost in accountant.rdp)


def _dp_event(noise_multiplier: float, sample_rate: float) -> Any:
    """One step as dp-accounting's event."""
    import dp_accounting  # noqa: PLC0415 - as above

    return dp_accounting.PoissonSampledDpEvent(sample_rate, dp_accounting.GaussianDpEvent(noise_multiplier))


def _least_noise(cost: Callable[[float], float], budget: PrivacyBudget, sample_rate: float, total_steps: int) -> float:
    """Search the grid of noise multipliers for the smallest whose cost is within the budget."""
    # Gaussian without amplification, times q: a first guess that the search soon leaves behind.
    scale = sample_rate * math.sqrt(2 * total_steps * math.log(1 / budget.delta))
    smallest = math.ceil(MIN_NOISE_MULTIPLIER * NOISE_GRID)
    largest = round(MAX_NOISE_MULTIPLIER * NOISE_GRID)
    guess = min(max(round(scale / budget.epsilon * NOISE_GRID), 2 * smallest), largest)

    def at_multiple(multiple: int) -> float:
        return cost(multiple / NOISE_GRID)

    multiple = _smallest(at_multiple, budget.epsilon, smallest=smallest, guess=guess, largest=largest)
    if multiple is None:
        raise ConfigError(
            "noise-unreachable",
            f"No noise multiplier up to {MAX_NOISE_MULTIPLIER:.0f} gives epsilon {budget.epsilon} "
            f"at delta {budget.delta} over {total_steps} steps.",
        )
    return multiple / NOISE_GRID


def _smallest(cost: Callable[[int], float], target: float, *, smallest: int, guess: int, largest: int) -> int | None:
    """Find the smallest integer whose falling cost is at most the target.

    Secant in log-log, about 5 evaluations; where the cost is no power law, because much is spent already, halving.
    """
    bad, good = smallest - 1, largest + 1
    at, exponent = guess, 1.2
    before: tuple[int, float] | None = None
    for turn in itertools.count():
        if good - bad <= 1:
            break
        here = cost(at)
        bad, good = (bad, at) if here <= target else (at, good)
        if before is not None and here not in {before[1], 0.0} and before[1] > 0:
            exponent = min(max(-math.log(here / before[1]) / math.log(at / before[0]), 0.3), 8.0)
        before = (at, here)
        step = math.ceil(at * (max(here, target / 8) / target) ** (1 / exponent)) if math.isfinite(here) else 2 * at
        if turn >= _SECANT_TURNS:
            step = math.isqrt(max(bad, 1) * good)
        at = min(max(step, bad + 1), max(good - 1, bad + 1))
    return good if good <= largest else None
