"""Drop-outs at every step: the exact sum of the survivors, or a clean abort by name; never a wrong number.

What the coordinator publishes is compared bit for bit with a plain computation that knows no masks: train, weight,
project, round to fixed point, add up the survivors in integers, divide by their weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clients.training.noise import UnsafeSeededSource
from clients.training.train import settings_of, train_round
from server.results import RoundResult
from shared.errors import RoundAbortedError
from shared.identity import DepartmentId
from shared.messages import MaskedUpdate, UpdateRequest, decode_reply, decode_request
from shared.parameters import Vector
from shared.secagg.ring import project
from simulation.network import STEP_OF, Fault, FaultKind, InMemoryTransport, Step
from tests.city import Watcher, open_city, small_scenario
from tests.protocol.liar import Liar, Town

NAMES = ("archive", "bridges", "culture", "digital", "energy", "forests", "gardens", "harbour")
KINDS: tuple[FaultKind, ...] = ("drop-request", "drop-reply")

Towns = Callable[[int], Town]


@pytest.fixture(scope="module")
def towns(tmp_path_factory: pytest.TempPathFactory) -> Towns:
    """Cities of 3 to 8 departments, each founded once: two rounds and one spare attempt."""
    founded: dict[int, Town] = {}

    def found(size: int) -> Town:
        if size not in founded:
            folder = tmp_path_factory.mktemp(f"town-{size}")
            with open_city(folder, small_scenario(folder, NAMES[:size])) as city:
                founded[size] = Town.of(city)
        return founded[size]

    return found


@pytest.fixture
def liar_of(towns: Towns, tmp_path: Path) -> Iterator[Callable[[int], Liar]]:
    liars: list[Liar] = []

    def fresh(size: int) -> Liar:
        (tmp_path / str(len(liars))).mkdir()
        liars.append(Liar(towns(size), tmp_path / str(len(liars))))
        return liars[-1]

    yield fresh
    for liar in liars:
        liar.close()


# --- the plain computation -----------------------------------------------------------------------------------


class Plain:
    """The same run without encryption, following what each department really trained."""

    def __init__(self, liar: Liar) -> None:
        self.liar, self.plan = liar, liar.plan
        self.sources = {name: UnsafeSeededSource(liar.seeds[name]) for name in liar.names}
        self.updates: dict[tuple[int, str], Vector] = {}

    def watch(self) -> None:
        """Note every update that leaves a department, and compute it again from the same model and randomness."""
        for name, participant in self.liar.participants.items():
            participant.handle = self._watched(name, participant.handle)  # type: ignore[assignment]  # a witness

    def _watched(self, name: str, handle: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
        def watched(raw: bytes) -> bytes:
            reply, request = handle(raw), decode_request(raw)
            if isinstance(request, UpdateRequest) and isinstance(decode_reply(reply), MaskedUpdate):
                model = np.frombuffer(request.model, dtype="<f4").astype(np.float32)
                if (request.round, name) not in self.updates:  # the same request again is answered from memory
                    self.updates[request.round, name] = self._train(name, model)
            return reply

        return watched

    def _train(self, name: str, model: Vector) -> Vector:
        department = self.liar.department(name)
        return train_round(
            settings=settings_of(self.plan, DepartmentId(name)),
            parameters=model,
            data=department.rows(self.plan),
            weights_dir=None,
            source=self.sources[name],
            flags=department.performance,
        ).delta

    def model_after(self, number: int, model: Vector, survivors: Sequence[str], participants: int) -> Vector:
        """The next model: FedAvg over exactly these departments."""
        bits = fraction_bits(participants, self.plan.aggregation.bound)
        total = np.zeros(self.plan.layout.size, dtype=np.int64)
        weights = {name: self.plan.datasets[name].weight for name in survivors}
        for name, weight in weights.items():
            bounded = project(self.updates[number, name] * weight, self.plan.aggregation.bound)
            total += np.rint(bounded.astype(np.float64) * 2.0**bits).astype(np.int64)
        mean = (total * 2.0**-bits / sum(weights.values())).astype(np.float32)
        return (model + self.plan.server_optimizer.learning_rate * mean).astype(np.float32)


def fraction_bits(participants: int, bound: float) -> int:
    """The largest f with n ceil(R 2^f) <= 2^31 - 1, by trying."""
    fits = [f for f in range(40) if participants * math.ceil(Fraction(bound) * 2**f) <= 2**31 - 1]
    return max(fits)


@dataclass
class Attempts(Watcher):
    """Knows which attempt is running, one without any update included."""

    number: int = 0

    def phase(self, round_number: int, phase: str) -> None:
        super().phase(round_number, phase)
        self.number = round_number


@dataclass(kw_only=True)
class Lossy(InMemoryTransport):
    """The faulty network, with its rounds counted by the coordinator's attempts."""

    watcher: Attempts

    def _faults_for(self, name: DepartmentId, request: bytes) -> set[FaultKind]:
        step = STEP_OF[type(decode_request(request))]
        return {
            fault.kind
            for fault in self.faults
            if (fault.department, fault.step) == (name, step) and fault.round <= self.watcher.number <= fault.until
        }


