import datetime as dt
from dataclasses import replace
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
import pytest
import torch

from clients.training.noise import OsRandomSource, RandomSource, UnsafeSeededSource
from clients.training.train import _CHECKED, DpUpdate, TrainingSettings, noised_mean, settings_of, train_round
from shared.errors import CityFedError
from shared.identity import DepartmentId
from shared.parameters import Layout, TensorSpec, Vector
from shared.plan import (
    DatasetTerms,
    LocalOptimizer,
    ModelSpec,
    Plan,
    ServerOptimizerSpec,
    TaskSpec,
    default_aggregation,
)
from shared.privacy.plan import PerformanceFlags, PrivacyBudget, PrivacyParams
from shared.tasks.classifiers import FEATURE_LENGTH
from shared.tasks.features import HASHED_WORDS_SHA256
from shared.tasks.metrics import average_precision
from shared.tasks.text import Prepared, initial_parameters, layout_of, predict_scores, prepare

CPU = torch.device("cpu")
HASHED = ModelSpec(architecture="hashed-words", base_weights_sha256=HASHED_WORDS_SHA256)
ASKING = ["please help we need water", "we need food please", "help help the storm", "please we need help"]
TELLING = ["the road is closed", "the bridge is closed", "storm is the road", "the food is the water"]


def settings(
    *,
    model: ModelSpec = HASHED,
    weights: Path | None = None,
    steps: int = 5,
    sample_rate: float = 0.5,
    optimizer: LocalOptimizer | None = None,
    denominator: float = 20.0,
    noise_multiplier: float = 1.0,
    clipping: Literal["flat", "automatic"] = "flat",
) -> TrainingSettings:
    privacy = PrivacyParams(
        budget=PrivacyBudget(epsilon=1, delta=1e-4),
        sample_rate=sample_rate,
        steps=steps,
        max_grad_norm=0.1,
        noise_multiplier=noise_multiplier,
        clipping=clipping,
    )
    return TrainingSettings(
        privacy=privacy,
        denominator=denominator,
        optimizer=optimizer or LocalOptimizer(learning_rate=1.0),
        model=model,
        layout=layout_of(model, weights),
    )


def units(spec: ModelSpec = HASHED, weights: Path | None = None, repeats: int = 5) -> Prepared:
    labels = [1.0] * 4 * repeats + [0.0] * 4 * repeats
    return prepare(spec, ASKING * repeats + TELLING * repeats, labels, weights_dir=weights, device=CPU)


def lora_of(full: ModelSpec) -> ModelSpec:
    return msgspec.structs.replace(full, trainable="lora", lora_rank=2)


def train(
    chosen: TrainingSettings,
    source: RandomSource,
    *,
    data: Prepared | None = None,
    weights: Path | None = None,
    start: Vector | None = None,
    flags: PerformanceFlags | None = None,
) -> DpUpdate:
    return train_round(
        settings=chosen,
        parameters=initial_parameters(chosen.model, weights) if start is None else start,
        data=units(chosen.model, weights) if data is None else data,
        weights_dir=weights,
        source=source,
        flags=flags or PerformanceFlags(device="cpu"),
    )


def refused(chosen: TrainingSettings, **arguments: object) -> str:
    with pytest.raises(CityFedError) as caught:
        train(chosen, UnsafeSeededSource(1), **arguments)  # type: ignore[arg-type]  # chosen by each test
    return caught.value.code


def test_training_learns_the_task_when_noise_is_off() -> None:
    chosen = settings(steps=40, optimizer=LocalOptimizer(learning_rate=20.0))
    update = train(chosen, UnsafeSeededSource(1, noise=False))
    data = units()
    assert data.labels is not None
    assert average_precision(data.labels.numpy(), predict_scores(HASHED, update.delta, data)) > 0.99
    assert update.steps == 40


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_every_exported_tensor_changes(weights: Path, full: ModelSpec, kind: str) -> None:
    optimizer = LocalOptimizer(kind=kind, learning_rate=0.01)  # type: ignore[arg-type]  # parametrised
    for spec in (full, lora_of(full)):
        chosen = settings(model=spec, weights=weights, steps=2, optimizer=optimizer)
        update = train(chosen, UnsafeSeededSource(2), weights=weights)
        assert all(np.abs(tensor).max() > 0 for tensor in chosen.layout.unflatten(update.delta).values())


