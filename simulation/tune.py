"""Tuning on public messages: one grid for every arm, on the messages that were routed to no department.

Every arm trains as in a run, by the same plan, trainers and server optimiser, on pretended departments. What comes out
is written into the scenario file by a person and then frozen.
"""

from __future__ import annotations

import dataclasses
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from msgspec.structs import replace

from clients.training.mechanisms import RoundInputs
from clients.training.noise import RandomSource
from clients.training.shares import sum_of_contributions
from clients.training.train import Trainer, settings_of
from server.aggregation import take_mean
from server.asks import ModelBasis
from server.optimizer import ServerOptimizer
from shared.codec import Record
from shared.errors import ConfigError
from shared.identity import DepartmentId
from shared.parameters import Vector
from shared.plan import LocalOptimizer, Plan
from shared.secagg.terms import round_terms
from shared.tasks.features import HASHED_WORDS_SHA256
from shared.tasks.metrics import average_precision
from shared.tasks.text import Prepared, pool, predict_scores
from simulation.arms import Solo
from simulation.home import Home
from simulation.run import calibrate, cryptographic, packaged_binding
from simulation.scenario import Scenario
from simulation.setup import ensure_setup
from simulation.stand_in import pretend, pretended_plan, read_public, require_stand_in, rows_wanted
from simulation.summary import ArmName

GRID = (2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0, 48.0, 64.0)
"""Learning rates tried for every arm."""

REPEATS = 6
"""Splits of the stand-in, whatever seeds the scenario names."""


class Tried(Record, frozen=True, kw_only=True):
    """One point of the grid: average precision on held-out public messages, mean over repeats."""

    arm: ArmName
    learning_rate: float
    average_precision: float


@dataclass(frozen=True, kw_only=True)
class PretendedCity:
    """Pretended departments under the plan of one point of the grid.

    Attributes:
        parts: the rows of each department in the plan, in its order.
        source: makes the randomness of one trainer from its name.
    """

    scenario: Scenario
    plan: Plan
    parts: Mapping[DepartmentId, Prepared]
    basis: ModelBasis
    source: Callable[[str], RandomSource]


def tune_arms(scenario: Scenario, home: Home, *, note: Callable[[str], None]) -> list[Tried]:
    """Try the grid for all arms.

    Args:
        scenario: what a run of it would do is done, but for the learning rates; seeds and policies have no part in it.
        home: where set-up put weights and the public messages.
        note: told one line per point.

    Raises:
        ConfigError: ``stand-in-unlike`` for what the public messages cannot stand for, ``department-unknown``,
            ``stand-in-too-small``, and what calibration refuses.
        SetupError: set-up could not fetch what it needs.
        CityFedError: whatever training refuses.
    """
    require_stand_in(scenario)
    ready = ensure_setup(home, note)
    for name in scenario.departments:
        packaged_binding(home, DepartmentId(name))
    if scenario.model.architecture == "minilm":
        basis = ModelBasis.load(scenario.model.spec(ready.weights_sha256), ready.weights_dir)
    else:
        basis = ModelBasis.load(scenario.model.spec(HASHED_WORDS_SHA256), None)
    public = read_public(
        ready.public,
        basis,
        home.public / "features.safetensors" if scenario.data.cache_features else None,
        limit=rows_wanted(scenario),
        device=scenario.performance.device,
    )
    return try_grid(scenario, basis, public, note=note)


def try_grid(
    scenario: Scenario,
    basis: ModelBasis,
    public: Prepared,
    *,
    note: Callable[[str], None],
    rates: Sequence[float] = GRID,
    repeats: int = REPEATS,
    source: Callable[[str], RandomSource] = cryptographic,
) -> list[Tried]:
    """Try every arm with every rate on public units alone."""
    table, privacy = [], calibrate(scenario)
    for arm, train in _ARMS.items():
        for rate in rates:
            asked, scores = _with_rate(scenario, arm, rate), []
            for repeat in range(repeats):
                parts, held = pretend(public, len(asked.departments), repeat, holdout=asked.data.holdout)
                plan = pretended_plan(asked, basis, privacy, parts)
                named = dict(zip(plan.cohort, parts, strict=True))
                model = train(PretendedCity(scenario=asked, plan=plan, parts=named, basis=basis, source=source))
                scores.append(_score(basis, model, held))
            table.append(Tried(arm=arm, learning_rate=rate, average_precision=statistics.fmean(scores)))
            note(f"{arm} learning_rate={rate:g}: {table[-1].average_precision:.4f}")
    return table


