"""The tutorial's commands, run as they stand on the page, with the files as they stand on the page."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "tutorial-own-data.md"

BLOCK = re.compile(r"^```bash\n(.*?)^```", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"`(study/[a-z-]+\.toml)`:\n\n```toml\n(.*?)^```", re.MULTILINE | re.DOTALL)
DEPARTMENTS = {"transport", "environment", "police", "health"}


@pytest.fixture(scope="module")
def shown() -> str:
    return PAGE.read_text()


@pytest.fixture(scope="module")
def checkout(shown: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Follow the page in a folder that looks like a checkout: files first, then every command, in order."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("tests", "policies"):
        (folder / name).symlink_to(ROOT / name)
    copy_files, *rest = BLOCK.findall(shown)
    follow(copy_files, folder)
    for name, text in FILE.findall(shown):
        (folder / name).write_text(text)
    (folder / "output.txt").write_text("".join(follow(block, folder) for block in rest))
    return folder


def follow(commands: str, folder: Path) -> str:
    """Run one block of the page as a person would, with the commands of this environment."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    result = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands],
        cwd=folder,
        env={**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, f"{commands}\n{result.stderr}"
    return result.stdout


@pytest.fixture(scope="module")
def summary(checkout: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((checkout / "runs/own-data/summary.json").read_text())
    return read


def test_the_page_shows_the_binding_as_it_is(shown: str) -> None:
    fixture = (ROOT / "tests/fixtures/messages/police.toml").read_text()
    without_comment = fixture.partition("\n")[2]
    assert dict(FILE.findall(shown))["study/police.toml"] == without_comment


def test_the_study_ends_with_a_complete_report(checkout: Path, summary: dict[str, Any]) -> None:
    assert summary["complete"]
    assert summary["noise"] == "cryptographic"
    assert set(summary["arms"]) == {"local", "federated", "pooled"}
    assert set(summary["arms"]["federated"]["departments"]) == DEPARTMENTS
    assert (checkout / "runs/own-data/report.html").stat().st_size > 0
    assert "own-data" in (checkout / "runs/own-data/MODEL_CARD.md").read_text()


def test_each_department_stays_within_the_cap_of_its_own_policy(summary: dict[str, Any]) -> None:
    assert set(summary["privacy"]) == DEPARTMENTS
    for charge in summary["privacy"].values():
        assert 0 < charge["spent_epsilon"] <= charge["epsilon"] <= charge["cap"] == 3.0


def test_the_model_puts_requests_above_other_messages(checkout: Path) -> None:
    with (checkout / "scored.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    scores = {label: [float(row["score"]) for row in rows if row["is_call"] == label] for label in ("0", "1")}
    assert sum(scores["1"]) / len(scores["1"]) > sum(scores["0"]) / len(scores["0"])


def test_the_commands_tell_size_budget_and_an_intact_journal(checkout: Path) -> None:
    told = (checkout / "output.txt").read_text()
    assert "police-fixture" in told
    assert "epsilon" in told
    assert re.search(r"[1-9]\d* receipts: in order", told)


def test_no_row_is_left_in_the_run_folder(checkout: Path) -> None:
    assert list((checkout / "runs").rglob("*.csv")) == []
