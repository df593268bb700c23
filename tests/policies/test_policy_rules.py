"""Every rule decides at its limit, refuses what it does not know, and says what it found."""

from __future__ import annotations

import dataclasses

import msgspec
import pytest

from policies import governance, limits
from policies.facts import Facts
from policies.findings import Finding
from policies.policy import Policy
from policies.rules import RULES, RuleEntry
from tests.policies.rule_cases import CASES, Case, Change


def name_of(case: Case) -> str:
    return f"{case.rule.__name__}-{case.where}-{case.value!r}"[:110]


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_a_rule_decides_exactly_at_its_limit(case: Case, policy: Policy, facts: Facts, change: Change) -> None:
    side, _, path = case.where.partition(".")
    if side == "policy":
        policy = change(policy, path, case.value)
    else:
        facts = change(facts, path, case.value)
    assert case.rule(policy, facts).ok is case.ok


@pytest.mark.parametrize("entry", RULES, ids=lambda entry: f"{entry.rule}-{entry.function.__name__}")
def test_every_rule_accepts_the_good_example(entry: RuleEntry, policy: Policy, facts: Facts) -> None:
    finding = entry.function(policy, facts)
    assert finding.ok is True
    assert finding.rule == entry.rule
    assert finding.found
    assert finding.limit
    assert finding.text.endswith(".")


def test_every_rule_has_a_case_that_it_refuses() -> None:
    refused = {case.rule for case in CASES if not case.ok}
    assert refused == {entry.function for entry in RULES}


def test_a_rule_that_needs_a_missing_fact_refuses(policy: Policy, facts: Facts) -> None:
    nothing = Facts(today=facts.today, stopped=False)
    for entry in RULES:
        finding = entry.function(policy, nothing)
        assert finding.rule == entry.rule
        assert finding.ok is (entry.rule == "R23")  # the kill switch alone has no optional fact


def test_every_plan_rule_refuses_without_a_plan(policy: Policy, facts: Facts) -> None:
    without = dataclasses.replace(facts, plan=None)
    needs_none = {"policy_in_force", "contract_installed", "bound_columns_allowed", "enough_rows"}
    needs_none |= {"budget_reserved", "aborted_rounds_few", "keys_pinned", "not_stopped"}
    refused = {entry.function.__name__ for entry in RULES if not entry.function(policy, without).ok}
    assert refused == {entry.function.__name__ for entry in RULES} - needs_none


def test_a_finding_names_only_what_failed(policy: Policy, facts: Facts, change: Change) -> None:
    finding: Finding = limits.training_within_bounds(policy, change(facts, "plan.privacy.sample_rate", 0.25))
    assert (finding.found, finding.limit) == ("sample rate: 0.25", "sample rate: at most 0.2")
    assert finding.owner == "it"


def test_text_from_outside_is_shortened_and_printable(policy: Policy, facts: Facts, change: Change) -> None:
    finding = governance.purpose_allowed(policy, change(facts, "plan.purpose", "\x1b[2J" + "x" * 1000))
    assert finding.found.isprintable()
    assert len(finding.found) < 100


def test_the_norm_of_an_update_is_never_told(policy: Policy, facts: Facts, change: Change) -> None:
    finding = limits.update_matches_plan(policy, change(facts, "outgoing.norm", 47.125))
    assert "47" not in msgspec.json.encode(finding).decode()
