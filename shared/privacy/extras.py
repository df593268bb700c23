"""Extra coordinates: numbers about the units that ride in the masked vector, each with noise of its own (protocol 4).

A plan declares them, a department's policy lists those that it permits, and each is a charge beside the training's.
No other number about records leaves a department.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from shared.codec import Record
from shared.errors import ProtocolError
from shared.identity import DepartmentId
from shared.parameters import ExtraSpec, Vector
from shared.plan import Plan
from shared.privacy.accountant import MechanismEvent, event_of
from shared.privacy.charges import ExtraCharge

KNOWN: Mapping[str, float] = {"correct-count": 1.0, "train-loss-sum": 2.0, "unit-count": 1.0}
"""What this package can sum over units, each with the bound of a unit's value that a new plan declares."""


def require_known(names: Sequence[str]) -> None:
    """Refuse names of extra coordinates that this package does not know.

    Raises:
        ValueError: a name that is none of :data:`KNOWN`, or one twice.
    """
    if not set(names) <= set(KNOWN) or len(set(names)) < len(names):
        raise ValueError(f"`extras` names some of {', '.join(KNOWN)}, none twice")


class NoisedMetric(Record, frozen=True, kw_only=True):
    """One released extra coordinate, as everybody may see it.

    Attributes:
        name: what was summed.
        value: noised sum over the surviving departments, divided by their public sizes and the sampling rate.
        noise_stddev: standard deviation of the noise in ``value``.
    """

    name: str
    value: float
    noise_stddev: float


def require_noised(plan: Plan) -> None:
    """Refuse a plan with an extra coordinate that nobody computes, or that would leave without noise.

    Raises:
        ProtocolError: ``extra-unknown``, ``extra-not-noised``; the sentence names the coordinate.
    """
    for extra in plan.layout.extras:
        if extra.name not in KNOWN:
            raise ProtocolError("extra-unknown", f"The plan asks for {extra.name}, which is none of {sorted(KNOWN)}.")
        if extra.noise_multiplier == 0:
            raise ProtocolError("extra-not-noised", f"The plan asks for {extra.name} without noise.")


def extra_charges(extras: Sequence[ExtraSpec]) -> tuple[ExtraCharge, ...]:
    """Return what one attempt charges for each extra coordinate."""
    return tuple(ExtraCharge(name=extra.name, event=_event(extra)) for extra in extras)


def plan_events(plan: Plan, attempts: int) -> tuple[MechanismEvent, ...]:
    """Return everything that so many attempts of a plan run at one department."""
    beside = (charge.event.times(attempts) for charge in extra_charges(plan.layout.extras))
    return (event_of(plan.privacy, attempts), *beside)


def clamp_and_scale(sums: NDArray[np.float64], extras: Sequence[ExtraSpec]) -> Vector:
    """Return the coordinates of noised sums; post-processing, so it costs nothing.

    Args:
        sums: shape (len(extras),), float64, noised.
        extras: as the plan declares them.

    Guarantees:
        No coordinate is beyond ``max_abs * scale``, which a plan keeps within the bound of the ring.
    """
    ends = np.array([extra.max_abs for extra in extras])
    scales = np.array([extra.scale for extra in extras])
    coordinates: Vector = (np.clip(sums, -ends, ends) * scales).astype(np.float32)
    return coordinates


def noised_metrics(sums: NDArray[np.float64], plan: Plan, survivors: Sequence[str]) -> tuple[NoisedMetric, ...]:
    """Say what the extra coordinates of a decoded sum mean.

    Args:
        sums: the extra coordinates of the decoded sum over the survivors, shape (len(layout.extras),), float64.
        plan: declares the extras and the public sizes, the only divisors.
        survivors: the departments in the sum.
    """
    units = sum(plan.datasets[DepartmentId(name)].public_size for name in survivors)
    return tuple(
        NoisedMetric(
            name=extra.name,
            value=float(value) / extra.scale / (extra.sample_rate * units),
            noise_stddev=extra.noise_stddev * len(survivors) ** 0.5 / (extra.sample_rate * units),
        )
        for extra, value in zip(plan.layout.extras, sums, strict=True)
    )


def _event(extra: ExtraSpec) -> MechanismEvent:
    """One release as the accountant knows it: a Gaussian sum over a Poisson sample."""
    return MechanismEvent(noise_multiplier=extra.noise_multiplier, sample_rate=extra.sample_rate, steps=extra.releases)
