"""Shared noise in numbers: shares, scale, rounding, room in the ring, and plans that lie about them (privacy 4.3)."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from shared.codec import decode, encode
from shared.errors import ProtocolError
from shared.mechanisms import MECHANISMS
from shared.plan import AggregationParams, LocalOptimizer, Plan, default_aggregation
from shared.privacy.accountant import event_of
from shared.privacy.plan import PrivacyBudget, PrivacyParams
from shared.privacy.shared_noise import (
    MIN_SHARE_STDDEV,
    WRAP_BITS,
    check_ring,
    honest_shares,
    project_sum,
    ring_range,
    rounding_steps,
    share_stddev,
)
from shared.secagg.ring import fraction_bits
from shared.secagg.terms import round_terms
from tests.server.small_plan import LAYOUT, plan_with

NAMES = ("a", "b", "c", "d")


def privacy(*, noise: float = 4.0, clip: float = 0.1, shares: int = 2) -> PrivacyParams:
    return PrivacyParams(
        mechanism="shared-noise",
        budget=PrivacyBudget(epsilon=1.0, delta=1e-4),
        sample_rate=0.1,
        steps=1,
        max_grad_norm=clip,
        noise_multiplier=noise,
        noise_shares=shares,
    )


def shared_plan(**changes: Any) -> Plan:
    plan = plan_with(dict.fromkeys(NAMES, 1.0))
    return msgspec.structs.replace(plan, **({"privacy": privacy()} | changes))


# --- shares --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("departments", "shares"), [(3, 2), (4, 2), (5, 2), (7, 3), (10, 4)])
def test_shares_are_the_honest_departments_of_the_smallest_sum(departments: int, shares: int) -> None:
    params = default_aggregation(departments, bound=32.0)
    assert MECHANISMS["shared-noise"].noise_shares(params) == shares
    assert MECHANISMS["poisson-dpsgd"].noise_shares(params) == 1


def test_one_department_subtracts_its_own_share_even_if_nobody_colludes() -> None:
    assert honest_shares(4, 0) == honest_shares(4, 1) == 3


@given(st.integers(3, 40), st.data())
def test_p3_whoever_drops_out_the_honest_noise_of_a_sum_is_at_least_what_is_charged(
    departments: int, data: st.DataObject
) -> None:
    params = default_aggregation(departments, bound=32.0)
    charged = privacy(shares=honest_shares(params.min_contributors, params.max_colluders))
    survivors = data.draw(st.integers(params.min_contributors, departments))
    dishonest = data.draw(st.integers(0, max(params.max_colluders, 1)))
    share = share_stddev(charged, dimension=385, bits=20)
    left = math.sqrt(survivors - dishonest) * share
    assert left >= charged.noise_multiplier * charged.max_grad_norm * 2**20 * (1 - 1e-12)


def test_p3_a_share_is_charged_with_its_own_noise() -> None:
    event = event_of(privacy(noise=4.0, shares=2), 10)
    assert (event.mechanism, event.noise_multiplier, event.noise_shares, event.steps) == ("shared-noise", 4.0, 2, 10)
    assert event.lone_share().noise_multiplier == 4.0 / math.sqrt(2)


# --- the ring ------------------------------------------------------------------------------------------------


@given(st.integers(1, 1 << 60))
def test_rounding_steps_are_the_root_rounded_up(dimension: int) -> None:
    steps = rounding_steps(dimension)
    assert (steps - 1) ** 2 < dimension <= steps**2


@given(
    noise=st.floats(0.3, 1e4),
    clip=st.floats(1e-3, 10),
    shares=st.integers(1, 40),
    participants=st.integers(2, 60),
    dimension=st.integers(1, 12_000_000),
    bound=st.floats(0.125, 1e3, width=32),
)
def test_a_sum_and_its_noise_stay_inside_the_ring_but_for_one_round_in_two_to_the_forty(
    *, noise: float, clip: float, shares: int, participants: int, dimension: int, bound: float
) -> None:
    """In exact integers: n rounded coordinates of at most R, and T with 2 d exp(-T^2 / 2 n s^2) <= 2^-40."""
    params = privacy(noise=noise, clip=clip, shares=shares)
    try:
        check_ring(params, bound=bound, participants=participants, dimension=dimension)
    except ValueError:
        assume(False)
    allotted = ring_range(params, bound=bound, participants=participants, dimension=dimension)
    bits = fraction_bits(participants, allotted)
    largest = participants * math.ceil(Fraction(bound) * 2**bits)
    stddev = share_stddev(params, dimension=dimension, bits=bits)
    tail = stddev * math.sqrt(2 * participants * math.log(2 * dimension * 2.0**WRAP_BITS))
    assert largest + tail <= 2**31 - 1
    assert stddev >= MIN_SHARE_STDDEV
    assert float(np.float32(allotted)) == allotted > bound


@given(st.integers(2, 30), st.integers(1, 12_000_000), st.floats(0.3, 1e3), st.floats(1e-2, 10))
def test_with_fewer_participants_the_ring_is_never_coarser(
    participants: int, dimension: int, noise: float, clip: float
) -> None:
    params = privacy(noise=noise, clip=clip)
    bits = [
        fraction_bits(count, ring_range(params, bound=64.0, participants=count, dimension=dimension))
        for count in (participants, participants + 1)
    ]
    assert bits[0] >= bits[1]


def test_the_scale_of_a_share_covers_the_rounding_to_the_ring() -> None:
    params = privacy(noise=4.0, clip=0.5, shares=4)
    assert share_stddev(params, dimension=100, bits=10) == 4.0 * (0.5 * 1024 + 10) / 2


@given(arrays.arrays(np.float64, 7, elements=st.floats(-1e6, 1e6)), st.floats(1e-3, 1e3))
def test_a_projected_sum_lies_within_the_bound_after_rounding_to_float32(total: np.ndarray, bound: float) -> None:
    projected = project_sum(total, bound).astype(np.float32)
    assert np.linalg.norm(projected.astype(np.float64)) <= bound
    if np.linalg.norm(total) <= 0.999 * bound:
        assert np.array_equal(projected, total.astype(np.float32))


@given(
    arrays.arrays(np.float64, 7, elements=st.floats(-100, 100)),
    arrays.arrays(np.float64, 7, elements=st.floats(-1, 1)),
    st.floats(0.1, 300),
)
def test_p3_projecting_never_moves_neighbours_apart(total: np.ndarray, unit: np.ndarray, bound: float) -> None:
    moved = np.linalg.norm(project_sum(total + unit, bound) - project_sum(total, bound))
    assert moved <= np.linalg.norm(unit) * (1 + 1e-9) + 1e-9


# --- plans that lie ------------------------------------------------------------------------------------------


def test_a_plan_of_shared_noise_stands_and_allots_room_for_it() -> None:
    plan = shared_plan()
    terms = round_terms(plan, epoch_id=bytes(32), round_number=1, participants=NAMES, model_hash=bytes(32))
    assert terms.bound > plan.aggregation.bound
    assert terms.fraction_bits == fraction_bits(4, terms.bound)


LIES: dict[str, dict[str, Any]] = {
    "more shares than honest departments": {"privacy": privacy(shares=3)},
    "weights": {"datasets": plan_with({"a": 1.0, "b": 0.5, "c": 1.0, "d": 1.0}).datasets},
    "a local optimiser": {"local_optimizer": LocalOptimizer(learning_rate=2.0)},
    "a share below four ring steps": {"privacy": privacy(noise=0.3, clip=1e-6)},
    "a ring that rounds away the clip": {"privacy": privacy(clip=1e-5), "layout": LAYOUT},
}


@pytest.mark.parametrize("lie", LIES)
def test_p3_a_plan_that_lies_about_its_noise_is_malformed(lie: str) -> None:
    bound = 1e6 if lie == "a ring that rounds away the clip" else 32.0
    plan = shared_plan()
    lying = {**msgspec.to_builtins(plan), **{key: msgspec.to_builtins(value) for key, value in LIES[lie].items()}}
    lying["aggregation"]["bound"] = bound
    with pytest.raises(ProtocolError) as caught:
        decode(msgspec.msgpack.encode(lying), Plan)
    assert caught.value.code == "message-malformed"
    assert decode(encode(plan), Plan) == plan


def test_p3_several_steps_a_round_cannot_share_their_noise() -> None:
    with pytest.raises(ValueError, match="`steps` is 1"):
        msgspec.structs.replace(privacy(), steps=2)


def test_noise_that_each_department_adds_in_full_has_one_share() -> None:
    with pytest.raises(ValueError, match="`noise_shares`"):
        msgspec.structs.replace(privacy(), mechanism="poisson-dpsgd")


def test_c_counts_against_the_shares() -> None:
    """With c = 2 of m = 4 only two honest shares remain."""
    params = AggregationParams(threshold=4, min_contributors=4, max_colluders=2, bound=32.0)
    assert MECHANISMS["shared-noise"].noise_shares(params) == 2