def test_the_engine_changes_nothing_but_speed(weights: Path, full: ModelSpec) -> None:
    for spec in (full, lora_of(full)):
        chosen = settings(model=spec, weights=weights, steps=4)
        start = initial_parameters(spec, weights)
        updates = {
            name: train(
                chosen,
                UnsafeSeededSource(16),
                weights=weights,
                start=start,
                flags=PerformanceFlags(device="cpu", engine=name),
            )
            for name in ("auto", "bookkeeping", "opacus")
        }
        assert [update.engine for update in updates.values()] == ["bookkeeping", "bookkeeping", "opacus"]
        np.testing.assert_array_equal(updates["auto"].delta, updates["bookkeeping"].delta)
        # Coins and noise are the same; the sums differ by float32 and the last rounding.
        np.testing.assert_allclose(updates["opacus"].delta, updates["bookkeeping"].delta, atol=1e-5)


def test_automatic_clipping_gives_every_unit_the_same_weight() -> None:
    # Hashed words at a zero head: every unit's gradient is about 1.1 long, so it counts for 1.1 / (1.1 + 0.01) of 0.1.
    one = units().take(np.array([0]))
    flat, automatic = (
        train(
            settings(steps=1, sample_rate=1.0, denominator=1.0, clipping=rule),
            UnsafeSeededSource(17, noise=False),
            data=one,
        ).delta
        for rule in ("flat", "automatic")
    )
    norm = 0.5 * np.sqrt(FEATURE_LENGTH**2 + 1)
    np.testing.assert_allclose(automatic, flat * norm / (norm + 0.01), atol=1e-6)


def test_the_first_step_is_that_of_the_formula() -> None:
    # At a zero head each unit's gradient is (0.5 - label) times its stretched feature and 1; with rate 1 all are in.
    chosen = settings(steps=1, sample_rate=1.0)
    data = units(repeats=1)
    assert data.labels is not None
    update = train(chosen, UnsafeSeededSource(3, noise=False), data=data)
    rows = np.hstack([FEATURE_LENGTH * data.inputs[0].numpy(), np.ones((8, 1))]) * (0.5 - data.labels.numpy())[:, None]
    rows *= np.minimum(1, 0.1 * (1 - 2**-6) / np.linalg.norm(rows, axis=1))[:, None]
    np.testing.assert_allclose(update.delta, -rows.sum(0) / 20, atol=1e-7)


def test_the_divisor_is_public_and_not_the_number_of_rows() -> None:
    # One row more changes the step by that row's clipped gradient only: the other rows keep their scale.
    chosen = settings(steps=1, sample_rate=1.0)
    data = units(repeats=1)
    smaller = data.take(np.arange(7))
    larger, less = (train(chosen, UnsafeSeededSource(4, noise=False), data=rows).delta for rows in (data, smaller))
    last = train(chosen, UnsafeSeededSource(4, noise=False), data=data.take(np.array([7]))).delta
    np.testing.assert_allclose(larger - less, last, atol=1e-7)


def test_noise_has_the_plans_scale_whatever_the_data() -> None:
    # False alarm: the standard deviation of 50,000 draws within 5 standard errors, below 1e-6.
    privacy = settings(noise_multiplier=2.0).privacy
    stream = UnsafeSeededSource(5).fork_step()
    noise = noised_mean(np.zeros(50_000, dtype=np.int64), stream, privacy, 20.0)
    expected = 2.0 * 0.1 / 20.0
    assert abs(float(noise.std()) / expected - 1) < 5 / np.sqrt(2 * 50_000)


