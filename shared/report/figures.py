"""How the report writes numbers: one place, so that a figure looks the same wherever it stands."""

from __future__ import annotations

import datetime as dt
import math

Interval = tuple[float, float]
"""(low, high) of a 95 % interval."""

NO_INTERVAL = "needs two seeds"


def score(value: float) -> str:
    """Return a score with three decimals."""
    return f"{value:.3f}"


def difference(value: float) -> str:
    """Return a signed difference with three decimals, more if three would round a difference to zero."""
    digits = 3 if value == 0 or abs(value) >= 0.0005 else 6
    return f"{value:+.{digits}f}"


def score_interval(interval: Interval | None) -> str:
    """Return "low to high" for scores."""
    return NO_INTERVAL if interval is None else f"{score(interval[0])} to {score(interval[1])}"


def difference_interval(interval: Interval | None) -> str:
    """Return "low to high" for signed differences."""
    return NO_INTERVAL if interval is None else f"{difference(interval[0])} to {difference(interval[1])}"


def epsilon(value: float) -> str:
    """Return epsilon with three decimals, rounded up: a report may over-state a loss and never under-state it."""
    return f"{math.ceil(value * 1000 - 1e-6) / 1000:.3f}"


def number(value: float) -> str:
    """Return a setting with up to five significant digits and no needless zeros."""
    return f"{value:.5g}"


def delta(value: float) -> str:
    """Return delta in powers of ten, as privacy papers write it: 1e-4, 2.5e-5."""
    mantissa, exponent = f"{value:.3e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def count(value: int) -> str:
    """Return a whole number with thousands separators."""
    return f"{value:,}"


def counted(value: int, noun: str) -> str:
    """Return a whole number with its noun in the right form."""
    return f"{count(value)} {noun}" if value == 1 else f"{count(value)} {noun}s"


def seconds(value: float) -> str:
    """Return a duration with a unit that suits its size."""
    if value < 1:
        return f"{value:.2f} s"
    if value < 100:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest:02d} s"


def shape(dimensions: tuple[int, ...]) -> str:
    """Return a tensor's shape as words like "2 x 384"."""
    return " x ".join(map(str, dimensions)) or "one number"


def moment(value: dt.datetime) -> str:
    """Return a date and time to the minute, with the zone it was recorded in."""
    return value.strftime("%Y-%m-%d %H:%M %Z").strip()


def words(identifier: str) -> str:
    """Return a name such as ``average_precision`` as words."""
    return identifier.replace("_", " ")


def factor(value: float) -> str:
    """Return a factor rounded up, with one decimal while that matters."""
    return f"{math.ceil(value * 10 - 1e-6) / 10:.1f}" if value < 100 else f"{math.ceil(value):,}"
