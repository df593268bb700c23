"""The command `cityfed-sim`, and one finished study for every test that only looks at its folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from clients.training.noise import UnsafeSeededSource
from simulation.cli import main
from simulation.home import Home
from simulation.run import run_study
from simulation.summary import RunSummary
from tests.city import small_scenario
from tests.command_line import Run, runner
from tests.simulation.small_study import Notes, Study


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Two seeds over the fixture with the unsafe source, so that the numbers are the same on every run."""
    folder = tmp_path_factory.mktemp("study")
    scenario, notes = small_scenario(folder, seeds=2), Notes()
    summary: RunSummary = run_study(
        scenario,
        scenario_folder=folder,
        out=folder / "run",
        home=Home(folder / "home"),
        progress=notes,
        source=lambda name: UnsafeSeededSource(sum(name.encode())),
    )
    return Study(scenario=scenario, folder=folder / "run", summary=summary, notes=notes)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Runs the command in an empty folder, without anything that `setup` made."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CITYFED_HOME", str(tmp_path / "no-home"))
    return runner(main, capsys, monkeypatch)
