"""What a rule answers: one finding, built from one or more comparisons.

A comparison is written so that NaN and wrong types fail it. Findings show limits and settings, never a value
from data; text from outside is shortened and made printable, because a person reads it in a terminal.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

from shared.codec import Record

Owner = Literal["steward", "dpo", "it", "system"]
"""Who answers for a rule: data steward, data protection officer, IT, or the software itself."""

MAX_SHOWN = 60
"""Longest text from outside that a finding repeats, in characters."""


class Finding(Record, frozen=True, kw_only=True):
    """One rule's result, for the department's own people and its audit log; it never leaves the department."""

    rule: str
    ok: bool
    found: str
    limit: str
    owner: str
    text: str


class Check(NamedTuple):
    """One comparison: what was looked at, what was found, what is allowed."""

    ok: bool
    what: str
    found: str
    limit: str


def shown(text: str) -> str:
    """Return text from outside, printable and at most :data:`MAX_SHOWN` characters long."""
    printable = text if text.isprintable() else ascii(text)
    return printable if len(printable) <= MAX_SHOWN else f"{printable[: MAX_SHOWN - 3]}..."


def listed(names: Iterable[str]) -> str:
    """Return names for a person: at most eight of them, then a count."""
    ordered = list(names)
    rest = [f"and {len(ordered) - 8} more"] if len(ordered) > 8 else []
    return ", ".join([*map(shown, ordered[:8]), *rest]) or "none"


def at_most(what: str, value: float, cap: float) -> Check:
    """Compare with a cap that may be hit exactly; NaN fails."""
    return Check(bool(value <= cap), what, repr(value), f"at most {cap!r}")


def at_least(what: str, value: float, floor: float) -> Check:
    """Compare with a floor that may be hit exactly; NaN fails."""
    return Check(bool(value >= floor), what, repr(value), f"at least {floor!r}")


def equal(what: str, value: str, wanted: str) -> Check:
    """Compare two texts; an empty one equals nothing."""
    return Check(bool(value) and value == wanted, what, shown(value) or "none", shown(wanted) or "none allowed")


def within(what: str, names: Iterable[str], allowed: Iterable[str]) -> Check:
    """Check that names are on an allow-list; no name at all fails, so that nothing is accepted by default."""
    found, permitted = tuple(names), tuple(allowed)
    foreign = [name for name in found if name not in permitted]
    return Check(bool(found) and not foreign, what, listed(foreign or found), f"only {listed(permitted)}")


def holds(what: str, ok: bool, *, yes: str, no: str) -> Check:
    """Check a yes or no question whose figures are nobody's business."""
    return Check(bool(ok), what, yes if ok else no, yes)


def conclude(rule: str, owner: Owner, checks: Iterable[Check], *, good: str, bad: str) -> Finding:
    """Join comparisons into one finding that shows the failed ones, or all of them when none failed.

    Guarantees:
        No comparison at all is a refusal.
    """
    done = tuple(checks)
    failed = tuple(check for check in done if not check.ok)
    told = failed or done
    return Finding(
        rule=rule,
        ok=bool(done) and not failed,
        found="; ".join(f"{check.what}: {check.found}" for check in told) or "nothing to judge",
        limit="; ".join(f"{check.what}: {check.limit}" for check in told) or "something to judge",
        owner=owner,
        text=bad if failed or not done else good,
    )


def missing(rule: str, owner: Owner, what: str) -> Finding:
    """Return the refusal of a rule that lacks something it has to look at."""
    return Finding(
        rule=rule,
        ok=False,
        found=f"{what}: missing",
        limit=f"{what}: must be known",
        owner=owner,
        text=f"{rule} cannot be judged without {what}, so it refuses.",
    )
