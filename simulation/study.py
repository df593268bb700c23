"""One seed of a study: the same split for three arms, each in a world of its own with fresh ledgers."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from clients.binding import bound_contract, load_binding
from clients.dataset import load_dataset
from clients.department import Department
from clients.training.noise import RandomSource
from server.asks import ModelBasis
from server.coordinator import Coordinator
from server.results import RoundResult, RunResult
from shared.codec import Record
from shared.errors import CityFedError, ContractError, RoundAbortedError
from shared.identity import DepartmentId
from shared.journal import Journal
from shared.parameters import Vector
from shared.plan import LocalOptimizer, Plan
from shared.privacy.ledger import BudgetQuote, PrivacyLedger
from shared.privacy.plan import PrivacyParams
from shared.privacy.statement import sampling_of
from shared.private_files import make_private_folder
from shared.tasks.device import resolve_device
from shared.tasks.features import FeatureCache
from shared.tasks.metrics import average_precision
from shared.tasks.text import Prepared, pool, predict_scores, prepare
from simulation.arms import Solo, solo_charge
from simulation.network import InMemoryTransport
from simulation.progress import Progress
from simulation.rows import Split
from simulation.scenario import Scenario
from simulation.summary import EVERY_DEPARTMENT, ArmName, LeftSummary, LoneShare, MetricRow, PrivacySummary
from simulation.world import World, now, open_world

METRIC = "average_precision"
POOLED = DepartmentId("pooled")

MEASURED_ROUNDS = 25
"""At most so many points, and the last, are measured along a run."""


class SeedResult(Record, frozen=True, kw_only=True):
    """What one seed showed; written when the seed is finished, so that an interrupted study can go on.

    Attributes:
        scores: average precision of the final model per arm and department.
        rows: every measured value, for ``metrics.jsonl``.
        splits: digest of each department's split, by which another run is known to have the same; for no report.
        updates: noised updates that the departments made.
        projected: how many of them lay outside the norm ball; 0 with shared noise, which projects before its noise.
        faults_hit: positions in the scenario's ``faults`` of those that hit a message.
        seconds: time per phase, in seconds.
    """

    seed: int
    splits: dict[str, str]
    scores: dict[ArmName, dict[str, float]]
    rows: tuple[MetricRow, ...]
    privacy: dict[str, PrivacySummary]
    left: dict[str, LeftSummary]
    updates: int
    projected: int
    faults_hit: tuple[int, ...]
    seconds: dict[str, float]
    plan_digest: str
    survivors: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Released:
    """The federated model of a seed, with the plan that it was made under."""

    plan: Plan
    model: Vector


@dataclass
class Stopwatch:
    """Adds up seconds per phase."""

    seconds: dict[str, float] = field(default_factory=dict)
    started: float = field(default_factory=time.perf_counter)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time a block."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begin

    def elapsed(self) -> float:
        """Return seconds since the stopwatch was made."""
        return time.perf_counter() - self.started


@dataclass(kw_only=True)
class SeedStudy:
    """Runs one seed.

    Attributes:
        scenario: what to run; ``scenario_folder`` anchors its relative paths.
        folder: the seed's own folder; must not exist.
        splits: one split per department.
        caches: encoder features per department, or None.
        source: makes the randomness of one trainer from a name; cryptographic outside tests.
    """

    scenario: Scenario
    scenario_folder: Path
    seed: int
    folder: Path
    basis: ModelBasis
    privacy: PrivacyParams
    splits: Mapping[DepartmentId, Split]
    caches: Mapping[DepartmentId, Path | None]
    source: Callable[[str], RandomSource]
    progress: Progress
    watch: Stopwatch
    _rows: list[MetricRow] = field(default_factory=list)
    _holdout: dict[DepartmentId, Prepared] = field(default_factory=dict)

    def run(self) -> tuple[SeedResult, Released]:
        """Run the three arms, federated first: its plan fixes the numbers of the other two.

        Raises:
            CityFedError: whatever the production path refuses.
        """
        with open_world(
            self.folder / "federated",
            scenario=self.scenario,
            scenario_folder=self.scenario_folder,
            privacy=self.privacy,
            basis=self.basis,
            splits=self.splits,
            caches=self.caches,
            source=lambda name: self.source(f"federated {name}"),
        ) as world:
            with self.watch.phase("features"):
                self._load_rows(world)
            with self.watch.phase("federated"):
                result, transport = self._federated(world)
            privacy = {str(name): self._privacy(world, name) for name in world.departments}
            left = {str(name): _left(transport, name, world.plan) for name in world.departments}
            departments, plan = world.departments, world.plan
            projections = [participant.projections for participant in world.participants.values()]
        with self.watch.phase("local"):
            for name, department in departments.items():
                self._solo("local", name, plan, optimizer=self.scenario.optimizer.local, holders={name: department})
        with self.watch.phase("pooled"):
            self._solo("pooled", POOLED, plan, optimizer=self.scenario.optimizer.pooled, holders=departments)
        seed_result = SeedResult(
            seed=self.seed,
            splits={str(name): split.digest() for name, split in self.splits.items()},
            scores=self._final_scores(),
            rows=tuple(self._rows),
            privacy=privacy,
            left=left,
            updates=sum(each.total() for each in projections),
            projected=sum(each[True] for each in projections),
            faults_hit=tuple(sorted(transport.hit)),
            seconds=dict(self.watch.seconds),
            plan_digest=plan.digest().hex(),
            survivors=tuple(len(item.survivors) for item in result.rounds),
        )
        return seed_result, Released(plan=plan, model=result.model)

    # --- arms ----------------------------------------------------------------------------------------------

    def _federated(self, world: World) -> tuple[RunResult, InMemoryTransport]:
        """Run the production path over the in-memory network."""
        watcher = _Measure(self, world)
        transport = InMemoryTransport(
            peers={name: participant.handle for name, participant in world.participants.items()},
            faults=self.scenario.faults,
        )
        coordinator = Coordinator(
            plan=world.plan,
            signed_plan=world.signed_plan,
            signed_roster=world.signed_roster,
            authority=world.authority,
            transport=transport,
            journal=world.authority_journal,
            clock=now,
            observer=watcher,
        )
        try:
            return coordinator.run(self.basis.initial), transport
        except RoundAbortedError as error:
            raise watcher.reason or error from error

    def _solo(
        self,
        arm: ArmName,
        name: DepartmentId,
        plan: Plan,
        *,
        optimizer: LocalOptimizer,
        holders: Mapping[DepartmentId, Department],
    ) -> None:
        """Run a baseline: one trainer over the rows of all holders, its own journal, the same plan numbers."""
        together, measured = list(holders.values()), tuple(holders)
        department = together[0]
        data = pool([item.rows(plan) for item in together])
        size = sum(item.declaration.public_size for item in together)
        solo = Solo(
            plan=plan,
            optimizer=optimizer,
            public_size=size,
            data=data,
            weights_dir=self.basis.weights_dir,
            flags=self.scenario.performance,
        )
        folder = self.folder / arm / name
        make_private_folder(folder)
        with Journal.open(folder / "journal.sqlite", owner=f"{arm}-{name}") as journal:
            solo.run(
                PrivacyLedger(journal, now),
                solo_charge(department.charge(plan), arm, dataset=str(name), public_size=size),
                department.budgets(),
                initial=self.basis.initial,
                source=self.source(f"{arm} {name}"),
                on_round=lambda number, model: self.measure(arm, number, model, measured),
            )
        self.progress.arm_done(self.seed, f"{arm} {name}" if arm == "local" else arm)

    # --- measuring -----------------------------------------------------------------------------------------

    def measure(self, arm: ArmName, finished: int, model: Vector, names: tuple[DepartmentId, ...]) -> None:
        """Score a model on the held-out rows of departments, inside the simulation; no score is ever sent.

        Of many finished rounds only every few are scored, and the last.
        """
        rounds = self.scenario.rounds
        if finished % math.ceil(rounds / MEASURED_ROUNDS) and finished != rounds:
            return
        for name in names:
            held = self._holdout[name]
            if held.labels is None:
                raise RuntimeError("held-out rows carry labels")
            scores = predict_scores(self.basis.spec, model, held, weights_dir=self.basis.weights_dir)
            value = average_precision(held.labels.cpu().numpy(), scores)
            self.note_metric(arm, finished, name, METRIC, value)

    def note_metric(self, arm: ArmName, finished: int, department: str, name: str, value: float) -> None:
        """Keep one measured value."""
        self._rows.append(
            MetricRow(
                arm=arm,
                seed=self.seed,
                round=finished,
                department=department,
                name=name,
                value=value,
                seconds=self.watch.elapsed(),
            )
        )

    def _final_scores(self) -> dict[ArmName, dict[str, float]]:
        """Return the last value per arm and department."""
        scores: dict[ArmName, dict[str, float]] = {}
        for row in (row for row in self._rows if row.name == METRIC):
            scores.setdefault(row.arm, {})[row.department] = row.value
        return scores

    def _load_rows(self, world: World) -> None:
        """Compute features once: of the rows to train on, by each department, and of the rows to be measured on."""
        device = resolve_device(self.scenario.performance.device)
        task = world.plan.task
        for name, department in world.departments.items():
            self.progress.note(f"Reading {name}")
            department.rows(world.plan)
            binding = load_binding(self.splits[name].holdout)
            rows = load_dataset(binding, bound_contract(binding), features=task.features, label=task.label)
            cache = self.caches[name]
            if not rows.labels.any():
                raise ContractError(
                    "holdout-one-sided", f"No held-out row of {name} is labelled 1: nothing to measure."
                )
            self._holdout[name] = prepare(
                self.basis.spec,
                rows.texts,
                rows.labels,
                weights_dir=self.basis.weights_dir,
                device=device,
                cache=FeatureCache(cache) if cache else None,
            )

    def _privacy(self, world: World, name: DepartmentId) -> PrivacySummary:
        """Ask the department's own ledger what was spent."""
        department, privacy = world.departments[name], world.plan.privacy
        ledger, charge = world.participants[name].ledger, department.charge(world.plan)
        quote = ledger.quote(charge, department.budgets())
        status = ledger.status(charge.dataset, department.budgets())
        return PrivacySummary(
            epsilon=quote.epsilon_run,
            delta=charge.delta,
            cap=quote.cap_run,
            unit=charge.unit,
            spent_epsilon=status.spent_epsilon,
            relation=privacy.relation,
            mechanism=privacy.mechanism,
            sampling=sampling_of(privacy),
            sample_rate=privacy.sample_rate,
            public_size=charge.public_size,
            noise_multiplier=privacy.noise_multiplier,
            max_grad_norm=privacy.max_grad_norm,
            steps=privacy.steps,
            accountant=privacy.accountant,
            noise_shares=privacy.noise_shares,
            lone_share=_lone_share(quote) if privacy.mechanism == "shared-noise" else None,
        )


