import datetime as dt
from typing import Any

import msgspec
import numpy as np
import pytest

from shared.codec import encode, sha256
from shared.errors import ProtocolError
from shared.identity import MAX_DEPARTMENTS
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
from shared.secagg.ring import fraction_bits
from shared.secagg.terms import RoundTerms, round_terms

COHORT = ("environment", "health", "police", "transport")


def plan(**changes: Any) -> Plan:
    values: dict[str, Any] = {
        "name": "triage",
        "purpose": "test",
        "approval": 1,
        "valid_from": dt.date(2026, 1, 1),
        "valid_until": dt.date(2026, 12, 31),
        "package_digest": "sha256:0",
        "task": TaskSpec(),
        "model": ModelSpec(base_weights_sha256="0" * 64),
        "layout": Layout(tensors=(TensorSpec(name="head", shape=(3, 2)),)),
        "initial_model_sha256": "0" * 64,
        "datasets": {name: DatasetTerms(contract_hash="0", public_size=100) for name in COHORT},
        "roster_size": 4,
        "privacy": PrivacyParams(
            budget=PrivacyBudget(epsilon=3, delta=1e-5), sample_rate=0.1, steps=2, max_grad_norm=1, noise_multiplier=1
        ),
        "aggregation": default_aggregation(4, bound=0.1),
        "rounds": 3,
        "local_optimizer": LocalOptimizer(learning_rate=0.1),
        "server_optimizer": ServerOptimizerSpec(),
    }
    return Plan(**(values | changes))


def terms(the_plan: Plan, **changes: Any) -> RoundTerms:
    values: dict[str, Any] = {
        "epoch_id": b"e" * 32,
        "round_number": 1,
        "participants": COHORT,
        "model_hash": b"m" * 32,
    }
    return round_terms(the_plan, **(values | changes))


def test_terms_follow_from_the_plan() -> None:
    made = terms(plan())
    assert (made.run, made.plan_digest) == (plan().run_id(), plan().digest())
    assert (made.dimension, made.threshold, made.min_contributors, made.max_colluders) == (6, 3, 3, 1)
    assert made.privacy_digest == sha256(b"privacy", encode(plan().privacy))
    assert made.bound == float(np.float32(0.1))
    assert made.point("health") == 2
    assert made.points() == (1, 2, 3, 4)
    assert made.peers("police") == ("environment", "health", "transport")


@pytest.mark.parametrize(
    ("plan_changes", "changes", "code"),
    [
        ({"roster_size": 6}, {}, "threshold-inadmissible"),
        ({}, {"round_number": 0}, "round-out-of-range"),
        ({}, {"participants": ("health", "environment", "police")}, "participants-unordered"),
        ({}, {"participants": ("health", "health", "police")}, "participants-unordered"),
        ({}, {"participants": ("health", "police", "sybil")}, "participant-foreign"),
        ({}, {"participants": ("health", "police")}, "too-few-participants"),
    ],
)
def test_terms_that_break_the_protocol_are_refused(
    plan_changes: dict[str, Any], changes: dict[str, Any], code: str
) -> None:
    with pytest.raises(ProtocolError) as caught:
        terms(plan(**plan_changes), **changes)
    assert caught.value.code == code


@pytest.mark.parametrize("bound", [1e-6, 1e6])
@pytest.mark.parametrize("participants", [1, 3, MAX_DEPARTMENTS])
def test_every_bound_that_a_plan_may_have_fits_the_ring(bound: float, participants: int) -> None:
    limits = default_aggregation(4, bound=bound)
    assert 0 <= fraction_bits(participants, float(np.float32(limits.bound))) < 100
    for beyond in (bound / 10, bound * 10):
        if not 1e-6 <= beyond <= 1e6:
            with pytest.raises(ValueError, match="`bound` lies in"):
                default_aggregation(4, bound=beyond)


def test_every_field_enters_the_session_id() -> None:
    made = terms(plan())
    changes: dict[str, Any] = {
        "run": b"x" * 32,
        "plan_digest": b"x" * 32,
        "package_digest": "sha256:1",
        "epoch_id": b"x" * 32,
        "round": 2,
        "model_hash": b"x" * 32,
        "layout_digest": b"x" * 32,
        "dimension": 7,
        "privacy_digest": b"x" * 32,
        "min_contributors": 4,
        "max_colluders": 0,
    }
    fixed_by_others = {"participants", "ring_bits", "fraction_bits", "bound", "threshold"}
    assert set(changes) | fixed_by_others == set(RoundTerms.__struct_fields__)
    others = [msgspec.structs.replace(made, **{field: value}) for field, value in changes.items()]
    others.append(terms(plan(), participants=COHORT[:3]))
    others.append(terms(plan(aggregation=default_aggregation(4, bound=0.2))))
    others.append(msgspec.structs.replace(made, threshold=4, min_contributors=4))
    assert len({made.sid(), *(other.sid() for other in others)}) == 1 + len(others)


@pytest.mark.parametrize(
    "changes",
    [
        *(
            {field: bytes(31)}
            for field in ("run", "plan_digest", "epoch_id", "model_hash", "layout_digest", "privacy_digest")
        ),
        {"participants": ("police", "health", "environment")},
        {"round": 0},
        {"dimension": 0},
        {"threshold": 1},
        {"threshold": 2},
        {"threshold": 2, "max_colluders": 0},
        {"min_contributors": 2},
        {"min_contributors": 5},
        {"max_colluders": 2},
        {"participants": COHORT[:3], "threshold": 3, "max_colluders": 2},
        {"max_colluders": -1},
        {"fraction_bits": 5},
        {"ring_bits": 16},
        {"bound": 0.1},
    ],
)
def test_terms_keep_their_invariants(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        msgspec.structs.replace(terms(plan()), **changes)


def test_the_smallest_numbers_of_a_sum_that_the_protocol_allows_are_no_smaller() -> None:
    three = terms(plan(), participants=COHORT[:3])
    two_of_three = msgspec.structs.replace(three, threshold=2, min_contributors=2, max_colluders=0)
    assert two_of_three.check_survivors(COHORT[:2]) == COHORT[:2]
    for changes in ({"threshold": 1}, {"max_colluders": 1}, {"min_contributors": 1}):
        with pytest.raises(ValueError):
            msgspec.structs.replace(two_of_three, **changes)


@pytest.mark.parametrize(
    ("survivors", "code"),
    [
        (("health", "health", "police", "transport"), "survivor-repeated"),
        (("health", "police", "sybil"), "survivor-foreign"),
        (("police", "health", "transport"), "survivors-unordered"),
        (("health", "police"), "below-min-contributors"),
        ((), "below-min-contributors"),
    ],
)
def test_a_bad_survivor_list_is_refused(survivors: tuple[str, ...], code: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        terms(plan()).check_survivors(survivors)
    assert caught.value.code == code
