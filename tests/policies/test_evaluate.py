from __future__ import annotations

import dataclasses
import datetime as dt
import math
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from policies.evaluate import Decision, evaluate
from policies.explain import as_table
from policies.facts import Facts, Phase
from policies.findings import Finding, conclude
from policies.load import template
from policies.policy import Policy, PopulationCap, SignedPolicy, WindowCap
from policies.rules import RULES, Rule, RuleEntry
from shared.codec import decode, encode, load_toml
from shared.errors import PolicyViolation

Change = Callable[..., Any]

# The rules of each phase, written down a second time on purpose.
EXPECTED = {
    Phase.BIND: ["R01", "R06", "R07", "R09", "R23"],
    Phase.OFFER: [
        "R01",
        "R02",
        "R06",
        "R07",
        "R07",
        "R10",
        "R11",
        "R12",
        "R12",
        "R15",
        "R16",
        "R17",
        "R19",
        "R21",
        "R23",
        "R26",
        "R27",
    ],
    Phase.ROUND: [
        "R01",
        "R02",
        "R06",
        "R07",
        "R07",
        "R10",
        "R11",
        "R12",
        "R12",
        "R15",
        "R15",
        "R16",
        "R17",
        "R19",
        "R19",
        "R23",
    ],
    Phase.SEND: ["R01", "R10", "R12", "R14", "R15", "R16", "R17", "R19", "R23"],
    Phase.RELEASE: ["R01", "R02", "R10", "R12", "R19", "R21", "R23", "R26", "R27"],
}


@pytest.mark.parametrize("phase", Phase)
def test_the_good_example_is_accepted_with_every_rule_of_the_phase(phase: Phase, policy: Policy, facts: Facts) -> None:
    decision = evaluate(policy, facts, phase)
    decision.require()
    assert decision.accepted
    assert [finding.rule for finding in decision.findings] == EXPECTED[phase]


def test_all_findings_are_reported_at_once(policy: Policy, facts: Facts, change: Change) -> None:
    judged = change(change(policy, "purposes", ()), "training.max_rounds", 1)
    stopped = dataclasses.replace(facts, stopped=True, signed_policy=SignedPolicy(policy=judged, digest=bytes(32)))
    decision = evaluate(judged, stopped, Phase.OFFER)
    assert [finding.rule for finding in decision.failed] == ["R02", "R11", "R23"]
    assert len(decision.findings) == len(EXPECTED[Phase.OFFER])
    with pytest.raises(
        PolicyViolation, match=r"R02 .*R11 \(found rounds: 10; allowed rounds: at most 1\).*R23"
    ) as caught:
        decision.require()
    assert caught.value.code == "policy-refused"


def test_an_empty_rule_list_is_an_error(policy: Policy, facts: Facts) -> None:
    with pytest.raises(RuntimeError, match="no rule applies"):
        evaluate(policy, facts, Phase.OFFER, rules=())
    with pytest.raises(RuntimeError, match="no rule applies"):
        evaluate(policy, facts, Phase.SEND, rules=[entry for entry in RULES if entry.rule == "R09"])


def test_a_decision_without_findings_accepts_nothing() -> None:
    empty = Decision(phase=Phase.OFFER, findings=())
    assert not empty.accepted
    with pytest.raises(PolicyViolation, match="nothing was judged"):
        empty.require()


def raises(_policy: Policy, _facts: Facts) -> Finding:
    raise KeyError("Jane Roe, 12 Elm Street")


def answers_nothing(_policy: Policy, _facts: Facts) -> Finding:
    return None  # type: ignore[return-value]  # the mistake under test


def answers_for_another(_policy: Policy, _facts: Facts) -> Finding:
    return Finding(rule="R23", ok=True, found="", limit="", owner="it", text="")


def answers_truthy(_policy: Policy, _facts: Facts) -> Finding:
    return Finding(rule="R99", ok="yes", found="", limit="", owner="it", text="")  # type: ignore[arg-type]  # the mistake under test


def recurses(policy: Policy, facts: Facts) -> Finding:
    return recurses(policy, facts)


@pytest.mark.parametrize("broken", [raises, answers_nothing, answers_for_another, answers_truthy, recurses])
def test_p4_a_rule_that_cannot_be_evaluated_refuses(broken: Rule, policy: Policy, facts: Facts) -> None:
    table = (*RULES, RuleEntry("R99", broken, frozenset(Phase)))
    decision = evaluate(policy, facts, Phase.ROUND, rules=table)
    assert not decision.accepted
    assert [finding.rule for finding in decision.failed] == ["R99"]
    assert "Jane" not in encode(decision).decode(errors="replace")


def test_a_rule_that_raises_says_so(policy: Policy, facts: Facts) -> None:
    (finding,) = evaluate(policy, facts, Phase.BIND, rules=[RuleEntry("R99", raises, frozenset(Phase))]).findings
    assert finding == Finding(
        rule="R99",
        ok=False,
        found="KeyError",
        limit="a finding",
        owner="system",
        text="R99 could not be evaluated, which is a refusal (R28).",
    )


def test_an_impossible_fact_refuses_and_does_not_escape(policy: Policy, facts: Facts) -> None:
    decision = evaluate(policy, dataclasses.replace(facts, public_size=0), Phase.OFFER)
    assert "R12" in [finding.rule for finding in decision.failed]