def print_tuning(table: Sequence[Tried]) -> None:
    """Print the grid and the best rate of each arm."""
    for arm in _ARMS:
        best = max((row for row in table if row.arm == arm), key=lambda row: row.average_precision)
        points = ", ".join(f"{row.learning_rate:g}: {row.average_precision:.4f}" for row in table if row.arm == arm)
        sys.stdout.write(f"{arm}: best learning_rate = {best.learning_rate:g} ({points})\n")


def _with_rate(scenario: Scenario, arm: ArmName, rate: float) -> Scenario:
    """Return the scenario with an arm's learning rate; with shared noise that of the federated arm is the server's."""
    if arm == "federated" and scenario.privacy.mechanism == "shared-noise":
        return replace(scenario, server_optimizer=replace(scenario.server_optimizer, learning_rate=rate))
    changed = {arm: replace(getattr(scenario.optimizer, arm), learning_rate=rate)}
    return replace(scenario, optimizer=replace(scenario.optimizer, **changed))


def _score(basis: ModelBasis, model: Vector, held: Prepared) -> float:
    """Measure on the held-out part."""
    labels = held.labels
    if labels is None:
        raise RuntimeError("the stand-in carries labels")
    if not labels.any():
        raise ConfigError(
            "stand-in-too-small",
            "`data.limit` and `data.holdout` leave no public message labelled 1 to be measured on.",
        )
    scores = predict_scores(basis.spec, model, held, weights_dir=basis.weights_dir)
    return average_precision(labels.cpu().numpy(), scores)


def train_federated(city: PretendedCity) -> Vector:
    """Train all departments together: what each contributes to a round, and what the coordinator does with the sum.

    Guarantees:
        The model is that of a run over the same rows in which no department is missing: encryption changes no sum.
    """
    plan = city.plan
    # Of the terms only the numbers of the ring are used: nobody is named, and nothing is masked.
    terms = round_terms(plan, epoch_id=bytes(32), round_number=1, participants=plan.cohort, model_hash=bytes(32))
    holders = [_holder(city, name, bits=terms.fraction_bits) for name in plan.cohort]
    server, model = ServerOptimizer.start(plan.server_optimizer, plan.layout.size), city.basis.initial
    for _ in range(plan.rounds):
        contributors = [(trainer, dataclasses.replace(inputs, parameters=model)) for trainer, inputs in holders]
        total = sum_of_contributions(contributors, bits=terms.fraction_bits, allotted=terms.bound)
        server, model = server.step(model, take_mean(total, plan, plan.cohort))
    return model


def _holder(city: PretendedCity, name: DepartmentId, *, bits: int) -> tuple[Trainer, RoundInputs]:
    """Return a department's trainer and what its first round is trained on."""
    plan, data = city.plan, city.parts[name]
    trainer = Trainer.prepare(
        settings=settings_of(plan, name),
        data=data,
        weights_dir=city.basis.weights_dir,
        flags=city.scenario.performance,
    )
    inputs = RoundInputs(
        parameters=city.basis.initial,
        data=data,
        source=city.source(f"federated {name}"),
        weight=plan.datasets[name].weight,
        bound=plan.aggregation.bound,
        bits=bits,
    )
    return trainer, inputs


def _alone(city: PretendedCity) -> Vector:
    """Train the first pretended department by itself."""
    return _solo(city, "local", city.scenario.optimizer.local, city.plan.cohort[:1])


def _pooled(city: PretendedCity) -> Vector:
    """Train on all parts in one place."""
    return _solo(city, "pooled", city.scenario.optimizer.pooled, city.plan.cohort)


def _solo(city: PretendedCity, arm: ArmName, optimizer: LocalOptimizer, names: Sequence[DepartmentId]) -> Vector:
    """Run a baseline over the rows of some pretended departments."""
    solo = Solo(
        plan=city.plan,
        optimizer=optimizer,
        public_size=sum(city.plan.datasets[name].public_size for name in names),
        data=pool([city.parts[name] for name in names]),
        weights_dir=city.basis.weights_dir,
        flags=city.scenario.performance,
    )
    trainer, model, source = solo.prepare(), city.basis.initial, city.source(arm)
    for _ in range(city.plan.rounds):
        model = solo.step(trainer, model, source)
    return model


_ARMS: Mapping[ArmName, Callable[[PretendedCity], Vector]] = {
    "local": _alone,
    "federated": train_federated,
    "pooled": _pooled,
}
