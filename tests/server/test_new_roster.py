"""A roster that was issued while a run had no process: the run goes on, and nobody's charge is kept for nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from server.audit import OWNER
from server.checkpoint import CheckpointFolder
from server.coordinator import Coordinator
from server.records import EpochReady
from server.results import RunResult
from shared.codec import decode
from shared.identity import DepartmentId
from shared.journal import EntryKind, Journal
from simulation.network import InMemoryTransport
from simulation.world import now
from tests.city import FOUR, Watcher, open_city, small_scenario
from tests.protocol.liar import Liar, Town


class Killed(BaseException):
    """The end of the process."""


class Mortal(Watcher):
    """An observer at whose word the process ends when a phase of a round begins; never without one."""

    def __init__(self, dies_at: tuple[int, str] | None) -> None:
        super().__init__()
        self._dies_at = dies_at

    def phase(self, round_number: int, phase: str) -> None:
        if (round_number, phase) == self._dies_at:
            raise Killed


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Town:
    folder = tmp_path_factory.mktemp("town")
    with open_city(folder, small_scenario(folder, rounds=3, spare_attempts=0)) as city:
        return Town.of(city)


@pytest.fixture
def city(town: Town, tmp_path: Path) -> Iterator[Liar]:
    city = Liar(town, tmp_path)
    yield city
    city.close()


def go_on(city: Liar, folder: Path, dies_at: tuple[int, str] | None = None) -> RunResult:
    """Begin the run, or go on with it, under the roster of now."""
    peers = {DepartmentId(name): participant.handle for name, participant in city.participants.items()}
    with Journal.open(folder / "authority.sqlite", owner=OWNER) as journal:
        return Coordinator(
            plan=city.plan,
            signed_plan=city.world.signed_plan,
            signed_roster=city.world.signed_roster,
            authority=city.world.authority,
            transport=InMemoryTransport(peers),
            journal=journal,
            clock=now,
            observer=Mortal(dies_at),
            checkpoints=CheckpointFolder(folder / "state"),
        ).run(city.town.initial)


def epochs(folder: Path) -> list[int]:
    with Journal.read(folder / "authority.sqlite", owner=OWNER) as journal:
        return [decode(entry.body, EpochReady).epoch for entry in journal.entries(EntryKind.EPOCH)]


def killed_and_rotated(city: Liar, folder: Path, *dies_at: tuple[int, str]) -> RunResult:
    """Kill the process at each of some points, issue a roster with a higher serial each time, and go on."""
    for serial, point in enumerate(dies_at, start=2):
        with pytest.raises(Killed):
            go_on(city, folder, point)
        city.use_roster(city.sign_roster(city.world.roster.members, serial=serial))
    return go_on(city, folder)


def settled(city: Liar) -> list[bool]:
    return [item.ledger.reservation(city.run).settled for item in city.participants.values()]


def test_a_run_killed_between_two_rounds_opens_an_epoch_under_the_new_roster(city: Liar, tmp_path: Path) -> None:
    result = killed_and_rotated(city, tmp_path, (2, "cohort"))
    assert [item.survivors for item in result.rounds] == [FOUR] * 3
    assert epochs(tmp_path) == [1, 2]
    assert settled(city) == [True] * 4


@pytest.mark.parametrize("phase", ["update", "reveal", "close"])
def test_a_round_that_began_under_the_old_roster_ends_under_it_and_costs_no_attempt(
    city: Liar, tmp_path: Path, phase: str
) -> None:
    """Not one spare attempt is in the plan."""
    result = killed_and_rotated(city, tmp_path, (1, phase), (2, phase))
    assert [(item.round, item.survivors) for item in result.rounds] == [(number, FOUR) for number in (1, 2, 3)]
    assert epochs(tmp_path)[-1] == 3
    assert settled(city) == [True] * 4
