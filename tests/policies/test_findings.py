"""What a rule answers: nothing passes by default, and a finding shows what failed, shortened and printable."""

from __future__ import annotations

import math

import pytest

from policies.findings import (
    MAX_SHOWN,
    Check,
    at_least,
    at_most,
    conclude,
    equal,
    holds,
    listed,
    missing,
    shown,
    within,
)

GOOD = Check(ok=True, what="rounds", found="3", limit="at most 9")
BAD = Check(ok=False, what="steps", found="8", limit="at most 7")


def concluded(*checks: Check) -> tuple[bool, str, str, str]:
    finding = conclude("R11", "it", checks, good="Fine.", bad="Not fine.")
    assert (finding.rule, finding.owner) == ("R11", "it")
    return finding.ok, finding.text, finding.found, finding.limit


def test_a_finding_shows_the_failed_comparisons_or_all_of_them() -> None:
    assert concluded(GOOD, GOOD) == (True, "Fine.", "rounds: 3; rounds: 3", "rounds: at most 9; rounds: at most 9")
    assert concluded(GOOD, BAD) == (False, "Not fine.", "steps: 8", "steps: at most 7")


def test_p4_no_comparison_at_all_is_a_refusal() -> None:
    assert concluded() == (False, "Not fine.", "nothing to judge", "something to judge")


def test_p4_a_rule_that_lacks_something_refuses() -> None:
    finding = missing("R11", "it", "a plan")
    assert (finding.ok, finding.found, finding.limit) == (False, "a plan: missing", "a plan: must be known")


@pytest.mark.parametrize(
    ("check", "ok", "found", "limit"),
    [
        (at_most("x", 2.0, 2.0), True, "2.0", "at most 2.0"),
        (at_most("x", 2.5, 2.0), False, "2.5", "at most 2.0"),
        (at_most("x", math.nan, 2.0), False, "nan", "at most 2.0"),
        (at_least("x", 2.0, 2.0), True, "2.0", "at least 2.0"),
        (at_least("x", 1.5, 2.0), False, "1.5", "at least 2.0"),
        (at_least("x", math.nan, 2.0), False, "nan", "at least 2.0"),
        (equal("x", "a", "a"), True, "a", "a"),
        (equal("x", "a", "b"), False, "a", "b"),
        (equal("x", "", ""), False, "none", "none allowed"),
        (within("x", ["a"], ["a", "b"]), True, "a", "only a, b"),
        (within("x", ["a", "c"], ["a", "b"]), False, "c", "only a, b"),
        (within("x", [], ["a"]), False, "none", "only a"),
        (within("x", ["a"], []), False, "a", "only none"),
        (holds("x", ok=True, yes="so", no="not so"), True, "so", "so"),
        (holds("x", ok=False, yes="so", no="not so"), False, "not so", "so"),
    ],
)
def test_a_comparison_says_what_was_found_and_what_is_allowed(
    check: Check, *, ok: bool, found: str, limit: str
) -> None:
    assert check == Check(ok=ok, what="x", found=found, limit=limit)


def test_text_from_outside_is_shortened_and_printable() -> None:
    assert shown("a" * MAX_SHOWN) == "a" * MAX_SHOWN
    assert shown("a" * (MAX_SHOWN + 1)) == "a" * (MAX_SHOWN - 3) + "..."
    assert shown("\x1b[2J") == "'\\x1b[2J'"


def test_at_most_eight_names_are_listed() -> None:
    assert listed("abcdefgh") == "a, b, c, d, e, f, g, h"
    assert listed("abcdefghij") == "a, b, c, d, e, f, g, h, and 2 more"
    assert listed(["\n"]) == "'\\n'"
