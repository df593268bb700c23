"""A whole federation over Flower's app API in one process: same Coordinator, same Participants, same bytes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from clients.flower_app import Answering, client_app
from clients.training.noise import UnsafeSeededSource
from policies.load import department_policy
from server.coordinator import Coordinator
from server.flower_app import HOME_VARIABLE, app
from server.grid import GridCarrier
from server.results import RunResult, SilentObserver
from server.submit import stop_run
from shared.errors import RoundAbortedError
from shared.flower import RUN_KEY
from shared.identity import DepartmentId
from shared.messages import UpdateRequest, decode_request
from shared.parameters import Vector
from shared.plan import LocalOptimizer
from shared.tasks.features import HASHED_WORDS_SHA256
from shared.transport import Transport
from simulation.network import Fault, InMemoryTransport
from simulation.rows import split_rows
from simulation.run import calibrate
from simulation.scenario import ArmOptimizers, DataSettings, ModelChoice, PrivacyAsk, Scenario, ScenarioDepartment
from simulation.world import ModelBasis, World, now, open_world
from tests.flower_grid import InProcessGrid, OverFlower
from tests.server.small_home import small_home, submitted

MESSAGES = Path(__file__).parent / "fixtures" / "messages"
NAMES = tuple(DepartmentId(name) for name in ("environment", "health", "police", "transport"))
NODES = {name: 101 + index for index, name in enumerate(NAMES)}
SEEDS = {name: 7 + index for index, name in enumerate(NAMES)}
HEALTH = DepartmentId("health")


class Observer(SilentObserver):
    def __init__(self) -> None:
        self.gone: list[tuple[int, str, str, str]] = []

    def missing(self, round_number: int, step: str, department: str, status: str) -> None:
        self.gone.append((round_number, step, department, status))


def lowered_policy(folder: Path, name: str) -> str:
    """The packaged policy with floors that the small fixture meets."""
    text = department_policy(name)
    for key in ("minimum_rows", "minimum_units"):
        assert f"{key} = 150" in text
        text = text.replace(f"{key} = 150", f"{key} = 50")
    path = folder / f"{name}-policy.toml"
    path.write_text(text)
    return str(path)


def scenario_in(folder: Path) -> Scenario:
    optimizer = LocalOptimizer(kind="sgd", learning_rate=2.0)
    return Scenario(
        name="over-flower",
        purpose="emergency-triage",
        rounds=2,
        spare_attempts=1,
        departments={
            name: ScenarioDepartment(binding=str(MESSAGES / f"{name}.toml"), policy=lowered_policy(folder, name))
            for name in NAMES
        },
        data=DataSettings(source="files", holdout=0.1, cache_features=False),
        model=ModelChoice(architecture="hashed-words"),
        privacy=PrivacyAsk(epsilon=2.0, delta=1e-4, sample_rate=0.2, steps=2, max_grad_norm=1.0),
        optimizer=ArmOptimizers(federated=optimizer, local=optimizer, pooled=optimizer),
    )


@contextmanager
def city(folder: Path) -> Iterator[tuple[World, Vector]]:
    """A world with fresh keys and masks; sampling and noise depend on the department's seed only."""
    folder.mkdir()
    scenario = scenario_in(folder)
    basis = ModelBasis.load(scenario.model.spec(HASHED_WORDS_SHA256), None)
    splits = {
        name: split_rows(MESSAGES / f"{name}.toml", folder / "rows" / name, seed=1, limit=0, holdout=0.1)
        for name in NAMES
    }
    with open_world(
        folder / "world",
        scenario=scenario,
        scenario_folder=folder,
        privacy=calibrate(scenario),
        basis=basis,
        splits=splits,
        caches=dict.fromkeys(NAMES),
        source=lambda name: UnsafeSeededSource(SEEDS[name]),
    ) as world:
        yield world, basis.initial


def coordinator_over(world: World, transport: Transport, observer: Observer) -> Coordinator:
    return Coordinator(
        plan=world.plan,
        signed_plan=world.signed_plan,
        signed_roster=world.signed_roster,
        authority=world.authority,
        transport=transport,
        journal=world.authority_journal,
        clock=now,
        observer=observer,
    )


def run_in_memory(folder: Path, faults: tuple[Fault, ...] = ()) -> RunResult:
    with city(folder) as (world, initial):
        peers = {name: participant.handle for name, participant in world.participants.items()}
        observer = Observer()
        result = coordinator_over(world, InMemoryTransport(peers, faults), observer).run(initial)
        assert {department for _, _, department, _ in observer.gone} == {fault.department for fault in faults}
        return result


