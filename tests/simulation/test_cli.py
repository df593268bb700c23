"""``cityfed-sim`` from the outside."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec

from simulation.summary import RunSummary, read_summary
from tests.command_line import Run
from tests.simulation.small_study import Study, write_study

ROOT = Path(__file__).parents[2]


def test_json_prints_the_summary_and_nothing_else(run: Run, tmp_path: Path) -> None:
    study = write_study(tmp_path, seeds=1)
    ended = run("run", study, "--set", "name=renamed", "--out", tmp_path / "out", "--json")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.encode() == (tmp_path / "out" / "summary.json").read_bytes()
    summary = msgspec.json.decode(ended.out, type=RunSummary)
    assert summary == read_summary(tmp_path / "out")
    assert (summary.scenario, summary.noise) == ("renamed", "cryptographic")


def test_a_run_without_out_goes_to_runs_and_a_second_one_beside_it(run: Run, tmp_path: Path) -> None:
    study = write_study(tmp_path, seeds=1)
    first = run("run", study)
    assert (first.code, first.out) == (0, "")
    assert "Seed 1: round 1 finished" in first.err
    assert first.err.splitlines()[-1] == "Report: runs/small/report.html"
    assert run("run", study).code == 0
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["small", "small-2"]


def test_quick_limits_messages_and_seeds_and_an_override_wins(run: Run, tmp_path: Path) -> None:
    study = write_study(tmp_path)
    ended = run("run", study, "--quick", "--set", "seeds=1", "--json")
    assert json.loads(ended.out)["seeds_planned"] == 1
    scenario = json.loads((tmp_path / "runs" / "small-quick" / "scenario.json").read_text())["scenario"]
    assert scenario["data"]["limit"] == 300


def test_report_rebuilds_both_reports_as_they_were(run: Run, study: Study, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(study.folder, tmp_path / "copy"))
    for name in ("report.html", "report.md"):
        (folder / name).unlink()
    ended = run("report", folder)
    assert (ended.code, ended.err) == (0, f"Report: {folder}/report.html\n")
    for name in ("report.html", "report.md"):
        assert (folder / name).read_bytes() == (study.folder / name).read_bytes()


def test_predict_prints_the_file_with_a_score(run: Run, study: Study, tmp_path: Path) -> None:
    (tmp_path / "texts.csv").write_text("id,text\n1,we need help\n")
    ended = run("predict", study.folder, tmp_path / "texts.csv", "--column", "text")
    assert ended.code == 0
    assert ended.out.splitlines()[0] == "id,text,score"
    assert ended.out.splitlines()[1].startswith("1,we need help,0.")


def test_a_reader_that_has_seen_enough_ends_a_command_quietly(study: Study) -> None:
    journal = study.world() / "federated" / "police" / "client.toml"
    command = f"{sys.executable} -m clients audit show {journal} | head -c 10"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False, cwd=ROOT, timeout=60)
    assert len(result.stdout) == 10
    assert result.stderr == ""


def test_without_arguments_there_is_help(run: Run) -> None:
    ended = run()
    assert "Usage" in ended.out + ended.err
    assert "Traceback" not in ended.err
