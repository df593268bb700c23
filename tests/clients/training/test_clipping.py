from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from clients.training.clipping import (
    CLIP_MARGIN,
    GRID_BITS,
    clipped_grid_sum,
    per_unit_gradients,
    per_unit_hooks,
    summed_gradient,
    trained_parameters,
)
from shared.plan import ModelSpec
from shared.tasks.features import HASHED_WORDS_SHA256
from shared.tasks.text import Prepared, build, export_vector, load_vector, per_unit_loss, prepare

CPU = torch.device("cpu")
HASHED = ModelSpec(architecture="hashed-words", base_weights_sha256=HASHED_WORDS_SHA256)
GRID = 2.0**-GRID_BITS
WORDS = ["help", "water", "food", "road", "bridge", "storm", "we", "need", "the", "is", "closed", "please"]


def texts(count: int) -> list[str]:
    generator = np.random.default_rng(3)
    return [" ".join(generator.choice(WORDS, size=generator.integers(1, 12))) for _ in range(count)]


def model_and_units(spec: ModelSpec, weights: Path, count: int) -> tuple[nn.Module, Prepared]:
    """Return a model whose head is not zero, so that every layer has a gradient."""
    model = build(spec, weights, CPU)
    noise = np.random.default_rng(4).standard_normal(export_vector(model).size) * 0.05
    load_vector(model, (export_vector(model) + noise).astype(np.float32))
    labels = [index % 2 for index in range(count)]
    return model, prepare(spec, texts(count), labels, weights_dir=weights, device=CPU)


def clipped_sum(model: nn.Module, units: Prepared, clip: float, physical: int = 256) -> NDArray[np.int64]:
    with per_unit_hooks(model) as hooks:
        return summed_gradient(
            model, hooks, units, max_grad_norm=clip, physical_batch_size=physical, loss=per_unit_loss
        )


@pytest.fixture(params=["head", "full"])
def spec(request: pytest.FixtureRequest, full: ModelSpec) -> ModelSpec:
    return full if request.param == "full" else HASHED


def test_per_unit_gradients_equal_a_loop_over_single_units(spec: ModelSpec, weights: Path) -> None:
    model, units = model_and_units(spec, weights, 9)
    with per_unit_hooks(model) as hooks:
        together = torch.cat([part.flatten(1) for part in per_unit_gradients(model, hooks, units, per_unit_loss)], 1)
    for index in range(9):
        loss = per_unit_loss(model, units.take(np.array([index]))).sum()
        alone = torch.cat([part.flatten() for part in torch.autograd.grad(loss, trained_parameters(model))])
        assert torch.linalg.vector_norm(together[index] - alone) <= 1e-4 * torch.linalg.vector_norm(alone)


@pytest.mark.parametrize("clip", [1e-3, 0.1, 50.0])
def test_one_more_unit_moves_the_sum_by_at_most_the_clip(spec: ModelSpec, weights: Path, clip: float) -> None:
    model, units = model_and_units(spec, weights, 24)
    everyone = np.arange(24)
    total = clipped_sum(model, units, clip, physical=5)
    for extra in range(0, 24, 4):
        # Micro-batches are cut elsewhere without the unit, so batching is part of what is measured.
        without = clipped_sum(model, units.take(np.delete(everyone, extra)), clip, physical=5)
        assert float(np.linalg.norm((total - without) * GRID)) <= 1 + 1e-4


def test_the_sum_is_that_of_the_clipped_single_gradients(spec: ModelSpec, weights: Path) -> None:
    model, units = model_and_units(spec, weights, 7)
    clip = 0.5
    expected = np.zeros(export_vector(model).size)
    for index in range(7):
        loss = per_unit_loss(model, units.take(np.array([index]))).sum()
        parts = torch.autograd.grad(loss, trained_parameters(model))
        gradient = torch.cat([part.flatten() for part in parts]).double().numpy()
        expected += gradient * min(1, CLIP_MARGIN * clip / np.linalg.norm(gradient))
    np.testing.assert_allclose(clipped_sum(model, units, clip) * GRID * clip, expected, atol=2e-5)


def test_the_physical_batch_size_changes_speed_only(spec: ModelSpec, weights: Path) -> None:
    model, units = model_and_units(spec, weights, 23)
    sums = [clipped_sum(model, units, 0.1, physical) for physical in (1, 4, 23, 256)]
    for other in sums[1:]:
        # Float order inside a forward pass may flip the rounding of a few coordinates by a few grid steps.
        assert float(np.linalg.norm((sums[0] - other) * GRID)) <= 1e-3


def test_an_empty_batch_sums_to_zero(spec: ModelSpec, weights: Path) -> None:
    model, units = model_and_units(spec, weights, 3)
    total = clipped_sum(model, units.take(np.zeros(0, dtype=np.int64)), 0.1)
    assert total.shape == (export_vector(model).size,)
    assert total.dtype == np.int64
    assert not total.any()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e30])
def test_a_unit_without_a_finite_gradient_counts_as_zero(weights: Path, bad: float) -> None:
    model, units = model_and_units(HASHED, weights, 6)
    features = units.inputs[0].clone()
    features[2, 5] = bad
    poisoned = Prepared((features,), units.labels, units.lengths)
    without = units.take(np.array([0, 1, 3, 4, 5]))
    np.testing.assert_array_equal(clipped_sum(model, poisoned, 0.1), clipped_sum(model, without, 0.1))


@given(st.lists(st.lists(st.floats(-1e4, 1e4, width=32), min_size=3, max_size=3), min_size=1, max_size=5))
def test_each_units_part_is_within_the_clip_and_sums_are_exact(rows: list[list[float]]) -> None:
    def alone(row: list[float]) -> Tensor:
        return clipped_grid_sum([torch.tensor([row[:2]]), torch.tensor([[row[2:]]])], 0.3)

    parts = [alone(row) for row in rows]
    assert all(float(torch.linalg.vector_norm(part.double())) * GRID <= 1 for part in parts)
    together = [torch.tensor([row[:2] for row in rows]), torch.tensor([[row[2:]] for row in rows])]
    assert (clipped_grid_sum(together, 0.3) - sum(parts)).abs().max() <= len(rows)


def test_the_model_is_left_clean(weights: Path, full: ModelSpec) -> None:
    model, units = model_and_units(full, weights, 3)
    clipped_sum(model, units, 0.1)
    assert all(not hasattr(parameter, "grad_sample") for parameter in model.parameters())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(not module._forward_hooks for module in model.modules())
    clipped_sum(model, units, 0.1)  # hooks can be attached again
