"""Plans: noise calibrated over every attempt, public weights, a signature over exactly these bytes."""

from __future__ import annotations

import datetime as dt
import math
from typing import NamedTuple

import msgspec
import numpy as np
import pytest

from server.asks import ModelBasis, PlanAsk, PrivacyAsk, calibrate, draft_plan
from server.plans import calibrated_privacy, declare_extras, extras_noise, sign_plan
from shared.errors import ProtocolError
from shared.identity import DepartmentId, IdentityKey, Roster
from shared.package import package_digest
from shared.parameters import model_hash
from shared.plan import AggregationParams, LocalOptimizer, ModelSpec, Plan, accept_plan
from shared.privacy.accountant import MechanismEvent, epsilon, event_of
from shared.privacy.extras import KNOWN, clamp_and_scale
from shared.privacy.plan import PrivacyBudget
from tests.server.small_plan import DAY, LAYOUT, PRIVACY, plan_with

ASK = PlanAsk(
    name="drafted",
    purpose="test",
    rounds=3,
    spare_attempts=1,
    bound=16.0,
    privacy=PrivacyAsk(epsilon=1.0, delta=1e-4, sample_rate=0.1, steps=1, max_grad_norm=1.0),
    optimizer=LocalOptimizer(learning_rate=1.0),
)
SIZES = {DepartmentId("a"): 200, DepartmentId("b"): 50, DepartmentId("c"): 100, DepartmentId("d"): 10}


class Told(NamedTuple):
    """What a department declared."""

    contract_hash: str
    public_size: int


def draft(sizes: dict[DepartmentId, int]) -> Plan:
    return draft_plan(
        ASK,
        ModelBasis(
            spec=ModelSpec(architecture="hashed-words", base_weights_sha256="0" * 64),
            layout=LAYOUT,
            initial=np.ones(LAYOUT.size, dtype=np.float32),
            weights_dir=None,
        ),
        declared={name: Told("ab" * 32, size) for name, size in sizes.items()},
        roster=Roster(city="town", serial=1, members={name: IdentityKey.generate().public for name in sizes}),
        privacy=PRIVACY,
        approval=1,
        valid_from=DAY,
        valid_until=DAY + dt.timedelta(days=1),
    )


def test_weights_are_public_sizes_over_the_largest_one() -> None:
    plan = draft(SIZES)
    assert {name: terms.weight for name, terms in plan.datasets.items()} == {"a": 1.0, "b": 0.25, "c": 0.5, "d": 0.05}
    assert {name: terms.public_size for name, terms in plan.datasets.items()} == SIZES
    assert plan.denominator(DepartmentId("c")) == pytest.approx(PRIVACY.sample_rate * 100)


def test_a_draft_pins_package_model_roster_and_an_admissible_sum() -> None:
    plan = draft(SIZES)
    assert plan.package_digest == package_digest()
    assert plan.initial_model_sha256 == model_hash(np.ones(LAYOUT.size, dtype=np.float32)).hex()
    assert plan.roster_size == 4
    assert plan.aggregation.admissible_for(4)
    assert plan.aggregation.bound == 16.0


def test_a_cohort_below_three_is_a_callers_mistake() -> None:
    with pytest.raises(ValueError, match="at least 3"):
        draft({name: SIZES[name] for name in list(SIZES)[:2]})


def test_p3_the_noise_is_calibrated_over_all_rounds_and_spare_attempts() -> None:
    budget = PrivacyBudget(epsilon=1.5, delta=1e-4)
    privacy = calibrated_privacy(budget, sample_rate=0.2, steps=3, attempts=4, max_grad_norm=0.5)
    assert (privacy.budget, privacy.sample_rate, privacy.steps, privacy.max_grad_norm) == (budget, 0.2, 3, 0.5)
    assert 0.95 * budget.epsilon < epsilon([event_of(privacy, 4)], budget.delta) <= budget.epsilon
    assert epsilon([event_of(privacy, 5)], budget.delta) > budget.epsilon


def test_p3_the_shares_of_the_noise_follow_from_the_numbers_of_the_encrypted_sum() -> None:
    sum_of_seven = AggregationParams(threshold=5, min_contributors=6, max_colluders=2, bound=16.0)
    for mechanism, shares in (("shared-noise", 4), ("poisson-dpsgd", 1)):
        ask = msgspec.structs.replace(ASK.privacy, mechanism=mechanism)
        assert calibrate(ask, attempts=4, aggregation=sum_of_seven).noise_shares == shares


def test_p3_extras_take_their_share_and_the_noise_of_training_makes_room_for_them() -> None:
    budget, attempts = PrivacyBudget(epsilon=1.0, delta=1e-4), 6
    noise = extras_noise(budget, share=0.2, extras=2, attempts=attempts)
    extras = [MechanismEvent(noise_multiplier=noise, sample_rate=1.0, steps=attempts)] * 2
    assert 0.19 < epsilon(extras, budget.delta) <= 0.2
    numbers = {"sample_rate": 0.2, "steps": 3, "attempts": attempts, "max_grad_norm": 0.5}
    alone = calibrated_privacy(budget, **numbers)  # type: ignore[arg-type]  # three ints and two floats in one dict
    beside = calibrated_privacy(budget, beside=extras, **numbers)  # type: ignore[arg-type]  # as above
    assert alone.noise_multiplier < beside.noise_multiplier < 1.1 * alone.noise_multiplier
    assert 0.99 < epsilon([event_of(beside, attempts), *extras], budget.delta) <= budget.epsilon


def test_declared_extras_stay_within_the_ring_whatever_is_summed() -> None:
    extras = declare_extras(tuple(KNOWN), noise_multiplier=30.0, public_sizes=[40, 900], bound=64.0)
    assert [extra.name for extra in extras] == list(KNOWN)
    for extra in extras:
        assert extra.max_abs >= 900 * extra.unit_bound + 10 * extra.noise_stddev
        for value in (math.inf, 1e9, -1e9):
            assert abs(float(clamp_and_scale(np.array([value]), [extra])[0])) <= 64.0
    plan = plan_with({"a": 1.0, "b": 0.5, "c": 0.25})
    layout = msgspec.structs.replace(plan.layout, extras=extras)
    with pytest.raises(ValueError, match="at most `bound`"):
        msgspec.structs.replace(plan, layout=layout)


def test_p4_a_plan_is_accepted_under_the_pinned_key_alone() -> None:
    authority, plan = IdentityKey.generate(), plan_with({"a": 1.0, "b": 0.5, "c": 0.25})
    signed = sign_plan(plan, authority)
    assert accept_plan(signed, authority.public) == plan
    with pytest.raises(ProtocolError) as caught:
        accept_plan(signed, IdentityKey.generate().public)
    assert caught.value.code == "signature-invalid"


def test_p4_one_changed_byte_of_a_plan_is_refused() -> None:
    authority = IdentityKey.generate()
    signed = sign_plan(plan_with({"a": 1.0, "b": 0.5, "c": 0.25}), authority)
    body = bytearray(signed.body)
    body[len(body) // 2] ^= 1
    with pytest.raises(ProtocolError):
        accept_plan(msgspec.structs.replace(signed, body=bytes(body)), authority.public)


def test_another_approval_is_another_run() -> None:
    plan = plan_with({"a": 1.0, "b": 0.5, "c": 0.25})
    again = msgspec.structs.replace(plan, approval=2)
    assert len({plan.run_id(), again.run_id()}) == 2
    assert plan.run_id() == plan_with({"a": 1.0, "b": 0.5, "c": 0.25}).run_id()
