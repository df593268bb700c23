"""Three small plots as inline SVG: no library, no script, colours from the page's style sheet.

Each function takes plain figures and returns one ``<svg>`` element with a title for screen readers. All text
that comes from a run is escaped here.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from simulation.summary import DepartmentGain, Interval

WIDTH = 440.0
"""Width of every drawing in user units: near its width on the page, so that its text keeps its size."""

MARGIN = 8.0
ROW = 46.0
AXIS = 42.0
MOST_TICKS = 6

Scale = Callable[[float], float]


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """Mean score over seeds after one round, with its interval."""

    round: int
    mean: float
    interval: Interval | None


@dataclass(frozen=True, kw_only=True)
class BudgetBar:
    """One department's epsilon: reserved by the plan, spent after settlement, and its cap."""

    reserved: float
    spent: float
    cap: float


def learning_curve(points: Sequence[CurvePoint], levels: Mapping[str, float], *, title: str, y_label: str) -> str:
    """Draw mean and band against rounds, with one level line for each other arm.

    Args:
        points: at least one, by ascending round.
        levels: arm name -> mean score; the name is the CSS class of its line.
        title: what a screen reader says.
        y_label: name of the score.
    """
    height, left, top = 280.0, 50.0, 24.0
    bottom = height - AXIS
    low, high = _padded([*levels.values(), *(end for point in points for end in (point.interval or (point.mean,)))])
    y = _scale(low, high, bottom, top)
    x = _scale(points[0].round, max(points[-1].round, points[0].round + 1), left + 8, WIDTH - MARGIN - 4)
    parts = [_text(MARGIN, 12, y_label, "start")]
    for tick in _ticks(low, high):
        parts += [
            _line(left, y(tick), WIDTH - MARGIN, y(tick), "grid"),
            _text(left - 6, y(tick) + 4, f"{tick:g}", "end"),
        ]
    for tick in _whole_ticks(points[0].round, points[-1].round):
        parts += [_line(x(tick), bottom, x(tick), bottom + 4, "axis"), _text(x(tick), bottom + 18, str(tick), "middle")]
    parts += [
        _line(left, bottom, WIDTH - MARGIN, bottom, "axis"),
        _text((left + WIDTH) / 2, height - 6, "round", "middle"),
    ]
    parts += [_line(left, y(value), WIDTH - MARGIN, y(value), name) for name, value in levels.items()]
    parts += [_band(points, x, y), _curve(points, x, y)]
    return _svg(height, title, parts)


def gain_plot(gains: Mapping[str, DepartmentGain], *, title: str, x_label: str) -> str:
    """Draw each department's mean difference as a dot on its interval, around a zero line."""
    ends = [end for gain in gains.values() for end in (gain.interval or (gain.mean,))]
    low, high = _padded([0.0, *ends])
    height = ROW * len(gains) + AXIS + MARGIN
    x = _scale(low, high, MARGIN + 14, WIDTH - MARGIN - 14)
    parts = _value_axis(low, high, x, height, x_label)
    parts.append(_line(x(0), MARGIN, x(0), height - AXIS, "zero"))
    for row, (name, gain) in enumerate(gains.items()):
        middle = MARGIN + row * ROW + 31
        kind = gain.verdict.replace(" ", "-")
        parts.append(_text(MARGIN, middle - 16, name, "start"))
        if gain.interval is not None:
            ends_x = (x(gain.interval[0]), x(gain.interval[1]))
            parts.append(_line(ends_x[0], middle, ends_x[1], middle, f"whisker {kind}"))
            parts += [_line(end, middle - 5, end, middle + 5, f"whisker {kind}") for end in ends_x]
        parts.append(f'<circle class="dot {kind}" cx="{x(gain.mean):.1f}" cy="{middle:.1f}" r="5"/>')
    return _svg(height, title, parts)


