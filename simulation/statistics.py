"""Means, paired differences and verdicts over seeds.

The sampling unit is the seed: one seed is one split of the same messages with its own coins and noise.
An interval therefore says how far the result depends on split and noise, and nothing about other cities.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from simulation.summary import ArmSummary, DepartmentGain, GainSummary, Interval, OverallVerdict, Verdict


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, Interval | None]:
    """Return the mean and its two-sided Student t interval.

    Args:
        values: one value a seed, at least one.
        confidence: coverage, in (0, 1).

    Returns:
        The mean and (low, high); ``None`` instead of an interval for a single value, which has no spread.

    Raises:
        ValueError: no value, a value that is not finite, or ``confidence`` outside (0, 1).
    """
    count = len(values)
    if count == 0 or not all(map(math.isfinite, values)):
        raise ValueError("`values` holds at least one value and only finite ones")
    if not 0 < confidence < 1:
        raise ValueError("`confidence` lies in (0, 1)")
    mean = math.fsum(values) / count
    if count == 1:
        return mean, None
    variance = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
    half = _student_t_quantile(0.5 + confidence / 2, count - 1) * math.sqrt(variance / count)
    return mean, (mean - half, mean + half)


def paired_difference(a: Sequence[float], b: Sequence[float]) -> tuple[float, Interval | None]:
    """Return mean and interval of ``a - b``, value by value: entry k of both belongs to the same seed.

    Raises:
        ValueError: the two lengths differ, or as :func:`mean_interval`.
    """
    if len(a) != len(b):
        raise ValueError("`a` and `b` are paired: one value of each for every seed")
    return mean_interval([left - right for left, right in zip(a, b, strict=True)])


def verdict(interval: Interval | None) -> Verdict:
    """Return "gain" above zero, "loss" below, "no clear difference" if the interval holds zero or is absent."""
    if interval is not None and interval[0] > 0:
        return "gain"
    if interval is not None and interval[1] < 0:
        return "loss"
    return "no clear difference"


def overall_verdict(interval: Interval | None) -> OverallVerdict:
    """Return the verdict on the mean over departments: "gain", "no clear gain" or "loss"."""
    found = verdict(interval)
    return "no clear gain" if found == "no clear difference" else found


def arm_summary(scores: Mapping[str, Sequence[float]]) -> ArmSummary:
    """Summarise one arm.

    Args:
        scores: department name -> one score a seed, the seeds in the same order everywhere.

    Raises:
        ValueError: no department, no seed, or departments with different numbers of seeds.
    """
    mean, interval = mean_interval(_mean_over_departments(scores))
    return ArmSummary(
        mean=mean, interval=interval, departments={name: mean_interval(values)[0] for name, values in scores.items()}
    )


def gain_summary(federated: Mapping[str, Sequence[float]], local: Mapping[str, Sequence[float]]) -> GainSummary:
    """Summarise federated minus local-only, paired by seed; arguments as in :func:`arm_summary`.

    Raises:
        ValueError: the two arms do not hold the same departments and seeds.
    """
    if federated.keys() != local.keys():
        raise ValueError("`federated` and `local` hold the same departments")
    mean, interval = paired_difference(_mean_over_departments(federated), _mean_over_departments(local))
    departments = {name: _department_gain(federated[name], local[name]) for name in federated}
    return GainSummary(mean=mean, interval=interval, departments=departments, verdict=overall_verdict(interval))


def _department_gain(federated: Sequence[float], local: Sequence[float]) -> DepartmentGain:
    """Return one department's paired difference with its verdict."""
    mean, interval = paired_difference(federated, local)
    return DepartmentGain(mean=mean, interval=interval, verdict=verdict(interval))


def _mean_over_departments(scores: Mapping[str, Sequence[float]]) -> list[float]:
    """Return one value a seed: the plain mean over departments, each department counting the same."""
    if not scores or len({len(values) for values in scores.values()}) != 1:
        raise ValueError("every department has one score for every seed")
    return [math.fsum(column) / len(column) for column in zip(*scores.values(), strict=True)]


def _student_t_quantile(probability: float, degrees_of_freedom: int) -> float:
    """Return the quantile of Student's t distribution."""
    # scipy.special holds the same function as scipy.stats and loads in a fraction of the time.
    from scipy.special import stdtrit  # noqa: PLC0415 - `--help` must stay fast

    return float(stdtrit(degrees_of_freedom, probability))
