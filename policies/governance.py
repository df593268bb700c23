"""Who may use the data for what: policy, purpose, contract, columns, rows, approval, authority, kill switch.

Rules R01, R02, R06, R07, R09, R10, R19, R23. Each is a plain function ``(policy, facts) -> Finding``; when it is
judged stands in :data:`policies.rules.RULES`.
"""

from __future__ import annotations

from policies.facts import Facts
from policies.findings import Check, Finding, at_least, at_most, conclude, equal, holds, listed, missing, within
from policies.policy import Policy
from shared.identity import fingerprint


def policy_in_force(policy: Policy, facts: Facts) -> Finding:
    """R01: the policy judged is the one its owner signed, and today lies inside its validity dates."""
    signed = facts.signed_policy is not None and facts.signed_policy.policy == policy
    dates = f"{policy.valid_from} to {policy.valid_until}"
    return conclude(
        "R01",
        "steward",
        [
            holds("signature", signed, yes="verified with the policy owner's key", no="not verified"),
            holds("dates", policy.valid_from <= facts.today <= policy.valid_until, yes=f"within {dates}", no="outside"),
        ],
        good="The policy is signed by its owner and in force today.",
        bad="The policy is not in force: its owner has to sign it, with dates that include today.",
    )


def purpose_allowed(policy: Policy, facts: Facts) -> Finding:
    """R02: the plan's purpose is one of the policy's purposes."""
    if facts.plan is None:
        return missing("R02", "steward", "a plan")
    return conclude(
        "R02",
        "steward",
        [within("purpose", [facts.plan.purpose], policy.purposes)],
        good="The plan's purpose is one that this data set may be used for.",
        bad="This data set may not be used for the plan's purpose.",
    )


def contract_installed(policy: Policy, facts: Facts) -> Finding:
    """R06 at binding: data set and contract are those the policy names."""
    if facts.dataset is None or facts.contract_hash is None:
        return missing("R06", "steward", "the data set and the contract installed here")
    return conclude(
        "R06",
        "steward",
        [
            equal("data set", facts.dataset, policy.dataset),
            equal("contract here", facts.contract_hash, policy.contract_hash),
        ],
        good="The data set and the contract installed here are those that the policy names.",
        bad="The data set or the contract installed here is not the one that the policy names.",
    )


def contract_agreed(policy: Policy, facts: Facts) -> Finding:
    """R06 for a plan: one contract hash in plan, policy and department; the declared data set is the policy's.

    Guarantees:
        A charge counts under the name that the policy's owner signed: no other file gives a data set a new budget.
    """
    if facts.plan is None:
        return missing("R06", "steward", "a plan")
    if facts.dataset is None or facts.contract_hash is None:
        return missing("R06", "steward", "the data set and the contract installed here")
    if facts.public_size is None or facts.binding_unchanged is None:
        return missing("R06", "steward", "the declaration made at binding")
    terms = facts.plan.datasets.get(policy.department)
    if terms is None:
        return missing("R06", "steward", "this department in the plan")
    return conclude(
        "R06",
        "steward",
        [
            equal("data set", facts.dataset, policy.dataset),
            equal("contract in the plan", terms.contract_hash, policy.contract_hash),
            equal("contract here", facts.contract_hash, policy.contract_hash),
            equal("public size in the plan", str(terms.public_size), str(facts.public_size)),
            holds("binding", facts.binding_unchanged, yes="as last validated", no="changed since it was validated"),
        ],
        good="Plan, policy and department agree on data set, contract and declared size.",
        bad="Plan, policy and department do not agree on data set, contract or declared size.",
    )


def bound_columns_allowed(policy: Policy, facts: Facts) -> Finding:
    """R07 for the binding: nothing beyond the allow-list is mapped; static, so judged in rounds as well."""
    if facts.columns is None:
        return missing("R07", "steward", "the binding's columns")
    usable = bool(policy.columns.features and policy.columns.label)
    return conclude(
        "R07",
        "steward",
        [
            holds("columns for learning", usable, yes="features and a label", no="none allowed"),
            within("bound columns", facts.columns, policy.columns.readable),
        ],
        good="The binding maps allowed columns only.",
        bad="The binding maps a column that the policy does not allow.",
    )


def plan_columns_allowed(policy: Policy, facts: Facts) -> Finding:
    """R07 for a plan: it learns from allowed features and the allowed label, among which is no identifier."""
    if facts.plan is None:
        return missing("R07", "steward", "a plan")
    task, columns = facts.plan.task, policy.columns
    # Decides nothing, as no identifier is an allowed feature or label; it says what is wrong with one.
    identifiers = [name for name in (*task.features, task.label) if name in columns.identifiers]
    return conclude(
        "R07",
        "steward",
        [
            within("features", task.features, columns.features),
            equal("label", task.label, columns.label),
            holds("identifiers", not identifiers, yes="none used", no=listed(identifiers)),
        ],
        good="The plan learns from allowed columns only.",
        bad="The plan asks for a column that the policy does not allow.",
    )