def test_p4_default_deny_a_policy_that_allows_nothing_refuses(facts: Facts) -> None:
    pins = 'plan_key_fingerprint = "{0}"\nroster_key_fingerprint = "{0}"\n'.format(" ".join(["0000"] * 8))
    text = f'dataset = "none"\ncontract_hash = "{"0" * 64}"\n{template("deny-all")}\n[authority]\n{pins}'
    deny = load_toml(text, Policy, where="deny-all")
    for phase in Phase:
        assert not evaluate(deny, facts, phase).accepted
    refused = {finding.rule for finding in evaluate(deny, facts, Phase.OFFER).failed}
    assert {"R01", "R02", "R06", "R07", "R10", "R11", "R12", "R16", "R19", "R21", "R26"} <= refused


def test_p4_nothing_known_is_a_refusal_in_every_phase(policy: Policy) -> None:
    for phase in Phase:
        decision = evaluate(policy, Facts(today=dt.date(2026, 6, 1), stopped=False), phase)
        assert {finding.rule for finding in decision.findings if finding.ok} == {"R23"}


def test_p4_the_kill_switch_refuses_in_every_phase(policy: Policy, facts: Facts) -> None:
    for phase in Phase:
        decision = evaluate(policy, dataclasses.replace(facts, stopped=True), phase)
        assert [finding.rule for finding in decision.failed] == ["R23"]


ASKS = {
    "plan.rounds": (1, 400),
    "plan.privacy.steps": (1, 200),
    "plan.privacy.sample_rate": (0.01, 0.2),
    "plan.local_optimizer.learning_rate": (0.01, 100.0),
    "plan.privacy.max_grad_norm": (0.01, 10.0),
    "plan.privacy.budget.epsilon": (0.1, 3.0),
    "plan.privacy.budget.delta": (1e-9, 1e-4),
    "plan.aggregation.bound": (0.1, 64.0),
}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(data=st.data())
def test_p4_no_plan_raises_a_local_limit(data: st.DataObject, policy: Policy, facts: Facts, change: Change) -> None:
    path, (low, cap) = data.draw(st.sampled_from(sorted(ASKS.items())))
    number = st.integers(1, 500) if isinstance(cap, int) else st.floats(low, cap * 2)
    value = data.draw(st.one_of(number, st.just(cap)))
    free = change(facts, "budget.epsilon_run", 0.0)  # so that only the stated terms decide
    failed = {finding.rule for finding in evaluate(policy, change(free, path, value), Phase.OFFER).failed}
    assert bool(failed & {"R11", "R12", "R15"}) is (value > cap)


def test_rules_judged_in_a_round_do_not_look_at_contents(policy: Policy, facts: Facts) -> None:
    """What the coordinator can see of a refusal must be the same whatever the rows are (privacy 2)."""
    poor = dataclasses.replace(facts, rows_ok=0, units=0)
    for phase in (Phase.OFFER, Phase.ROUND):
        assert evaluate(policy, poor, phase) == evaluate(policy, facts, phase)
    assert not evaluate(policy, poor, Phase.BIND).accepted


def test_facts_have_no_place_for_a_record_or_a_value() -> None:
    types = {str(field.type) for field in dataclasses.fields(Facts)}
    assert not [
        name for name in types if any(word in name for word in ("dict", "list", "ndarray", "Any", "object", "Frame"))
    ]


def test_a_decision_survives_the_journal(policy: Policy, facts: Facts) -> None:
    decision = evaluate(policy, facts, Phase.SEND)
    assert decode(encode(decision), Decision) == decision


def test_the_table_names_owner_limit_and_verdict(policy: Policy, facts: Facts, change: Change) -> None:
    decision = evaluate(policy, change(facts, "plan.privacy.budget.epsilon", 3.5), Phase.OFFER)
    table = as_table(decision, policy)
    assert table.startswith("offer: refused\n")
    assert "dpo (City data protection officer)" in table
    assert "epsilon of the run: 3.5 | limit epsilon of the run: at most 3.0" in table
    assert "R23" in table
    columns = {line.index(" found ") for line in table.splitlines()[1:] if " found " in line}
    assert len(columns) == 1


def test_a_finding_of_no_comparison_refuses() -> None:
    assert not conclude("R99", "it", [], good="Good.", bad="Bad.").ok


def test_nan_is_no_limit(facts: Facts, policy: Policy, change: Change) -> None:
    with pytest.raises(ValueError, match="max_learning_rate"):
        change(policy, "training.max_learning_rate", math.nan)
    with pytest.raises(ValueError, match="epsilon_lifetime"):
        change(policy, "privacy.epsilon_lifetime", math.inf)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epsilon_lifetime", 1000.0),
        ("epsilon_lone_share", 1000.0),
        ("epsilon_per_round", 1000.0),
        ("window", WindowCap(days=1, epsilon=999.0)),
        ("population", PopulationCap(name="p", epsilon=999.0)),
    ],
)
def test_a_cap_that_no_budget_can_have_is_refused_where_the_policy_is_read(
    policy: Policy, change: Change, field: str, value: float | WindowCap | PopulationCap
) -> None:
    """Behind it stood a `ValueError` in every command and in the node."""
    if isinstance(value, float):
        with pytest.raises(ValueError, match=f"`{field}` lies in"):
            change(policy, f"privacy.{field}", value)
    else:
        with pytest.raises(ValueError, match="`epsilon` lies in"):
            msgspec.structs.replace(value, epsilon=1000.0)
