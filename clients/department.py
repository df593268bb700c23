"""A department as its node knows it: identity, trust, policy, binding; loaded once, frozen, verified."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from clients.binding import Binding, Declaration, binding_digest, bound_contract, verify_declaration
from clients.dataset import load_dataset, require_columns
from policies.facts import Approval, BudgetFacts, Facts, OutgoingFacts
from policies.policy import Policy, SignedPolicy
from shared.codec import encode, sha256
from shared.errors import ContractError, PolicyViolation, ProtocolError
from shared.identity import DepartmentId, IdentityKey, Roster
from shared.package import package_digest
from shared.parameters import Vector, is_finite
from shared.plan import Plan
from shared.privacy.accountant import event_of
from shared.privacy.extras import extra_charges, require_noised
from shared.privacy.ledger import BudgetQuote, Budgets, PlanCharge, WindowBudget
from shared.privacy.plan import PerformanceFlags, PrivacyBudget
from shared.secagg.ring import l2_norm

if TYPE_CHECKING:
    from shared.tasks.text import Prepared


@dataclass(frozen=True, kw_only=True)
class Trust:
    """The public keys that this department pinned: who signs rosters, who signs plans, who is a member.

    ``pins`` are the members' keys as configured; keys approved later are in :class:`clients.memory.Memory`.
    """

    roster_key: bytes
    authority_key: bytes
    pins: dict[DepartmentId, bytes]


@dataclass(frozen=True, kw_only=True)
class Department:
    """Everything that a Participant needs to know about its own department.

    Attributes:
        files: what people may change beside a node at work, as it was read: the code of a refusal after a change, and
            the file's digest.
        weights: folder of the base weights, or None when the model needs none.
        feature_cache: file that keeps encoder features of this department's own texts, or None.
        stop_file: the kill switch (R23): as long as this file exists, every offer and round is refused.
        outbox: where decisions wait that people took while the node held the journal.
    """

    name: DepartmentId
    identity: IdentityKey
    trust: Trust
    files: Mapping[Path, tuple[str, bytes]]
    policy: SignedPolicy
    binding_path: Path
    binding: Binding
    declaration: Declaration
    weights: Path | None
    feature_cache: Path | None
    stop_file: Path
    outbox: Path
    performance: PerformanceFlags
    _rows: dict[bytes, Prepared] = field(default_factory=dict, repr=False)

    def require_unchanged(self) -> None:
        """Refuse once the files that were read here are not what lies on disk any more.

        Guarantees:
            A policy counts from the moment that its owner signed it, or took the older one away; nothing is done under
            one that was replaced (promise P4).

        Raises:
            PolicyViolation: ``policy-changed``, ``configuration-changed``, ``declaration-changed``.
        """
        for path, (code, digest) in self.files.items():
            if digest_of(path) != digest:
                raise PolicyViolation(code, f"{path} was changed after this node read it, and has to be read again.")

    def require_fitting(self, plan: Plan, roster: Roster) -> None:
        """Refuse a plan for other software, numbers that nobody noises, other departments, rosters or columns.

        Raises:
            ProtocolError: ``package-foreign``, ``extra-unknown``, ``extra-not-noised``, ``cohort-foreign``,
                ``roster-size``.
            ContractError: those of :func:`clients.dataset.require_columns`.
        """
        if plan.package_digest != package_digest():
            raise ProtocolError("package-foreign", "The plan was made for another version of this package.")
        require_noised(plan)
        if self.name not in plan.cohort:
            raise ProtocolError("cohort-foreign", f"The plan's cohort does not include {self.name}.")
        if len(roster.members) != plan.roster_size:
            raise ProtocolError("roster-size", "The roster has grown or shrunk since the plan was approved.")
        require_columns(self.binding, bound_contract(self.binding), features=plan.task.features, label=plan.task.label)

    def charge(self, plan: Plan) -> PlanCharge:
        """Return what a plan costs this department: all rounds and spare attempts."""
        return charge_of(plan, self.declaration, self.policy.policy)

    def budgets(self) -> Budgets:
        """Return the caps of this department's own policy."""
        return budgets_of(self.policy.policy)

    def rows(self, plan: Plan) -> Prepared:
        """Load this department's rows for a plan; the frozen data set is read once per model and process.

        Raises:
            ContractError: a mapped column has disappeared; ``unit-foreign``.
            ModelError: the base weights are not those that the plan names.
        """
        privacy = plan.privacy
        if privacy.unit != self.binding.unit:  # R12 refused it before; no path reaches rows without this
            raise ContractError("unit-foreign", "The plan's privacy unit is not that of this department's binding.")
        key = encode(plan.model) + encode(plan.task) + str(privacy.max_records).encode()
        if key not in self._rows:
            task = plan.task
            contract = bound_contract(self.binding)
            data = load_dataset(
                self.binding, contract, features=task.features, label=task.label, max_records=privacy.max_records
            )
            self._rows[key] = replace(self._prepared(plan, data.texts, data.labels), owners=data.owners)
        return self._rows[key]

    def specimen(self, plan: Plan) -> Prepared:
        """Return one unit that was made up, in the form of this department's rows for a plan; no row is read.

        Raises:
            CityFedError: as for :meth:`rows`, for everything but the rows.
        """
        prepared = self._prepared(plan, ("specimen",), np.zeros(1, dtype=np.float32))
        return prepared if self.binding.unit == "record" else replace(prepared, owners=np.zeros(1, dtype=np.int64))

    def _prepared(self, plan: Plan, texts: Sequence[str], labels: NDArray[np.float32]) -> Prepared:
        """Prepare texts for the plan's model."""
        from shared.tasks.device import resolve_device  # noqa: PLC0415 - imports torch, as the next two
        from shared.tasks.features import FeatureCache  # noqa: PLC0415
        from shared.tasks.text import prepare  # noqa: PLC0415

        return prepare(
            plan.model,
            texts,
            labels,
            weights_dir=self.weights,
            device=resolve_device(self.performance.device),
            cache=FeatureCache(self.feature_cache) if self.feature_cache else None,
        )

    def binding_unchanged(self) -> bool:
        """Return whether binding and contract are those of the last full validation; the rows are not looked at.

        The binding read at the start counts as well as the file: rows are read by the former.
        """
        if binding_digest(self.binding) != self.declaration.binding_digest:
            return False
        try:
            verify_declaration(self.binding_path, self.declaration, bound_contract(self.binding))
        except ContractError:
            return False
        return True

    def facts(
        self,
        plan: Plan,
        *,
        today: dt.date,
        approvals: tuple[Approval, ...],
        round_number: int,
        last_round: int,
        aborted_rounds: int,
        roster_size: int,
        quote: BudgetQuote,
        reserved: bool,
        outgoing: Vector | None,
    ) -> Facts:
        """Collect what the rules may look at; record contents are not among it (privacy 2)."""
        return Facts(
            today=today,
            stopped=self.stop_file.exists(),
            signed_policy=self.policy,
            dataset=self.declaration.dataset,
            contract_hash=self.declaration.contract_hash,
            columns=tuple(self.binding.columns),
            public_size=self.declaration.public_size,
            # Judged before a round only, and it reads files: not again before sending.
            binding_unchanged=self.binding_unchanged() if outgoing is None else None,
            plan=plan,
            plan_digest=plan.digest(),
            authority_key=self.trust.authority_key,
            roster_key=self.trust.roster_key,
            roster_size=roster_size,
            approvals=approvals,
            budget=BudgetFacts(
                epsilon_run=quote.epsilon_run,
                epsilon_lifetime_after=quote.counted_after,
                lone_share_after=quote.lone_share_after,
                fits=quote.fits,
                reason=quote.reason,
            ),
            round=round_number,
            last_round=last_round,
            aborted_rounds=aborted_rounds,
            reserved=reserved,
            outgoing=None if outgoing is None else outgoing_facts(plan, outgoing),
        )


