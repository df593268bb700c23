"""Who approves a plan (R10), and which metrics of it may leave (R17)."""

from __future__ import annotations

import dataclasses

import msgspec
import pytest

from policies import governance, limits
from policies.facts import Approval, Facts
from policies.policy import Policy
from tests.policies.rule_cases import LOSS, Change


def approvals(facts: Facts, *people: tuple[str, str, bool]) -> Facts:
    assert facts.plan_digest is not None
    digest = facts.plan_digest
    made = tuple(Approval(person=person, role=role, digest=digest, author=author) for person, role, author in people)
    return dataclasses.replace(facts, approvals=made)


STEWARD, IT, DPO = "transport-steward", "transport-it", "transport-dpo"


@pytest.mark.parametrize(
    ("people", "ok"),
    [
        ([(STEWARD, "steward", False), (IT, "it", False)], True),
        ([(STEWARD, "steward", True), (IT, "it", False)], True),
        ([(STEWARD, "steward", True), (IT, "it", True)], False),
        ([(STEWARD, "steward", False)], False),
        ([(IT, "it", False)], False),
        ([(STEWARD, "steward", False), (STEWARD, "it", False)], False),
        ([(STEWARD, "steward", False), (DPO, "dpo", False)], False),
        ([(STEWARD, "steward", False), (DPO, "it", False)], False),
        ([(STEWARD, "steward", False), ("somebody", "it", False)], False),
        ([(STEWARD, "steward", True), (IT, "it", True), (DPO, "dpo", False)], False),
        ([(STEWARD, "steward", False), (STEWARD, "dpo", True), (IT, "it", True)], False),
    ],
)
def test_p4_a_plan_needs_a_steward_and_it_and_one_of_them_is_not_its_author(
    people: list[tuple[str, str, bool]], ok: bool, policy: Policy, facts: Facts
) -> None:
    assert governance.plan_approved(policy, approvals(facts, *people)).ok is ok


def test_p4_approvals_of_another_plan_do_not_count(policy: Policy, facts: Facts) -> None:
    other = tuple(msgspec.structs.replace(item, digest=bytes(32)) for item in facts.approvals)
    assert not governance.plan_approved(policy, dataclasses.replace(facts, approvals=other)).ok


def with_extra(facts: Facts, noise_multiplier: float) -> Facts:
    extra = msgspec.structs.replace(LOSS, noise_multiplier=noise_multiplier)
    assert facts.plan is not None
    layout = msgspec.structs.replace(facts.plan.layout, extras=(extra,))
    return dataclasses.replace(facts, plan=msgspec.structs.replace(facts.plan, layout=layout))


def test_a_metric_leaves_only_when_allowed_declared_and_noised(policy: Policy, facts: Facts, change: Change) -> None:
    leaving = change(facts, "outgoing.metrics", ("loss",))
    for noise, allowed, ok in ((0.5, ("loss",), True), (0.0, ("loss",), False), (0.5, (), False)):
        judged = change(policy, "outgoing.metrics", allowed)
        assert limits.metrics_allowed(judged, with_extra(leaving, noise)).ok is ok
    assert not limits.metrics_allowed(change(policy, "outgoing.metrics", ("loss",)), leaving).ok


def test_a_plan_is_refused_for_a_metric_that_is_not_allowed_or_has_too_little_noise(
    policy: Policy, facts: Facts, change: Change
) -> None:
    permitting = change(policy, "outgoing.metrics", ("loss",))
    floor = policy.training.min_noise_multiplier
    assert limits.plan_metrics_allowed(policy, facts).ok
    assert limits.plan_metrics_allowed(permitting, with_extra(facts, floor)).ok
    unasked = limits.plan_metrics_allowed(policy, with_extra(facts, floor))
    assert (unasked.ok, unasked.found) == (False, "metrics: loss")
    quiet = limits.plan_metrics_allowed(permitting, with_extra(facts, floor / 2))
    assert (quiet.ok, quiet.found) == (False, f"noise multiplier of loss: {floor / 2:g}")
