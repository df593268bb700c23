"""What becomes of the final model: who receives it, and what there has to be before anybody does.

Rules R21, R26, R27. Each is a plain function ``(policy, facts) -> Finding``; when it is judged stands in
:data:`policies.rules.RULES`. A demand is made twice: in the plan, whose approval binds the authority, and of the model.
"""

from __future__ import annotations

import math

import msgspec

from policies.facts import Facts
from policies.findings import Check, Finding, conclude, holds, missing, within
from policies.policy import Policy
from shared.privacy.statement import PrivacyStatement


def recipients_allowed(policy: Policy, facts: Facts) -> Finding:
    """R21: everybody whom the plan names as a recipient is on the list, and none across the border unless allowed."""
    if facts.plan is None:
        return missing("R21", "dpo", "a plan")
    terms, caps = facts.plan.release, policy.release
    crossing = "across the border as well" if caps.cross_border else "not across the border"
    return conclude(
        "R21",
        "dpo",
        [
            within("recipients", terms.recipients, caps.recipients),
            holds("border", caps.cross_border or terms.cross_border is False, yes=crossing, no="across the border"),
        ],
        good="The model goes to nobody who may not have it.",
        bad="The model would go to somebody who may not have it.",
    )


def approval_demanded(policy: Policy, facts: Facts) -> Finding:
    """R26 for a plan: where the policy flags the use as high-risk, the plan demands a person's approval."""
    if facts.plan is None:
        return missing("R26", "dpo", "a plan")
    demanded = not policy.release.human_approval or facts.plan.release.human_approval is True
    return conclude(
        "R26",
        "dpo",
        [holds("approval by a person", demanded, yes="demanded where the policy says so", no="not demanded")],
        good="The plan has the model released by a person wherever this department wants that.",
        bad="The plan lets the model be released without a person's approval, which this department wants.",
    )


def approval_given(policy: Policy, facts: Facts) -> Finding:
    """R26 at release: somebody at the authority put their name to it, where plan or policy demand that."""
    if facts.plan is None or facts.release is None:
        return missing("R26", "dpo", "a plan and the record of its model")
    demanded = policy.release.human_approval is not False or facts.plan.release.human_approval is not False
    given = bool(facts.release.approved_by.strip())
    return conclude(
        "R26",
        "dpo",
        [holds("approval by a person", given or not demanded, yes="given where demanded", no="none")],
        good="Whoever has to approve the release of the model by name has done so.",
        bad="Nobody at the authority put their name to the release of the model.",
    )


def audit_demanded(policy: Policy, facts: Facts) -> Finding:
    """R27 for a plan: it demands an attack audit where the policy wants one, so that approving it binds the centre."""
    if facts.plan is None:
        return missing("R27", "dpo", "a plan")
    demanded = not policy.release.attack_audit or facts.plan.release.attack_audit is True
    return conclude(
        "R27",
        "dpo",
        [holds("attack audit", demanded, yes="demanded where the policy says so", no="not demanded")],
        good="The plan demands an attack audit wherever this department wants one.",
        bad="The plan lets the model be released without an attack audit, which this department wants.",
    )


def release_accounted(policy: Policy, facts: Facts) -> Finding:
    """R27 at release: the account is the plan's in full, and an attack audit is there if plan or policy want it."""
    if facts.plan is None or facts.release is None:
        return missing("R27", "dpo", "a plan and the record of its model")
    said, plan = facts.release, facts.plan
    demanded = policy.release.attack_audit is not False or plan.release.attack_audit is not False
    least, most = plan.aggregation.min_contributors, len(plan.cohort)
    several = bool(said.contributors) and all(least <= count <= most for count in said.contributors)
    return conclude(
        "R27",
        "dpo",
        [
            *_costs(said.said, said.computed),
            holds("terms of the account", _same_terms(said.said, said.computed), yes="the plan's", no="not the plan's"),
            holds("contributors", several, yes="in each sum as many as the plan allows", no="too few or too many"),
            holds("attack audit", bool(said.audited_by) or not demanded, yes="there where demanded", no="none"),
        ],
        good="The model comes with its final privacy account, and with an attack audit where one is demanded.",
        bad="The model lacks its full privacy account, or the attack audit that is demanded.",
    )


def _costs(said: PrivacyStatement, computed: PrivacyStatement) -> list[Check]:
    """Compare each figure that is computed: to state more than it cost harms nobody."""
    city, own = said.city_worst_case, computed.city_worst_case
    figures = {
        "final epsilon": (said.epsilon, computed.epsilon),
        "epsilon of lone shares": (said.lone_share_epsilon, computed.lone_share_epsilon),
        "city-wide worst case": (city.epsilon, own.epsilon),
        "city-wide sum": (city.added, own.added),
    }
    # Equal numbers of two machines may differ in their last digits.
    return [
        holds(
            what,
            stated >= found or math.isclose(stated, found, rel_tol=1e-9),
            yes="at least as computed here",
            no="less than computed here",
        )
        for what, (stated, found) in figures.items()
    ]


def _same_terms(said: PrivacyStatement, computed: PrivacyStatement) -> bool:
    """Whether two accounts differ in nothing but their computed figures."""
    own = computed.city_worst_case
    city = msgspec.structs.replace(said.city_worst_case, epsilon=own.epsilon, added=own.added)
    bare = msgspec.structs.replace(
        said, epsilon=computed.epsilon, lone_share_epsilon=computed.lone_share_epsilon, city_worst_case=city
    )
    return bare == computed
