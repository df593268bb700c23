"""A coordinator that is killed anywhere in a run: another one goes on from its folder, and the model is the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from clients.records import StepAnswered
from server.audit import ends_of_runs
from server.checkpoint import STATE_FILE, CheckpointFolder, Progress, SavedRun
from server.results import RunResult
from shared.codec import decode
from shared.errors import CityFedError, JournalError, ProtocolError, RoundAbortedError
from shared.identity import DepartmentId
from shared.journal import EntryKind
from shared.messages import UpdateRequest, decode_request
from shared.transport import Transport
from simulation.network import Fault, InMemoryTransport
from tests.city import FOUR, City, open_city, small_scenario
from tests.server.spooled import spooled

HEALTH = "health"
DROPPED = (Fault(department=HEALTH, step="update", kind="drop-request", round=1, until=1),)


class Killed(BaseException):
    """The end of the process: no ``except Exception`` holds it up."""


@dataclass
class Mortal:
    """A transport whose coordinator dies at its n-th point: before an exchange, or when a reply has come.

    Attributes:
        dies_at: the point, from 1; 0 for never.
        spool: folder in which replies lie in files, as those of the update channel do; None for memory.
        requests: what departments were really asked.
    """

    carrier: Transport
    dies_at: int = 0
    spool: Path | None = None
    points: int = 0
    requests: list[bytes] = field(default_factory=list)

    def exchange(
        self, requests: Mapping[DepartmentId, bytes], *, timeout_s: float
    ) -> Iterator[tuple[DepartmentId, bytes | memoryview]]:
        self._point()
        for name, reply in self.carrier.exchange(requests, timeout_s=timeout_s):
            self.requests.append(requests[name])
            self._point()
            yield name, reply if self.spool is None else spooled(self.spool, reply)

    def _point(self) -> None:
        self.points += 1
        if self.points == self.dies_at:
            raise Killed


@dataclass
class Run:
    """A finished run and what its departments were asked."""

    result: RunResult
    points: int
    updates: list[bytes]
    answered: dict[str, list[tuple[int, str]]]
    resumed: int


def carrier(city: City, faults: tuple[Fault, ...]) -> InMemoryTransport:
    """One network for all coordinators of a run, so that rounds are counted on."""
    return InMemoryTransport(city.peers, faults)


def run(folder: Path, faults: tuple[Fault, ...] = (), dies_at: int = 0, *, spooled: bool = False) -> Run:
    """Run the small city over a coordinator that dies once, and another one that goes on."""
    folder.mkdir(exist_ok=True)
    with open_city(folder, small_scenario(folder, rounds=2, spare_attempts=1)) as city:
        mortal = Mortal(carrier(city, faults), dies_at, folder if spooled else None)
        checkpoints = CheckpointFolder(folder / "checkpoint", long_bytes=1)  # the small city's replies are short
        try:
            result = city.coordinator(mortal, checkpoints).run(city.basis.initial)
        except Killed:
            mortal.dies_at = 0
            result = city.coordinator(mortal, checkpoints).run(city.basis.initial)
        asked = [request for request in mortal.requests if isinstance(decode_request(request), UpdateRequest)]
        answered = {name: answers(city, name) for name in FOUR}
        resumed = len([*city.world.authority_journal.entries(kind=EntryKind.RESUMED)])
        return Run(result, mortal.points, asked, answered, resumed)


def answers(city: City, name: str) -> list[tuple[int, str]]:
    """What a department answered once and for all, by its journal."""
    entries = city.world.participants[DepartmentId(name)].memory.journal.entries(kind=EntryKind.ANSWERED)
    records = [decode(entry.body, StepAnswered) for entry in entries]
    return [(record.round, record.step) for record in records]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run(tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def whole_with_a_dropout(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run(tmp_path_factory.mktemp("dropout"), DROPPED)


def assert_same_end(killed: Run, whole: Run) -> None:
    """The same model, the same rounds, and no department did anything twice."""
    assert killed.resumed == 1
    assert killed.result.model.tobytes() == whole.result.model.tobytes()
    assert killed.result.rounds == whole.result.rounds
    assert killed.answered == whole.answered
    assert all(killed.answered.values())


def test_there_are_many_points_to_die_at(whole: Run, whole_with_a_dropout: Run) -> None:
    assert whole.points == 8 * 5  # advert, seal, and twice update, reveal and close; four replies each
    assert whole_with_a_dropout.points > 40
    assert whole.resumed == 0


# --- killed at any point --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dies_at", [1, 3, 7, 12, 15, 18, 21, 24, 31, 40])
def test_a_run_killed_anywhere_ends_with_the_same_model(tmp_path: Path, whole: Run, dies_at: int) -> None:
    assert_same_end(run(tmp_path, dies_at=dies_at), whole)


@pytest.mark.parametrize("dies_at", [10, 14, 40])
def test_a_run_whose_uploads_lie_in_files_ends_with_the_same_model(tmp_path: Path, whole: Run, dies_at: int) -> None:
    assert_same_end(run(tmp_path, dies_at=dies_at, spooled=True), whole)


@pytest.mark.parametrize("dies_at", [12, 16, 18, 19, 22, 25])
def test_a_run_with_a_dropout_killed_anywhere_ends_with_the_same_model(
    tmp_path: Path, whole_with_a_dropout: Run, dies_at: int
) -> None:
    """Who was missing when the survivors were fixed is not asked again."""
    assert_same_end(run(tmp_path, DROPPED, dies_at), whole_with_a_dropout)


@pytest.mark.soak
def test_a_run_killed_at_every_point_ends_with_the_same_model(
    tmp_path: Path, whole: Run, whole_with_a_dropout: Run
) -> None:
    for faults, expected in (((), whole), (DROPPED, whole_with_a_dropout)):
        for dies_at in range(1, expected.points + 1):
            assert_same_end(run(tmp_path / f"{len(faults)}-{dies_at}", faults, dies_at), expected)


def test_what_was_received_is_not_asked_for_again(tmp_path: Path, whole: Run) -> None:
    """Dying after the first round's last reply costs one department one question at most."""
    killed = run(tmp_path, dies_at=25)
    assert len(killed.updates) - len(whole.updates) <= 1
    assert len(set(killed.updates)) == 2  # one request in each round, byte for byte


