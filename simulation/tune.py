"""Tuning on public messages: one grid for every arm, on the messages that were routed to no department.

The stand-in is cut into as many pretended departments as the scenario has, each of the size of a real one; no
department's row is touched. What comes out is written into the scenario file by a person and then frozen.
"""

from __future__ import annotations

import csv
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np

from clients.training.noise import OsRandomSource
from clients.training.shares import sum_of_shares
from clients.training.train import Trainer, TrainingSettings
from server.asks import ModelBasis
from shared.codec import Record
from shared.parameters import Vector
from shared.plan import LocalOptimizer
from shared.privacy.plan import PrivacyParams, full_noise
from shared.tasks.device import resolve_device
from shared.tasks.features import HASHED_WORDS_SHA256, FeatureCache
from shared.tasks.metrics import average_precision
from shared.tasks.text import Prepared, pool, predict_scores, prepare
from simulation.home import Home
from simulation.run import calibrate
from simulation.scenario import Scenario
from simulation.setup import ensure_setup
from simulation.summary import ArmName

GRID = (2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0, 48.0, 64.0)
"""Learning rates tried for every arm."""

REPEATS = 6
"""Splits of the stand-in."""

PRETENDED_ROWS = 2_200
"""Rows of a pretended department before its holdout is taken, about those of a real one."""


class Tried(Record, frozen=True, kw_only=True):
    """One point of the grid: average precision on held-out public messages, mean over repeats and departments."""

    arm: ArmName
    learning_rate: float
    average_precision: float


def tune_arms(scenario: Scenario, home: Home, *, note: Callable[[str], None]) -> list[Tried]:
    """Try the grid for all arms.

    Args:
        scenario: everything but the learning rates is kept.
        home: where set-up put weights and the public messages.
        note: told one line per point.

    Raises:
        SetupError: set-up could not fetch what it needs.
    """
    ready = ensure_setup(home, note)
    if scenario.model.architecture == "minilm":
        basis = ModelBasis.load(scenario.model.spec(ready.weights_sha256), ready.weights_dir)
    else:
        basis = ModelBasis.load(scenario.model.spec(HASHED_WORDS_SHA256), None)
    public = read_public(
        ready.public, basis, home.public / "features.safetensors", limit=PRETENDED_ROWS * len(scenario.departments)
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
) -> list[Tried]:
    """Try every arm with every rate on public units alone."""
    table = []
    for arm, run in _ARMS.items():
        kind = getattr(scenario.optimizer, arm)
        for rate in rates:
            optimizer = msgspec.structs.replace(kind, learning_rate=rate)
            scores = [
                run(scenario, basis, optimizer, *_pretend(public, len(scenario.departments), repeat, scenario))
                for repeat in range(repeats)
            ]
            table.append(Tried(arm=arm, learning_rate=rate, average_precision=statistics.fmean(scores)))
            note(f"{arm} learning_rate={rate:g}: {table[-1].average_precision:.4f}")
    return table


def print_tuning(table: Sequence[Tried]) -> None:
    """Print the grid and the best rate of each arm."""
    for arm in _ARMS:
        best = max((row for row in table if row.arm == arm), key=lambda row: row.average_precision)
        points = ", ".join(f"{row.learning_rate:g}: {row.average_precision:.4f}" for row in table if row.arm == arm)
        sys.stdout.write(f"{arm}: best learning_rate = {best.learning_rate:g} ({points})\n")


