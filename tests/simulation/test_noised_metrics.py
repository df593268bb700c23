"""A study whose plan declares noised metrics: what is released, what it costs, what the report says."""

from __future__ import annotations

from pathlib import Path

import pytest

from clients.training.noise import UnsafeSeededSource
from shared.errors import ConfigError, PolicyViolation
from shared.privacy.accountant import epsilon
from shared.privacy.extras import plan_events
from simulation.home import Home
from simulation.progress import Silent
from simulation.run import calibrate, run_study
from simulation.run_folder import read_plan
from simulation.scenario import load_scenario
from simulation.summary import EVERY_DEPARTMENT, RunSummary, read_metrics
from tests.city import FOUR, small_scenario
from tests.simulation.small_study import write_study


def study(folder: Path, *extras: str) -> RunSummary:
    return run_study(
        small_scenario(folder, seeds=1, extras=extras),
        scenario_folder=folder,
        out=folder / "run",
        home=Home(folder / "home"),
        progress=Silent(),
        source=lambda name: UnsafeSeededSource(sum(name.encode())),
    )


def test_a_noised_metric_is_a_row_a_line_of_the_report_and_a_part_of_epsilon(tmp_path: Path) -> None:
    summary = study(tmp_path, "train-loss-sum")
    (extra,) = summary.extras
    rows = [row for row in read_metrics(tmp_path / "run") if row.name == "train-loss-sum"]
    assert [(row.arm, row.round, row.department) for row in rows] == [
        ("federated", number, EVERY_DEPARTMENT) for number in (1, 2)
    ]
    assert all(abs(row.value) < 1 + 6 * extra.noise_stddev for row in rows)
    assert set(summary.arms["federated"].departments) == set(FOUR)
    plan = read_plan(tmp_path / "run")
    training, released = plan_events(plan, plan.attempts)
    assert extra.epsilon == epsilon([released], 1e-4) <= 0.1 * plan.privacy.budget.epsilon
    for item in summary.privacy.values():
        assert item.epsilon == epsilon([training, released], 1e-4) <= plan.privacy.budget.epsilon
        assert item.epsilon > epsilon([training], 1e-4)
    assert summary.city_worst_case is not None
    assert summary.city_worst_case.epsilon == epsilon([training, released] * 4, 1e-4)
    report = (tmp_path / "run" / "report.md").read_text()
    assert "Noised metrics, mean over departments" in report
    assert "Noised inside them: train-loss-sum." in report


def test_a_department_that_lists_no_such_metric_refuses_the_run(tmp_path: Path) -> None:
    with pytest.raises(PolicyViolation, match=r"R17 .found metrics: unit-count; allowed metrics: only train-loss-sum"):
        study(tmp_path, "unit-count")


def test_the_switch_is_a_setting_of_the_scenario_and_costs_little_noise(tmp_path: Path) -> None:
    path = str(write_study(tmp_path))
    plain, _ = load_scenario(path)
    noised, _ = load_scenario(path, ('extras=["train-loss-sum"]',))
    assert (plain.extras, noised.extras) == ((), ("train-loss-sum",))
    before, after = calibrate(plain).noise_multiplier, calibrate(noised).noise_multiplier
    assert before < after < 1.02 * before
    for wrong in ('extras=["income"]', 'extras=["unit-count", "unit-count"]', "privacy.extras_share=1.0"):
        with pytest.raises(ConfigError, match="extras"):
            load_scenario(path, (wrong,))
