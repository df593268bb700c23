"""A run folder on disk: who may use it, and what an interrupted run left in it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from shared.errors import ConfigError
from shared.plan import Plan
from shared.private_files import make_private_folder, replace_private_file
from simulation.scenario import Scenario
from simulation.study import SeedResult

SCENARIO_FILE = "scenario.json"
PLAN_FILE = "plan.json"
DATA_FILE = "data.json"


def claim_folder(scenario: Scenario, out: Path) -> None:
    """Take an empty folder, or go on in one that holds the same scenario.

    Raises:
        ConfigError: ``run-folder-used``.
        SetupError: ``home-not-writable``.
    """
    path = out / SCENARIO_FILE
    text = _claim(scenario)
    if path.is_file() and path.read_bytes() != text:
        raise ConfigError("run-folder-used", f"{out} holds a run of another scenario: choose another folder.")
    if not path.is_file() and out.is_dir() and any(out.iterdir()):
        raise ConfigError("run-folder-used", f"{out} is not empty and holds no run: choose another folder.")
    make_private_folder(out)
    replace_private_file(path, text)
    make_private_folder(out / "seeds")


def require_same_data(scenario: Scenario, out: Path, digests: Mapping[str, str]) -> None:
    """Refuse to add a seed over other data than the finished ones had; while there are none, note what it is.

    Args:
        scenario: that of the folder.
        out: the run folder.
        digests: of each department's files.

    Raises:
        ConfigError: ``run-folder-data``.
    """
    path, text = out / DATA_FILE, msgspec.json.format(msgspec.json.encode(digests, order="sorted"))
    if not any(seed_file(out, seed).is_file() for seed in seeds_of(scenario)):
        replace_private_file(path, text)
    elif not path.is_file() or path.read_bytes() != text:
        raise ConfigError(
            "run-folder-data",
            f"Bindings, rows or contracts are others than at the finished seeds of {out}: choose another folder.",
        )


def finished_seeds(scenario: Scenario, out: Path) -> list[SeedResult]:
    """Read the finished seeds of a run folder.

    Raises:
        ConfigError: ``run-folder-malformed``.
    """
    results = []
    for seed in seeds_of(scenario):
        path = seed_file(out, seed)
        if path.is_file():
            try:
                results.append(msgspec.json.decode(path.read_bytes(), type=SeedResult))
            except (msgspec.DecodeError, UnicodeDecodeError) as cause:
                raise ConfigError("run-folder-malformed", f"{path} is not a seed's result: {cause}.") from cause
    return results


def can_use(scenario: Scenario, out: Path) -> bool:
    """Return whether a folder is free, or holds an unfinished run of exactly this scenario."""
    if not out.exists() or not any(out.iterdir()):
        return True
    path = out / SCENARIO_FILE
    same = path.is_file() and path.read_bytes() == _claim(scenario)
    return same and not all(seed_file(out, seed).is_file() for seed in seeds_of(scenario))


def read_plan(out: Path) -> Plan:
    """Read the plan of a run folder's model.

    Raises:
        ConfigError: ``run-folder-plan``.
    """
    try:
        return msgspec.json.decode((out / PLAN_FILE).read_bytes(), type=Plan)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as cause:
        raise ConfigError("run-folder-plan", f"{out} holds no readable {PLAN_FILE}: name a run folder.") from cause


def seeds_of(scenario: Scenario) -> range:
    """Return the seeds of a study."""
    return range(scenario.seed, scenario.seed + scenario.seeds)


def seed_file(out: Path, seed: int) -> Path:
    """Return where a finished seed's result lies."""
    return out / "seeds" / f"{seed:04d}.json"


def next_world(out: Path, seed: int) -> Path:
    """Return a new folder; the world of an interrupted attempt stays as it is, with its ledgers."""
    attempt = 1
    while (folder := out / "worlds" / f"{seed:04d}-{attempt}").exists():
        attempt += 1
    make_private_folder(folder / "rows")
    return folder


def _claim(scenario: Scenario) -> bytes:
    """Return the content of ``scenario.json``."""
    return msgspec.json.format(msgspec.json.encode({"digest": scenario.digest(), "scenario": scenario}))
