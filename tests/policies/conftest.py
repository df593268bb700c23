"""One policy, one plan and one set of facts that every rule accepts; each test breaks one thing."""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from policies.facts import Approval, BudgetFacts, Facts, OutgoingFacts, ReleaseFacts
from policies.load import complete, department_policy, open_policy, parse_policy, sign_policy
from policies.policy import Policy
from shared.identity import IdentityKey, fingerprint
from shared.parameters import Layout, TensorSpec
from shared.plan import AggregationParams, DatasetTerms, LocalOptimizer, ModelSpec, Plan, ServerOptimizerSpec, TaskSpec
from shared.privacy.citywide import CityWorstCase
from shared.privacy.plan import PrivacyBudget, PrivacyParams
from shared.privacy.statement import PrivacyStatement

CONTRACT = "ab" * 32
OWNER = IdentityKey.from_private_bytes(bytes([1]) * 32)
PLAN_KEY = IdentityKey.from_private_bytes(bytes([2]) * 32)
ROSTER_KEY = IdentityKey.from_private_bytes(bytes([3]) * 32)
ACCOUNT = PrivacyStatement(
    unit="record",
    relation="add-remove",
    mechanism="poisson-dpsgd",
    sampling="Poisson over records",
    sample_rate=0.1,
    noise_multiplier=2.0,
    max_grad_norm=0.1,
    steps=20,
    accountant="PLD",
    epsilon=0.99,
    delta=1e-4,
    rounds=10,
    spare_attempts=2,
    lone_share_epsilon=0.99,
    city_worst_case=CityWorstCase(departments=4, epsilon=2.1, delta=1e-4, added=3.96),
    metrics=(),
)
"""What the example's model is said to have cost."""


@pytest.fixture
def owner() -> IdentityKey:
    return OWNER


@pytest.fixture
def policy_text() -> str:
    """A policy whose two floors differ."""
    text = complete(
        department_policy("transport"),
        dataset="reports",
        contract_hash=CONTRACT,
        plan_key_fingerprint=fingerprint(PLAN_KEY.public),
        roster_key_fingerprint=fingerprint(ROSTER_KEY.public),
    )
    assert "minimum_units = 150" in text
    return text.replace("minimum_units = 150", "minimum_units = 120")


@pytest.fixture
def policy(policy_text: str) -> Policy:
    return parse_policy(policy_text.encode(), "policy.toml")


@pytest.fixture
def plan() -> Plan:
    terms = DatasetTerms(contract_hash=CONTRACT, public_size=2048)
    return Plan(
        name="triage",
        purpose="emergency-triage",
        approval=1,
        valid_from=dt.date(2026, 1, 1),
        valid_until=dt.date(2026, 12, 31),
        package_digest="cd" * 32,
        task=TaskSpec(),
        model=ModelSpec(base_weights_sha256="ef" * 32),
        layout=Layout(tensors=(TensorSpec(name="head.weight", shape=(1, 4)), TensorSpec(name="head.bias", shape=(1,)))),
        initial_model_sha256="01" * 32,
        datasets=dict.fromkeys(("environment", "health", "police", "transport"), terms),
        roster_size=4,
        privacy=PrivacyParams(
            budget=PrivacyBudget(epsilon=1.0, delta=1e-4),
            sample_rate=0.1,
            steps=20,
            max_grad_norm=0.1,
            noise_multiplier=2.0,
        ),
        aggregation=AggregationParams(threshold=3, min_contributors=3, max_colluders=1, bound=32.0),
        rounds=10,
        local_optimizer=LocalOptimizer(learning_rate=10.0),
        server_optimizer=ServerOptimizerSpec(),
    )


@pytest.fixture
def facts(plan: Plan, policy_text: str, owner: IdentityKey) -> Facts:
    signed = sign_policy(owner, policy_text.encode())
    return Facts(
        today=dt.date(2026, 6, 1),
        stopped=False,
        signed_policy=open_policy(signed.text, signed.signature, owner.public, "policy.toml"),
        dataset="reports",
        contract_hash=CONTRACT,
        columns=("service_request_id", "description", "request"),
        rows_ok=2048,
        units=2048,
        public_size=2048,
        binding_unchanged=True,
        plan=plan,
        plan_digest=plan.digest(),
        authority_key=PLAN_KEY.public,
        roster_key=ROSTER_KEY.public,
        roster_size=4,
        approvals=(
            Approval(person="transport-steward", role="steward", digest=plan.digest(), author=False),
            Approval(person="transport-it", role="it", digest=plan.digest(), author=True),
        ),
        budget=BudgetFacts(epsilon_run=0.99, epsilon_lifetime_after=1.37, lone_share_after=1.37, fits=True),
        round=1,
        last_round=0,
        aborted_rounds=0,
        reserved=True,
        outgoing=OutgoingFacts(
            names=("head.weight", "head.bias"), shapes=((1, 4), (1,)), finite=True, norm=1.0, bytes=20
        ),
        release=ReleaseFacts(
            said=ACCOUNT,
            computed=ACCOUNT,
            contributors=(4, 3),
            audited_by=("health",),
            approved_by="head of office",
        ),
    )


@pytest.fixture
def change() -> Callable[..., Any]:
    """Return ``change(record, "a.b.c", value)``: a copy with one nested field replaced."""

    def replace(record: Any, path: str, value: object) -> Any:
        head, _, rest = path.partition(".")
        inner = replace(getattr(record, head), rest, value) if rest else value
        if dataclasses.is_dataclass(record):
            return dataclasses.replace(record, **{head: inner})  # type: ignore[type-var]  # an instance, not a class
        return msgspec.structs.replace(record, **{head: inner})

    return replace
