"""The city-wide worst case: what a run costs somebody who is in several departments' data (privacy 1).

Everything follows from plans, so the authority can say it beforehand. Where each department adds its full noise,
the departments' events compose. Shared noise is added once for all of them: a step then hides the sum of several copies
of a record, each let in by a coin of its own, behind one noise. That is a mixture of Gaussians with 0 to k times the
sensitivity; adding the departments' figures would claim too little.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from shared.codec import Record
from shared.privacy.accountant import MechanismEvent, epsilon
from shared.privacy.composition import Step, composed_epsilon


class CityWorstCase(Record, frozen=True, kw_only=True):
    """What somebody pays who has one unit in each of ``departments``; ``added`` is what plain adding would say."""

    departments: int
    epsilon: float
    delta: float
    added: float


def city_worst_case(events: Sequence[MechanismEvent], departments: int, delta: float) -> CityWorstCase:
    """Return the worst case of a run that does the same at every department.

    Args:
        events: what the run does at one department; at least one.
        departments: how many of them hold a record of the same person, at least 1.
        delta: in (0, 1).

    Raises:
        ValueError: an argument is outside its bounds.

    Guarantees:
        An upper bound in the sense of :func:`shared.privacy.accountant.epsilon`, for all records of the person added
        or removed together, one in each department. For shared noise it holds against those who see sums only.

    Source: privacy 1; Choquette-Choo et al. 2024 (mixtures of Gaussians dominate Poisson sums of clipped vectors).
    """
    if not events or departments < 1 or not 0 < delta < 1:
        raise ValueError("`events` is not empty, `departments` is at least 1 and `delta` lies in (0, 1)")
    steps: Counter[Step] = Counter()
    for event in events:
        if event.mechanism == "shared-noise":
            steps[Step(event.noise_multiplier, (event.sample_rate,) * departments)] += event.steps
        else:
            steps[Step(event.noise_multiplier, (event.sample_rate,))] += event.steps * departments
    whole = composed_epsilon(tuple(sorted(steps.items())), delta)
    return CityWorstCase(
        departments=departments, epsilon=whole, delta=delta, added=departments * epsilon(events, delta)
    )
