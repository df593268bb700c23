"""Who gets a model (R21), and what has to be there before (R26, R27)."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from policies import release
from policies.facts import Facts
from policies.policy import Policy, ReleaseCaps
from shared.plan import HOLDERS, PUBLIC, ReleaseTerms
from tests.policies.rule_cases import Change


@pytest.mark.parametrize("side", ["plan", "policy"])
def test_p4_an_audit_and_a_person_are_there_if_either_side_wants_them(
    side: str, policy: Policy, facts: Facts, change: Change
) -> None:
    bare = change(change(facts, "release.audited_by", ()), "release.approved_by", " ")
    free = change(policy, "release", ReleaseCaps(recipients=HOLDERS, attack_audit=False))
    bare = change(bare, "plan.release", ReleaseTerms(attack_audit=False))
    assert release.approval_given(free, bare).ok is release.release_accounted(free, bare).ok is True
    for field, rule in (("human_approval", release.approval_given), ("attack_audit", release.release_accounted)):
        if side == "plan":
            assert not rule(free, change(bare, f"plan.release.{field}", True)).ok
        else:
            assert not rule(change(free, f"release.{field}", True), bare).ok


@pytest.mark.parametrize("wanted_here", [False, True])
@pytest.mark.parametrize("demanded", [False, True])
def test_p4_a_plan_demands_what_this_department_wants_and_may_demand_more(
    policy: Policy, facts: Facts, change: Change, *, wanted_here: bool, demanded: bool
) -> None:
    for field, rule in (("human_approval", release.approval_demanded), ("attack_audit", release.audit_demanded)):
        judged = change(policy, f"release.{field}", wanted_here)
        assert rule(judged, change(facts, f"plan.release.{field}", demanded)).ok is (demanded or not wanted_here)


@pytest.mark.parametrize("side", ["plan", "policy"])
def test_a_name_is_enough_where_one_is_wanted(side: str, policy: Policy, facts: Facts, change: Change) -> None:
    if side == "plan":
        facts = change(facts, "plan.release.human_approval", True)
    else:
        policy = change(policy, "release.human_approval", True)
    assert release.approval_given(policy, facts).ok


NAMES = st.lists(st.sampled_from([*HOLDERS, PUBLIC, "parks", "water"]), unique=True).map(tuple)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(names=NAMES, allowed=NAMES, crossing=st.booleans(), may_cross=st.booleans())
def test_p4_a_model_goes_to_listed_recipients_only(
    *,
    names: tuple[str, ...],
    allowed: tuple[str, ...],
    crossing: bool,
    may_cross: bool,
    policy: Policy,
    facts: Facts,
    change: Change,
) -> None:
    terms = ReleaseTerms(
        recipients=(*HOLDERS, *(n for n in names if n not in HOLDERS)), cross_border=PUBLIC in names or crossing
    )
    judged = change(policy, "release", ReleaseCaps(recipients=allowed, cross_border=may_cross))
    finding = release.recipients_allowed(judged, change(facts, "plan.release", terms))
    assert finding.ok is (set(terms.recipients) <= set(allowed) and (may_cross or not terms.cross_border))


@pytest.mark.parametrize(
    "terms",
    [
        {"recipients": ("cohort",)},
        {"recipients": ("central-authority",)},
        {"recipients": (*HOLDERS, "cohort")},
        {"recipients": (*HOLDERS, "Anybody at all")},
        {"recipients": (*HOLDERS, PUBLIC)},
    ],
)
def test_p4_a_plan_does_not_hide_who_gets_the_model(terms: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"recipients|cross_border"):
        ReleaseTerms(**terms)
