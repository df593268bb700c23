"""Whatever a scenario or an ask may say can be trained: nothing that is accepted fails after it was paid for."""

from __future__ import annotations

import contextlib
import datetime as dt
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from clients.training.noise import UnsafeSeededSource
from clients.training.train import Trainer, TrainingSettings, settings_of
from server.asks import ModelBasis, ModelChoice, PlanAsk, PrivacyAsk, draft_plan
from shared.codec import decode, encode
from shared.identity import DepartmentId, Roster
from shared.mechanisms import MECHANISMS
from shared.plan import LocalOptimizer, Plan, ServerOptimizerSpec, TaskSpec, default_aggregation
from shared.privacy.plan import PerformanceFlags, PrivacyBudget, PrivacyParams, full_noise
from shared.tasks.features import HASHED_WORDS_SHA256
from shared.tasks.text import prepare
from simulation.scenario import ArmOptimizers, Scenario

NAMES = [DepartmentId(name) for name in ("environment", "health", "police")]
BASIS = ModelBasis.load(ModelChoice(architecture="hashed-words").spec(HASHED_WORDS_SHA256), None)


CHANCE = random.Random(1)
ENDS = (0.0, 1e-9, 1e-7, 1e-6, 1e3, 1e4, 1e6, 1e7, float("inf"), float("nan"), -1.0)
"""Ends of ranges, what lies beyond them, and what no range holds."""


def accepted(record: type[Any], *, draws: int, **keys: Sequence[Any]) -> list[Any]:
    """Draw tables of a scenario from values for each key, and keep what their own type accepts."""
    found = []
    for _ in range(draws):
        tree = {key: CHANCE.choice(values) for key, values in keys.items()}
        with contextlib.suppress(msgspec.ValidationError):
            found.append(msgspec.convert(msgspec.to_builtins(tree), type=record, strict=True))
    return found


OPTIMIZERS = accepted(
    LocalOptimizer,
    draws=2000,
    kind=["sgd", "adamw"],
    learning_rate=[1.0, 0.1, *ENDS],
    momentum=[0.0, 0.5, 0.999, 1.0],
    weight_decay=[0.0, 1e-4, 0.1, 1.0],
    iterate=["last", "mean-of-last-half"],
)
MODELS = accepted(
    ModelChoice,
    draws=2000,
    architecture=["minilm", "hashed-words"],
    trainable=["head", "lora", "last-n", "full"],
    last_n=[0, 1, 7, -1],
    lora_rank=[0, 1, 8, -1],
    max_tokens=[7, 8, 64, 512, 513],
)
PRIVACY = accepted(
    PrivacyAsk,
    draws=10_000,
    mechanism=["poisson-dpsgd", "shared-noise"],
    epsilon=[1.0, 100.0, 1e-9, 101.0],
    delta=[1e-4, 1e-300, 0.1],
    sample_rate=[0.1, 1.0, *ENDS],
    steps=[0, 1, 2, 3, 10_000, 10_001],
    max_grad_norm=[0.1, 1.0, *ENDS],
    clipping=["flat", "automatic"],
    unit=["record", "person"],
    max_records=[0, 1, 5, 1000, 1001],
)
SERVERS = accepted(
    ServerOptimizerSpec,
    draws=1000,
    kind=["fedavg", "fedadam", "fedyogi"],
    learning_rate=[1.0, *ENDS],
    beta1=[0.0, 0.9, 1.0],
    tau=[1e-3, 1e-300, *ENDS],
)
DOCUMENT: dict[str, Sequence[Any]] = {
    "name": ["small", "n" * 201],
    "purpose": ["emergency-triage"],
    "rounds": [0, 1, 3, 10_000, 10_001],
    "spare_attempts": [-1, 0, 2, 1000, 1001],
    "bound": [0.0, 1e-30, 1e-6, 32.0, 1e6, float("inf")],
    "model": MODELS,
    "task": accepted(TaskSpec, draws=20, features=[[], ["description"], ["request"], ["description", "request"]]),
    "privacy": PRIVACY,
    "server_optimizer": SERVERS,
}
NOISE = st.sampled_from([0.3, 1.0, 1e6])


