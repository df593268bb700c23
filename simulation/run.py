"""A study: every seed of a scenario, what they show together, and a folder that can be picked up again.

::

    RUN/  scenario.json  summary.json  metrics.jsonl  report.html  report.md
          model.safetensors  MODEL_CARD.md  plan.json        the federated model of the first seed
          seeds/NN.json                                       one finished seed each
          worlds/NN-K/{federated,local,pooled}/...            journals, policies, keys of attempt K at seed NN
"""

from __future__ import annotations

import contextlib
import datetime as dt
import functools
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import msgspec
import numpy as np

from clients.training.noise import OsRandomSource, RandomSource
from server.asks import PACKAGED, ModelBasis
from server.asks import calibrate as calibrate_ask
from server.release import write_model
from shared.errors import ConfigError
from shared.identity import DepartmentId
from shared.model_file import MODEL_FILE, file_digest
from shared.plan import default_aggregation
from shared.privacy.accountant import epsilon
from shared.privacy.citywide import city_worst_case
from shared.privacy.extras import extra_charges, noised_metrics, plan_events
from shared.privacy.plan import PrivacyParams
from shared.private_files import make_private_folder
from shared.release import CARD_FILE
from shared.tasks.features import HASHED_WORDS_SHA256
from simulation.home import Home
from simulation.progress import Progress
from simulation.report import write_report
from simulation.report.card import model_card
from simulation.rows import Split, split_rows
from simulation.run_folder import PLAN_FILE, claim_folder, finished_seeds, next_world, read_plan, seed_file, seeds_of
from simulation.scenario import Scenario, load_scenario
from simulation.setup import ensure_setup
from simulation.statistics import arm_summary, gain_summary
from simulation.study import METRIC, Released, SeedResult, SeedStudy, Stopwatch
from simulation.summary import (
    EMERGENCY_DATA,
    METRICS_FILE,
    STAND_IN_TUNING,
    ArmName,
    CityWorstCase,
    ExtraSummary,
    MetricsWriter,
    RunSummary,
    write_summary,
    write_whole,
)
from simulation.world import now

PACKAGES = ("flwr", "torch", "opacus", "transformers", "dp-accounting", "cryptography", "pandas", "numpy")


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What a study reads: the model's basis, and per department a binding and a feature cache."""

    basis: ModelBasis
    bindings: Mapping[DepartmentId, Path]
    caches: Mapping[DepartmentId, Path | None]


def run_study(
    scenario: Scenario,
    *,
    scenario_folder: Path,
    out: Path,
    home: Home,
    progress: Progress,
    source: Callable[[str], RandomSource] | None = None,
) -> RunSummary:
    """Run a scenario, or go on with an interrupted run of the same scenario.

    Args:
        scenario: what to run.
        scenario_folder: folder that relative paths in the scenario count from.
        out: run folder; empty, new, or left behind by an interrupted run of this scenario.
        home: where set-up put weights and messages.
        progress: told what happens.
        source: makes the randomness of one trainer from its name; the default is cryptographic.

    Raises:
        CityFedError: whatever the production path refuses; finished seeds are kept.
        KeyboardInterrupt: after finished seeds, summary and report were written.
    """
    started, watch = now(), Stopwatch()
    claim_folder(scenario, out)
    with watch.phase("setup"):
        inputs = gather_inputs(scenario, scenario_folder, home, out, progress)
    with watch.phase("calibration"):
        privacy = calibrate(scenario)
    finish = functools.partial(
        conclude, scenario, out, started=started, unsafe=source is not None, seconds=watch.seconds
    )
    try:
        for seed in seeds_of(scenario):
            if not seed_file(out, seed).is_file():
                run_seed(
                    scenario,
                    seed,
                    scenario_folder=scenario_folder,
                    out=out,
                    inputs=inputs,
                    privacy=privacy,
                    progress=progress,
                    source=source or _cryptographic,
                )
    except BaseException:
        # A full disk may be what ended the run; that it keeps the report from being written must not hide it.
        with contextlib.suppress(OSError):
            finish()
        raise
    return finish()


def run_seed(
    scenario: Scenario,
    seed: int,
    *,
    scenario_folder: Path,
    out: Path,
    inputs: Inputs,
    privacy: PrivacyParams,
    progress: Progress,
    source: Callable[[str], RandomSource],
) -> SeedResult:
    """Run one seed in a fresh world folder and keep its result; copies of rows are deleted however it ends."""
    folder, watch = next_world(out, seed), Stopwatch()
    splits = {name: Split(folder / "rows" / name) for name in inputs.bindings}
    with contextlib.ExitStack() as at_end:
        for split in splits.values():
            at_end.callback(split.forget_rows)
        with watch.phase("splits"):
            for name, binding in inputs.bindings.items():
                _split(binding, splits[name], scenario, seed)
        study = SeedStudy(
            scenario=scenario,
            scenario_folder=scenario_folder,
            seed=seed,
            folder=folder,
            basis=inputs.basis,
            privacy=privacy,
            splits=splits,
            caches=inputs.caches,
            source=source,
            progress=progress,
            watch=watch,
        )
        result, released = study.run()
    if seed == scenario.seed:
        _release(out, released)
    write_whole(seed_file(out, seed), msgspec.json.format(msgspec.json.encode(result)))
    return result


