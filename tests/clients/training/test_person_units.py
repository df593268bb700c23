"""Persons as privacy units: Poisson over persons, their records averaged and clipped once (privacy 2)."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from clients.training.clipping import Clip, micro_batches
from clients.training.engines import CANDIDATES, Engine
from clients.training.engines.fold import fold_of
from clients.training.noise import UnsafeSeededSource
from clients.training.preflight import choose_engine, synthetic_units
from clients.training.train import TrainingSettings, train_round
from shared.errors import ConfigError
from shared.parameters import Vector
from shared.plan import LocalOptimizer, ModelSpec
from shared.privacy.accountant import epsilon, event_of
from shared.privacy.plan import PerformanceFlags, PrivacyBudget, PrivacyParams
from shared.tasks.features import HASHED_WORDS_SHA256
from shared.tasks.text import Prepared, build, initial_parameters, layout_of, per_unit_loss, pool, prepare
from tests.clients.training.toy_models import (
    CASES,
    ENGINES,
    WORDS,
    Case,
    engine_sum,
    gradients_alone,
    layer_cases,
    loss_of,
)
from tests.fixtures.tiny_bert import tiny_spec

CPU = torch.device("cpu")
CLIP = 0.1
HASHED = ModelSpec(architecture="hashed-words", base_weights_sha256=HASHED_WORDS_SHA256)

pytestmark = pytest.mark.filterwarnings("ignore:Full backward hook")


def owners_of(sizes: Sequence[int]) -> NDArray[np.int64]:
    return np.repeat(np.arange(len(sizes), dtype=np.int64), sizes)


def spec_of(which: str, weights: Path) -> ModelSpec:
    more = {"lora": {"lora_rank": 2}}.get(which, {})
    return HASHED if which == "head" else tiny_spec((weights / "sha256").read_text(), which, **more)


def persons(spec: ModelSpec, weights: Path, sizes: Sequence[int]) -> Prepared:
    """Return persons with so many records each, all with label 1, so that a person's gradients point one way."""
    generator = np.random.default_rng(3)
    texts = [" ".join(generator.choice(WORDS, size=generator.integers(2, 9))) for _ in range(sum(sizes))]
    records = prepare(spec, texts, [1.0] * len(texts), weights_dir=weights, device=CPU)
    return replace(records, owners=owners_of(sizes))


def settings(spec: ModelSpec, weights: Path, *, steps: int = 1, sample_rate: float = 1.0) -> TrainingSettings:
    privacy = PrivacyParams(
        unit="person",
        max_records=16,
        budget=PrivacyBudget(epsilon=1, delta=1e-4),
        sample_rate=sample_rate,
        steps=steps,
        max_grad_norm=CLIP,
        noise_multiplier=1.0,
    )
    return TrainingSettings(
        privacy=privacy,
        denominator=1.0,
        optimizer=LocalOptimizer(learning_rate=1.0),
        model=spec,
        layout=layout_of(spec, weights),
    )


def step(data: Prepared, spec: ModelSpec, weights: Path, *, engine: str = "auto", physical: int = 256) -> Vector:
    """Return what one noiseless step of the real path does."""
    start = initial_parameters(spec, weights)
    start += np.random.default_rng(6).standard_normal(start.size).astype(np.float32) * np.float32(0.05)
    flags = PerformanceFlags(device="cpu", engine=engine, physical_batch_size=physical)  # type: ignore[arg-type]  # by test
    return train_round(
        settings=settings(spec, weights),
        parameters=start,
        data=data,
        weights_dir=weights,
        source=UnsafeSeededSource(7, noise=False),
        flags=flags,
    ).delta


def move(data: Prepared, without: Prepared, spec: ModelSpec, weights: Path, **flags: object) -> float:
    """Return how far one person more moves a noiseless step, in clips."""
    difference = step(data, spec, weights, **flags) - step(without, spec, weights, **flags)  # type: ignore[arg-type]  # passed on
    return float(np.linalg.norm(difference.astype(np.float64))) / CLIP


@pytest.mark.parametrize("which", ["head", "lora", "full"])
@pytest.mark.parametrize("engine", ["bookkeeping", "opacus"])
@pytest.mark.parametrize("records", [1, 4, 16])
def test_one_person_moves_a_noiseless_step_by_at_most_the_clip(
    weights: Path, which: str, engine: str, records: int
) -> None:
    spec = spec_of(which, weights)
    data = persons(spec, weights, [2, records, 1, 3])
    others = data.take(np.array([0, 2, 3]))
    found = move(data, others, spec, weights, engine=engine, physical=5)
    assert 0.5 < found <= 1 + 1e-4