def enough_rows(policy: Policy, facts: Facts) -> Finding:
    """R09: enough valid rows, distinct privacy units and declared size; judged at binding only."""
    if facts.rows_ok is None or facts.units is None or facts.public_size is None:
        return missing("R09", "dpo", "the validation of the data set")
    return conclude(
        "R09",
        "dpo",
        [
            at_least("valid rows", facts.rows_ok, policy.rows.minimum_rows),
            at_least("distinct privacy units", facts.units, policy.rows.minimum_units),
            at_least("declared size", facts.public_size, _declared_floor(policy)),
        ],
        good="The data set has enough rows and enough distinct privacy units.",
        bad="The data set has too few rows or too few distinct privacy units to be used.",
    )


def _declared_floor(policy: Policy) -> int:
    """Return the floor under a declared size, which counts privacy units."""
    return policy.rows.minimum_rows if policy.privacy.unit == "record" else policy.rows.minimum_units


def plan_approved(policy: Policy, facts: Facts) -> Finding:
    """R10: the digest is approved by a steward and by IT, two people named in the policy, one not the author."""
    if facts.plan is None or facts.plan_digest is None:
        return missing("R10", "steward", "a plan and its digest")
    people = policy.approval.people
    counted = [
        item for item in facts.approvals if item.digest == facts.plan_digest and people.get(item.person) == item.role
    ]
    # Whoever said once that the plan is theirs stays its author, in whatever role they said it.
    authors = {item.person for item in facts.approvals if item.author and item.digest == facts.plan_digest}
    roles = sorted({item.role for item in counted} & {"steward", "it"})
    independent = {item.person for item in counted if item.role in roles} - authors
    return conclude(
        "R10",
        "steward",
        [
            holds("digest", facts.plan_digest == facts.plan.digest(), yes="the plan's own", no="of another plan"),
            holds("approved by", roles == ["it", "steward"], yes="a steward and it", no=listed(roles)),
            holds("independent approver", bool(independent), yes="at least one, not the author", no="none"),
        ],
        good="The plan was approved here by a steward and by IT, one of whom did not write it.",
        bad="The plan still needs an approval here: a steward and IT, at least one of whom did not write it.",
    )


def keys_pinned(policy: Policy, facts: Facts) -> Finding:
    """R19 at release: the keys that verified plan and roster are the pinned ones; a model outlives its plan's dates."""
    if facts.authority_key is None or facts.roster_key is None:
        return missing("R19", "it", "the authority's keys")
    return conclude(
        "R19",
        "it",
        _pinned(policy, facts.authority_key, facts.roster_key),
        good="The model comes from the authority that this department knows.",
        bad="The model is not from the authority that this department knows.",
    )


def _pinned(policy: Policy, authority_key: bytes, roster_key: bytes) -> list[Check]:
    """Compare both keys of the authority with the pinned ones."""
    pins = policy.authority
    return [
        equal("key of the plan", fingerprint(authority_key), pins.plan_key_fingerprint),
        equal("key of the roster", fingerprint(roster_key), pins.roster_key_fingerprint),
    ]


def authority_pinned(policy: Policy, facts: Facts) -> Finding:
    """R19: the keys that verified plan and roster are the pinned ones, and the plan is in date."""
    if facts.plan is None or facts.authority_key is None or facts.roster_key is None:
        return missing("R19", "it", "a plan and the authority's keys")
    plan = facts.plan
    current = plan.valid_from <= facts.today <= plan.valid_until
    return conclude(
        "R19",
        "it",
        [
            *_pinned(policy, facts.authority_key, facts.roster_key),
            holds("dates of the plan", current, yes=f"within {plan.valid_from} to {plan.valid_until}", no="outside"),
        ],
        good="The plan comes from the authority that this department knows, and it is in date.",
        bad="The plan is not from the authority that this department knows, or it is out of date.",
    )


def round_fresh(_policy: Policy, facts: Facts) -> Finding:
    """R19: a round is asked for once, and never beyond the plan's attempts (protocol 3)."""
    if facts.plan is None or facts.round is None or facts.last_round is None:
        return missing("R19", "it", "a plan and the round")
    return conclude(
        "R19",
        "it",
        [
            at_least("round", facts.round, max(facts.last_round, 0) + 1),
            at_most("round", facts.round, facts.plan.attempts),
        ],
        good="The round is new and one of those that the plan allows.",
        bad="The round was answered before, or the plan does not allow so many.",
    )


def not_stopped(_policy: Policy, facts: Facts) -> Finding:
    """R23: nobody has pulled the kill switch."""
    return conclude(
        "R23",
        "steward",
        [holds("kill switch", facts.stopped is False, yes="not set", no="set")],
        good="Work is not stopped here.",
        bad="Work is stopped here; everything pending is refused until a person lifts the stop.",
    )