def run_over_flower(
    folder: Path, apps_of: Callable[[World], Mapping[DepartmentId, ClientApp]]
) -> tuple[RunResult, Observer]:
    observer = Observer()
    with city(folder) as (world, initial):
        grid = InProcessGrid({NODES[name]: app for name, app in apps_of(world).items()})
        result = coordinator_over(world, OverFlower(GridCarrier(grid, NODES)), observer).run(initial)
    return result, observer


def one_app_for_all(world: World) -> dict[DepartmentId, ClientApp]:
    """As in a deployment: one ClientApp, and the node's Context says whose Participant answers."""
    by_node: dict[int, Answering] = {NODES[name]: participant for name, participant in world.participants.items()}
    return dict.fromkeys(NAMES, client_app(lambda context: by_node[context.node_id]))


def asks_for_update(request: bytes) -> bool:
    return isinstance(decode_request(request), UpdateRequest)


class BreaksInTraining:
    """A department whose process fails while it handles an update, with a text that must not leave."""

    def __init__(self, participant: Answering) -> None:
        self._participant = participant

    def handle(self, request: bytes) -> bytes:
        if asks_for_update(request):
            raise RuntimeError("row 17 says: the caller lives at 5 Harbour Road")
        return self._participant.handle(request)


def health_refuses(world: World) -> dict[DepartmentId, ClientApp]:
    broken = BreaksInTraining(world.participants[HEALTH])
    return {**one_app_for_all(world), HEALTH: client_app(lambda _context: broken)}


def health_crashes(world: World) -> dict[DepartmentId, ClientApp]:
    broken, app = BreaksInTraining(world.participants[HEALTH]), ClientApp()
    working = client_app(lambda _context: broken)

    @app.train("cityfed")
    def answer(message: Message, context: Context) -> Message:
        request = message.content.config_records["cityfed"]["request"]
        assert isinstance(request, bytes)
        if asks_for_update(request):
            raise MemoryError
        return working(message, context)

    return {**one_app_for_all(world), HEALTH: app}


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    return run_in_memory(tmp_path_factory.mktemp("memory") / "four")


def same_bits(one: Vector, other: Vector) -> bool:
    return one.dtype == other.dtype and one.tobytes() == other.tobytes()


def test_a_federation_over_flower_equals_the_in_memory_run_bit_for_bit(tmp_path: Path, four: RunResult) -> None:
    result, observer = run_over_flower(tmp_path / "flower", one_app_for_all)
    assert observer.gone == []
    assert [item.survivors for item in result.rounds] == [NAMES, NAMES]
    assert np.linalg.norm(result.model) > 0
    assert result.rounds == four.rounds  # each round's model by hash, too
    assert same_bits(result.model, four.model)


@pytest.mark.parametrize(
    ("apps_of", "status"), [(health_refuses, "unavailable"), (health_crashes, "no-answer")], ids=["adapter", "node"]
)
def test_a_node_that_breaks_in_a_round_is_missing_by_name_and_the_sum_of_the_others_is_exact(
    tmp_path: Path,
    four: RunResult,
    apps_of: Callable[[World], Mapping[DepartmentId, ClientApp]],
    status: str,
) -> None:
    result, observer = run_over_flower(tmp_path / "flower", apps_of)
    expected = run_in_memory(tmp_path / "memory", (Fault(department=HEALTH, step="update"),))
    assert observer.gone == [(1, "update", HEALTH, status), (2, "update", HEALTH, status)]
    assert [item.dropouts for item in result.rounds] == [(HEALTH,), (HEALTH,)]
    assert same_bits(result.model, expected.model)
    assert not same_bits(result.model, four.model)


def test_a_run_that_ends_without_a_model_raises_out_of_the_server_app(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = small_home(tmp_path)
    run = submitted(home).path.name
    stop_run(home, run)
    monkeypatch.setenv(HOME_VARIABLE, str(home.root))
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={RUN_KEY: run})
    with pytest.raises(RoundAbortedError) as caught:
        app(InProcessGrid({}), context)
    assert caught.value.code == "run-stopped"


def test_a_simulation_loads_no_flower() -> None:
    program = "import sys, simulation.cli, simulation.run; print(sorted({'flwr', 'grpc', 'ray'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"