@pytest.mark.parametrize("which", ["head", "lora", "full"])
def test_one_unit_moves_a_noiseless_step_by_at_most_the_clip(weights: Path, full: ModelSpec, which: str) -> None:
    spec = {"head": HASHED, "lora": lora_of(full), "full": full}[which]
    chosen = settings(model=spec, weights=weights, steps=1, sample_rate=1.0, denominator=1.0)
    start = initial_parameters(spec, weights)
    start += np.random.default_rng(6).standard_normal(start.size).astype(np.float32) * np.float32(0.05)
    data = units(spec, weights, repeats=2)
    flags = PerformanceFlags(device="cpu", physical_batch_size=3)
    for extra in (0, 9):
        neighbour = data.take(np.delete(np.arange(16), extra))
        one, other = (
            train(
                chosen, UnsafeSeededSource(7, noise=False), data=rows, weights=weights, start=start, flags=flags
            ).delta
            for rows in (data, neighbour)
        )
        assert float(np.linalg.norm(one - other)) <= 0.1 * (1 + 1e-4)


@pytest.mark.parametrize("which", ["head", "full"])
def test_without_units_there_is_still_noise_in_every_step(weights: Path, full: ModelSpec, which: str) -> None:
    spec = full if which == "full" else HASHED
    chosen = settings(model=spec, weights=weights, steps=3)
    nothing = units(spec, weights).take(np.zeros(0, dtype=np.int64))
    update = train(chosen, UnsafeSeededSource(8), data=nothing, weights=weights)
    expected = np.sqrt(3) * 0.1 / 20.0
    # Momentum-free SGD adds three draws; 5 standard errors over at least 257 coordinates.
    assert abs(float(update.delta.std()) / expected - 1) < 5 / np.sqrt(2 * update.delta.size)


def test_equal_data_and_seeds_do_not_share_noise_in_production() -> None:
    # Rate 1 makes the sums equal, so the difference is that of two noises; 5 standard errors, below 1e-6.
    chosen = settings(steps=1, sample_rate=1.0)
    with torch.random.fork_rng():
        torch.manual_seed(9)
        first = train(chosen, OsRandomSource()).delta
        torch.manual_seed(9)
        second = train(chosen, OsRandomSource()).delta
    expected = np.sqrt(2) * 0.1 / 20.0
    assert abs(float(np.std(first - second)) / expected - 1) < 5 / np.sqrt(2 * first.size)


def test_the_global_generator_is_neither_moved_nor_read(weights: Path, full: ModelSpec) -> None:
    before = torch.get_rng_state()
    one = train(settings(), UnsafeSeededSource(10)).delta
    train(settings(model=full, weights=weights, steps=1), UnsafeSeededSource(10), weights=weights)
    assert torch.equal(torch.get_rng_state(), before)
    with torch.random.fork_rng():
        torch.manual_seed(123)
        np.testing.assert_array_equal(one, train(settings(), UnsafeSeededSource(10)).delta)


@pytest.mark.parametrize("which", ["head", "full"])
def test_a_run_is_reproducible_but_for_its_noise(weights: Path, full: ModelSpec, which: str) -> None:
    chosen = settings(model=full if which == "full" else HASHED, weights=weights, steps=3)
    one, same, other = (train(chosen, UnsafeSeededSource(seed), weights=weights).delta for seed in (11, 11, 12))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)