@pytest.mark.parametrize(("share", "junk"), [(0.2, b""), (0.55, b"\xff" * 9), (0.9, b"\x05\0\0\0"), (0.999, b"")])
def test_a_log_torn_anywhere_is_cut_off_and_the_rest_is_asked_for_again(
    tmp_path: Path, whole: Run, share: float, junk: bytes
) -> None:
    with open_city(tmp_path, small_scenario(tmp_path, rounds=2, spare_attempts=1)) as city:
        mortal, kept = Mortal(carrier(city, ()), dies_at=20), tmp_path / "checkpoint"
        with pytest.raises(Killed):
            city.coordinator(mortal, CheckpointFolder(kept)).run(city.basis.initial)
        log = kept / "round-1.log"
        data = log.read_bytes()
        log.write_bytes(data[: int(share * len(data))] + junk)
        result = city.coordinator(mortal, CheckpointFolder(kept)).run(city.basis.initial)
        assert result.model.tobytes() == whole.result.model.tobytes()


# --- runs that are over -----------------------------------------------------------------------------------------


def test_a_finished_run_is_not_run_again(tmp_path: Path) -> None:
    with open_city(tmp_path, small_scenario(tmp_path, rounds=1)) as city:
        folder = CheckpointFolder(tmp_path / "checkpoint")
        first = city.coordinator(carrier(city, ()), folder).run(city.basis.initial)
        mortal = Mortal(carrier(city, ()))
        again = city.coordinator(mortal, folder).run(city.basis.initial)
        assert mortal.points == 0
        assert again.rounds == first.rounds
        assert again.model.tobytes() == first.model.tobytes()


