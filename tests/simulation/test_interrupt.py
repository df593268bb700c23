"""Ctrl-C in mid-run: journals in order, finished seeds kept, the report written, and a way to go on."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from shared.journal import verify_journal
from simulation.run_folder import finished_seeds
from simulation.scenario import load_scenario
from simulation.summary import read_metrics, read_summary
from tests.simulation.small_study import write_study

ROOT = Path(__file__).parents[2]


def start(*arguments: str, home: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "simulation", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "CITYFED_HOME": str(home), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
    )


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, int, list[str]]:
    """Run a long study and press Ctrl-C when the second seed has trained its first round."""
    folder = tmp_path_factory.mktemp("interrupted")
    study, out = write_study(folder, seeds=3), folder / "a folder" / "out"
    lines = []
    with start("run", str(study), "--out", str(out), home=folder / "no-home") as process:
        assert process.stderr is not None
        for line in process.stderr:
            lines.append(line.rstrip("\n"))
            if line.startswith("Seed 2: round 1"):
                process.send_signal(signal.SIGINT)
    return study, out, process.returncode, lines


def test_an_interrupt_is_exit_code_130_and_one_sentence_that_says_how_to_go_on(
    interrupted: tuple[Path, Path, int, list[str]],
) -> None:
    study, out, code, lines = interrupted
    assert code == 130
    assert not [line for line in lines if "Traceback" in line]
    expected = f"Go on with: cityfed-sim run {study} --out {shlex.quote(str(out))}"
    assert lines[-1] == f"Stopped; finished seeds and every journal are kept. {expected}"


def test_finished_seeds_are_kept_and_reported(interrupted: tuple[Path, Path, int, list[str]]) -> None:
    study, out, _, _ = interrupted
    scenario, _ = load_scenario(str(study))
    assert [result.seed for result in finished_seeds(scenario, out)] == [1]
    summary = read_summary(out)
    assert (summary.complete, summary.seeds, summary.seeds_planned) == (False, 1, 3)
    assert summary.finished is None
    assert {row.seed for row in read_metrics(out)} == {1}
    for name in ("report.html", "report.md", "model.safetensors", "MODEL_CARD.md"):
        assert (out / name).stat().st_size > 0


def test_p5_every_journal_of_an_interrupted_run_verifies(interrupted: tuple[Path, Path, int, list[str]]) -> None:
    _, out, _, _ = interrupted
    journals = sorted(out.glob("worlds/0002-1/federated/*/journal.sqlite"))
    assert len(journals) == 5
    for path in journals:
        assert verify_journal(path, owner=path.parent.name).entries > 0


def test_p1_an_interrupted_run_leaves_no_copy_of_a_row(interrupted: tuple[Path, Path, int, list[str]]) -> None:
    _, out, _, _ = interrupted
    assert list(out.rglob("*.csv")) == []


def test_going_on_with_the_printed_command_finishes_only_the_rest(
    interrupted: tuple[Path, Path, int, list[str]],
) -> None:
    study, out, _, lines = interrupted
    first_seed = (out / "seeds" / "0001.json").read_bytes()
    command = lines[-1].partition("cityfed-sim ")[2]
    process = start(*shlex.split(command), home=study.parent / "no-home")
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 0, said
    assert {seed for seed, _ in re.findall(r"Seed (\d): round (\d)", said)} == {"2", "3"}
    assert (out / "seeds" / "0001.json").read_bytes() == first_seed
    summary = read_summary(out)
    assert (summary.complete, summary.seeds) == (True, 3)
    assert sorted(path.name for path in (out / "worlds").iterdir()) == ["0001-1", "0002-1", "0002-2", "0003-1"]
    assert {row.seed for row in read_metrics(out)} == {1, 2, 3}
