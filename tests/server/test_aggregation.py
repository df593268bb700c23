"""The mean update: a sum over survivors divided by the sum of their public weights."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.aggregation import mean_update
from tests.server.small_plan import plan_with


def test_the_divisor_is_the_weight_of_the_survivors_alone() -> None:
    plan = plan_with({"a": 1.0, "b": 0.5, "c": 0.25, "d": 0.75})
    total = np.array([1.75, 3.5, -7.0, 0.0])
    assert mean_update(total, plan, ("a", "b", "c")).tolist() == [1.0, 2.0, -4.0, 0.0]
    assert mean_update(total, plan, ("b", "c", "d")).tolist() == pytest.approx([7 / 6, 7 / 3, -14 / 3, 0.0])


@given(st.lists(st.floats(0.01, 1), min_size=3, max_size=6), st.floats(-5, 5, width=32))
def test_departments_that_agree_get_what_they_agree_on(weights: list[float], value: float) -> None:
    names = {f"d{index}": weight for index, weight in enumerate(weights)}
    mean = mean_update(np.full(4, sum(weight * value for weight in weights)), plan_with(names), tuple(names))
    assert mean.dtype == np.float32
    assert mean.shape == (4,)
    assert mean == pytest.approx(value, rel=1e-5, abs=1e-6)


def test_gradients_are_divided_by_the_survivors_public_denominators_and_followed_downhill() -> None:
    """Rate 0.1 and public sizes of 10: each survivor counts 1 in the divisor, whatever its weight or rows."""
    plan = plan_with(dict.fromkeys("abcd", 1.0))
    params = msgspec.structs.replace(plan.privacy, mechanism="shared-noise", noise_shares=2, noise_multiplier=4.0)
    shared = msgspec.structs.replace(plan, privacy=params)
    total = np.array([3.0, -6.0, 0.0, 1.5])
    assert mean_update(total, shared, ("a", "b", "c")).tolist() == [-1.0, 2.0, 0.0, -0.5]
    assert mean_update(total, shared, tuple("abcd")).tolist() == [-0.75, 1.5, 0.0, -0.375]
