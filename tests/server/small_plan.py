"""A valid plan with chosen weights and no city around it."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping

from shared.parameters import Layout, TensorSpec
from shared.plan import (
    DatasetTerms,
    LocalOptimizer,
    ModelSpec,
    Plan,
    ServerOptimizerSpec,
    TaskSpec,
    default_aggregation,
)
from shared.privacy.plan import PrivacyBudget, PrivacyParams

DAY = dt.date(2026, 3, 1)
LAYOUT = Layout(tensors=(TensorSpec(name="head.weight", shape=(1, 3)), TensorSpec(name="head.bias", shape=(1,))))
PRIVACY = PrivacyParams(
    budget=PrivacyBudget(epsilon=1.0, delta=1e-4), sample_rate=0.1, steps=1, max_grad_norm=1.0, noise_multiplier=1.0
)


def plan_with(weights: Mapping[str, float]) -> Plan:
    """One round over a layout of four coordinates."""
    return Plan(
        name="small",
        purpose="test",
        approval=1,
        valid_from=DAY,
        valid_until=DAY,
        package_digest="0" * 64,
        task=TaskSpec(),
        model=ModelSpec(architecture="hashed-words", base_weights_sha256="0" * 64),
        layout=LAYOUT,
        initial_model_sha256="0" * 64,
        datasets={
            name: DatasetTerms(contract_hash="0" * 64, public_size=10, weight=weight)
            for name, weight in weights.items()
        },
        roster_size=len(weights),
        privacy=PRIVACY,
        aggregation=default_aggregation(len(weights), bound=32.0),
        rounds=1,
        local_optimizer=LocalOptimizer(learning_rate=1.0),
        server_optimizer=ServerOptimizerSpec(),
    )
