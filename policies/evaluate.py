"""Judge every rule of a phase, report all findings at once, accept only when each one is satisfied."""

from __future__ import annotations

from collections.abc import Sequence

from policies.facts import Facts, Phase
from policies.findings import Finding
from policies.policy import Policy
from policies.rules import RULES, RuleEntry
from shared.codec import Record
from shared.errors import PolicyViolation


class Decision(Record, frozen=True, kw_only=True):
    """All findings of one phase; for the department and its journal, never for the coordinator."""

    phase: Phase
    findings: tuple[Finding, ...]

    @property
    def accepted(self) -> bool:
        """Whether there are findings and every one of them is satisfied."""
        return bool(self.findings) and all(finding.ok is True for finding in self.findings)

    @property
    def failed(self) -> tuple[Finding, ...]:
        """The findings that refuse."""
        return tuple(finding for finding in self.findings if finding.ok is not True)

    def require(self) -> None:
        """Return when accepted.

        Raises:
            PolicyViolation: ``policy-refused``; the message is for the department only.
        """
        if self.accepted:
            return
        reasons = [f"{item.rule} (found {item.found}; allowed {item.limit})" for item in self.failed]
        raise PolicyViolation(
            "policy-refused",
            f"The policy refuses in phase {self.phase.value}: {', '.join(reasons) or 'nothing was judged'}.",
        )


def evaluate(policy: Policy, facts: Facts, phase: Phase, *, rules: Sequence[RuleEntry] = RULES) -> Decision:
    """Judge all rules of a phase.

    Args:
        policy: the department's policy.
        facts: what is known in this phase.
        phase: which rules apply.
        rules: the table of rules.

    Raises:
        RuntimeError: when no rule applies; accepting because nobody asked would be a mistake of ours.

    Guarantees:
        A rule that fails to answer refuses (R28). Every rule of the phase has one finding, in table order.
    """
    chosen = [entry for entry in rules if phase in entry.phases]
    if not chosen:
        raise RuntimeError(f"no rule applies in phase {phase.value}; an empty rule list accepts nothing")
    return Decision(phase=phase, findings=tuple(_judge(entry, policy, facts) for entry in chosen))


def _judge(entry: RuleEntry, policy: Policy, facts: Facts) -> Finding:
    """Ask one rule; whatever goes wrong is a refusal under the rule's own id (R28)."""
    try:
        finding = entry.function(policy, facts)
    except Exception as cause:  # noqa: BLE001 - R28 means every error, and the finding names its type
        return _not_evaluated(entry.rule, type(cause).__name__)
    if not isinstance(finding, Finding) or finding.rule != entry.rule:
        return _not_evaluated(entry.rule, "no finding of this rule")
    return finding


def _not_evaluated(rule: str, reason: str) -> Finding:
    """Return the refusal of a rule that failed; the error's text may hold anything, so only its type is told."""
    return Finding(
        rule=rule,
        ok=False,
        found=reason,
        limit="a finding",
        owner="system",
        text=f"{rule} could not be evaluated, which is a refusal (R28).",
    )
