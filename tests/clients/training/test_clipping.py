import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from clients.training.clipping import (
    AUTOMATIC_STABILITY,
    CLIP_MARGIN,
    MAX_PARAMETERS,
    MOST_AT_ONCE,
    SUM_BITS,
    Clip,
    Loss,
    clipped_rows,
    micro_batches,
    summed_gradient,
)
from shared.tasks.text import Prepared

STEP = 2.0**-SUM_BITS

norms = st.floats(0, 2.0**50, width=32)
rules = st.sampled_from([Clip(0.3), Clip(0.3, "automatic")])


def steps_of(values: list[int]) -> Prepared:
    """Return units that stand for integers, two tokens each."""
    ids = torch.tensor(values).reshape(-1, 1)
    return Prepared((ids, torch.ones_like(ids)), None, np.arange(len(values), dtype=np.int64)[::-1].copy() + 1)


def sum_of_ids(batch: Prepared, loss: Loss, clip: Clip) -> Tensor:
    """Stand in for an engine: the sum of the units' integers."""
    return batch.inputs[0].sum().reshape(1)


def total(values: list[int], physical_batch_size: int = 2) -> int:
    result = summed_gradient(
        sum_of_ids, steps_of(values), size=1, clip=Clip(1.0), physical_batch_size=physical_batch_size, loss=no_loss
    )
    return int(result[0])


def no_loss(model: nn.Module, batch: Prepared) -> Tensor:
    raise NotImplementedError


@given(rules, norms)
def test_a_factor_brings_any_norm_within_the_clip(clip: Clip, norm: float) -> None:
    factor = clip.factors(torch.tensor([norm]).square())
    assert float(factor) * norm * STEP <= CLIP_MARGIN * (1 + 1e-6)
    assert float(factor) > 0


@given(st.floats(0, 0.28125, width=32))
def test_flat_clipping_leaves_what_is_short(norm: float) -> None:
    assert float(Clip(0.3).factors(torch.tensor([norm]).square())) * STEP * 0.3 == pytest.approx(1, rel=1e-6)


def test_automatic_clipping_gives_every_ordinary_norm_the_same_length() -> None:
    lengths = torch.tensor([1.0, 10.0, 1e4])
    reached = Clip(0.3, "automatic").factors(lengths.square()) * lengths * STEP
    expected = CLIP_MARGIN * lengths / (lengths + AUTOMATIC_STABILITY)
    assert torch.allclose(reached, expected)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("clip", [Clip(0.3), Clip(0.3, "automatic")])
def test_a_norm_that_is_not_finite_has_the_factor_zero(clip: Clip, bad: float) -> None:
    assert clip.factors(torch.tensor([bad, 1.0])).tolist()[0] == 0


@given(st.lists(st.lists(st.floats(-1e4, 1e4, width=32), min_size=3, max_size=3), min_size=1, max_size=5), rules)
def test_each_units_part_is_within_the_clip_and_sums_are_exact(rows: list[list[float]], clip: Clip) -> None:
    def alone(row: list[float]) -> Tensor:
        return clipped_rows([torch.tensor([row[:2]]), torch.tensor([[row[2:]]])], clip)

    parts = [alone(row) for row in rows]
    assert all(float(torch.linalg.vector_norm(part.double())) * STEP <= 1 for part in parts)
    together = [torch.tensor([row[:2] for row in rows]), torch.tensor([[row[2:]] for row in rows])]
    # A norm's last bit may depend on the batch; 64 steps of 2^-30 are one of float32 near 1.
    assert (clipped_rows(together, clip) - sum(parts)).abs().max() <= 128 * len(rows)


@given(st.lists(st.integers(-(2**40), 2**40), min_size=1, max_size=6), st.integers(1, 6))
def test_the_sum_is_rounded_once_and_not_once_a_micro_batch(values: list[int], physical: int) -> None:
    exact = sum(values) / 1024
    assert abs(total(values, physical) - exact) <= 0.5
    assert total(values, physical) == total(values, 6)


@pytest.mark.parametrize("setting", [MOST_AT_ONCE, 1 << 40])
def test_p2_no_setting_puts_more_units_in_one_part_than_float32_was_measured_with(setting: int) -> None:
    parts = [len(part) for part in micro_batches(steps_of([1] * (2 * MOST_AT_ONCE + 5)), setting)]
    assert parts == [MOST_AT_ONCE, MOST_AT_ONCE, 5]


def test_no_units_sum_to_zero() -> None:
    assert total([]) == 0


def test_rounding_takes_at_most_half_of_the_margin() -> None:
    # Of the sum with and of the sum without a unit: half a step of 2^-20 C each in every coordinate.
    assert np.sqrt(MAX_PARAMETERS) * 2.0**-20 <= (1 - CLIP_MARGIN) / 2


def test_a_float32_sum_of_256_units_takes_at_most_the_other_half() -> None:
    units = 256
    assert np.square(units) * 2.0**-24 * 2 <= (1 - CLIP_MARGIN) / 2
