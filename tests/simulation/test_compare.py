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


def refused(first: str, second: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        compare_arms(first, second)
    return caught.value


def test_runs_in_which_a_department_had_other_rows_at_one_seed_are_not_compared(study: Study, other: Path) -> None:
    def other_rows(tree: dict[str, object]) -> None:
        tree["splits"]["police"] = 64 * "0"  # type: ignore[index]  # the shape of this file

    edit(other / "seeds" / "0002.json", other_rows)
    error = refused(f"{study.folder}:local", f"{other}:local")
    assert error.code == "runs-unlike"
    assert error.message.endswith("at seed 2 the splits of police differ.")
    (other / "seeds" / "0002.json").unlink()
    assert compare_arms(f"{study.folder}:local", f"{other}:local").seeds == 1


def test_the_rows_decide_and_not_the_paths_that_name_them(study: Study, other: Path) -> None:
    def elsewhere(tree: dict[str, object]) -> None:
        for department in tree["scenario"]["departments"].values():  # type: ignore[index]  # the shape of this file
            department["binding"] = f"../{department['binding']}"

    edit(other / "scenario.json", elsewhere)
    assert compare_arms(f"{study.folder}:local", f"{other}:local").difference.mean == 0


def test_runs_of_different_tasks_are_not_compared(study: Study, other: Path) -> None:
    def another_label(tree: dict[str, object]) -> None:
        tree["scenario"]["task"]["label"] = "other"  # type: ignore[index]  # the shape of this file

    edit(other / "scenario.json", another_label)
    assert refused(f"{study.folder}:local", f"{other}:local").code == "runs-unlike"


def test_what_cannot_be_compared_is_one_sentence(study: Study, other: Path, tmp_path: Path) -> None:
    def code(first: str, second: str) -> str:
        return refused(first, second).code

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
