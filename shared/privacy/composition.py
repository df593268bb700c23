"""Composition by privacy loss distributions (PLD) of dp-accounting, on a grid as fine as the mechanisms need.

Every grid gives an upper bound ("connect the dots"); a finer one only lies closer. The grid follows the spread of one
step's loss, so that neither a weak mechanism is over-counted nor a history of many runs is slow. Distributions are
kept between questions: a ledger asks about the same runs again and again.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final, Literal, NamedTuple

ROUNDING: Final = 1e-12
"""Part of delta that each mechanism sets aside for rounding in the convolutions: against the closed formula of the
full-batch Gaussian they fell short by up to 1.3e-14, which would let epsilon under-count at a delta near 1e-9."""

FINEST: Final = 1e-5
COARSEST: Final = 1.28e-3
"""Bounds of the grid's step; steps between are FINEST times powers of two, so that histories share distributions."""

FEW: Final = 8
"""Up to so many unlike mechanisms the grid is fine enough for four digits, above for three."""

_SHARE_FEW: Final = 0.02
_SHARE_MANY: Final = 0.08
"""The grid's step as a share of the typical spread of one step's loss: what the bound lies above the limit of ever
finer grids was at most 0.003 % and 0.04 % over the mechanisms tried."""


class Step(NamedTuple):
    """One noisy step as somebody with a record in it meets it.

    Attributes:
        noise_multiplier: noise standard deviation over what one record can add.
        sample_rates: one Poisson rate for each copy of the record that the same noise hides.
        relation: what neighbouring data sets differ in.
    """

    noise_multiplier: float
    sample_rates: tuple[float, ...]
    relation: Literal["add-remove", "replace-one"] = "add-remove"


Composition = tuple[tuple[Step, int], ...]
"""Steps and how often each is made: each step once, sorted."""


@lru_cache(maxsize=4096)
def composed_epsilon(parts: Composition, delta: float) -> float:
    """Return an upper bound on epsilon of all parts together at ``delta``; infinite where rounding uses delta up.

    Source: privacy 5; Doroshenko et al. 2022, "Connect the dots".
    """
    usable = delta - ROUNDING * len(parts)
    if usable <= 0:
        return math.inf
    grid = grid_step(parts)
    whole = _repeated(*parts[0], grid)
    for step, count in parts[1:]:
        whole = whole.compose(_repeated(step, count, grid))
    return float(whole.get_epsilon_for_delta(usable))


def grid_step(parts: Composition) -> float:
    """Return the distance between grid points for these parts."""
    total = sum(count for _, count in parts)
    spread = math.sqrt(math.fsum(count * _variance(step) for step, count in parts) / total)
    wanted = spread * (_SHARE_FEW if len(parts) <= FEW else _SHARE_MANY)
    return FINEST * 2.0 ** math.floor(math.log2(min(max(wanted, FINEST), COARSEST) / FINEST))


def copies(sample_rates: Sequence[float]) -> list[float]:
    """Return the probability of each number of copies, 0 to all, that independent coins of these rates let in."""
    found = [1.0]
    for rate in sample_rates:
        found = [
            math.fsum((out * (1 - rate), less * rate)) for out, less in zip([*found, 0.0], [0.0, *found], strict=True)
        ]
    return found


def _variance(step: Step) -> float:
    """About the variance of one step's privacy loss: the chi-square divergence, cut off where it would overflow."""
    scale = (2 if step.relation == "replace-one" else 1) / step.noise_multiplier
    weighted = list(enumerate(copies(step.sample_rates)))
    pairs = itertools.product(weighted, weighted)
    return math.fsum(p * q * math.expm1(min(a * b * scale * scale, 50.0)) for (a, p), (b, q) in pairs)


@lru_cache(maxsize=512)
def _repeated(step: Step, count: int, grid: float) -> Any:
    """The distribution of one step made so often."""
    return _single(step, grid).self_compose(count)


@lru_cache(maxsize=512)
def _single(step: Step, grid: float) -> Any:
    """The distribution of one step."""
    from dp_accounting import NeighboringRelation, pld  # noqa: PLC0415 - 0.9 s to import, and --help must stay fast

    library = pld.privacy_loss_distribution
    if len(step.sample_rates) > 1:
        if step.relation != "add-remove":
            raise ValueError("several copies of a record are composed under add-remove only")
        probabilities = copies(step.sample_rates)
        return library.from_mixture_gaussian_mechanism(
            step.noise_multiplier,
            [float(number) for number in range(len(probabilities))],
            probabilities,
            value_discretization_interval=grid,
        )
    relations = {
        "add-remove": NeighboringRelation.ADD_OR_REMOVE_ONE,
        "replace-one": NeighboringRelation.REPLACE_ONE,
    }
    return library.from_gaussian_mechanism(
        step.noise_multiplier,
        sampling_prob=step.sample_rates[0],
        value_discretization_interval=grid,
        neighboring_relation=relations[step.relation],
    )
