"""Server optimisers against a formula written down from the paper, in float64."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.optimizer import ServerOptimizer
from shared.plan import ServerOptimizerSpec

Kind = Literal["fedavg", "fedadam", "fedyogi"]
KINDS: tuple[Kind, ...] = ("fedavg", "fedadam", "fedyogi")
UPDATES = ([0.5, -0.25, 0.0, 3.0], [0.1, 0.75, -0.001, -3.0], [-0.6, 0.0, 0.002, 0.5])


def paper(kind: Kind, spec: ServerOptimizerSpec, start: float, updates: list[float]) -> float:
    """Reddi et al. 2021, Algorithm 2, one coordinate: m and v, then x + eta m / (sqrt(v) + tau)."""
    x, m, v = start, 0.0, spec.tau**2
    for delta in updates:
        if kind == "fedavg":
            x += spec.learning_rate * delta
            continue
        m = spec.beta1 * m + (1 - spec.beta1) * delta
        if kind == "fedadam":
            v = spec.beta2 * v + (1 - spec.beta2) * delta**2
        else:
            sign = (v > delta**2) - (v < delta**2)
            v = v - (1 - spec.beta2) * delta**2 * sign
        x += spec.learning_rate * m / (math.sqrt(v) + spec.tau)
    return x


def run(spec: ServerOptimizerSpec, start: list[float], updates: list[list[float]]) -> list[float]:
    optimizer, model = ServerOptimizer.start(spec, len(start)), np.array(start, dtype=np.float32)
    for update in updates:
        optimizer, model = optimizer.step(model, np.array(update, dtype=np.float32))
    assert model.dtype == np.float32
    return [float(value) for value in model]


@pytest.mark.parametrize("kind", KINDS)
def test_three_steps_agree_with_the_paper(kind: Kind) -> None:
    spec = ServerOptimizerSpec(kind=kind, learning_rate=0.3, beta1=0.8, beta2=0.9, tau=0.01)
    start = [1.0, -1.0, 0.0, 2.0]
    expected = [paper(kind, spec, value, [update[at] for update in UPDATES]) for at, value in enumerate(start)]
    assert run(spec, start, [list(update) for update in UPDATES]) == pytest.approx(expected, rel=1e-5, abs=1e-6)


@given(
    kind=st.sampled_from(KINDS),
    updates=st.lists(st.floats(-8, 8, width=32), min_size=1, max_size=6),
    rate=st.floats(0.01, 2),
    beta1=st.floats(0, 0.95),
    beta2=st.floats(0, 0.999),
)
def test_any_sequence_of_updates_agrees_with_the_paper(
    kind: Kind, updates: list[float], rate: float, beta1: float, beta2: float
) -> None:
    spec = ServerOptimizerSpec(kind=kind, learning_rate=rate, beta1=beta1, beta2=beta2, tau=0.1)
    (found,) = run(spec, [0.5], [[value] for value in updates])
    assert found == pytest.approx(paper(kind, spec, 0.5, updates), rel=1e-3, abs=1e-3)


def test_the_two_adaptive_kinds_differ_once_the_variance_has_to_fall() -> None:
    specs = [ServerOptimizerSpec(kind=kind, beta2=0.5) for kind in ("fedadam", "fedyogi")]
    one, other = (run(spec, [0.0], [[4.0], [0.1], [0.1]]) for spec in specs)
    assert one != other


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_leaves_the_model_and_itself_as_they_were(kind: Kind) -> None:
    optimizer = ServerOptimizer.start(ServerOptimizerSpec(kind=kind), 2)
    model, update = np.ones(2, dtype=np.float32), np.full(2, 0.5, dtype=np.float32)
    first = optimizer.step(model, update.copy())[1]
    assert (model == 1).all()
    assert (optimizer.step(model, update)[1] == first).all()


def test_without_moments_a_step_takes_no_memory_of_its_own() -> None:
    optimizer = ServerOptimizer.start(ServerOptimizerSpec(kind="fedavg", learning_rate=0.5), 2)
    update = np.full(2, 0.5, dtype=np.float32)
    assert optimizer.step(np.ones(2, dtype=np.float32), update)[1] is update
    assert optimizer.momentum.size == optimizer.variance.size == 0
