"""Plans as this department's people look at them: list, inspect, approve or refuse by digest (R10).

A plan arrives as a file or over the update channel and lies in the folder of plans under its digest. Whatever lies
there is verified every time it is looked at; only what people approved by its full digest ever runs (promise P4).
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from clients.config import load_config, load_department, load_policy, load_trust, read_signed
from clients.department import Department, population_of
from clients.desk import open_memory
from clients.memory import Memory
from clients.records import Approved, PlanRefused
from policies.evaluate import Decision, evaluate
from policies.facts import Facts, Phase
from policies.policy import Policy, Role
from shared.codec import Record, encode
from shared.errors import CityFedError, ConfigError, ContractError, ProtocolError
from shared.identity import Roster, Signed
from shared.journal import EntryKind
from shared.plan import Plan, accept_plan
from shared.privacy.ledger import BudgetLine, BudgetQuote, PrivacyLedger
from shared.private_files import make_private_folder, replace_private_file


class PlanLine(Record, frozen=True, kw_only=True):
    """One file of the folder: ``state`` is ``approved``, ``waiting``, ``refused``, or the code of what is wrong."""

    digest: str
    state: str
    name: str = ""
    purpose: str = ""
    valid_until: dt.date | None = None


class Inspection(Record, frozen=True, kw_only=True):
    """Everything that a person weighs before saying yes: what is asked, what it costs, what would leave, every rule.

    Attributes:
        update_bytes: masked words of one update; ``updates`` is how many may leave, spare attempts included.
        epsilon_asked: as the plan states it; ``epsilon_computed`` as this department computes it.
        epsilon_left: what the lifetime cap leaves before this plan; ``budgets`` are all of them with this plan.
        closes_lifetime: whether nothing may follow this plan.
        decision: every static rule's finding.
    """

    digest: str
    plan: Plan
    contract_hash: str
    public_size: int
    update_bytes: int
    updates: int
    epsilon_asked: float
    epsilon_computed: float
    epsilon_left: float
    epsilon_cap: float
    budgets: tuple[BudgetLine, ...]
    closes_lifetime: bool
    approvals: tuple[tuple[str, str], ...]
    refused_by: tuple[str, ...]
    decision: Decision


def add_plan(config_path: Path, signed: Signed) -> Path:
    """Put a plan that arrived into the folder, under its digest; nothing is approved by that.

    Raises:
        ConfigError: a configuration file is not in order.
        ProtocolError: ``signature-invalid``, ``message-malformed``.
        SetupError: ``home-not-writable``.
    """
    config = load_config(config_path)
    plan = accept_plan(signed, load_trust(config).authority_key)
    path = _plan_path(config_path, plan.digest().hex())
    make_private_folder(path.parent)
    replace_private_file(path, encode(signed))
    return path


def plan_of_run(config_path: Path, run: bytes) -> Plan:
    """Return the plan of the folder from which a run's id follows; whether people approved it is judged later.

    A file that does not verify, such as one of an earlier version, is in nobody's way, nor one that cannot be read.

    Raises:
        ConfigError: ``plan-unknown``, or a configuration file is not in order; the plan is not among those that verify,
            and a file of the folder cannot be read.
        ProtocolError: the plan is not among those that verify, and a file of the folder does not.
    """
    config = load_config(config_path)
    key = load_trust(config).authority_key
    wrong: CityFedError | None = None
    for path in sorted((config_path.parent / config.plans).glob("*.plan")):
        try:
            plan = accept_plan(read_signed(path), key)
        except (ConfigError, ProtocolError) as error:
            wrong = wrong or error
            continue
        if plan.run_id() == run:
            return plan
    raise wrong or ConfigError("plan-unknown", "No plan in the folder of plans is the one of this run.")


def list_plans(config_path: Path, *, now: dt.datetime) -> tuple[PlanLine, ...]:
    """Judge every file in the folder of plans, without a verdict on the policy.

    Raises:
        ConfigError: a configuration, policy or key file is not in order.
        ContractError: the declaration is not in order.
        JournalError: the journal does not verify.
    """
    with _open_desk(config_path, now) as desk:
        folder = config_path.parent / load_config(config_path).plans
        return tuple(_line(desk, path) for path in sorted(folder.glob("*.plan")))


def inspect_plan(config_path: Path, digest: str, *, now: dt.datetime) -> Inspection:
    """Collect everything about one plan; a plan that the policy refuses can be looked at as well.

    Raises:
        ConfigError: ``plan-unknown``, ``roster-unknown``, or a file is not in order.
        ContractError: the declaration is not in order; ``feature-not-allowed``, ``label-not-allowed``,
            ``property-not-bound``.
        ProtocolError: ``signature-invalid``, ``message-malformed``, ``plan-changed``, ``package-foreign``,
            ``extra-unknown``, ``extra-not-noised``, ``cohort-foreign``, ``roster-size``.
        JournalError: the journal does not verify.
    """
    with _open_desk(config_path, now) as desk:
        return desk.inspect(desk.open(digest))


def approve_plan(config_path: Path, digest: str, *, person: str, author: bool, now: dt.datetime) -> Inspection:
    """Record one person's approval of exactly this plan.

    Args:
        config_path: this department's ``client.toml``.
        digest: 64 hex digits.
        person: as the policy names the approver; the role is the policy's.
        author: whether this person wrote the plan; somebody else has to approve it then, too.
        now: the present time, UTC.

    Raises:
        ConfigError: as :func:`inspect_plan`; ``person-unknown``.
        ContractError: as :func:`inspect_plan`.
        ProtocolError: as :func:`inspect_plan`; ``plan-expired``.
        PolicyViolation: ``policy-refused``; a rule other than the approval itself says no.
        JournalError: the approval could not be made durable.
    """
    with _open_desk(config_path, now) as desk:
        role, plan = _role_of(desk.department.policy.policy, person), desk.open(digest)
        _require_in_date(plan, now)
        inspection = desk.inspect(plan)
        desk.memory.write(EntryKind.DECISION, inspection.decision)
        others = tuple(item for item in inspection.decision.findings if item.rule != "R10")
        Decision(phase=Phase.OFFER, findings=others).require()
        approved = Approved(digest=plan.digest(), person=person, role=role, author=author)
        desk.memory.write(EntryKind.APPROVAL, approved)
        return desk.inspect(plan)


def refuse_plan(config_path: Path, digest: str, *, person: str, reason: str, now: dt.datetime) -> Plan:
    """Record one person's no: it stands until the same person approves, and all approvals have to be given anew then.

    A run under way gets no further update from here. Neither data nor declaration need be in order for a no.

    Raises:
        ConfigError: ``plan-unknown``, ``person-unknown``; the configuration or the policy is not in order.
        ProtocolError: ``signature-invalid``, ``message-malformed``, ``plan-changed``.
        JournalError: the refusal could not be made durable.
    """
    config = load_config(config_path)
    _role_of(load_policy(config_path, config).policy, person)
    plan = _open_plan(config_path, digest, load_trust(config).authority_key)
    with open_memory(config_path, lambda: now) as memory:
        memory.write(EntryKind.PLAN_REFUSED, PlanRefused(digest=plan.digest(), person=person, reason=reason))
    return plan


@dataclass(frozen=True)
class _Desk:
    """Where plans are judged: the department, its journal, and what both say together."""

    config_path: Path
    department: Department
    memory: Memory
    ledger: PrivacyLedger
    now: dt.datetime

    @property
    def roster(self) -> Roster:
        """The newest roster that was verified here."""
        if self.memory.roster is None:
            raise ConfigError("roster-unknown", "No roster was shown here yet: install the city's admission first.")
        return self.memory.roster

    def open(self, digest: str) -> Plan:
        """Read and verify the plan with this digest."""
        return _open_plan(self.config_path, digest, self.department.trust.authority_key)

    def inspect(self, plan: Plan) -> Inspection:
        """Ask ledger and policy about a plan."""
        department = self.department
        department.require_fitting(plan, self.roster)
        quote = self.ledger.quote(department.charge(plan), department.budgets())
        policy = department.policy.policy
        status = self.ledger.status(
            department.declaration.dataset, department.budgets(), population=population_of(policy)
        )
        facts = self._facts(plan, quote)
        terms = plan.datasets[department.name]
        return Inspection(
            digest=plan.digest().hex(),
            plan=plan,
            contract_hash=terms.contract_hash,
            public_size=terms.public_size,
            update_bytes=4 * plan.layout.total_size,
            updates=plan.attempts,
            epsilon_asked=plan.privacy.budget.epsilon,
            epsilon_computed=quote.epsilon_run,
            epsilon_left=status.left,
            epsilon_cap=quote.cap_lifetime,
            budgets=quote.lines,
            closes_lifetime=quote.closes_lifetime,
            approvals=tuple(dict.fromkeys((item.person, item.role) for item in facts.approvals if item.role)),
            refused_by=self.memory.refused_by(plan.digest()),
            decision=evaluate(policy, facts, Phase.OFFER),
        )

    def _facts(self, plan: Plan, quote: BudgetQuote) -> Facts:
        """Collect what the static rules look at, as for an offer."""
        return self.department.facts(
            plan,
            today=self.now.date(),
            approvals=self.memory.approvals_of(plan.digest()),
            round_number=0,
            last_round=self.memory.run(plan.run_id()).last_round,
            aborted_rounds=self.memory.run(plan.run_id()).aborted_rounds,
            roster_size=len(self.roster.members),
            quote=quote,
            reserved=self.ledger.reservation(plan.run_id()) is not None,
            outgoing=None,
        )


def _role_of(policy: Policy, person: str) -> Role:
    """Return the role in which a person may approve."""
    people = policy.approval.people
    if person not in people:
        raise ConfigError("person-unknown", f"The policy names these people: {', '.join(sorted(people))}.")
    return people[person]


def _open_plan(config_path: Path, digest: str, authority_key: bytes) -> Plan:
    """Read and verify the plan with this digest."""
    path = _plan_path(config_path, digest)
    if len(digest) != 64 or not digest.isalnum() or not path.is_file():
        raise ConfigError(
            "plan-unknown",
            f"No plan with this digest of 64 hex digits lies in {path.parent}: see `cityfed-client plan list`.",
        )
    plan = accept_plan(read_signed(path), authority_key)
    if plan.digest().hex() != digest:
        raise ProtocolError("plan-changed", f"{path} does not hold the plan of its name: it was changed.")
    return plan


def _line(desk: _Desk, path: Path) -> PlanLine:
    """Judge one file by everything that needs no policy."""
    try:
        plan = desk.open(path.stem)
    except CityFedError as error:
        return PlanLine(digest=path.stem, state=error.code)
    try:
        _require_in_date(plan, desk.now)
        found = desk.inspect(plan)
        state = "refused" if found.refused_by else ("approved" if _is_approved(found) else "waiting")
    except (ProtocolError, ConfigError, ContractError) as error:
        state = error.code
    return PlanLine(digest=path.stem, state=state, name=plan.name, purpose=plan.purpose, valid_until=plan.valid_until)


def _is_approved(found: Inspection) -> bool:
    """Whether the approval rule is satisfied."""
    return all(item.ok is True for item in found.decision.findings if item.rule == "R10")


def _require_in_date(plan: Plan, now: dt.datetime) -> None:
    """Name a plan that is out of date; one that begins later may be approved before."""
    if now.date() > plan.valid_until:
        raise ProtocolError("plan-expired", f"The plan {plan.name} was valid until {plan.valid_until}.")


def _plan_path(config_path: Path, digest: str) -> Path:
    """Where a plan lies."""
    return config_path.parent / load_config(config_path).plans / f"{digest}.plan"


@contextmanager
def _open_desk(config_path: Path, now: dt.datetime) -> Iterator[_Desk]:
    """Open department and journal."""
    department = load_department(config_path)
    with open_memory(config_path, lambda: now) as memory:
        yield _Desk(config_path, department, memory, PrivacyLedger(memory.journal, lambda: now), now)
