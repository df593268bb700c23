"""Before a model is installed: every rule of the release is judged by this department's own policy (R21, R26, R27)."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

from clients.config import load_department
from clients.memory import Memory
from policies.evaluate import evaluate
from policies.facts import Facts, Phase, ReleaseFacts
from shared.attack_audit import open_attack_audits
from shared.journal import EntryKind
from shared.plan import Plan
from shared.privacy.statement import privacy_statement
from shared.release import ModelRelease
from shared.roster import counting_keys


def require_release(config_path: Path, memory: Memory, release: ModelRelease, plan: Plan, *, now: dt.datetime) -> None:
    """Judge the release of a plan's model, keep all findings, refuse if one failed.

    Args:
        config_path: this department's ``client.toml``.
        memory: its journal; the findings go there.
        release: what the authority signed about the model, verified.
        plan: from which the model comes.
        now: the present time, UTC.

    Raises:
        ConfigError: a configuration, policy or key file is not in order.
        ContractError: the declaration is not in order.
        ProtocolError: an attack audit does not verify: as :func:`shared.attack_audit.open_attack_audits`.
        AuditError: ``audit-failed``.
        JournalError: the decision could not be made durable.
        PolicyViolation: ``policy-refused``.
    """
    department = load_department(config_path)
    pins, roster = department.trust.pins | memory.keys, memory.roster
    keys = {} if roster is None else counting_keys(roster, pins)
    audits = open_attack_audits(release.audits, plan=plan, keys=keys)
    facts = Facts(
        today=now.date(),
        stopped=department.stop_file.exists(),
        signed_policy=department.policy,
        public_size=department.declaration.public_size,
        plan=plan,
        plan_digest=plan.digest(),
        authority_key=department.trust.authority_key,
        roster_key=department.trust.roster_key,
        approvals=memory.approvals_of(plan.digest()),
        release=ReleaseFacts(
            said=release.privacy,
            computed=privacy_statement(plan),
            contributors=release.contributors,
            audited_by=tuple(item.department for item in audits),
            approved_by=release.approved_by,
        ),
    )
    decision = evaluate(department.policy.policy, facts, Phase.RELEASE)
    memory.write(EntryKind.DECISION, decision)
    decision.require()
