"""Two arms side by side, of one run or of two: paired by seed, because a seed draws the same splits everywhere."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import msgspec

from shared.codec import Record
from shared.errors import ConfigError
from shared.report import figures
from simulation.run_folder import SCENARIO_FILE, finished_seeds
from simulation.scenario import Scenario
from simulation.statistics import gain_summary
from simulation.study import SeedResult
from simulation.summary import ArmName, GainSummary


class Comparison(Record, frozen=True, kw_only=True):
    """First arm minus second arm: mean over departments, paired by seed."""

    first: str
    second: str
    seeds: int
    means: tuple[float, float]
    difference: GainSummary


class _Stored(Record, frozen=True, kw_only=True):
    """``scenario.json`` of a run folder."""

    digest: str
    scenario: Scenario


def compare_arms(first: str, second: str) -> Comparison:
    """Compare two arms, each named ``DIR:ARM``.

    Raises:
        ConfigError: ``arm-unknown``, ``run-folder-summary``, ``run-folder-malformed``, ``runs-unlike`` when the runs
            have another task or, at a common seed, did not split the same rows in the same way, ``no-common-seed``.
    """
    left, right = _read(first), _read(second)
    if left.scenario.task != right.scenario.task:
        raise ConfigError("runs-unlike", f"{first} and {second} are runs of different tasks.")
    seeds = sorted(left.results.keys() & right.results.keys())
    if not seeds:
        raise ConfigError("no-common-seed", f"{first} and {second} have no finished seed in common.")
    for seed in seeds:
        _require_same_splits(left.results[seed], right.results[seed], where=f"{first} and {second}")
    names = sorted(left.scenario.departments)
    one, other = (
        {name: [run.results[seed].scores[run.arm][name] for seed in seeds] for name in names} for run in (left, right)
    )
    means = tuple(sum(map(sum, columns.values())) / len(seeds) / len(names) for columns in (one, other))
    return Comparison(
        first=first,
        second=second,
        seeds=len(seeds),
        means=(means[0], means[1]),
        difference=gain_summary(one, other),
    )


def print_comparison(found: Comparison) -> None:
    """Print the means, and the difference of every department with its interval."""
    difference = found.difference
    lines = [
        f"{found.first}: {found.means[0]:.4f}",
        f"{found.second}: {found.means[1]:.4f}",
        f"first minus second, {found.seeds} seeds, 95 % interval:",
        *(
            f"  {name}: {figures.difference(each.mean)} ({figures.difference_interval(each.interval)})"
            for name, each in difference.departments.items()
        ),
        f"  mean: {figures.difference(difference.mean)} ({figures.difference_interval(difference.interval)})",
    ]
    sys.stdout.write("\n".join(lines) + "\n")


@dataclass(frozen=True, kw_only=True)
class _Run:
    """What a run folder holds, and the arm that is asked for."""

    scenario: Scenario
    arm: ArmName
    results: dict[int, SeedResult]


def _read(named: str) -> _Run:
    """Read a run's scenario and its finished seeds."""
    folder, _, arm = named.rpartition(":")
    known: dict[str, ArmName] = {name: name for name in get_args(ArmName)}
    if arm not in known:
        raise ConfigError("arm-unknown", f"{named} does not name an arm: write DIR:ARM, ARM one of {', '.join(known)}.")
    path = Path(folder) / SCENARIO_FILE
    try:
        scenario = msgspec.json.decode(path.read_bytes(), type=_Stored).scenario
    except OSError as cause:
        raise ConfigError("run-folder-summary", f"{path} cannot be read: name a run folder.") from cause
    except (msgspec.DecodeError, UnicodeDecodeError) as cause:
        raise ConfigError("run-folder-malformed", f"{path} is not a scenario of this version: {cause}.") from cause
    results = {result.seed: result for result in finished_seeds(scenario, Path(folder))}
    return _Run(scenario=scenario, arm=known[arm], results=results)


def _require_same_splits(one: SeedResult, other: SeedResult, *, where: str) -> None:
    """Refuse runs of which a department had other rows, or the same rows on other sides; paths do not count."""
    unlike = sorted({name for name, _ in one.splits.items() ^ other.splits.items()})
    if unlike:
        raise ConfigError(
            "runs-unlike",
            f"{where} are not runs over the same data, split the same way: at seed {one.seed} the splits of "
            f"{', '.join(unlike)} differ.",
        )
