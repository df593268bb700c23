"""Writes a small study's files, as a researcher would: a scenario TOML over the synthetic fixture."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import tomli_w

from simulation.progress import Silent
from simulation.scenario import Scenario, ScenarioDepartment
from simulation.summary import RunSummary
from tests.city import FOUR, MESSAGES, lowered_policy, small_scenario

Edit = Callable[[str], str]


def write_study(folder: Path, names: Sequence[str] = FOUR, **changes: object) -> Path:
    """Write ``study.toml`` with its policies; ``changes`` are fields of the scenario."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "study.toml"
    path.write_text(tomli_w.dumps(msgspec.to_builtins(small_scenario(folder, names, **changes))))
    return path


def with_police_rows(folder: Path, edit: Edit, policy: Edit = lambda text: text) -> dict[str, ScenarioDepartment]:
    """Return departments of which the police have rows of their own, changed by ``edit``."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(MESSAGES / "police.toml", folder)
    (folder / "police.csv").write_text(edit((MESSAGES / "police.csv").read_text()))
    departments = small_scenario(folder).departments
    own = ScenarioDepartment(binding=str(folder / "police.toml"), policy=lowered_policy(folder, "police", policy))
    return {**departments, "police": own}


class Notes(Silent):
    """Remembers what a person would have seen."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.rounds: list[tuple[int, int]] = []
        self.arms: list[tuple[int, str]] = []

    def note(self, text: str) -> None:
        self.lines.append(text)

    def round_done(self, seed: int, round_number: int) -> None:
        self.rounds.append((seed, round_number))

    def arm_done(self, seed: int, arm: str) -> None:
        self.arms.append((seed, arm))


@dataclass(frozen=True)
class Study:
    """A finished study."""

    scenario: Scenario
    folder: Path
    summary: RunSummary
    notes: Notes

    def world(self, seed: int = 1, attempt: int = 1) -> Path:
        return self.folder / "worlds" / f"{seed:04d}-{attempt}"
