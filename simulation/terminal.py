"""The last words of a run on a terminal."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from shared.cli import tell
from simulation.summary import RunSummary


def print_summary(console: Console, summary: RunSummary, folder: Path) -> None:
    """Print the comparison, what it cost, the notes of the run, and where the report is."""
    if summary.arms:
        table = Table(title=f"{summary.scenario}: {summary.metric.replace('_', ' ')}, mean over {summary.seeds} seeds")
        table.add_column("department")
        for arm in summary.arms:
            table.add_column(arm, justify="right")
        for name in summary.arms["federated"].departments:
            table.add_row(name, *(f"{arm.departments[name]:.3f}" for arm in summary.arms.values()))
        table.add_row("mean", *(f"{arm.mean:.3f}" for arm in summary.arms.values()), style="bold")
        console.print(table)
    if summary.gain is not None:
        interval = summary.gain.interval
        spread = f" (95 % interval {interval[0]:+.3f} to {interval[1]:+.3f})" if interval else ""
        tell(console, f"Federated minus local: {summary.gain.mean:+.3f}{spread}: {summary.gain.verdict}.")
    for name, item in summary.privacy.items():
        lone = f" (a lone share {item.lone_share.epsilon:.3f}, h = {item.noise_shares})" if item.lone_share else ""
        tell(
            console,
            f"{name}: epsilon {item.epsilon:.3f} of {item.cap:g}{lone} at delta {item.delta:g}, "
            f"{item.relation}, unit {item.unit}; {summary.left[name].bytes:,} bytes left.",
        )
    for note in summary.notes:
        tell(console, note)
    tell(console, f"Report: {folder / 'report.html'}")
