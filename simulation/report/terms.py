"""The privacy terms of a run's departments, in the words that every report and model card share."""

from __future__ import annotations

from shared.report import figures
from shared.report.promises import LONE_SHARE, LONE_SHARE_AFTER, privacy_terms
from simulation.summary import PrivacySummary, RunSummary


def department_terms(privacy: PrivacySummary, summary: RunSummary) -> tuple[tuple[str, str], ...]:
    """Return (term, meaning) of one department."""
    lone = privacy.lone_share
    words = (
        ""
        if lone is None
        else (LONE_SHARE + LONE_SHARE_AFTER).format(
            epsilon=figures.epsilon(lone.epsilon), after=figures.epsilon(lone.after), cap=figures.number(lone.cap)
        )
    )
    return privacy_terms(privacy, rounds=summary.rounds, spare_attempts=summary.spare_attempts, lone_share=words)


def same_terms(summary: RunSummary) -> list[tuple[tuple[str, ...], tuple[tuple[str, str], ...]]]:
    """Group the departments that have the same terms, so that equal text stands once."""
    groups: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for name, privacy in summary.privacy.items():
        groups.setdefault(department_terms(privacy, summary), []).append(name)
    return [(tuple(names), terms) for terms, names in groups.items()]
