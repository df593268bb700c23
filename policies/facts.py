"""Everything a rule may look at, gathered by the department before it asks (no clock, no files, no rows).

Optional parts are ``None`` until their phase; a rule that needs a missing part refuses. There is no field for
a record or a value of one, so no finding can repeat one.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from enum import StrEnum

from policies.policy import SignedPolicy
from shared.codec import Record
from shared.plan import Plan
from shared.privacy.statement import PrivacyStatement


class Phase(StrEnum):
    """When a decision is taken; the letters are those of docs/policies.md."""

    BIND = "bind"  # A: a data set is bound to its contract
    OFFER = "offer"  # B: a plan is offered
    ROUND = "round"  # C: before each round
    SEND = "send"  # D: before anything leaves
    RELEASE = "release"  # E: the run's model is taken over


class Approval(Record, frozen=True, kw_only=True):
    """One person's approval of one plan digest; ``author`` says that this person wrote the plan."""

    person: str
    role: str
    digest: bytes
    author: bool


@dataclass(frozen=True, kw_only=True)
class BudgetFacts:
    """The ledger's answer to "what if this plan ran": whole-run epsilon, lifetime epsilon with it, and whether it fits.

    ``epsilon_run`` covers all rounds and spare attempts of the plan, in every round alike; ``lone_share_after`` is what
    counts for the lifetime, or for the population where that is more, if updates could be read one by one. ``reason``
    is the ledger's own sentence when the plan does not fit.
    """

    epsilon_run: float
    epsilon_lifetime_after: float
    lone_share_after: float
    fits: bool
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class OutgoingFacts:
    """What is about to be masked: names and shapes in order, the L2 norm after noise and projection, bytes, metrics."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    finite: bool
    norm: float
    bytes: int
    metrics: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ReleaseFacts:
    """What the authority signed about a model, verified: its final account, who audited, who released it.

    ``computed`` is the account as this department computes it from the plan; ``contributors`` are how many departments
    are in the sum of each round. ``audited_by`` are the departments whose attack audit held, ``approved_by`` is empty
    if nobody at the authority put their name to it.
    """

    said: PrivacyStatement
    computed: PrivacyStatement
    contributors: tuple[int, ...]
    audited_by: tuple[str, ...]
    approved_by: str


@dataclass(frozen=True, kw_only=True)
class Facts:
    """The facts of one decision.

    Attributes:
        today: the present date, UTC.
        stopped: whether the kill switch is set.
        signed_policy: the policy as its owner's signature verified it; must hold the policy that is judged.
        dataset: the name under which the data set is bound here, and charged.
        contract_hash: hash of the contract installed here, hex.
        columns: contract properties that the binding maps.
        rows_ok: rows that passed every contract check at binding.
        units: distinct privacy units among them.
        public_size: the size that this department declared at binding and froze.
        binding_unchanged: whether binding and contract are those of the last full validation. Must not be
            computed from record contents: it is judged in rounds, where a refusal is visible.
        plan: the verified plan, with ``plan_digest`` as the department computed it.
        authority_key: the public key that verified the plan; ``roster_key`` the one that verified the roster.
        roster_size: members of the roster held here.
        approvals: approvals recorded here, of this or any other plan.
        budget: the ledger's answer for this plan.
        round: the round asked for, counted from 1; ``last_round`` the highest one answered, 0 before the first.
        aborted_rounds: rounds of this run with an update of this department, but no shares that it gave for a sum or no
            account of one.
        reserved: whether the plan's charge is on disk.
        outgoing: what is about to leave.
        release: what was signed about the model that is to be taken over.
    """

    today: dt.date
    stopped: bool
    signed_policy: SignedPolicy | None = None
    dataset: str | None = None
    contract_hash: str | None = None
    columns: tuple[str, ...] | None = None
    rows_ok: int | None = None
    units: int | None = None
    public_size: int | None = None
    binding_unchanged: bool | None = None
    plan: Plan | None = None
    plan_digest: bytes | None = None
    authority_key: bytes | None = None
    roster_key: bytes | None = None
    roster_size: int | None = None
    approvals: tuple[Approval, ...] = ()
    budget: BudgetFacts | None = None
    round: int | None = None
    last_round: int | None = None
    aborted_rounds: int | None = None
    reserved: bool | None = None
    outgoing: OutgoingFacts | None = None
    release: ReleaseFacts | None = None
