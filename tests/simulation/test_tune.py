"""Tuning touches public units alone, and one grid serves every arm."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from clients.training.noise import UnsafeSeededSource
from clients.training.shares import sum_of_shares
from clients.training.train import Trainer, TrainingSettings
from shared.errors import ConfigError
from shared.parameters import Vector
from shared.plan import LocalOptimizer, ServerOptimizerSpec
from shared.privacy.plan import PerformanceFlags
from shared.tasks.features import HASHED_WORDS_SHA256
from shared.tasks.text import Prepared
from simulation.home import Home
from simulation.run import calibrate
from simulation.scenario import ArmOptimizers, PrivacyAsk, Scenario, load_scenario
from simulation.stand_in import read_public, rows_wanted
from simulation.tune import PretendedCity, print_tuning, train_federated, try_grid, tune_arms
from simulation.world import ModelBasis
from tests.city import FOUR, MESSAGES, open_city, permit, small_scenario


@pytest.fixture
def scenario(tmp_path: Path) -> Scenario:
    kinds = {arm: LocalOptimizer(kind="sgd", learning_rate=1.0) for arm in ("federated", "local", "pooled")}
    ask = PrivacyAsk(epsilon=2.0, delta=1e-4, sample_rate=0.2, steps=1, max_grad_norm=1.0)
    return small_scenario(tmp_path, FOUR[:3], rounds=1, privacy=ask, optimizer=ArmOptimizers(**kinds))


@pytest.fixture
def basis(scenario: Scenario) -> ModelBasis:
    return ModelBasis.load(scenario.model.spec(HASHED_WORDS_SHA256), None)


@pytest.fixture
def public(basis: ModelBasis, tmp_path: Path) -> Prepared:
    rows = (MESSAGES / "transport.csv").read_text().splitlines()[1:]
    path = tmp_path / "public.csv"
    path.write_text("\n".join(["ticket,kind,description,request,logged_by", *rows]) + "\n")
    return read_public(path, basis, tmp_path / "features.safetensors", limit=100)


def test_the_stand_in_is_read_up_to_its_limit_with_labels(public: Prepared) -> None:
    assert len(public) == 100
    assert public.labels is not None
    assert 0 < float(public.labels.sum()) < 100


def test_every_arm_is_tried_with_every_rate_of_one_grid(
    scenario: Scenario, basis: ModelBasis, public: Prepared, capsys: pytest.CaptureFixture[str]
) -> None:
    told: list[str] = []
    rates = (1.0, 4.0)
    table = try_grid(scenario, basis, public, note=told.append, rates=rates, repeats=1)
    arms = ("local", "federated", "pooled")
    assert [(row.arm, row.learning_rate) for row in table] == [(arm, rate) for arm in arms for rate in rates]
    assert all(0 < row.average_precision <= 1 for row in table)
    assert len(told) == len(table)
    print_tuning(table)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == list(arms)
    for line in lines:
        assert float(line.split("best learning_rate = ")[1].split(" ")[0]) in rates


def test_with_shared_noise_the_rate_that_is_tried_is_the_servers(
    scenario: Scenario, basis: ModelBasis, public: Prepared
) -> None:
    ask = msgspec.structs.replace(scenario.privacy, mechanism="shared-noise")
    shared = msgspec.structs.replace(scenario, privacy=ask)
    table = try_grid(shared, basis, public, note=lambda _line: None, rates=(1.0, 8.0), repeats=1)
    scores = {row.learning_rate: row.average_precision for row in table if row.arm == "federated"}
    assert set(scores) == {1.0, 8.0}
    assert all(0 < score <= 1 for score in scores.values())


MOVED_BY = {
    "bound": {"bound": 0.5},
    "adam": {"server_optimizer": ServerOptimizerSpec(kind="fedadam", learning_rate=0.5)},
    "rate": {"server_optimizer": ServerOptimizerSpec(learning_rate=0.5)},
    "extras": {"extras": ("train-loss-sum",)},
    "shared": {
        "privacy": PrivacyAsk(
            mechanism="shared-noise", epsilon=2.0, delta=1e-4, sample_rate=0.2, steps=1, max_grad_norm=1.0
        ),
        "optimizer": ArmOptimizers(
            **dict.fromkeys(("federated", "local", "pooled"), LocalOptimizer(learning_rate=1.0))
        ),
        "bound": 4.0,
        "server_optimizer": ServerOptimizerSpec(kind="fedyogi", learning_rate=0.5),
    },
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Vector:
    return both_ways(tmp_path_factory.mktemp("plain"))


def both_ways(folder: Path, **changes: object) -> Vector:
    """Run a scenario in a whole city, train it as tuning does, hold one against the other, and return the model."""
    scenario = small_scenario(folder, **changes)
    if scenario.extras:
        for name in FOUR:
            permit(folder / f"{name}-policy.toml", *scenario.extras)
    with open_city(folder / "city", scenario) as city:
        ran = city.run().model
        parts = {name: department.rows(city.world.plan) for name, department in city.world.departments.items()}
        tuned = train_federated(
            PretendedCity(
                scenario=scenario,
                plan=city.world.plan,
                parts=parts,
                basis=city.basis,
                source=lambda name: UnsafeSeededSource(sum(name.removeprefix("federated ").encode())),
            )
        )
    np.testing.assert_array_equal(tuned, ran)
    return ran


@pytest.mark.parametrize("key", MOVED_BY)
def test_tuning_trains_what_a_run_trains_bit_for_bit_whatever_the_scenario_asks(
    tmp_path: Path, plain: Vector, key: str
) -> None:
    assert not np.array_equal(both_ways(tmp_path, **MOVED_BY[key]), plain)


@pytest.mark.parametrize(
    ("key", "overrides"),
    [
        ("data.source", ["data.source=files", *(f"departments.{name}.binding=x.toml" for name in FOUR)]),
        ("task", ["task.label=service_code"]),
        ("privacy.unit", ["privacy.unit=person", "privacy.max_records=3"]),
        ("faults", ['faults=[{department="police"}]']),
    ],
)
def test_what_the_stand_in_does_not_have_is_refused_by_name(tmp_path: Path, key: str, overrides: list[str]) -> None:
    scenario, _ = load_scenario("emergency-triage", tuple(overrides))
    with pytest.raises(ConfigError) as caught:
        tune_arms(scenario, Home(tmp_path / "home"), note=lambda _line: None)
    assert caught.value.code == "stand-in-unlike"
    assert f"`{key}`" in caught.value.message
    assert not (tmp_path / "home").exists()


def test_the_stand_in_has_the_rows_that_the_scenario_allows_a_department() -> None:
    for limit, rows in ((0, 4 * 2_200), (300, 4 * 300), (9_000, 4 * 2_200)):
        assert rows_wanted(load_scenario("emergency-triage", (f"data.limit={limit}",))[0]) == rows


@pytest.mark.parametrize(("rows", "word"), [(25, "public size"), (36, "labelled 1")])
def test_too_few_rows_for_a_public_size_or_a_score_are_one_sentence(
    scenario: Scenario, basis: ModelBasis, public: Prepared, rows: int, word: str
) -> None:
    assert public.labels is not None
    few = public.take(np.flatnonzero(public.labels.numpy() == 0)[:rows])
    with pytest.raises(ConfigError) as caught:
        try_grid(scenario, basis, few, note=lambda _line: None, rates=(1.0,), repeats=1)
    assert caught.value.code == "stand-in-too-small"
    assert word in caught.value.message


def test_shares_add_up_to_the_sum_of_gradients_and_one_noise(
    scenario: Scenario, basis: ModelBasis, public: Prepared
) -> None:
    """Without noise the decoded sum is that of one trainer that holds everything, but for half a ring step each."""
    ask = msgspec.structs.replace(scenario.privacy, mechanism="shared-noise", sample_rate=1.0)
    privacy = calibrate(msgspec.structs.replace(scenario, privacy=ask))
    parts = [public.take(part) for part in np.array_split(np.arange(len(public)), 3)]
    settings = TrainingSettings(
        privacy=privacy,
        denominator=1.0,
        optimizer=LocalOptimizer(learning_rate=1.0),
        model=basis.spec,
        layout=basis.layout,
    )
    flags = PerformanceFlags(device="cpu")
    trainer = Trainer.prepare(settings=settings, data=public, weights_dir=None, flags=flags)
    quiet = UnsafeSeededSource(1, noise=False)
    together, apart = (
        sum_of_shares([(trainer, part) for part in held], parameters=basis.initial, source=quiet, bound=512.0)
        for held in ([public], parts)
    )
    assert np.abs(together).max() > 0.1
    np.testing.assert_allclose(apart, together, atol=1e-4)
