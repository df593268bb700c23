"""A lower bound on epsilon from guesses about one run (privacy 7).

Each of m canaries was in the data with probability 1/2. An auditor sees what the run released and guesses for r of
them whether they were in. Under (epsilon, delta)-differential privacy the number of right guesses is hardly larger
than a binomial with r draws of probability e^epsilon / (1 + e^epsilon); many right guesses therefore refute small
values of epsilon. How many guesses are made is fixed before the run.

Source: Steinke, Nasr, Jagielski 2023, "Privacy auditing with one (1) training run", Theorem 3.1 and the p-value of
its appendix D.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from shared.codec import Record

CONFIDENCE = 0.95

GUESS_SHARES = (0.2, 1.0)
"""Numbers of guesses, as shares of the canaries. Few sure guesses find a claim that is a few times too small; only
guesses about every canary reach the highest bound. The error probability is split between them, so that taking the
better bound is allowed."""

PRECISION = 2.0**-20
"""Width at which the search for a bound ends; the lower end is reported."""


class Bound(Record, frozen=True, kw_only=True):
    """The best lower bound of a run, the guesses that gave it, and the highest one that these numbers can give."""

    epsilon: float
    guesses: int
    right: int
    ceiling: float


def p_value(*, canaries: int, guesses: int, right: int, epsilon: float, delta: float) -> float:
    """Return the probability, at most, of so many right guesses if the run is (epsilon, delta)-private.

    Args:
        canaries: each in the data with probability 1/2, independently.
        guesses: how many of them a guess was made about, fixed beforehand.
        right: guesses that were right.
        epsilon: of the hypothesis, at least 0.
        delta: of the hypothesis, in [0, 1].

    Raises:
        ValueError: for numbers outside 0 <= right <= guesses <= canaries, or a hypothesis outside its range.
    """
    if not 0 <= right <= guesses <= canaries:
        raise ValueError("0 <= `right` <= `guesses` <= `canaries`")
    if not (epsilon >= 0 and 0 <= delta <= 1):
        raise ValueError("`epsilon` is at least 0 and `delta` lies in [0, 1]")
    mass = _binomial(guesses, epsilon)
    tail = float(mass[right:].sum())
    # alpha = the largest P[right - i <= X < right] / i: what moving probability delta can add at most.
    below = np.cumsum(mass[:right][::-1])
    alpha = float((below / np.arange(1, right + 1)).max()) if right else 0.0
    return min(1.0, tail + 2 * canaries * delta * alpha)


@lru_cache(maxsize=256)
def lower_bound(*, canaries: int, guesses: int, right: int, delta: float, confidence: float = CONFIDENCE) -> float:
    """Return an epsilon that the run's true one is not below, with this confidence; 0 when nothing is refuted.

    Args:
        canaries: as :func:`p_value`.
        guesses: as :func:`p_value`.
        right: as :func:`p_value`.
        delta: at which epsilon is bounded.
        confidence: in (0, 1).

    Raises:
        ValueError: as :func:`p_value`.
    """

    def refuted(epsilon: float) -> bool:
        return p_value(canaries=canaries, guesses=guesses, right=right, epsilon=epsilon, delta=delta) < 1 - confidence

    if not refuted(0.0):
        return 0.0
    low, high = 0.0, 1.0
    while refuted(high):
        low, high = high, 2 * high
    while high - low > PRECISION:
        middle = (low + high) / 2
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return low


def bound_of_scores(scores: NDArray[np.float64], members: NDArray[np.bool_], delta: float) -> Bound:
    """Guess "in" for the highest scores and "out" for as many of the lowest, and bound epsilon.

    Args:
        scores: shape (canaries,), larger where a canary is more likely in.
        members: shape (canaries,), which canaries were in.
        delta: at which epsilon is bounded.

    Guarantees:
        With probability at least 95 %, ``epsilon`` of the result is not above that of the run.
    """
    order = np.argsort(scores, kind="stable")
    confidence = 1 - (1 - CONFIDENCE) / len(GUESS_SHARES)
    found = [_bound(members, order, int(share * members.size) // 2, delta, confidence) for share in GUESS_SHARES]
    best = max(found, key=lambda bound: bound.epsilon)
    return Bound(
        epsilon=best.epsilon,
        guesses=best.guesses,
        right=best.right,
        ceiling=max(bound.ceiling for bound in found),
    )


def _bound(members: NDArray[np.bool_], order: NDArray[np.intp], a_side: int, delta: float, confidence: float) -> Bound:
    """Bound epsilon from ``a_side`` guesses at each end of the order."""
    canaries, guesses = members.size, 2 * a_side
    lowest, highest = order[:a_side], order[canaries - a_side :]
    right = int(np.count_nonzero(~members[lowest]) + np.count_nonzero(members[highest]))
    reached, ceiling = (
        lower_bound(canaries=canaries, guesses=guesses, right=count, delta=delta, confidence=confidence)
        for count in (right, guesses)
    )
    return Bound(epsilon=reached, guesses=guesses, right=right, ceiling=ceiling)


def _binomial(draws: int, epsilon: float) -> NDArray[np.float64]:
    """Return P[X = 0..draws] for the binomial with the success rate of epsilon's randomised response."""
    counts = np.arange(draws + 1)
    # log k!, then log of the mass; the two rates are e^eps / (1 + e^eps) and 1 / (1 + e^eps).
    factorials = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, draws + 1)))])
    chosen = factorials[draws] - factorials - factorials[::-1]
    log_wrong = -epsilon - math.log1p(math.exp(-epsilon))
    log_right = -math.log1p(math.exp(-epsilon))
    mass: NDArray[np.float64] = np.exp(chosen + counts * log_right + (draws - counts) * log_wrong)
    return mass
