"""From the finished seeds of a study to its summary: every figure and every sentence is worked out here."""

from __future__ import annotations

import datetime as dt
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

import numpy as np
from msgspec.structs import replace

from server.asks import PACKAGED
from shared.plan import ReleaseTerms
from shared.privacy.accountant import epsilon
from shared.privacy.citywide import city_worst_case
from shared.privacy.extras import extra_charges, noised_metrics, plan_events
from shared.privacy.plan import PerformanceFlags
from simulation.routing import DEPARTMENTS
from simulation.run_folder import read_plan
from simulation.scenario import Scenario, load_scenario
from simulation.statistics import arm_summary, gain_summary
from simulation.study import METRIC, SeedResult
from simulation.summary import (
    EMERGENCY_DATA,
    SERVER_MEMORY,
    STAND_IN_TUNING,
    ArmName,
    CityWorstCase,
    ExtraSummary,
    RunSummary,
)
from simulation.world import now

PACKAGES = ("flwr", "torch", "opacus", "transformers", "dp-accounting", "cryptography", "pandas", "numpy")

_ARMS: tuple[ArmName, ...] = ("local", "federated", "pooled")


def summarise(
    scenario: Scenario,
    results: Sequence[SeedResult],
    *,
    started: dt.datetime,
    unsafe: bool,
    seconds: Mapping[str, float],
    out: Path,
) -> RunSummary:
    """Put the seeds together."""
    names = sorted(scenario.departments)
    scores = {arm: _scores(results, arm, names) for arm in _ARMS}
    arms = {arm: arm_summary(values) for arm, values in scores.items()} if results else {}
    first = next((item for item in results if item.seed == scenario.seed), None)
    complete = len(results) == scenario.seeds
    return RunSummary(
        task=scenario.task.kind,
        scenario=scenario.name,
        metric=METRIC,
        data=_data(scenario),
        tuning=_tuning(scenario),
        complete=complete,
        noise="unsafe" if unsafe else "cryptographic",
        seeds=len(results),
        seeds_planned=scenario.seeds,
        rounds=scenario.rounds,
        spare_attempts=scenario.spare_attempts,
        arms=arms,
        gain=gain_summary(scores["federated"], scores["local"]) if results else None,
        privacy=first.privacy if first else {},
        city_worst_case=_city_worst_case(scenario, first, out),
        left=first.left if first else {},
        extras=_extras(first, out),
        seconds={**seconds, **_total_seconds(results)},
        started=started,
        finished=now() if complete else None,
        versions={"python": platform.python_version(), **{name: metadata.version(name) for name in PACKAGES}},
        notes=_notes(scenario, results),
    )


def _data(scenario: Scenario) -> str:
    """Say where the records come from, and how many were taken."""
    limit, count = scenario.data.limit, len(scenario.departments)
    emergency = scenario.data.source == "emergency-messages"
    source = EMERGENCY_DATA if emergency else "Files that the scenario names."
    fewer = f" Of the four, {count} take part." if emergency and count < len(DEPARTMENTS) else ""
    return source + fewer + (f" At most {limit:,} rows of each department were used." if limit else "")


def _tuning(scenario: Scenario) -> str:
    """Say how the settings of all arms were chosen, as far as this package knows it."""
    whole = replace(scenario, data=replace(scenario.data, limit=0), faults=())
    if _what_is_learned(whole) not in [_what_is_learned(load_scenario(name)[0]) for name in PACKAGED]:
        return "The settings of all arms are those of the scenario as it was run; how they were chosen is not recorded."
    limit = scenario.data.limit
    tuned_for = [
        *([f"all rows of a department, and {limit:,} at most were used"] if limit else []),
        *(["rounds in which no department is missing, and faults were switched on"] if scenario.faults else []),
    ]
    return " ".join([STAND_IN_TUNING, *(f"They were tuned for {what}." for what in tuned_for)])


