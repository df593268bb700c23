"""The mean update: a sum over survivors divided by the sum of their public weights."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.aggregation import take_mean
from shared.secagg.ring import RingSum
from tests.server.small_plan import plan_with

BITS = 20


def ring_sum(*values: float) -> RingSum:
    """A sum of these values, with one more coordinate that is not the model's."""
    return RingSum(words=np.rint(np.array([*values, 7.0]) * 2**BITS).astype(np.int64).astype("<u4"), bits=BITS)


def test_the_divisor_is_the_weight_of_the_survivors_alone() -> None:
    plan = plan_with({"a": 1.0, "b": 0.5, "c": 0.25, "d": 0.75})
    total = (1.75, 3.5, -7.0, 0.0)
    assert take_mean(ring_sum(*total), plan, ("a", "b", "c")).tolist() == [1.0, 2.0, -4.0, 0.0]
    assert take_mean(ring_sum(*total), plan, ("b", "c", "d")).tolist() == pytest.approx([7 / 6, 7 / 3, -14 / 3, 0.0])


@given(st.lists(st.floats(0.01, 1), min_size=3, max_size=6), st.floats(-5, 5, width=32))
def test_departments_that_agree_get_what_they_agree_on(weights: list[float], value: float) -> None:
    names = {f"d{index}": weight for index, weight in enumerate(weights)}
    mean = take_mean(ring_sum(*[sum(weight * value for weight in weights)] * 4), plan_with(names), tuple(names))
    assert mean.dtype == np.float32
    assert mean.shape == (4,)
    assert mean == pytest.approx(value, rel=1e-5, abs=1e-4)


def test_gradients_are_divided_by_the_survivors_public_denominators_and_followed_downhill() -> None:
    """Rate 0.1 and public sizes of 10: each survivor counts 1 in the divisor, whatever its weight or rows."""
    plan = plan_with(dict.fromkeys("abcd", 1.0))
    params = msgspec.structs.replace(plan.privacy, mechanism="shared-noise", noise_shares=2, noise_multiplier=4.0)
    shared = msgspec.structs.replace(plan, privacy=params)
    total = (3.0, -6.0, 0.0, 1.5)
    assert take_mean(ring_sum(*total), shared, ("a", "b", "c")).tolist() == [-1.0, 2.0, 0.0, -0.5]
    assert take_mean(ring_sum(*total), shared, tuple("abcd")).tolist() == [-0.75, 1.5, 0.0, -0.375]


def test_the_mean_takes_the_memory_of_the_sum_and_leaves_what_is_not_the_model() -> None:
    total = ring_sum(1.0, 2.0, 3.0, 4.0)
    mean = take_mean(total, plan_with({"a": 1.0, "b": 1.0, "c": 1.0}), ("a", "b"))
    assert np.shares_memory(mean, total.words)
    assert mean.tolist() == [0.5, 1.0, 1.5, 2.0]
    assert total[4:].tolist() == [7.0]
