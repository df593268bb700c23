"""What a plan learns from (R07), who approves it (R10), its noise (R12), and which metrics may leave (R17)."""

from __future__ import annotations

import dataclasses

import msgspec
import pytest

from policies import governance, limits
from policies.facts import Approval, Facts
from policies.policy import Policy, PrivacyCaps
from shared.plan import LocalOptimizer
from tests.policies.rule_cases import LOSS, PER_PERSON, Change

# --- columns and rows ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("lacking", [{"features": ()}, {"label": ""}])
def test_a_data_set_of_which_nothing_may_be_learned_is_not_bound(
    policy: Policy, facts: Facts, change: Change, lacking: dict[str, object]
) -> None:
    """Though every column that the binding maps may be read."""
    bound = change(facts, "columns", ("service_request_id",))
    assert governance.bound_columns_allowed(policy, bound).ok
    ((field, value),) = lacking.items()
    refused = governance.bound_columns_allowed(change(policy, f"columns.{field}", value), bound)
    assert (refused.ok, refused.found) == (False, "columns for learning: none allowed")


@pytest.mark.parametrize("asked", [{"features": ("service_request_id",)}, {"label": "service_request_id"}])
def test_p4_a_plan_that_learns_from_an_identifier_is_told_that_it_is_one(
    policy: Policy, facts: Facts, change: Change, asked: dict[str, object]
) -> None:
    ((field, value),) = asked.items()
    refused = governance.plan_columns_allowed(policy, change(facts, f"plan.task.{field}", value))
    assert not refused.ok
    assert "identifiers: service_request_id" in refused.found


@pytest.mark.parametrize(("caps", "floor"), [(None, 150), (PER_PERSON, 120)])
def test_a_declared_size_counts_what_the_policy_protects(
    policy: Policy, facts: Facts, change: Change, caps: PrivacyCaps | None, floor: int
) -> None:
    """Records against the floor of rows, persons against the floor of units."""
    judged = policy if caps is None else change(policy, "privacy", caps)
    assert governance.enough_rows(judged, change(facts, "public_size", floor)).ok
    assert not governance.enough_rows(judged, change(facts, "public_size", floor - 1)).ok


# --- approvals -----------------------------------------------------------------------------------------------


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


def test_p4_the_author_of_another_plan_is_no_author_of_this_one(policy: Policy, facts: Facts) -> None:
    both = approvals(facts, (STEWARD, "steward", False), (IT, "it", True))
    elsewhere = Approval(person=STEWARD, role="steward", digest=bytes(32), author=True)
    assert governance.plan_approved(policy, dataclasses.replace(both, approvals=(*both.approvals, elsewhere))).ok


# --- noise and metrics ---------------------------------------------------------------------------------------


def test_p4_noise_is_shared_only_where_the_policy_caps_what_a_lone_share_would_tell(
    policy: Policy, facts: Facts, change: Change
) -> None:
    single = change(change(facts, "plan.privacy.steps", 1), "plan.local_optimizer", LocalOptimizer(learning_rate=1.0))
    sharing = change(single, "plan.privacy.mechanism", "shared-noise")
    assert limits.privacy_terms_allowed(policy, sharing).ok
    refused = limits.privacy_terms_allowed(change(policy, "privacy.epsilon_lone_share", None), sharing)
    assert (refused.ok, refused.found) == (False, "noise: shared, and no `epsilon_lone_share`")


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