def _what_is_learned(scenario: Scenario) -> Scenario:
    """Return a scenario without what changes no setting's effect: names, seeds, policies, release, speed.

    Everything else was tuned, or was what the rest was tuned for.
    """
    return replace(
        scenario,
        name="",
        purpose="",
        seed=1,
        seeds=1,
        departments={name: replace(item, policy="") for name, item in scenario.departments.items()},
        data=replace(scenario.data, cache_features=True),
        release=ReleaseTerms(),
        performance=PerformanceFlags(),
    )


def _scores(results: Sequence[SeedResult], arm: ArmName, names: Sequence[str]) -> dict[str, list[float]]:
    """Collect final scores: department -> one value a seed."""
    return {name: [result.scores[arm][name] for result in results] for name in names}


def _total_seconds(results: Sequence[SeedResult]) -> dict[str, float]:
    """Add up the phases of all seeds."""
    total: dict[str, float] = {}
    for result in results:
        for phase, value in result.seconds.items():
            total[phase] = total.get(phase, 0.0) + value
    return total


def _city_worst_case(scenario: Scenario, first: SeedResult | None, out: Path) -> CityWorstCase | None:
    """Say what somebody pays who is in each department's data with one unit (privacy 1)."""
    if first is None:
        return None
    plan = read_plan(out)
    events = plan_events(plan, plan.attempts)
    delta = plan.privacy.budget.delta
    return CityWorstCase(epsilon=city_worst_case(events, len(scenario.departments), delta).epsilon, delta=delta)


def _extras(first: SeedResult | None, out: Path) -> tuple[ExtraSummary, ...]:
    """Describe the noised metrics of the plan."""
    if first is None:
        return ()
    plan = read_plan(out)
    nothing = np.zeros(len(plan.layout.extras))
    return tuple(
        ExtraSummary(
            name=metric.name,
            noise_stddev=metric.noise_stddev,
            epsilon=epsilon([charge.event.times(plan.attempts)], plan.privacy.budget.delta),
        )
        for metric, charge in zip(
            noised_metrics(nothing, plan, plan.cohort), extra_charges(plan.layout.extras), strict=True
        )
    )


def _notes(scenario: Scenario, results: Sequence[SeedResult]) -> tuple[str, ...]:
    """Say what a reader must know about this run."""
    smallest = min((count for result in results for count in result.survivors), default=len(scenario.departments))
    notes = [f"Faults were switched on: {len(scenario.faults)}."] if scenario.faults else []
    idle = len(scenario.faults) - len({position for result in results for position in result.faults_hit})
    if results and idle:
        notes.append(f"Faults that hit no message in any seed: {idle}.")
    if scenario.server_optimizer.kind != "fedavg":
        notes.append(SERVER_MEMORY.format(kind=scenario.server_optimizer.kind))
    if smallest < len(scenario.departments):
        notes.append(f"In at least one round only {smallest} departments were in the sum.")
    shared = scenario.privacy.mechanism == "shared-noise"
    beyond = _sums_beyond if shared else _projected
    return (*notes, *beyond(scenario, results))


def _projected(scenario: Scenario, results: Sequence[SeedResult]) -> list[str]:
    """Say how many noised updates were cut down to R."""
    projected, updates = sum(result.projected for result in results), sum(result.updates for result in results)
    said = (
        f"{projected:,} of {updates:,} noised updates of the federated arm were longer than `bound` = "
        f"{scenario.bound:g} and were projected onto that norm ball; the baselines have no such bound."
    )
    return [said] if projected else []


def _sums_beyond(scenario: Scenario, results: Sequence[SeedResult]) -> list[str]:
    """Say whether public numbers let clipped sums be longer than R: with shared noise no count is free of records."""
    privacy = scenario.privacy
    largest = max((each.public_size for result in results for each in result.privacy.values()), default=0)
    reach = privacy.sample_rate * largest * privacy.max_grad_norm
    said = (
        f"The clipped sum of a batch of expected size can be {reach:.3g} long, and `bound` = {scenario.bound:g} is "
        "less: sums may have been projected onto that norm ball. How many is not counted: they had no noise yet."
    )
    return [said] if reach > scenario.bound else []
