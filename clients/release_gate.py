"""Before a model is installed: every rule of the release is judged by this department's own policy (R21)."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

from clients.config import load_department
from clients.memory import Memory
from policies.evaluate import evaluate
from policies.facts import Facts, Phase
from shared.journal import EntryKind
from shared.plan import Plan


def require_release(config_path: Path, memory: Memory, plan: Plan, *, now: dt.datetime) -> None:
    """Judge the release of a plan's model, keep all findings, refuse if one failed.

    Args:
        config_path: this department's ``client.toml``.
        memory: its journal; the findings go there.
        plan: from which the model comes.
        now: the present time, UTC.

    Raises:
        ConfigError: a configuration, policy or key file is not in order.
        ContractError: the declaration is not in order.
        JournalError: the decision could not be made durable.
        PolicyViolation: ``policy-refused``.
    """
    department = load_department(config_path)
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
    )
    decision = evaluate(department.policy.policy, facts, Phase.RELEASE)
    memory.write(EntryKind.DECISION, decision)
    decision.require()
