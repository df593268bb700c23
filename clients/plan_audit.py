"""``cityfed-client privacy-audit``: what the code installed here does under a plan, before anybody approves it."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

from clients.config import load_config, load_trust, read_signed
from clients.training.audit.page import write_audit
from clients.training.audit.run import AuditResult, run_audit
from shared.attack_audit import ATTACK_AUDIT_FILE, ATTACK_AUDIT_LABEL, AttackAudit, AuditedClaim
from shared.codec import dump_json
from shared.errors import ProtocolError
from shared.identity import sign_record
from shared.keystore import load_identity
from shared.package import package_digest
from shared.plan import Plan, accept_plan
from shared.private_files import replace_private_file


def audit_plan(config_path: Path, plan_file: Path, *, out: Path, now: dt.datetime) -> AuditResult:
    """Audit this department's installation with the numbers of a signed plan; write the report and sign what it found.

    Args:
        config_path: this department's ``client.toml``; of it the pinned authority key, the own identity key, base
            weights and performance settings are read. Binding, rows and journal are not opened, and nothing is charged.
        plan_file: the signed plan as it travels.
        out: folder of the report.
        now: the present time.

    Raises:
        ConfigError: the configuration or ``file-missing``; what the model's preflight refuses.
        ProtocolError: ``signature-invalid``, ``message-malformed``, ``package-foreign``.
        SetupError: base weights are missing, or ``home-not-writable``.
        ModelError: base weights that are not the plan's.
    """
    config = load_config(config_path)
    signed = read_signed(plan_file)
    plan = accept_plan(signed, load_trust(config).authority_key)
    if plan.package_digest != package_digest():
        raise ProtocolError("package-foreign", "The plan was made for another version of this package.")
    result = run_audit(
        plan.name,
        privacy=plan.privacy,
        attempts=plan.attempts,
        spec=plan.model,
        weights_dir=config_path.parent / config.weights if config.weights else None,
        flags=config.performance,
        now=now,
    )
    write_audit(result, out)
    identity = load_identity(config_path.parent / config.identity)
    signed = sign_record(identity, ATTACK_AUDIT_LABEL, _record(config.department, plan, result))
    replace_private_file(out / ATTACK_AUDIT_FILE, dump_json(signed))
    return result


def _record(department: str, plan: Plan, result: AuditResult) -> AttackAudit:
    """Put what was found into the record that may go with the model (R27)."""
    return AttackAudit(
        department=department,
        plan_digest=plan.digest(),
        package_digest=package_digest(),
        claims=tuple(
            AuditedClaim(
                name=item.claim.name,
                epsilon=item.claim.epsilon,
                lower_bound=item.bound.epsilon,
                ceiling=item.bound.ceiling,
            )
            for item in result.claims
        ),
        failures=tuple(item.code for item in result.failures),
    )