def _lone_share(quote: BudgetQuote) -> LoneShare | None:
    """Return what single updates would cost; a plan that ran had a cap on it."""
    cap = quote.cap_lone_share
    return None if cap is None else LoneShare(epsilon=quote.epsilon_lone_share, after=quote.lone_share_after, cap=cap)


def _left(transport: InMemoryTransport, name: DepartmentId, plan: Plan) -> LeftSummary:
    """Count what a department sent."""
    return LeftSummary(
        bytes=transport.sent_bytes.get(name, 0),
        tensors={tensor.name: tensor.shape for tensor in plan.layout.tensors},
        messages=transport.sent_messages.get(name, 0),
    )


class _Measure:
    """Watches a federated run: scores each new model and feeds the progress display.

    Attributes:
        reason: when the first attempt found a department unwilling, the first such department's own words. The
            coordinator never learns them; in a simulation one person plays every owner and may read them.
    """

    def __init__(self, study: SeedStudy, world: World) -> None:
        self._study = study
        self._world = world
        self._finished = 0
        self.reason: CityFedError | None = None

    def phase(self, round_number: int, phase: str) -> None:
        """Show the step."""
        self._study.progress.phase(self._study.seed, round_number, phase)

    def missing(self, round_number: int, step: str, department: str, status: str) -> None:
        """Say who gave no answer; keep the first reason for a no, if that is what keeps the run from starting."""
        self._study.progress.note(f"Round {round_number}: no {step} from {department} ({status})")
        own = self._world.participants[DepartmentId(department)].last_refusal
        if self.reason is None and own is not None and round_number == 1 and status in ("refused", "unavailable"):
            self.reason = type(own)(own.code, f"Department {department} refused in step {step}: {own.message}")

    def closed(self, result: RoundResult) -> None:
        """Score the new model."""
        self.reason = None
        names = tuple(self._study.splits)
        self._finished += 1
        self._study.measure("federated", self._finished, result.model, names)
        for metric in result.metrics:
            self._study.note_metric("federated", self._finished, EVERY_DEPARTMENT, metric.name, metric.value)
        self._study.progress.round_done(self._study.seed, result.round)

    def failed(self, round_number: int, error: RoundAbortedError) -> None:
        """Say why a round ended."""
        self._study.progress.note(f"Round {round_number} aborted: {error.diagnostics()}")