def read_public(path: Path, basis: ModelBasis, cache: Path, *, limit: int) -> Prepared:
    """Read the stand-in, which has the contract's column names."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))[:limit]
    return prepare(
        basis.spec,
        [row["description"] for row in rows],
        [float(row["request"]) for row in rows],
        weights_dir=basis.weights_dir,
        device=resolve_device("auto"),
        cache=FeatureCache(cache),
    )


def _pretend(public: Prepared, departments: int, repeat: int, scenario: Scenario) -> tuple[list[Prepared], Prepared]:
    """Cut the stand-in into pretended departments and a part to be measured on; repeats shift the cut."""
    count = len(public)
    order = np.argsort([(index * 7919 + repeat * 104_729) % 1_000_003 for index in range(count)], kind="stable")
    held = order[: round(count * scenario.data.holdout)]
    rest = order[held.size :]
    return [public.take(part) for part in np.array_split(rest, departments)], public.take(held)


def _trainer(
    scenario: Scenario, basis: ModelBasis, privacy: PrivacyParams, optimizer: LocalOptimizer, data: Prepared
) -> Trainer:
    """Return the trainer of a pretended department."""
    settings = TrainingSettings(
        privacy=privacy,
        denominator=privacy.sample_rate * len(data),
        optimizer=optimizer,
        model=basis.spec,
        layout=basis.layout,
    )
    return Trainer.prepare(settings=settings, data=data, weights_dir=basis.weights_dir, flags=scenario.performance)


def _score(basis: ModelBasis, model: Vector, held: Prepared) -> float:
    """Measure on the held-out part."""
    labels = held.labels
    if labels is None:
        raise RuntimeError("the stand-in carries labels")
    scores = predict_scores(basis.spec, model, held, weights_dir=basis.weights_dir)
    return average_precision(labels.cpu().numpy(), scores)


def _federated(
    scenario: Scenario, basis: ModelBasis, optimizer: LocalOptimizer, parts: list[Prepared], held: Prepared
) -> float:
    """Train all parts together with the scenario's mechanism; encryption does not change a sum."""
    together = _shared_noise if scenario.privacy.mechanism == "shared-noise" else _averaged
    return together(scenario, basis, optimizer, parts, held)


def _averaged(
    scenario: Scenario, basis: ModelBasis, optimizer: LocalOptimizer, parts: list[Prepared], held: Prepared
) -> float:
    """Average the updates of all parts each round, each with its full noise."""
    privacy, model, source = full_noise(calibrate(scenario)), basis.initial, OsRandomSource()
    trainers = [_trainer(scenario, basis, privacy, optimizer, part) for part in parts]
    for _ in range(scenario.rounds):
        updates = [trainer.train(model, part, source).delta for trainer, part in zip(trainers, parts, strict=True)]
        model = (model + np.mean(updates, axis=0)).astype(np.float32)
    return _score(basis, model, held)


def _shared_noise(
    scenario: Scenario, basis: ModelBasis, optimizer: LocalOptimizer, parts: list[Prepared], held: Prepared
) -> float:
    """Add the noised shares of all parts in the ring; the rate is the server's."""
    privacy, model, source = calibrate(scenario), basis.initial, OsRandomSource()
    trainers = [_trainer(scenario, basis, privacy, optimizer, part) for part in parts]
    rate = optimizer.learning_rate / sum(trainer.settings.denominator for trainer in trainers)
    holders = list(zip(trainers, parts, strict=True))
    for _ in range(scenario.rounds):
        gradient = sum_of_shares(holders, parameters=model, source=source, bound=scenario.bound)
        model = (model - rate * gradient).astype(np.float32)
    return _score(basis, model, held)


def _alone(
    scenario: Scenario, basis: ModelBasis, optimizer: LocalOptimizer, parts: list[Prepared], held: Prepared
) -> float:
    """Train on the first part only."""
    return _averaged(scenario, basis, optimizer, parts[:1], held)


def _pooled(
    scenario: Scenario, basis: ModelBasis, optimizer: LocalOptimizer, parts: list[Prepared], held: Prepared
) -> float:
    """Train on all parts in one place."""
    return _averaged(scenario, basis, optimizer, [pool(parts)], held)


_ARMS: Mapping[ArmName, Callable[[Scenario, ModelBasis, LocalOptimizer, list[Prepared], Prepared], float]] = {
    "local": _alone,
    "federated": _federated,
    "pooled": _pooled,
}
