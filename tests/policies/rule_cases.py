"""One value on each side of every limit of every rule."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Callable
from typing import Any, NamedTuple

from policies import governance, limits, release
from policies.policy import PopulationCap, PrivacyCaps
from policies.rules import Rule
from shared.identity import IdentityKey
from shared.parameters import ExtraSpec
from shared.plan import HOLDERS, DatasetTerms, ReleaseTerms
from shared.privacy.accountant import ACCOUNTANT
from shared.privacy.statement import MetricTerms

Change = Callable[..., Any]
"""The fixture ``change``: a copy of a record with one nested field replaced."""

STRANGER = IdentityKey.from_private_bytes(bytes([9]) * 32).public
LOSS = ExtraSpec(name="loss", unit_bound=2.0, sample_rate=1.0, noise_multiplier=9.0, max_abs=1.0, scale=1.0)


class Case(NamedTuple):
    """``where`` is ``policy.<field>`` or ``facts.<field>``; the rule must say ``ok`` about ``value``."""

    rule: Rule
    where: str
    value: object
    ok: bool


def above(cap: float) -> float:
    return math.nextafter(cap, math.inf)


def below(floor: float) -> float:
    return math.nextafter(floor, -math.inf)


DAY = dt.timedelta(days=1)
FIRST, LAST = dt.date(2025, 1, 1), dt.date(2035, 12, 31)
PLAN_FIRST, PLAN_LAST = dt.date(2026, 1, 1), dt.date(2026, 12, 31)
TERMS = DatasetTerms(contract_hash="ab" * 32, public_size=2048)
OTHER_CONTRACT = DatasetTerms(contract_hash="ac" * 32, public_size=2048)
THE_REST = dict.fromkeys(("environment", "health", "police"), OTHER_CONTRACT)  # theirs is their own affair
PER_PERSON = PrivacyCaps(
    unit="person",
    epsilon_per_run=3.0,
    epsilon_lifetime=12.0,
    delta=1e-4,
    accountant=ACCOUNTANT,
    population=PopulationCap(name="residents", epsilon=12.0),
)

CASES = [
    # R01
    Case(governance.policy_in_force, "facts.today", FIRST, True),
    Case(governance.policy_in_force, "facts.today", LAST, True),
    Case(governance.policy_in_force, "facts.today", FIRST - DAY, False),
    Case(governance.policy_in_force, "facts.today", LAST + DAY, False),
    Case(governance.policy_in_force, "facts.signed_policy", None, False),
    Case(governance.policy_in_force, "policy.purposes", ("emergency-triage", "anything"), False),  # not what was signed
    # R02
    Case(governance.purpose_allowed, "policy.purposes", ("other", "emergency-triage"), True),
    Case(governance.purpose_allowed, "policy.purposes", (), False),
    Case(governance.purpose_allowed, "facts.plan.purpose", "emergency-triage ", False),
    Case(governance.purpose_allowed, "facts.plan.purpose", "", False),
    # R06
    Case(governance.contract_installed, "facts.dataset", None, False),
    Case(governance.contract_installed, "facts.dataset", "reports-2", False),
    Case(governance.contract_agreed, "facts.dataset", None, False),
    Case(governance.contract_agreed, "facts.dataset", "reports-2", False),
    Case(governance.contract_agreed, "policy.dataset", "reports-2", False),
    Case(governance.contract_installed, "facts.contract_hash", None, False),
    Case(governance.contract_installed, "facts.contract_hash", "ac" * 32, False),
    Case(governance.contract_agreed, "facts.contract_hash", "ac" * 32, False),
    Case(governance.contract_agreed, "policy.contract_hash", "ac" * 32, False),
    Case(governance.contract_agreed, "facts.public_size", 2047, False),
    Case(governance.contract_agreed, "facts.binding_unchanged", False, False),
    Case(governance.contract_agreed, "facts.plan.datasets", {"a": TERMS, "b": TERMS, "c": TERMS}, False),
    Case(governance.contract_agreed, "facts.plan.datasets", {"transport": OTHER_CONTRACT, **THE_REST}, False),
    Case(governance.contract_agreed, "facts.plan.datasets", {"transport": TERMS, **THE_REST}, True),
    Case(governance.contract_agreed, "facts.binding_unchanged", None, False),
    # R07
    Case(governance.bound_columns_allowed, "facts.columns", ("description", "request"), True),
    Case(governance.bound_columns_allowed, "facts.columns", ("description", "request", "address"), False),
    Case(governance.bound_columns_allowed, "facts.columns", (), False),
    Case(governance.bound_columns_allowed, "facts.columns", ("service_code", "description", "request"), True),
    Case(governance.bound_columns_allowed, "policy.columns.metadata", ("service_code",), True),
    Case(governance.plan_columns_allowed, "facts.plan.task.features", ("service_code",), False),
    Case(governance.bound_columns_allowed, "policy.columns.features", (), False),
    Case(governance.bound_columns_allowed, "policy.columns.label", "", False),
    Case(governance.plan_columns_allowed, "facts.plan.task.features", ("description", "address"), False),
    Case(governance.plan_columns_allowed, "facts.plan.task.features", ("service_request_id",), False),
    Case(governance.plan_columns_allowed, "facts.plan.task.label", "service_request_id", False),
    Case(governance.plan_columns_allowed, "policy.columns.features", (), False),
    Case(governance.plan_columns_allowed, "policy.columns.label", "", False),
    # R09
    Case(governance.enough_rows, "facts.rows_ok", 150, True),
    Case(governance.enough_rows, "facts.rows_ok", 149, False),
    Case(governance.enough_rows, "facts.units", 120, True),
    Case(governance.enough_rows, "facts.units", 119, False),
    Case(governance.enough_rows, "facts.public_size", 150, True),
    Case(governance.enough_rows, "facts.public_size", 149, False),
    # R10 (more below)
    Case(governance.plan_approved, "facts.approvals", (), False),
    Case(governance.plan_approved, "facts.plan_digest", bytes(32), False),
    Case(governance.plan_approved, "facts.plan.rounds", 11, False),  # a changed plan has another digest
    Case(governance.plan_approved, "policy.approval.people", {}, False),
    # R11
    Case(limits.training_within_bounds, "facts.plan.rounds", 400, True),
    Case(limits.training_within_bounds, "facts.plan.rounds", 401, False),
    Case(limits.training_within_bounds, "facts.plan.privacy.steps", 150, True),
    Case(limits.training_within_bounds, "facts.plan.privacy.steps", 201, False),
    Case(limits.training_within_bounds, "facts.plan.privacy.sample_rate", 0.2, True),
    Case(limits.training_within_bounds, "facts.plan.privacy.sample_rate", above(0.2), False),
    Case(limits.training_within_bounds, "facts.plan.local_optimizer.learning_rate", 100.0, True),
    Case(limits.training_within_bounds, "facts.plan.local_optimizer.learning_rate", above(100.0), False),
    Case(limits.training_within_bounds, "facts.plan.privacy.max_grad_norm", 10.0, True),
    Case(limits.training_within_bounds, "facts.plan.privacy.max_grad_norm", above(10.0), False),
    Case(limits.training_within_bounds, "facts.plan.privacy.noise_multiplier", 0.5, True),
    Case(limits.training_within_bounds, "facts.plan.privacy.noise_multiplier", below(0.5), False),
    # R12
    Case(limits.privacy_terms_allowed, "facts.plan.privacy.budget.epsilon", 3.0, True),
    Case(limits.privacy_terms_allowed, "facts.plan.privacy.budget.epsilon", above(3.0), False),
    Case(limits.privacy_terms_allowed, "facts.plan.privacy.budget.delta", above(1e-4), False),
    Case(limits.privacy_terms_allowed, "facts.public_size", 10_000, True),  # delta 1e-4 is exactly 1/n
    Case(limits.privacy_terms_allowed, "facts.public_size", 10_001, False),
    Case(limits.privacy_terms_allowed, "facts.plan.privacy.unit", "person", False),
    Case(limits.privacy_terms_allowed, "facts.plan.privacy.accountant", "gdp", False),
    Case(limits.privacy_terms_allowed, "policy.privacy", PER_PERSON, False),
    Case(limits.privacy_terms_allowed, "policy.privacy.epsilon_lone_share", None, True),  # the plan shares no noise
    Case(limits.budget_holds, "facts.budget.epsilon_run", 1.0, True),
    Case(limits.budget_holds, "facts.budget.epsilon_run", above(1.0), False),
    Case(limits.budget_holds, "facts.budget.epsilon_run", math.nan, False),
    Case(limits.budget_holds, "facts.budget.epsilon_lifetime_after", 12.0, True),
    Case(limits.budget_holds, "facts.budget.epsilon_lifetime_after", above(12.0), False),
    Case(limits.budget_holds, "facts.budget.lone_share_after", 18.0, True),
    Case(limits.budget_holds, "facts.budget.lone_share_after", above(18.0), False),
    Case(limits.budget_holds, "facts.budget.lone_share_after", math.nan, False),
    Case(limits.budget_holds, "facts.budget.fits", False, False),
    # R14
    Case(limits.budget_reserved, "facts.reserved", False, False),
    # R15
    Case(limits.sum_protected, "policy.aggregation.threshold_min", 4, False),
    Case(limits.sum_protected, "policy.aggregation.min_contributors_min", 4, False),
    Case(limits.sum_protected, "policy.aggregation.colluders_min", 2, False),
    Case(limits.sum_protected, "facts.plan.aggregation.bound", 64.0, True),
    Case(limits.sum_protected, "facts.plan.aggregation.bound", above(64.0), False),
    Case(limits.sum_protected, "facts.plan.aggregation.max_colluders", 2, False),  # 2t > N + c no longer holds
    Case(limits.sum_protected, "facts.plan.aggregation.threshold", 2, False),
    Case(limits.sum_protected, "facts.plan.roster_size", 5, False),  # 2t > N + c no longer holds
    Case(limits.sum_protected, "facts.roster_size", 3, True),
    Case(limits.sum_protected, "facts.roster_size", 5, False),  # a grown roster
    Case(limits.aborted_rounds_few, "facts.aborted_rounds", 2, True),
    Case(limits.aborted_rounds_few, "facts.aborted_rounds", 3, False),
    # R16
    Case(limits.plan_tensors_allowed, "policy.outgoing.tensors", ("head.weight", "head.bias"), True),
    Case(limits.plan_tensors_allowed, "policy.outgoing.tensors", ("head.weight",), False),
    Case(limits.plan_tensors_allowed, "policy.outgoing.tensors", ("HEAD.*",), False),
    Case(limits.plan_tensors_allowed, "policy.outgoing.tensors", (), False),
    Case(limits.plan_tensors_allowed, "policy.outgoing.max_bytes", 20, True),
    Case(limits.plan_tensors_allowed, "policy.outgoing.max_bytes", 19, False),
    Case(limits.update_matches_plan, "facts.outgoing.names", ("head.bias", "head.weight"), False),
    Case(limits.update_matches_plan, "facts.outgoing.shapes", ((4, 1), (1,)), False),
    Case(limits.update_matches_plan, "facts.outgoing.finite", False, False),
    Case(limits.update_matches_plan, "facts.outgoing.norm", 32.0, True),
    Case(limits.update_matches_plan, "facts.outgoing.norm", above(32.0), False),
    Case(limits.update_matches_plan, "facts.outgoing.norm", math.nan, False),
    Case(limits.update_matches_plan, "facts.outgoing.bytes", 100_000_000, True),
    Case(limits.update_matches_plan, "facts.outgoing.bytes", 100_000_001, False),
    Case(limits.update_matches_plan, "policy.outgoing.tensors", ("encoder.*",), False),
    # R17
    Case(limits.metrics_allowed, "facts.outgoing.metrics", ("loss",), False),
    Case(limits.metrics_allowed, "policy.outgoing.metrics", ("loss",), True),
    Case(limits.plan_metrics_allowed, "facts.plan.layout.extras", (LOSS,), False),
    Case(limits.plan_metrics_allowed, "facts.plan.layout.extras", (), True),
    Case(limits.plan_metrics_allowed, "facts.plan", None, False),
    # R19
    Case(governance.authority_pinned, "facts.authority_key", STRANGER, False),
    Case(governance.authority_pinned, "facts.roster_key", STRANGER, False),
    Case(governance.authority_pinned, "facts.today", PLAN_FIRST, True),
    Case(governance.authority_pinned, "facts.today", PLAN_FIRST - DAY, False),
    Case(governance.authority_pinned, "facts.today", PLAN_LAST, True),
    Case(governance.authority_pinned, "facts.today", PLAN_LAST + DAY, False),
    Case(governance.round_fresh, "facts.round", 12, True),  # ten rounds and two spare attempts
    Case(governance.round_fresh, "facts.round", 13, False),
    Case(governance.round_fresh, "facts.round", 0, False),
    Case(governance.round_fresh, "facts.last_round", 1, False),
    Case(governance.keys_pinned, "facts.authority_key", STRANGER, False),
    Case(governance.keys_pinned, "facts.roster_key", STRANGER, False),
    Case(governance.keys_pinned, "facts.roster_key", None, False),
    Case(governance.keys_pinned, "facts.today", PLAN_LAST + DAY, True),  # the model of an old plan is still a model
    # R21
    Case(release.recipients_allowed, "facts.plan.release", ReleaseTerms(recipients=(*HOLDERS, "parks")), False),
    Case(release.recipients_allowed, "facts.plan.release", ReleaseTerms(cross_border=True), False),
    Case(release.recipients_allowed, "facts.plan", None, False),
    Case(release.recipients_allowed, "policy.release.recipients", (), False),
    Case(release.recipients_allowed, "policy.release.recipients", ("cohort",), False),
    Case(release.recipients_allowed, "policy.release.recipients", (*HOLDERS, "parks"), True),
    Case(release.recipients_allowed, "policy.release.cross_border", True, True),
    # R26
    Case(release.approval_demanded, "policy.release.human_approval", True, False),
    Case(release.approval_demanded, "policy.release.human_approval", False, True),
    Case(release.approval_demanded, "facts.plan.release.human_approval", True, True),
    Case(release.approval_given, "facts.release.approved_by", "", True),  # neither plan nor policy want a name
    Case(release.approval_given, "facts.release.approved_by", "someone", True),
    Case(release.approval_given, "facts.release", None, False),
    # R27
    Case(release.audit_demanded, "facts.plan.release.attack_audit", False, False),
    Case(release.audit_demanded, "policy.release.attack_audit", False, True),
    Case(release.release_accounted, "facts.release.audited_by", (), False),
    Case(release.release_accounted, "policy.release.attack_audit", False, True),
    *(
        Case(release.release_accounted, f"facts.release.said.{field}", value, ok)
        for field in ("epsilon", "lone_share_epsilon", "city_worst_case.epsilon", "city_worst_case.added")
        for value, ok in ((0.98, False), (5.0, True), (math.nan, False))  # more than it cost is no lie that harms
    ),
    Case(release.release_accounted, "facts.release.computed.epsilon", math.nan, False),
    Case(release.release_accounted, "facts.release.said.epsilon", 0.99 * (1 - 1e-12), True),  # another machine's digits
    Case(release.release_accounted, "facts.release.said.epsilon", 0.99 * (1 - 1e-6), False),
    Case(release.release_accounted, "facts.release", None, False),
    *(
        Case(release.release_accounted, f"facts.release.said.{field}", value, False)
        for field, value in (
            ("unit", "person"),
            ("mechanism", "shared-noise"),
            ("sampling", "none"),
            ("sample_rate", 0.01),
            ("noise_multiplier", 99.0),
            ("max_grad_norm", 0.01),
            ("steps", 1),
            ("accountant", "rdp"),
            ("noise_shares", 2),
            ("delta", 1e-5),
            ("rounds", 1),
            ("spare_attempts", 0),
            ("city_worst_case.departments", 1),
            ("city_worst_case.delta", 1e-5),
            ("metrics", (MetricTerms(name="loss", noise_stddev=1.0),)),
        )
    ),
    Case(release.release_accounted, "facts.release.contributors", (4, 2), False),
    Case(release.release_accounted, "facts.release.contributors", (5, 3), False),
    Case(release.release_accounted, "facts.release.contributors", (), False),
    # R23
    Case(governance.not_stopped, "facts.stopped", True, False),
    Case(governance.not_stopped, "facts.stopped", None, False),
]
