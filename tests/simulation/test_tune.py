"""Tuning touches public units alone, and one grid serves every arm."""

from __future__ import annotations

from pathlib import Path

import pytest

from shared.plan import LocalOptimizer
from shared.tasks.features import HASHED_WORDS_SHA256
from shared.tasks.text import Prepared
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
