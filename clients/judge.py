"""What this department's rules say of one step of a run, and of its answer for as long as that has not left."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from clients.department import Department
from clients.memory import Memory
from policies.evaluate import Decision, evaluate
from policies.facts import Facts, Phase
from shared.errors import InsufficientBudgetError
from shared.identity import Roster
from shared.journal import EntryKind
from shared.parameters import Vector
from shared.plan import Plan
from shared.privacy.ledger import PrivacyLedger


@dataclass(frozen=True)
class Judged:
    """What was allowed: the phase and the facts; no vector and no value of a record is among them."""

    phase: Phase
    facts: Facts = field(repr=False)


@dataclass(frozen=True)
class Judge:
    """Asks every rule of a phase, and writes what they find into the department's journal."""

    department: Department
    memory: Memory
    ledger: PrivacyLedger
    clock: Callable[[], dt.datetime]

    def require(
        self, phase: Phase, plan: Plan, roster: Roster, *, round_number: int, outgoing: Vector | None = None
    ) -> Judged:
        """Evaluate every rule of a phase, keep all findings, refuse if one failed.

        Raises:
            InsufficientBudgetError: the ledger does not hold the run, and no other rule refuses.
            PolicyViolation: ``policy-refused``.
            JournalError: the decision could not be made durable.
        """
        quote = self.ledger.quote(self.department.charge(plan), self.department.budgets())
        known = self.memory.run(plan.run_id())
        facts = self.department.facts(
            plan,
            today=self.clock().date(),
            approvals=self.memory.approvals_of(plan.digest()),
            round_number=round_number,
            last_round=known.last_round,
            aborted_rounds=known.aborted_rounds,
            roster_size=len(roster.members),
            quote=quote,
            reserved=self.ledger.reservation(plan.run_id()) is not None,
            outgoing=outgoing,
        )
        decision = self._decide(facts, phase)
        self.memory.write(EntryKind.DECISION, decision)
        if not quote.fits and {finding.rule for finding in decision.failed} == {"R12"}:
            raise InsufficientBudgetError(quote.code, quote.reason)  # says more than the rule does
        decision.require()
        return Judged(phase, facts)

    def require_still(self, judged: Judged) -> None:
        """Ask the same rules again, with what people may have changed since: the switch, their word, and the day.

        Only a refusal is written down: an answer that waits for the network is judged again and again.

        Raises:
            PolicyViolation: ``policy-refused``.
            JournalError: the decision could not be made durable.
        """
        facts = replace(
            judged.facts,
            today=self.clock().date(),
            stopped=self.department.stop_file.exists(),
            approvals=self.memory.approvals_of(judged.facts.plan_digest or b""),
        )
        decision = self._decide(facts, judged.phase)
        if not decision.accepted:
            self.memory.write(EntryKind.DECISION, decision)
        decision.require()

    def _decide(self, facts: Facts, phase: Phase) -> Decision:
        """Ask the rules."""
        return evaluate(self.department.policy.policy, facts, phase)