@pytest.mark.parametrize("steps", [1, 2, 5, 6])
def test_the_mean_of_the_last_half_is_that_of_its_iterates_and_takes_the_same_steps(steps: int) -> None:
    optimizer = LocalOptimizer(learning_rate=2.0, momentum=0.5, iterate="mean-of-last-half")
    start = initial_parameters(HASHED, None) + np.float32(0.01)
    found = train(settings(steps=steps, optimizer=optimizer), UnsafeSeededSource(18), start=start)
    # The same coins and noise, stopped after each step in turn.
    last = LocalOptimizer(learning_rate=2.0, momentum=0.5)
    iterates = [
        train(settings(steps=number, optimizer=last), UnsafeSeededSource(18), start=start).delta
        for number in range(steps // 2 + 1, steps + 1)
    ]
    np.testing.assert_allclose(found.delta, np.mean(iterates, axis=0, dtype=np.float64), atol=1e-7)
    assert found.steps == steps


def test_steps_are_announced_before_they_draw() -> None:
    events: list[str] = []

    class UnsafeWatchedSource(UnsafeSeededSource):
        def fork_step(self):  # type: ignore[no-untyped-def]  # as its base
            events.append("draw")
            return super().fork_step()

    train_round(
        settings=settings(steps=2),
        parameters=initial_parameters(HASHED, None),
        data=units(),
        weights_dir=None,
        source=UnsafeWatchedSource(13),
        flags=PerformanceFlags(device="cpu"),
        on_step=lambda number: events.append(f"step {number}"),
    )
    assert events == ["step 1", "draw", "step 2", "draw"]


def test_an_update_is_read_only_and_prints_no_values() -> None:
    update = train(settings(), UnsafeSeededSource(14))
    assert repr(update) == "DpUpdate(257 coordinates, 5 steps, head)"
    assert update.delta.dtype == np.float32
    with pytest.raises(ValueError):
        update.delta[0] = 0


def test_what_does_not_fit_is_refused() -> None:
    other = Layout(tensors=(TensorSpec(name="head.weight", shape=(1, 256)),))
    assert refused(replace(settings(), layout=other)) == "layout-mismatch"
    assert refused(settings(), start=np.zeros(3, dtype=np.float32)) == "vector-shape"
    with pytest.raises(ValueError):
        train(settings(), UnsafeSeededSource(15), data=Prepared(units().inputs, None, units().lengths))
    with pytest.raises(ValueError):
        settings(denominator=0.0)


def test_the_preflight_is_asked_once_for_a_kind_of_model(weights: Path, full: ModelSpec) -> None:
    _CHECKED.clear()  # whatever other tests have trained in this process
    # A second round may not cost another preflight: it would take a third of a head's round.
    for spec in (HASHED, full):
        train(settings(model=spec, weights=weights, steps=1), UnsafeSeededSource(19), weights=weights)
        known = len(_CHECKED)
        for seed in range(3):
            train(settings(model=spec, weights=weights, steps=1), UnsafeSeededSource(seed), weights=weights)
        assert len(_CHECKED) == known
    # What the preflight looks at in another way is another kind.
    data = replace(units(), owners=np.arange(40) // 2)
    train(settings(steps=1), UnsafeSeededSource(20), data=data)
    assert len(_CHECKED) > known


def test_training_that_diverges_is_refused() -> None:
    chosen = settings(denominator=1e-37, optimizer=LocalOptimizer(learning_rate=1e4))  # no plan can say this
    assert refused(chosen) == "vector-not-finite"


def test_settings_are_the_plans() -> None:
    chosen = settings()
    plan = Plan(
        name="triage",
        purpose="test",
        approval=1,
        valid_from=dt.date(2026, 1, 1),
        valid_until=dt.date(2026, 12, 31),
        package_digest="00",
        task=TaskSpec(),
        model=HASHED,
        layout=chosen.layout,
        initial_model_sha256="00",
        datasets={name: DatasetTerms(contract_hash="00", public_size=600) for name in ("a", "b", "c", "d")},
        roster_size=4,
        privacy=chosen.privacy,
        aggregation=default_aggregation(4, bound=10),
        rounds=1,
        local_optimizer=chosen.optimizer,
        server_optimizer=ServerOptimizerSpec(),
    )
    assert settings_of(plan, DepartmentId("a")) == replace(chosen, denominator=300.0)
    larger = msgspec.structs.replace(chosen.privacy, sample_rate=1.0)
    assert settings_of(msgspec.structs.replace(plan, privacy=larger), DepartmentId("a")).denominator == 600
