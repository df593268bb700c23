"""The table of rules: each rule's stable id, its function, and the phases in which it is judged.

Rules on record contents are judged at binding only (R09). Everything judged before a round is static: it
depends on the policy, the plan and declarations, so a refusal tells the coordinator nothing about records.
Rules with two moments of truth have two functions under one id. All of them are described in docs/policies.md.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from policies import governance, limits, release
from policies.facts import Facts, Phase
from policies.findings import Finding
from policies.policy import Policy

Rule = Callable[[Policy, Facts], Finding]


class RuleEntry(NamedTuple):
    """When a rule is judged; ``rule`` is its stable id."""

    rule: str
    function: Rule
    phases: frozenset[Phase]


_PLAN = frozenset({Phase.OFFER, Phase.ROUND})

RULES: tuple[RuleEntry, ...] = (
    RuleEntry("R01", governance.policy_in_force, frozenset(Phase)),
    RuleEntry("R02", governance.purpose_allowed, _PLAN | {Phase.RELEASE}),
    RuleEntry("R06", governance.contract_installed, frozenset({Phase.BIND})),
    RuleEntry("R06", governance.contract_agreed, _PLAN),
    RuleEntry("R07", governance.bound_columns_allowed, _PLAN | {Phase.BIND}),
    RuleEntry("R07", governance.plan_columns_allowed, _PLAN),
    RuleEntry("R09", governance.enough_rows, frozenset({Phase.BIND})),
    RuleEntry("R10", governance.plan_approved, _PLAN | {Phase.SEND, Phase.RELEASE}),
    RuleEntry("R11", limits.training_within_bounds, _PLAN),
    RuleEntry("R12", limits.privacy_terms_allowed, _PLAN | {Phase.SEND, Phase.RELEASE}),
    RuleEntry("R12", limits.budget_holds, _PLAN),
    RuleEntry("R14", limits.budget_reserved, frozenset({Phase.SEND})),
    RuleEntry("R15", limits.sum_protected, _PLAN | {Phase.SEND}),
    RuleEntry("R15", limits.aborted_rounds_few, frozenset({Phase.ROUND})),
    RuleEntry("R16", limits.plan_tensors_allowed, _PLAN),
    RuleEntry("R16", limits.update_matches_plan, frozenset({Phase.SEND})),
    RuleEntry("R17", limits.plan_metrics_allowed, _PLAN),
    RuleEntry("R17", limits.metrics_allowed, frozenset({Phase.SEND})),
    RuleEntry("R19", governance.authority_pinned, _PLAN | {Phase.SEND}),
    RuleEntry("R19", governance.keys_pinned, frozenset({Phase.RELEASE})),
    RuleEntry("R19", governance.round_fresh, frozenset({Phase.ROUND})),
    RuleEntry("R21", release.recipients_allowed, frozenset({Phase.OFFER, Phase.RELEASE})),
    RuleEntry("R23", governance.not_stopped, frozenset(Phase)),
    RuleEntry("R26", release.approval_demanded, frozenset({Phase.OFFER})),
    RuleEntry("R26", release.approval_given, frozenset({Phase.RELEASE})),
    RuleEntry("R27", release.audit_demanded, frozenset({Phase.OFFER})),
    RuleEntry("R27", release.release_accounted, frozenset({Phase.RELEASE})),
)
"""Every rule of this package; R28 (an error is a refusal) is :func:`policies.evaluate.evaluate` itself."""
