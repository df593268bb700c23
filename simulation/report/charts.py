"""The three figures of the report: each a drawing with its legend, the curve with its values as a table too."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from shared.report import figures
from shared.report.document import Figure, Table
from simulation.report import plots
from simulation.statistics import mean_interval
from simulation.summary import ArmName, GainSummary, MetricRow, PrivacySummary, RunSummary

LEVEL_ARMS: tuple[ArmName, ...] = ("local", "pooled")
"""Arms without rounds: drawn as level lines."""

MOST_ROWS = 12
"""Longest table under the learning curve; a longer curve is thinned evenly."""


def curve_points(rows: Sequence[MetricRow], metric: str) -> list[plots.CurvePoint]:
    """Return the federated learning curve: mean over departments, then mean and interval over seeds.

    A round of a seed that lacks a department (the run was cut there) is left out, because its mean would
    compare different departments.
    """
    scores: dict[tuple[int, int], dict[str, float]] = defaultdict(dict)
    for row in rows:
        if row.arm == "federated" and row.name == metric:
            scores[row.round, row.seed][row.department] = row.value
    full = max((len(departments) for departments in scores.values()), default=0)
    by_round: dict[int, list[float]] = defaultdict(list)
    for (number, _seed), departments in sorted(scores.items()):
        if len(departments) == full:
            by_round[number].append(sum(departments.values()) / full)
    summaries = {number: mean_interval(values) for number, values in sorted(by_round.items())}
    return [plots.CurvePoint(round=number, mean=mean, interval=ends) for number, (mean, ends) in summaries.items()]


def curve_figure(summary: RunSummary, rows: Sequence[MetricRow]) -> Figure | None:
    """Return the learning curve with the other arms as levels, or nothing without a federated row."""
    points = curve_points(rows, summary.metric)
    if not points:
        return None
    levels: dict[str, float] = {name: summary.arms[name].mean for name in LEVEL_ARMS if name in summary.arms}
    metric = figures.words(summary.metric)
    title = f"Learning curve: {metric} after each round"
    svg = plots.learning_curve(points, levels, title=title, y_label=metric)
    shown = _thinned(points)
    caption = "Federated, mean over departments and seeds" + ("" if len(shown) == len(points) else " (selected rounds)")
    legend = [("federated", "federated, with 95 % band"), ("local", "local only"), ("pooled", "pooled")]
    return Figure(
        title=title,
        svg=svg,
        legend=tuple((mark, words) for mark, words in legend if mark == "federated" or mark in levels),
        data=Table(
            caption=caption,
            header=("Round", f"Mean {metric}", "95 % interval"),
            rows=tuple((str(p.round), figures.score(p.mean), figures.score_interval(p.interval)) for p in shown),
        ),
    )


def gain_figure(gain: GainSummary) -> Figure:
    """Return the gain of each department with its interval."""
    title = "Gain of each department: federated minus local only"
    return Figure(
        title=title,
        svg=plots.gain_plot(gain.departments, title=title, x_label="difference (right of zero: federated is better)"),
        legend=(("gain", "gain"), ("no-clear-difference", "no clear difference"), ("loss", "loss")),
        data=None,
    )


def budget_figure(privacy: Mapping[str, PrivacySummary]) -> Figure:
    """Return epsilon reserved and spent against the cap."""
    title = "Budget: epsilon of each department against its cap"
    bars = {
        name: plots.BudgetBar(reserved=each.epsilon, spent=each.spent_epsilon, cap=each.cap)
        for name, each in privacy.items()
    }
    return Figure(
        title=title,
        svg=plots.budget_plot(bars, title=title, x_label="epsilon"),
        legend=(("reserved", "reserved before the first round"), ("spent", "spent"), ("cap", "cap")),
        data=None,
    )


def _thinned(points: list[plots.CurvePoint]) -> list[plots.CurvePoint]:
    """Return at most ``MOST_ROWS`` evenly spaced points, first and last among them."""
    if len(points) <= MOST_ROWS:
        return points
    last = len(points) - 1
    return [points[round(k * last / (MOST_ROWS - 1))] for k in range(MOST_ROWS)]