@pytest.mark.parametrize("records", [4, 16])
def test_records_taken_one_by_one_let_a_person_move_it_further(weights: Path, records: int) -> None:
    data = persons(HASHED, weights, [2, records, 1, 3])
    others = data.take(np.array([0, 2, 3]))
    naive, without = replace(data, owners=None), replace(others, owners=None)
    assert move(naive, without, HASHED, weights) > 0.5 * records


@layer_cases
@pytest.mark.parametrize("sizes", [(1, 3, 2), (2, 2)])
def test_a_persons_gradient_is_that_of_the_person_alone(engine: Engine, case: Case, sizes: tuple[int, ...]) -> None:
    model = case.model()
    units = replace(case.units(sum(sizes)), owners=owners_of(sizes))
    alone = person_gradients(model, units)
    for index, gradient in enumerate(alone):
        clip = Clip(2 * float(gradient.norm()))  # nothing is clipped
        found = engine_sum(engine, model, units, clip, only(index))  # type: ignore[arg-type]  # a Loss
        assert (found - gradient).norm() <= 1e-4 * gradient.norm()
    limit = float(alone.norm(dim=1).median())
    factors = (limit * (1 - 2**-6) / alone.norm(dim=1).clamp(min=limit * (1 - 2**-6))).unsqueeze(1)
    found = engine_sum(engine, model, units, Clip(limit))
    assert (found - (alone * factors).sum(0)).norm() <= 1e-4 * limit


def person_gradients(model: nn.Module, units: Prepared) -> Tensor:
    """Return the sum of each person's records' gradients, each from a pass of its own."""
    assert units.owners is not None
    records = gradients_alone(model, replace(units, owners=None))
    return torch.zeros(units.units, records.shape[1], dtype=records.dtype).index_add_(
        0, torch.from_numpy(units.owners), records
    )


def only(index: int) -> object:
    def loss(model: nn.Module, batch: Prepared) -> Tensor:
        assert batch.owners is not None
        return loss_of(model, batch) * torch.from_numpy(batch.owners == index)

    return loss


def test_a_persons_loss_is_the_mean_over_their_records(weights: Path) -> None:
    model = build(HASHED, weights, CPU)
    nn.init.constant_(model.get_parameter("head.weight"), 0.3)
    data = persons(HASHED, weights, [1, 4, 2])
    each = per_unit_loss(model, replace(data, owners=None))
    shares = per_unit_loss(model, data)
    sums = [float(shares[data.owners == number].sum().detach()) for number in range(3)]
    means = [float(each[data.owners == number].mean().detach()) for number in range(3)]
    np.testing.assert_allclose(sums, means, rtol=1e-6)


@pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: engine.name)
def test_one_record_that_is_not_finite_takes_its_person_out(engine: Engine) -> None:
    case = CASES["linear"]
    model, units = case.model(), replace(case.units(6), owners=owners_of((1, 3, 2)))
    expected = engine_sum(engine, model, units.take(np.array([0, 2])), Clip(1.0))
    units.inputs[0][2] = torch.nan
    found = engine_sum(engine, model, units, Clip(1.0))
    assert (found - expected).norm() <= 1e-6


def test_persons_are_sampled_and_not_records(weights: Path) -> None:
    # With rate 1/2, 40 persons of 8 records: a step takes all records of a person or none.
    data = persons(HASHED, weights, [8] * 40)
    taken: list[int] = []

    def watched(model: nn.Module, batch: Prepared) -> Tensor:
        taken.extend(batch.sizes.tolist())
        return per_unit_loss(model, batch)

    stream = UnsafeSeededSource(1).fork_step()
    chosen = data.take(np.flatnonzero(stream.coins(data.units, 0.5)).astype(np.int64))
    watched(build(HASHED, weights, CPU), chosen)
    assert set(taken) == {8}
    assert 5 < len(taken) < 35  # false alarm below 1e-5
    half = settings(HASHED, weights, sample_rate=0.5)
    deltas = [
        train_round(
            settings=half,
            parameters=initial_parameters(HASHED, weights),
            data=rows,
            weights_dir=weights,
            source=UnsafeSeededSource(5, noise=False),
            flags=PerformanceFlags(device="cpu"),
        ).delta
        for rows in (data, data.take(np.arange(40)))
    ]
    np.testing.assert_array_equal(*deltas)


def test_epsilon_is_that_of_the_record_level_plan(weights: Path) -> None:
    person = settings(HASHED, weights, steps=20, sample_rate=0.1).privacy
    record = msgspec.structs.replace(person, unit="record", max_records=1)
    assert epsilon([event_of(person, 5)], 1e-4) == epsilon([event_of(record, 5)], 1e-4)


