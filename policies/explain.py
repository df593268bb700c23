"""A decision for people: an aligned table."""

from __future__ import annotations

import msgspec

from policies.evaluate import Decision
from policies.policy import Policy

_HEADINGS = ("rule", "ok", "owner", "found", "limit")


def as_table(decision: Decision, policy: Policy) -> str:
    """Return all findings as plain text: one aligned line each, the sentence below it.

    Args:
        decision: what :func:`policies.evaluate.evaluate` returned.
        policy: the policy that was judged; names the owners to ask.
    """
    rows = [
        (item.rule, "yes" if item.ok is True else "NO", _owner(item.owner, policy), item.found, item.limit)
        for item in decision.findings
    ]
    widths = [max(len(row[column]) for row in (_HEADINGS, *rows)) for column in range(3)]
    lines = [f"{decision.phase.value}: {'accepted' if decision.accepted else 'refused'}", _line(_HEADINGS, widths)]
    for row, finding in zip(rows, decision.findings, strict=True):
        lines += [_line(row, widths), f"{'':<{widths[0]}}  {finding.text}"]
    return "\n".join(lines)


def _owner(role: str, policy: Policy) -> str:
    """Name the person or office beside the role; the software has none."""
    names = msgspec.structs.asdict(policy.owners)
    return f"{role} ({names[role]})" if role in names else role


def _line(cells: tuple[str, ...], widths: list[int]) -> str:
    """Align the three short columns; found and limit follow at their own length."""
    short = [f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=False)]
    return "  ".join([*short, f"found {cells[3]} | limit {cells[4]}" if cells is not _HEADINGS else "found | limit"])