def gather_inputs(scenario: Scenario, scenario_folder: Path, home: Home, out: Path, progress: Progress) -> Inputs:
    """Find data and weights; fetch them at first use.

    Raises:
        SetupError: something could not be fetched.
    """
    names = [DepartmentId(name) for name in sorted(scenario.departments)]
    needs_setup = scenario.data.source == "emergency-messages" or scenario.model.architecture == "minilm"
    ready = ensure_setup(home, progress.note) if needs_setup else None
    if scenario.model.architecture == "minilm" and ready is not None:
        spec, weights = scenario.model.spec(ready.weights_sha256), ready.weights_dir
    else:
        spec, weights = scenario.model.spec(HASHED_WORDS_SHA256), None
    basis = ModelBasis.load(spec, weights)
    if scenario.data.source == "files":
        bindings = {name: scenario_folder / scenario.departments[name].binding for name in names}
        cache_folder = {name: out / "features" / name for name in names}
    else:
        bindings = {name: _packaged_binding(home, name) for name in names}
        cache_folder = {name: home.department(name) for name in names}
    caching = scenario.data.cache_features and weights is not None and scenario.model.trainable == "head"
    for folder in cache_folder.values() if caching else ():
        make_private_folder(folder)
    caches = {name: folder / "features.safetensors" if caching else None for name, folder in cache_folder.items()}
    return Inputs(basis=basis, bindings=bindings, caches=caches)


def calibrate(scenario: Scenario) -> PrivacyParams:
    """Return the privacy parameters of a scenario, calibrated over all attempts and with its extras."""
    return calibrate_ask(
        scenario.privacy,
        attempts=scenario.rounds + scenario.spare_attempts,
        extras=scenario.extras,
        aggregation=default_aggregation(len(scenario.departments), bound=scenario.bound),
    )


def conclude(
    scenario: Scenario, out: Path, *, started: dt.datetime, unsafe: bool, seconds: Mapping[str, float]
) -> RunSummary:
    """Write summary, metrics and report from the seeds that are finished."""
    results = finished_seeds(scenario, out)
    summary = summarise(scenario, results, started=started, unsafe=unsafe, seconds=seconds, out=out)
    write_summary(out, summary)
    (out / METRICS_FILE).unlink(missing_ok=True)
    with MetricsWriter(out) as writer:
        for result in results:
            for row in result.rows:
                writer.append(row)
    if (out / PLAN_FILE).is_file() and results:
        _write_card(out, summary)
    write_report(out)
    return summary


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
        data=EMERGENCY_DATA if scenario.data.source == "emergency-messages" else "Files that the scenario names.",
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


_ARMS: tuple[ArmName, ...] = ("local", "federated", "pooled")


def _cryptographic(_name: str) -> RandomSource:
    """Return the production source; a name cannot choose it."""
    return OsRandomSource()


def _tuning(scenario: Scenario) -> str:
    """Say how the settings of all arms were chosen, as far as this package knows it."""
    if _tuned_part(scenario) in [_tuned_part(load_scenario(name)[0]) for name in PACKAGED]:
        return STAND_IN_TUNING
    return "The settings of all arms are those of the scenario as it was run; how they were chosen is not recorded."


def _tuned_part(scenario: Scenario) -> tuple[object, ...]:
    """Return what was tuned, and what it was tuned for."""
    rounds = (scenario.rounds, scenario.spare_attempts)
    optimizers = (scenario.optimizer, scenario.server_optimizer)
    return (scenario.data.source, scenario.model, scenario.privacy, optimizers, rounds)


def _split(binding: Path, split: Split, scenario: Scenario, seed: int) -> None:
    """Write one department's split."""
    data = scenario.data
    split_rows(binding, split.folder, seed=seed, limit=data.limit, holdout=data.holdout)


def _packaged_binding(home: Home, name: DepartmentId) -> Path:
    """Return the binding that set-up wrote for a department."""
    path = home.department(name) / "binding.toml"
    if not path.is_file():
        raise ConfigError("department-unknown", f"The emergency messages have no department {name}.")
    return path


def _release(out: Path, released: Released) -> None:
    """Keep the first seed's federated model with the plan that made it."""
    write_model(out / MODEL_FILE, released.model, released.plan)
    write_whole(out / PLAN_FILE, msgspec.json.format(msgspec.json.encode(released.plan)))


def _write_card(out: Path, summary: RunSummary) -> None:
    """Write the model card beside the model."""
    digest = file_digest((out / MODEL_FILE).read_bytes())
    plan = read_plan(out)
    card = model_card(summary, model_file=MODEL_FILE, model_sha256=digest, plan_digest=plan.digest().hex())
    write_whole(out / CARD_FILE, card.encode())


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
    """Say what somebody pays who has a record in each department (privacy 1)."""
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
    if smallest < len(scenario.departments):
        notes.append(f"In at least one round only {smallest} departments were in the sum.")
    return tuple(notes)
