"""A study: every seed of a scenario, what they show together, and a folder that can be picked up again.

::

    RUN/  scenario.json  data.json  summary.json  metrics.jsonl  report.html  report.md
          model.safetensors  MODEL_CARD.md  plan.json        the federated model of the first seed
          seeds/NN.json                                       one finished seed each
          worlds/NN-K/{federated,local,pooled}/...            journals, policies, keys of attempt K at seed NN
"""

from __future__ import annotations

import contextlib
import datetime as dt
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from clients.training.noise import OsRandomSource, RandomSource
from server.asks import ModelBasis
from server.asks import calibrate as calibrate_ask
from server.release import write_model
from shared.errors import ConfigError
from shared.identity import DepartmentId
from shared.model_file import MODEL_FILE, file_digest
from shared.plan import default_aggregation
from shared.privacy.plan import PrivacyParams
from shared.private_files import make_private_folder, replace_private_file
from shared.release import CARD_FILE
from shared.tasks.features import HASHED_WORDS_SHA256
from simulation.home import Home
from simulation.progress import Progress
from simulation.report import write_report
from simulation.report.card import model_card
from simulation.rows import Split, data_digest, split_rows
from simulation.run_folder import (
    PLAN_FILE,
    claim_folder,
    finished_seeds,
    next_world,
    read_plan,
    require_same_data,
    seed_file,
    seeds_of,
)
from simulation.scenario import Scenario
from simulation.setup import ensure_setup
from simulation.study import Released, SeedResult, SeedStudy, Stopwatch
from simulation.summarise import summarise
from simulation.summary import METRICS_FILE, MetricsWriter, RunSummary, write_summary
from simulation.world import now


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
        ConfigError: ``run-folder-used``, ``run-folder-data``; finished seeds are kept, whatever ends the run.
        CityFedError: whatever else the production path refuses.
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
                digests = {str(name): data_digest(binding) for name, binding in inputs.bindings.items()}
                require_same_data(scenario, out, digests)
                run_seed(
                    scenario,
                    seed,
                    scenario_folder=scenario_folder,
                    out=out,
                    inputs=inputs,
                    privacy=privacy,
                    progress=progress,
                    source=source or cryptographic,
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
    replace_private_file(seed_file(out, seed), msgspec.json.format(msgspec.json.encode(result)))
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
        bindings = {name: packaged_binding(home, name) for name in names}
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


def cryptographic(_name: str) -> RandomSource:
    """Return the production source; a name cannot choose it."""
    return OsRandomSource()


def _split(binding: Path, split: Split, scenario: Scenario, seed: int) -> None:
    """Write one department's split."""
    data = scenario.data
    split_rows(binding, split.folder, seed=seed, limit=data.limit, holdout=data.holdout)


def packaged_binding(home: Home, name: DepartmentId) -> Path:
    """Return the binding that set-up wrote for a department.

    Raises:
        ConfigError: ``department-unknown``.
    """
    path = home.department(name) / "binding.toml"
    if not path.is_file():
        raise ConfigError("department-unknown", f"The emergency messages have no department {name}.")
    return path


def _release(out: Path, released: Released) -> None:
    """Keep the first seed's federated model with the plan that made it."""
    write_model(out / MODEL_FILE, released.model, released.plan)
    replace_private_file(out / PLAN_FILE, msgspec.json.format(msgspec.json.encode(released.plan)))


def _write_card(out: Path, summary: RunSummary) -> None:
    """Write the model card beside the model."""
    digest = file_digest((out / MODEL_FILE).read_bytes())
    plan = read_plan(out)
    card = model_card(summary, model_file=MODEL_FILE, model_sha256=digest, plan_digest=plan.digest().hex())
    replace_private_file(out / CARD_FILE, card.encode())