def run_and_compare(liar: Liar, faults: Sequence[Fault]) -> Watcher:
    """Run the whole plan under faults; every number that comes out must be the plain one."""
    plain, watcher = Plain(liar), Attempts()
    plain.watch()
    peers = {DepartmentId(name): participant.handle for name, participant in liar.participants.items()}
    with liar.coordinator(watcher) as coordinator:
        coordinator.transport = Lossy(peers, tuple(faults), watcher=watcher)
        with suppress(RoundAbortedError):  # the watcher heard of it
            coordinator.run(liar.town.initial)
    model = liar.town.initial
    for result in watcher.results:
        assert_exact(plain, result, model)
        model = result.model
    return watcher


def assert_exact(plain: Plain, result: RoundResult, model: Vector) -> None:
    """The published model is that of the survivors, and of nobody else."""
    participants = len(result.survivors) + len(result.dropouts)
    expected = plain.model_after(result.round, model, result.survivors, participants)
    np.testing.assert_array_equal(result.model, expected)
    assert len(result.survivors) >= plain.plan.aggregation.min_contributors
    for left_out in result.survivors:
        others = [name for name in result.survivors if name != left_out]
        assert (plain.model_after(result.round, model, others, participants) != expected).any()


# --- one step at a time --------------------------------------------------------------------------------------

STEPS = ("advert", "seal", "update", "confirm", "reveal", "reveal for a partial list")