def digest_of(path: Path) -> bytes:
    """Return the SHA-256 of a file, or nothing if it cannot be read."""
    try:
        return sha256(path.read_bytes())
    except OSError:
        return b""


def charge_of(plan: Plan, declaration: Declaration, policy: Policy) -> PlanCharge:
    """Return what a plan costs a data set: all rounds and spare attempts."""
    return PlanCharge(
        run=plan.run_id(),
        dataset=declaration.dataset,
        unit=plan.privacy.unit,
        population=population_of(policy),
        event=event_of(plan.privacy, 1),
        extras=extra_charges(plan.layout.extras),
        attempts=plan.attempts,
        delta=plan.privacy.budget.delta,
        accountant=plan.privacy.accountant,
        public_size=declaration.public_size,
    )


def budgets_of(policy: Policy) -> Budgets:
    """Return a policy's caps as the ledger compares them."""
    caps = policy.privacy
    lone, per_round, window, population = (
        caps.epsilon_lone_share,
        caps.epsilon_per_round,
        caps.window,
        caps.population,
    )
    return Budgets(
        run=PrivacyBudget(epsilon=caps.epsilon_per_run, delta=caps.delta),
        lifetime=PrivacyBudget(epsilon=caps.epsilon_lifetime, delta=caps.delta),
        lone_share=None if lone is None else PrivacyBudget(epsilon=lone, delta=caps.delta),
        round=None if per_round is None else PrivacyBudget(epsilon=per_round, delta=caps.delta),
        window=None
        if window is None
        else WindowBudget(days=window.days, budget=PrivacyBudget(epsilon=window.epsilon, delta=caps.delta)),
        population=None if population is None else PrivacyBudget(epsilon=population.epsilon, delta=caps.delta),
    )


def population_of(policy: Policy) -> str:
    """Return the name of the population that a policy charges, empty for one that charges records."""
    return "" if policy.privacy.population is None else policy.privacy.population.name


def outgoing_facts(plan: Plan, vector: Vector) -> OutgoingFacts:
    """Describe the vector that is about to be encoded, as the rules see it; the norm is that of the model's part."""
    update = vector[: plan.layout.size]
    tensors = plan.layout.unflatten(update)
    return OutgoingFacts(
        names=tuple(tensors),
        shapes=tuple(tensor.shape for tensor in tensors.values()),
        finite=is_finite(vector),
        norm=l2_norm(update),
        bytes=vector.nbytes,
        metrics=tuple(extra.name for extra in plan.layout.extras),
    )