def parameters(ask: PrivacyAsk, noise_multiplier: float) -> PrivacyParams:
    """The privacy parameters of an ask, with a noise multiplier that the accountant need not look for."""
    return PrivacyParams(
        mechanism=ask.mechanism,
        unit=ask.unit,
        max_records=ask.max_records,
        budget=PrivacyBudget(epsilon=ask.epsilon, delta=ask.delta),
        sample_rate=ask.sample_rate,
        steps=ask.steps,
        max_grad_norm=ask.max_grad_norm,
        clipping=ask.clipping,
        noise_multiplier=noise_multiplier,
        noise_shares=MECHANISMS[ask.mechanism].noise_shares(default_aggregation(3, bound=1.0)),
    )


@dataclass(frozen=True)
class Told:
    """What a department told."""

    contract_hash: str = "ab" * 32
    public_size: int = 1


def plan_of(ask: PlanAsk, privacy: PrivacyParams) -> Plan:
    basis = replace(BASIS, spec=ask.model.spec(HASHED_WORDS_SHA256))
    roster = Roster(city="town", serial=1, members={name: bytes([at]) * 32 for at, name in enumerate(NAMES)})
    day = dt.date(2026, 1, 1)
    return draft_plan(
        ask,
        basis,
        declared=dict.fromkeys(NAMES, Told()),
        roster=roster,
        privacy=privacy,
        approval=1,
        valid_from=day,
        valid_until=day,
    )


def check_training(chosen: TrainingSettings) -> None:
    """Twelve steps at most, and the update is finite: :meth:`Trainer.train` refuses any other."""
    few = structs.replace(chosen.privacy, steps=min(chosen.privacy.steps, 12))
    chosen = replace(chosen, model=BASIS.spec, privacy=few)
    units = prepare(BASIS.spec, ["help"] * 4, [0, 1, 0, 1], weights_dir=None, device=torch.device("cpu"))
    trainer = Trainer.prepare(settings=chosen, data=units, weights_dir=None, flags=PerformanceFlags(device="cpu"))
    trainer.train(BASIS.initial, units, UnsafeSeededSource(1))


@settings(max_examples=200)
@given(st.sampled_from(MODELS))
def test_a_model_that_is_accepted_is_a_plans_model(choice: ModelChoice) -> None:
    assert choice.spec("ab" * 32).trainable == choice.trainable


@settings(max_examples=200)
@given(st.sampled_from(PRIVACY), NOISE)
def test_privacy_that_is_accepted_is_a_plans_privacy(ask: PrivacyAsk, noise_multiplier: float) -> None:
    assert parameters(ask, noise_multiplier).steps == ask.steps


@settings(max_examples=60)
@given(st.sampled_from(accepted(PlanAsk, draws=4000, **DOCUMENT, optimizer=OPTIMIZERS)), NOISE)
def test_an_ask_that_is_accepted_makes_a_plan_that_every_department_can_decode_and_train(
    ask: PlanAsk, noise_multiplier: float
) -> None:
    alone = structs.replace(ask.privacy, mechanism="poisson-dpsgd")  # of shared noise the ring says more
    plan = plan_of(structs.replace(ask, privacy=alone), parameters(alone, noise_multiplier))
    assert decode(encode(plan), Plan) == plan
    check_training(settings_of(plan, NAMES[0]))


CITY = [{str(name): {} for name in NAMES}]
ARMS = accepted(ArmOptimizers, draws=1000, federated=OPTIMIZERS, local=OPTIMIZERS, pooled=OPTIMIZERS)


@settings(max_examples=30)
@given(st.sampled_from(accepted(Scenario, draws=8000, **DOCUMENT, departments=CITY, optimizer=ARMS)), NOISE)
def test_a_scenario_that_is_accepted_can_train_every_arm(scenario: Scenario, noise_multiplier: float) -> None:
    privacy = full_noise(parameters(scenario.privacy, noise_multiplier))
    arms = scenario.optimizer
    for optimizer in (arms.federated, arms.local, arms.pooled):
        chosen = TrainingSettings(
            privacy=privacy,
            denominator=privacy.sample_rate,
            optimizer=optimizer,
            model=scenario.model.spec(HASHED_WORDS_SHA256),
            layout=BASIS.layout,
        )
        check_training(chosen)