def cases(*sizes: int) -> list[tuple[int, str, FaultKind, int]]:
    """(departments, step, before or after it, how many drop there)."""
    found: list[tuple[int, str, FaultKind, int]] = []
    for size in sizes:
        spare = size - (2 * size // 3 + 1)
        for step in STEPS:
            # Where somebody must be missing already, one drop-out is spent on that.
            most = spare + 1 if step in ("advert", "seal", "update", "reveal") else spare
            found += [(size, step, kind, count) for kind in KINDS for count in range(1, most + 1)]
    return found


def faults_of(liar: Liar, step: str, kind: FaultKind, count: int) -> list[Fault]:
    """The first round's faults; who drops differs from case to case."""
    start = STEPS.index(step) + KINDS.index(kind)
    who = list(islice(cycle(liar.names), start, start + count + 1))
    short: Step = "reveal" if step.startswith("reveal") else step  # type: ignore[assignment]  # the others are steps
    faults = [Fault(department=name, step=short, kind=kind, until=1) for name in who[:count]]
    if step in ("confirm", "reveal for a partial list"):
        faults.append(Fault(department=who[count], step="update", kind=kind, until=1))
    return faults


def expected_end(size: int, step: str, count: int) -> tuple[int, str]:
    """How many departments are in the first round's sum, or the abort's code."""
    needed = 2 * size // 3 + 1
    partial = step in ("confirm", "reveal for a partial list")
    left, code = {
        "advert": (size - count, "below-threshold"),
        "seal": (size - count, "below-threshold"),
        "update": (size - count, "below-threshold"),
        "confirm": (size - 1 - count, "too-few-confirmations"),
        "reveal": (size - count, "too-few-reveals"),
        "reveal for a partial list": (size - 1 - count, "too-few-reveals"),
    }[step]
    if left < needed:
        return 0, code
    return (size - partial if step in ("confirm", "reveal", "reveal for a partial list") else left), ""


def assert_expected_end(liar: Liar, size: int, step: str, kind: FaultKind, count: int) -> None:
    in_sum, code = expected_end(size, step, count)
    faults = faults_of(liar, step, kind, count)
    watcher = run_and_compare(liar, faults)
    assert len(watcher.results) == 2
    if code:
        assert watcher.failures == [(1, code)]
        assert [len(result.survivors) for result in watcher.results] == [size, size]
        return
    assert watcher.failures == []
    first, second = watcher.results
    assert len(first.survivors) == in_sum
    dropped = {fault.department for fault in faults if fault.step in ("advert", "seal", "update")}
    assert set(first.survivors) == set(liar.names) - dropped
    # Who missed the epoch misses it as long as it stands; who missed a step of a round is back in the next one.
    assert second.survivors == (first.survivors if step in ("advert", "seal") else liar.names)


@pytest.mark.parametrize(("size", "step", "kind", "count"), cases(3, 4, 5))
def test_drop_outs_leave_the_exact_sum_or_a_named_abort(
    liar_of: Callable[[int], Liar], size: int, step: str, kind: FaultKind, count: int
) -> None:
    assert_expected_end(liar_of(size), size, step, kind, count)


@pytest.mark.soak
@pytest.mark.parametrize(("size", "step", "kind", "count"), cases(6, 7, 8))
def test_drop_outs_in_larger_cities_leave_the_exact_sum_or_a_named_abort(
    liar_of: Callable[[int], Liar], size: int, step: str, kind: FaultKind, count: int
) -> None:
    assert_expected_end(liar_of(size), size, step, kind, count)


@pytest.mark.parametrize("size", [3, 4, 5])
def test_nobody_drops(liar_of: Callable[[int], Liar], size: int) -> None:
    watcher = run_and_compare(liar_of(size), [])
    assert [result.survivors for result in watcher.results] == [NAMES[:size]] * 2


def test_a_lost_close_costs_nothing(liar_of: Callable[[int], Liar]) -> None:
    """The account of a round is the last step: the sum stands without it."""
    faults = [
        Fault(department=name, step="close", kind=kind, until=1) for name, kind in zip(NAMES, KINDS, strict=False)
    ]
    watcher = run_and_compare(liar_of(4), faults)
    assert [result.survivors for result in watcher.results] == [NAMES[:4]] * 2


# --- many at once ----------------------------------------------------------------------------------------------


def faults_among(size: int) -> st.SearchStrategy[list[Fault]]:
    """Any faults of any departments at any steps of the first two rounds."""
    one = st.builds(
        Fault,
        department=st.sampled_from(NAMES[:size]),
        step=st.sampled_from(["advert", "seal", "update", "confirm", "reveal", "close"]),
        kind=st.sampled_from(["drop-request", "drop-reply", "duplicate", "corrupt"]),
        round=st.just(1),
        until=st.integers(1, 2),
    )
    return st.lists(one, min_size=1, max_size=5)


ENDS = {"below-threshold", "too-few-confirmations", "too-few-reveals", "shares-inconsistent"}


def assert_exact_or_named(liar_of: Callable[[int], Liar], size: int, faults: Sequence[Fault]) -> None:
    watcher = run_and_compare(liar_of(size), faults)
    assert {code for _, code in watcher.failures} <= ENDS
    # Of three attempts two must work, and from the third on nothing is lost.
    assert (len(watcher.results) == 2) == (len(watcher.failures) < 2)


@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(faults=faults_among(4))
def test_any_faults_leave_exact_sums_or_named_aborts(liar_of: Callable[[int], Liar], faults: list[Fault]) -> None:
    assert_exact_or_named(liar_of, 4, faults)


@pytest.mark.soak
@pytest.mark.parametrize("size", range(3, 9))
def test_any_faults_in_any_city_leave_exact_sums_or_named_aborts(liar_of: Callable[[int], Liar], size: int) -> None:
    @settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
    @given(faults=faults_among(size))
    def search(faults: list[Fault]) -> None:
        assert_exact_or_named(liar_of, size, faults)

    search()