def budget_plot(bars: Mapping[str, BudgetBar], *, title: str, x_label: str) -> str:
    """Draw reserved and spent epsilon as nested bars, with a mark at the cap."""
    high = 1.06 * max(max(bar.cap, bar.reserved, bar.spent) for bar in bars.values())
    height = ROW * len(bars) + AXIS + MARGIN
    x = _scale(0, high, MARGIN, WIDTH - MARGIN - 14)
    parts = _value_axis(0, high, x, height, x_label)
    for row, (name, bar) in enumerate(bars.items()):
        top = MARGIN + row * ROW + 20
        parts.append(_text(MARGIN, top - 5, name, "start"))
        parts.append(_bar(x, top, 16, bar.reserved, "reserved"))
        parts.append(_bar(x, top + 4, 8, bar.spent, "spent"))
        parts.append(_line(x(bar.cap), top - 4, x(bar.cap), top + 20, "cap"))
    return _svg(height, title, parts)


def _svg(height: float, title: str, parts: Sequence[str]) -> str:
    """Wrap the parts into one accessible element."""
    label = html.escape(title)
    opening = f'<svg role="img" aria-label="{label}" viewBox="0 0 {WIDTH:g} {height:g}">'
    return f"{opening}<title>{label}</title>{''.join(parts)}</svg>"


def _text(x: float, y: float, words: str, anchor: str) -> str:
    """Return one escaped label."""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(words)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, css_class: str) -> str:
    """Return one straight line."""
    return f'<line class="{css_class}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _bar(x: Scale, top: float, thickness: float, value: float, css_class: str) -> str:
    """Return a bar from zero to ``value``."""
    width = x(value) - x(0)
    return f'<rect class="{css_class}" x="{x(0):.1f}" y="{top:.1f}" width="{width:.1f}" height="{thickness:g}" rx="2"/>'


def _curve(points: Sequence[CurvePoint], x: Scale, y: Scale) -> str:
    """Return the mean as a line, or as a dot if there is one point only."""
    if len(points) == 1:
        return f'<circle class="dot federated" cx="{x(points[0].round):.1f}" cy="{y(points[0].mean):.1f}" r="4"/>'
    path = " ".join(f"{x(point.round):.1f},{y(point.mean):.1f}" for point in points)
    return f'<polyline class="federated" points="{path}"/>'


def _band(points: Sequence[CurvePoint], x: Scale, y: Scale) -> str:
    """Return the interval around the mean as a filled shape."""
    known = [(point.round, point.interval) for point in points if point.interval is not None]
    upper = [f"{x(number):.1f},{y(interval[1]):.1f}" for number, interval in known]
    lower = [f"{x(number):.1f},{y(interval[0]):.1f}" for number, interval in reversed(known)]
    return f'<polygon class="band" points="{" ".join(upper + lower)}"/>' if len(known) > 1 else ""


def _value_axis(low: float, high: float, x: Scale, height: float, label: str) -> list[str]:
    """Return grid, ticks and label of a horizontal value axis at the bottom."""
    bottom = height - AXIS
    parts = [_text(WIDTH / 2, height - 6, label, "middle")]
    for tick in _ticks(low, high):
        parts += [_line(x(tick), MARGIN, x(tick), bottom, "grid"), _text(x(tick), bottom + 18, f"{tick:g}", "middle")]
    return parts


def _scale(low: float, high: float, start: float, end: float) -> Scale:
    """Return the linear map that takes [low, high] to [start, end]."""
    return lambda value: start + (value - low) / (high - low) * (end - start)


def _padded(values: Sequence[float]) -> tuple[float, float]:
    """Return the range of the values with some air, never empty."""
    low, high = min(values), max(values)
    air = 0.08 * (high - low) or 0.01
    return low - air, high + air


def _ticks(low: float, high: float) -> list[float]:
    """Return round numbers inside [low, high], at most about ``MOST_TICKS``."""
    step = next(step for step in _round_steps((high - low) / MOST_TICKS) if (high - low) / step <= MOST_TICKS)
    first = math.ceil(low / step)
    return [round(k * step, 10) + 0.0 for k in range(first, math.floor(high / step) + 1)]


def _round_steps(at_least: float) -> list[float]:
    """Return 1, 2, 5 times a power of ten around ``at_least``, ascending."""
    power = 10.0 ** math.floor(math.log10(at_least))
    return [power * factor for factor in (1, 2, 5, 10, 20)]


def _whole_ticks(low: int, high: int) -> list[int]:
    """Return whole numbers for the rounds, without fractions."""
    if low == high:
        return [low]
    return sorted({int(tick) for tick in _ticks(low, high) if tick == int(tick)})
