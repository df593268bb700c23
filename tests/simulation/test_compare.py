"""Two arms side by side: paired by seed, and only where the splits were the same."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from shared.errors import ConfigError
from simulation.compare import compare_arms, print_comparison
from simulation.statistics import gain_summary
from tests.simulation.small_study import Study


@pytest.fixture
def other(study: Study, tmp_path: Path) -> Path:
    """The same run again, as if another mechanism had given other federated scores."""
    folder = tmp_path / "other"
    shutil.copytree(study.folder, folder, ignore=shutil.ignore_patterns("worlds"))
    return folder


def edit(path: Path, change: Callable[[dict[str, object]], object]) -> None:
    tree = json.loads(path.read_text())
    change(tree)
    path.write_text(json.dumps(tree))


def test_an_arm_against_another_of_the_same_run_is_the_gain_of_its_summary(study: Study) -> None:
    found = compare_arms(f"{study.folder}:federated", f"{study.folder}:local")
    assert found.difference == study.summary.gain
    assert found.seeds == study.summary.seeds
    assert found.means[0] == pytest.approx(study.summary.arms["federated"].mean)
    assert found.means[1] == pytest.approx(study.summary.arms["local"].mean)


def test_two_runs_are_paired_by_seed_and_printed(study: Study, other: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = min((other / "seeds").iterdir())
    first.unlink()
    found = compare_arms(f"{study.folder}:pooled", f"{other}:pooled")
    assert found.seeds == study.summary.seeds - 1
    assert found.difference.mean == 0
    equal = {name: [0.0] * found.seeds for name in study.scenario.departments}
    assert found.difference == gain_summary(equal, equal)
    print_comparison(found)
    printed = capsys.readouterr().out
    assert f"first minus second, {found.seeds} seeds" in printed
    assert "police: +0.000" in printed


def test_runs_that_split_the_data_in_another_way_are_not_compared(study: Study, other: Path) -> None:
    def more_held_out(tree: dict[str, dict[str, dict[str, object]]]) -> None:
        tree["scenario"]["data"]["holdout"] = 0.5

    edit(other / "scenario.json", more_held_out)  # type: ignore[arg-type]  # the shape of this file
    with pytest.raises(ConfigError) as caught:
        compare_arms(f"{study.folder}:local", f"{other}:local")
    assert caught.value.code == "runs-unlike"


def test_what_cannot_be_compared_is_one_sentence(study: Study, other: Path, tmp_path: Path) -> None:
    def code(first: str, second: str) -> str:
        with pytest.raises(ConfigError) as caught:
            compare_arms(first, second)
        return caught.value.code

    arm = f"{study.folder}:local"
    assert code(f"{study.folder}:best", arm) == "arm-unknown"
    assert code(str(study.folder), arm) == "arm-unknown"
    assert code(f"{tmp_path / 'nowhere'}:local", arm) == "run-folder-summary"
    (other / "scenario.json").write_text("{}")
    assert code(arm, f"{other}:local") == "run-folder-malformed"
    shutil.copy(study.folder / "scenario.json", other)
    for path in (other / "seeds").iterdir():
        path.unlink()
    assert code(arm, f"{other}:local") == "no-common-seed"
