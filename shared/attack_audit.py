"""What a department signs about the attack on its own training code under a plan, and what goes with the model (R27).

The attack is `cityfed-client privacy-audit`: canaries, sensitivity, inversion (privacy 7). It is about the installed
code and the plan's numbers; no record takes part, and it says nothing about the finished model's own parameters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from msgspec import Meta

from shared.codec import Hash, Record, decode
from shared.errors import AuditError, ProtocolError
from shared.identity import MAX_DEPARTMENTS, Name, Signed, open_signed
from shared.parameters import Label
from shared.plan import Plan

ATTACK_AUDIT_LABEL = "attack-audit"
ATTACK_AUDIT_FILE = "attack-audit.json"
"""Name of the signed record beside an audit's report."""

Audits = Annotated[tuple[Signed, ...], Meta(max_length=MAX_DEPARTMENTS)]
"""Signed audits as they travel with a model."""


class AuditedClaim(Record, frozen=True, kw_only=True):
    """An epsilon that was promised, the bound below it that the attack reached with 95 %, and the highest possible."""

    name: Literal["reference", "plan"]
    epsilon: float
    lower_bound: float
    ceiling: float


class AttackAudit(Record, frozen=True, kw_only=True):
    """One department's audit of its installation with a plan's numbers; ``failures`` are reason codes, none if it held.

    Signed with the department's identity key under the label ``attack-audit``.
    """

    department: Name
    plan_digest: Hash
    package_digest: Label
    claims: Annotated[tuple[AuditedClaim, ...], Meta(max_length=2)]
    failures: Annotated[tuple[Label, ...], Meta(max_length=20)]

    def holds_for(self, plan: Plan) -> bool:
        """Return whether nothing failed, and both claims are there, the plan's own among them, and not refuted."""
        claims = {item.name: item for item in self.claims}
        if set(claims) != {"reference", "plan"} or claims["plan"].epsilon != plan.privacy.budget.epsilon:
            return False
        return not self.failures and all(item.lower_bound <= item.epsilon for item in self.claims)


def open_attack_audits(signed: Sequence[Signed], *, plan: Plan, keys: Mapping[str, bytes]) -> tuple[AttackAudit, ...]:
    """Verify audits of a plan, each by another department of its cohort.

    Args:
        signed: the audits.
        plan: the plan that they have to be about.
        keys: the identity key that counts now, by department. Nobody knows when an audit was signed, so one by a key
            that was exchanged or removed is as good as none.

    Raises:
        ProtocolError: ``message-malformed``, ``audit-foreign``, ``signature-invalid``, ``audit-repeated``.
        AuditError: ``audit-failed``.
    """
    opened = tuple(_open(item, plan, keys) for item in signed)
    if len({item.department for item in opened}) != len(opened):
        raise ProtocolError("audit-repeated", "Two of the attack audits are by the same department.")
    return opened


def _open(signed: Signed, plan: Plan, keys: Mapping[str, bytes]) -> AttackAudit:
    """Verify one audit; its body says by whose key."""
    name = decode(signed.body, AttackAudit).department
    if name not in plan.cohort or name not in keys:
        raise ProtocolError("audit-foreign", "An attack audit is by nobody in the plan's cohort whose key counts.")
    audit = open_signed(keys[name], ATTACK_AUDIT_LABEL, signed, AttackAudit)
    if (audit.plan_digest, audit.package_digest) != (plan.digest(), plan.package_digest):
        raise ProtocolError("audit-foreign", f"The attack audit of {name} is about another plan than {plan.name}.")
    if not audit.holds_for(plan):
        found = ", ".join(audit.failures) or "a claim is missing or refuted"
        raise AuditError("audit-failed", f"The attack audit of {name} did not hold: {found}.")
    return audit
