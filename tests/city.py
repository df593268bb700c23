"""A small real city for tests: production files, keys, policies and journals over the synthetic fixture.

Departments named after a packaged policy use their own fixture; any other name borrows the police department's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from clients.training.noise import RandomSource, UnsafeSeededSource
from policies.load import department_names, department_policy
from server.checkpoint import Checkpoints, NoCheckpoints
from server.coordinator import Coordinator
from server.results import RoundResult, RunResult, SilentObserver
from shared.errors import RoundAbortedError
from shared.identity import DepartmentId
from shared.plan import LocalOptimizer
from shared.tasks.features import HASHED_WORDS_SHA256
from shared.transport import Transport
from simulation.network import Fault, InMemoryTransport
from simulation.rows import split_rows
from simulation.run import calibrate
from simulation.scenario import ArmOptimizers, DataSettings, ModelChoice, PrivacyAsk, Scenario, ScenarioDepartment
from simulation.world import ModelBasis, World, now, open_world

MESSAGES = Path(__file__).parent / "fixtures" / "messages"
FOUR = ("environment", "health", "police", "transport")
HOLDOUT = 0.1


def lowered_policy(folder: Path, name: str, change: Callable[[str], str] = lambda text: text) -> str:
    """Write the packaged policy with floors that the small fixture meets; returns its path."""
    packaged = name if name in department_names() else "police"
    text = department_policy(packaged).replace(f'department = "{packaged}"', f'department = "{name}"')
    for key in ("minimum_rows", "minimum_units"):
        assert f"{key} = 150" in text
        text = text.replace(f"{key} = 150", f"{key} = 50")
    path = folder / f"{name}-policy.toml"
    path.write_text(change(text))
    return str(path)


def permit(policy: Path, *metrics: str) -> None:
    """Let noised metrics leave a department."""
    text = policy.read_text()
    assert text.count("metrics = [") == 1
    before, _, after = text.partition("metrics = [")
    policy.write_text(f"{before}metrics = {json.dumps(metrics)}{after.partition(']')[2]}")


def small_scenario(folder: Path, names: Sequence[str] = FOUR, **changes: object) -> Scenario:
    """A scenario over the fixture: hashed words, two rounds, two steps each, one spare attempt."""
    optimizer = LocalOptimizer(kind="sgd", learning_rate=2.0)
    settings: dict[str, object] = {
        "name": "small",
        "purpose": "emergency-triage",
        "rounds": 2,
        "spare_attempts": 1,
        "departments": {
            name: ScenarioDepartment(binding=str(binding_of(name)), policy=lowered_policy(folder, name))
            for name in names
        },
        "data": DataSettings(source="files", holdout=HOLDOUT, cache_features=False),
        "model": ModelChoice(architecture="hashed-words"),
        "privacy": PrivacyAsk(epsilon=2.0, delta=1e-4, sample_rate=0.2, steps=2, max_grad_norm=1.0),
        "optimizer": ArmOptimizers(federated=optimizer, local=optimizer, pooled=optimizer),
    }
    return Scenario(**{**settings, **changes})  # type: ignore[arg-type]  # settings of a test are checked at run time


def binding_of(name: str) -> Path:
    """The fixture's binding of a department."""
    return MESSAGES / f"{name if name in FOUR else 'police'}.toml"


@dataclass
class Watcher(SilentObserver):
    """Remembers what a coordinator said."""

    gone: list[tuple[int, str, str, str]] = field(default_factory=list)
    results: list[RoundResult] = field(default_factory=list)
    failures: list[tuple[int, str]] = field(default_factory=list)

    def missing(self, round_number: int, step: str, department: str, status: str) -> None:
        self.gone.append((round_number, step, department, status))

    def closed(self, result: RoundResult) -> None:
        self.results.append(result)

    def failed(self, round_number: int, error: RoundAbortedError) -> None:
        self.failures.append((round_number, error.code))


@dataclass
class City:
    """An open world with its starting model, and ways to run it."""

    world: World
    basis: ModelBasis
    watcher: Watcher = field(default_factory=Watcher)

    @property
    def peers(self) -> dict[DepartmentId, Callable[[bytes], bytes]]:
        """Every department's front door."""
        return {name: participant.handle for name, participant in self.world.participants.items()}

    def coordinator(self, transport: Transport, checkpoints: Checkpoints | None = None) -> Coordinator:
        """An honest coordinator over any transport."""
        world = self.world
        return Coordinator(
            plan=world.plan,
            signed_plan=world.signed_plan,
            signed_roster=world.signed_roster,
            authority=world.authority,
            transport=transport,
            journal=world.authority_journal,
            clock=now,
            observer=self.watcher,
            checkpoints=checkpoints or NoCheckpoints(),
        )

    def run(self, faults: Sequence[Fault] = ()) -> RunResult:
        """Run the whole plan over the in-memory network."""
        return self.coordinator(InMemoryTransport(self.peers, tuple(faults))).run(self.basis.initial)


@contextmanager
def open_city(
    folder: Path,
    scenario: Scenario | None = None,
    *,
    source: Callable[[DepartmentId], RandomSource] = lambda name: UnsafeSeededSource(sum(name.encode())),
    seed: int = 1,
    basis: ModelBasis | None = None,
) -> Iterator[City]:
    """Build a city in a new folder; sampling and noise depend on the department's name unless told otherwise."""
    folder.mkdir(parents=True, exist_ok=True)
    scenario = scenario or small_scenario(folder)
    basis = basis or ModelBasis.load(scenario.model.spec(HASHED_WORDS_SHA256), None)
    names = [DepartmentId(name) for name in sorted(scenario.departments)]
    splits = {
        name: split_rows(
            Path(scenario.departments[name].binding), folder / "rows" / name, seed=seed, limit=0, holdout=HOLDOUT
        )
        for name in names
    }
    with open_world(
        folder / "world",
        scenario=scenario,
        scenario_folder=folder,
        privacy=calibrate(scenario),
        basis=basis,
        splits=splits,
        caches=dict.fromkeys(names),
        source=source,
    ) as world:
        yield City(world, basis)
