"""Tuning touches public units alone, and one grid serves every arm."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from clients.training.noise import UnsafeSeededSource
from clients.training.shares import sum_of_shares
from clients.training.train import Trainer, TrainingSettings
from shared.plan import LocalOptimizer
from shared.privacy.plan import PerformanceFlags
from shared.tasks.features import HASHED_WORDS_SHA256
from shared.tasks.text import Prepared
from simulation.run import calibrate
from simulation.scenario import ArmOptimizers, PrivacyAsk, Scenario
from simulation.tune import print_tuning, read_public, try_grid
from simulation.world import ModelBasis
from tests.city import FOUR, MESSAGES, small_scenario


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