def test_a_failed_run_stays_failed(tmp_path: Path) -> None:
    faults = tuple(Fault(department=name, step="update", kind="drop-request") for name in FOUR[:2])
    with open_city(tmp_path, small_scenario(tmp_path, rounds=1, spare_attempts=1)) as city:
        folder = CheckpointFolder(tmp_path / "checkpoint")
        mortal = Mortal(carrier(city, ()))
        for transport, code in ((carrier(city, faults), "below-threshold"), (mortal, "attempts-exhausted")):
            with pytest.raises(RoundAbortedError) as caught:
                city.coordinator(transport, folder).run(city.basis.initial)
            assert caught.value.code == code
            assert all(ends_of_runs(city.world.authority_journal).values()), "also where the end was cut off"
        assert mortal.points == 0


def test_failed_rounds_count_across_a_restart(tmp_path: Path) -> None:
    """A kill does not win an attempt back: the next round has a higher number and a higher epoch."""
    faults = tuple(Fault(department=name, step="update", kind="drop-request", until=1) for name in FOUR[:2])
    with open_city(tmp_path, small_scenario(tmp_path, rounds=1, spare_attempts=1)) as city:
        network = carrier(city, faults)
        mortal = Mortal(network, dies_at=14)
        with pytest.raises(Killed):
            city.coordinator(mortal, CheckpointFolder(tmp_path / "checkpoint")).run(city.basis.initial)
        saved = CheckpointFolder(tmp_path / "checkpoint").load()
        assert saved is not None
        assert (saved.progress.failures, saved.progress.epoch_number, saved.progress.epoch) == (1, 1, None)
        mortal.dies_at = 0
        result = city.coordinator(mortal, CheckpointFolder(tmp_path / "checkpoint")).run(city.basis.initial)
        assert [(item.round, item.survivors) for item in result.rounds] == [(2, FOUR)]


# --- folders that do not fit ------------------------------------------------------------------------------------


def damaged(folder: Path, city: City, damage: Callable[[Path], None]) -> None:
    """Run to the end of the first exchange, damage the folder, go on."""
    mortal = Mortal(carrier(city, ()), dies_at=14)
    with pytest.raises(Killed):
        city.coordinator(mortal, CheckpointFolder(folder)).run(city.basis.initial)
    damage(folder)
    city.coordinator(mortal, CheckpointFolder(folder)).run(city.basis.initial)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def of_another_run(folder: Path) -> None:
    saved = CheckpointFolder(folder).load()
    assert saved is not None
    CheckpointFolder(folder).save(SavedRun(Progress(run=bytes(32)), saved.vectors))


@pytest.mark.parametrize(
    ("damage", "error", "code"),
    [
        (lambda folder: flip(folder / "vectors-1.safetensors"), JournalError, "checkpoint-corrupt"),
        (lambda folder: (folder / "vectors-1.safetensors").unlink(), JournalError, "checkpoint-corrupt"),
        (lambda folder: (folder / STATE_FILE).write_bytes(b"\xc1"), JournalError, "message-malformed"),
        (of_another_run, ProtocolError, "checkpoint-foreign"),
    ],
)
def test_a_folder_that_does_not_fit_is_refused_by_name(
    tmp_path: Path, damage: Callable[[Path], None], error: type[CityFedError], code: str
) -> None:
    with open_city(tmp_path, small_scenario(tmp_path, rounds=1)) as city:
        with pytest.raises(error) as caught:
            damaged(tmp_path / "checkpoint", city, damage)
        assert caught.value.code == code


def test_nothing_of_a_checkpoint_can_be_read_by_others(tmp_path: Path) -> None:
    with open_city(tmp_path, small_scenario(tmp_path, rounds=1)) as city:
        folder = tmp_path / "checkpoint"
        with pytest.raises(Killed):
            city.coordinator(Mortal(carrier(city, ()), dies_at=14), CheckpointFolder(folder)).run(city.basis.initial)
        assert folder.stat().st_mode & 0o777 == 0o700
        assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
        assert {path.name for path in folder.iterdir()} == {STATE_FILE, "vectors-1.safetensors", "round-1.log"}
