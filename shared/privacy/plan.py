"""Privacy parameters: what a plan says about differential privacy, in one frozen object.

Sampler, clip, noise and accounting read the same object, so they cannot drift apart (privacy 2). Settings
that only change speed are a separate type, :class:`PerformanceFlags`.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from shared.codec import Record

MechanismName = Literal["poisson-dpsgd", "shared-noise"]
"""Who adds how much noise: every department all of it, or each a share that only the encrypted sum carries in full."""


def require_noise_shares(mechanism: MechanismName, noise_shares: int) -> None:
    """Refuse a number of shares that the mechanism does not have.

    Raises:
        ValueError: more than one share where each department adds all noise, or fewer than one.
    """
    if noise_shares < 1 or (mechanism == "poisson-dpsgd" and noise_shares != 1):
        raise ValueError('`noise_shares` is at least 1, and 1 unless `mechanism` is "shared-noise"')


PrivacyUnit = Literal["record", "person", "device"]
"""Whose presence the guarantee hides: one row, or all rows of one person or device."""

MAX_RECORDS = 1000
"""Most records of a person or device that a plan may train on."""


def require_records(unit: PrivacyUnit, max_records: int) -> None:
    """Refuse a number of records that a unit cannot have.

    Raises:
        ValueError: anything but one where the unit is the record, or none or too many of a person.
    """
    if not 1 <= max_records <= (1 if unit == "record" else MAX_RECORDS):
        raise ValueError('`max_records` is 1 for unit "record" and lies in 1..1000 for a person or device')


MAX_EPSILON = 1e3
"""Every epsilon of a budget is below."""

MAX_STEPS = 10_000
"""Most noisy steps of a round."""


def require_step(mechanism: MechanismName, *, sample_rate: float, steps: int, max_grad_norm: float) -> None:
    """Refuse numbers of a noisy step, or a count of them, with which nobody can train.

    Raises:
        ValueError: a sampling rate, count or clip outside its range; several steps a round with shared noise.
    """
    if not 1e-6 <= sample_rate <= 1:
        raise ValueError("`sample_rate` lies in [0.000001, 1]")
    if not 1 <= steps <= MAX_STEPS:
        raise ValueError(f"`steps` lies in 1..{MAX_STEPS}")
    if mechanism == "shared-noise" and steps != 1:
        raise ValueError('`steps` is 1 with `mechanism = "shared-noise"`: one noisy step a round')
    if not 1e-6 <= max_grad_norm <= 1e6:
        # Below, squares of norms vanish in float32 and nothing would be clipped.
        raise ValueError("`max_grad_norm` lies in [0.000001, 1000000]")


class PrivacyBudget(Record, frozen=True, kw_only=True):
    """An (epsilon, delta) pair."""

    epsilon: float
    delta: float

    def __post_init__(self) -> None:
        if not (0 < self.epsilon < MAX_EPSILON and 0 < self.delta < 1):
            raise ValueError(f"`epsilon` lies in (0, {MAX_EPSILON:g}) and `delta` in (0, 1)")


class PrivacyParams(Record, frozen=True, kw_only=True):
    """One attempt's mechanism and the target of the whole run.

    ``noise_multiplier`` is the ratio of the noise's standard deviation to the sensitivity, which is ``max_grad_norm``
    and for shared noise the rounding to the ring as well; ``noise_shares`` (h) says how many honest departments' noise
    it takes to reach it. ``steps`` are the noisy steps of one round; shared noise has one a round, because only the sum
    of a single step carries its noise in full. ``clipping`` says how a unit's gradient is brought within
    ``max_grad_norm``: ``flat`` shortens longer ones, ``automatic`` scales all of them to it; the charge is the same.
    ``budget`` is what all rounds and spare attempts together satisfy. ``max_records`` is how many records of a person
    take part, and 1 where the unit is the record: their gradients are averaged and clipped once, so the charge does not
    depend on it.
    """

    mechanism: MechanismName = "poisson-dpsgd"
    unit: PrivacyUnit = "record"
    max_records: int = 1
    relation: Literal["add-remove"] = "add-remove"
    budget: PrivacyBudget
    sample_rate: float
    steps: int
    max_grad_norm: float
    clipping: Literal["flat", "automatic"] = "flat"
    noise_multiplier: float
    noise_shares: int = 1
    accountant: str = "dp-accounting 0.6 PLD"

    def __post_init__(self) -> None:
        require_records(self.unit, self.max_records)
        require_step(self.mechanism, sample_rate=self.sample_rate, steps=self.steps, max_grad_norm=self.max_grad_norm)
        if not 0.3 <= self.noise_multiplier <= 1e6:
            raise ValueError("`noise_multiplier` lies in [0.3, 1000000]")
        require_noise_shares(self.mechanism, self.noise_shares)


def full_noise(privacy: PrivacyParams) -> PrivacyParams:
    """Return the parameters with all noise added in one place: a trainer on its own has nobody to share it with."""
    return msgspec.structs.replace(privacy, mechanism="poisson-dpsgd", noise_shares=1)


class PerformanceFlags(Record, frozen=True, kw_only=True):
    """Settings of this machine.

    ``engine`` is the way to clipped sums of encoder layers: ``auto`` takes book-keeping where it knows every trained
    layer and agrees with single units, else Opacus; a name allows that engine only. Heads have an engine of their own.

    ``physical_batch_size`` is how many records go through trained encoder layers together. With 1 what a unit adds to
    a sum depends on that unit and the model alone. With more training is faster, and in float32 the last bits of a
    unit's gradient depend on who else is there: a coordinator that crafts a model for it can enlarge that beyond
    the clip (privacy 3).
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    physical_batch_size: int = 1
    engine: Literal["auto", "opacus", "bookkeeping"] = "auto"

    def __post_init__(self) -> None:
        if self.physical_batch_size < 1:
            raise ValueError("`physical_batch_size` is at least 1")