@pytest.mark.parametrize(("unit", "records"), [("record", 2), ("record", 0), ("person", 0), ("person", 1001)])
def test_a_plan_fixes_how_many_records_count(weights: Path, unit: str, records: int) -> None:
    with pytest.raises(ValueError, match="max_records"):
        msgspec.structs.replace(settings(HASHED, weights).privacy, unit=unit, max_records=records)


def test_the_preflight_sees_persons_with_several_records(weights: Path) -> None:
    data = persons(HASHED, weights, [2, 1])
    batch = synthetic_units(data)
    assert batch.units < len(batch)
    model = build(HASHED, weights, CPU)
    assert choose_engine(model, batch, per_unit_loss).name == "bookkeeping"

    def by_batch_share(model: nn.Module, batch: Prepared) -> Tensor:
        # The mistake to find: a person's weight depends on how many records the others have.
        return per_unit_loss(model, replace(batch, owners=None)) / (len(batch) / batch.units)

    for name in CANDIDATES:
        with pytest.raises(ConfigError) as caught:
            choose_engine(model, batch, by_batch_share, name)
        assert caught.value.code == "units-coupled"


@pytest.mark.parametrize("which", ["head", "full"])
def test_micro_batches_part_no_person_and_lose_none(weights: Path, which: str) -> None:
    data = persons(spec_of(which, weights), weights, [3, 1, 7, 2, 2, 5])
    for records in (1, 4, 6, 100):
        parts = list(micro_batches(data, records))
        assert sum(part.units for part in parts) == data.units
        assert sorted(size for part in parts for size in part.sizes.tolist()) == [1, 2, 2, 3, 5, 7]
        assert all(len(part) < records + 7 for part in parts)


def features(sizes: Sequence[int]) -> Prepared:
    count = sum(sizes)
    rows = torch.from_numpy(np.random.default_rng(8).standard_normal((count, 3)).astype(np.float32))
    return Prepared((rows,), None, np.ones(count, dtype=np.int64), owners_of(sizes))


def folded(part: Prepared) -> int:
    """Return how many rows an engine makes of a part's records, empty ones counted."""
    rows = fold_of(part).rows([part.inputs[0]], 3)
    return rows.shape[0] * rows.shape[1]


@given(st.lists(st.integers(1, 9), min_size=1, max_size=30), st.integers(1, 40))
def test_the_largest_person_sets_the_memory_of_no_other_part(sizes: list[int], records: int) -> None:
    parts = list(micro_batches(features(sizes), records))
    assert sorted(size for part in parts for size in part.sizes.tolist()) == sorted(sizes)
    assert all(folded(part) <= records or part.units == 1 for part in parts)


@pytest.mark.parametrize("largest", [1, 150, 1000])
def test_p2_one_persons_number_of_records_hardly_changes_what_a_step_computes(largest: int) -> None:
    parts = [folded(part) for part in micro_batches(features([1] * 3000 + [largest] + [1] * 2000), 8192)]
    assert len(parts) <= 2
    assert sum(parts) == 5000 + largest


@pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: engine.name)
def test_the_cuts_between_persons_change_nothing_else(engine: Engine) -> None:
    sizes = (1, 5, 1, 2, 3, 1, 12)
    case = CASES["linear"]
    model, units = case.model(), replace(case.units(sum(sizes)), owners=owners_of(sizes))
    expected = engine_sum(engine, model, units, Clip(1.0))
    for records in (1, 4, 30):
        found = sum(engine_sum(engine, model, part, Clip(1.0)) for part in micro_batches(units, records))
        assert (found - expected).norm() <= 1e-5


def test_pooled_departments_keep_their_persons_apart(weights: Path) -> None:
    one, other = persons(HASHED, weights, [2, 1]), persons(HASHED, weights, [1, 3])
    np.testing.assert_array_equal(pool([one, other]).sizes, [2, 1, 1, 3])
    np.testing.assert_array_equal(pool([one, replace(other, owners=None)]).sizes, [2, 1, 1, 1, 1, 1])


@pytest.mark.parametrize("owners", [[1, 1, 2], [0, 2, 2], [0, 1, 0], [0, 1]])
def test_owners_are_numbered_without_gaps(weights: Path, owners: list[int]) -> None:
    data = persons(HASHED, weights, [2, 1])
    with pytest.raises(ValueError, match="owners"):
        replace(data, owners=np.array(owners, dtype=np.int64))
