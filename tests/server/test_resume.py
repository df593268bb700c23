"""An interrupted run is started again, less and less often while it finishes no round, and at last no more."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Thread
from typing import cast

import msgspec
import pytest

from clients.enrol import CONFIG_FILE, request_rotation
from server.grid import GridCarrier
from server.home import AuthorityHome
from server.resume import MOST_STARTS, Resumer
from server.roster import load_members, read_request, remove, rotate
from server.runs import RunFolder, RunStatus, Submitted
from server.session import conduct
from server.superlink import Control, SuperLink
from shared.codec import dump_json, sha256
from shared.errors import SetupError
from shared.identity import DepartmentId
from shared.private_files import make_private_folder
from shared.supervise import STATUS_FILE, Status
from tests.deployed_city import now
from tests.server.small_home import ALIVE, GONE, signed_plan, small_home

RUN = "ab" * 32


@dataclass
class Authority:
    """An authority whose SuperLink takes every run, and a clock that a test turns."""

    home: AuthorityHome
    folder: RunFolder
    resumer: Resumer
    time: float = 0.0
    started: list[float] = field(default_factory=list)
    fault: Exception | None = None
    called: dict[str, int] = field(default_factory=dict)
    begin: Callable[[], object] = lambda: None

    def enrol(self, keys: Mapping[DepartmentId, bytes]) -> dict[DepartmentId, int]:
        """As Flower: one number per key, for ever."""
        return {name: 1 + int.from_bytes(sha256(key)[:4]) for name, key in keys.items()}

    def start(self, run: str) -> int:
        assert run == RUN
        if self.fault:
            raise self.fault
        self.started.append(self.time)
        self.called = self.folder.submitted().nodes
        self.begin()
        return len(self.started)

    def interrupt(self, *, rounds: int = 0) -> None:
        self.folder.write(RunStatus(state="running", process=GONE, since=now(), rounds=rounds, message="Full."))

    def until(self, time: float, *, rounds: int = 0) -> None:
        """Look every second; the process of the run ends at once whenever it is started."""
        while self.time < time and self.folder.status().code != "run-given-up":
            before = len(self.started)
            self.resumer.look()
            if len(self.started) > before:
                self.interrupt(rounds=rounds)
            self.time += 1.0


@pytest.fixture(scope="module")
def founded(tmp_path_factory: pytest.TempPathFactory) -> AuthorityHome:
    return small_home(tmp_path_factory.mktemp("city"))


@pytest.fixture
def authority(founded: AuthorityHome, tmp_path: Path) -> Authority:
    shutil.copytree(founded.root.parent, tmp_path / "city")
    home = AuthorityHome(tmp_path / "city" / founded.root.name)
    make_private_folder(home.service)
    (home.service / STATUS_FILE).write_bytes(dump_json(Status(supervisor=ALIVE, programs={})))
    folder = RunFolder(home.runs / RUN)
    superlink = SuperLink(folder=home.flower, secret=home.superexec_secret, port=1)
    resumer = Resumer(home, superlink, clock=lambda: authority.time)
    authority = Authority(home, folder, resumer)
    nodes = {str(name): node for name, node in authority.enrol(load_members(home).node_keys).items()}
    folder.submit(Submitted(plan=signed_plan(home), nodes=nodes), process=ALIVE, now=now())
    resumer.control_of = lambda _superlink: nullcontext(cast("Control", authority))
    authority.interrupt()
    return authority


def test_the_pauses_grow_and_a_run_that_gets_nowhere_is_given_up(authority: Authority) -> None:
    authority.until(4 * 3600.0)
    pauses = [after - before for before, after in zip(authority.started, authority.started[1:], strict=False)]
    assert len(authority.started) == MOST_STARTS
    assert pauses[:3] == [10.0, 20.0, 40.0]
    assert max(pauses) == pauses[-1] == 600.0
    assert authority.started[-1] > 3600.0, "a disk may be full for an hour"
    status = authority.folder.status()
    assert (status.state, status.code) == ("failed", "run-given-up")
    assert status.message.endswith("Full.")


def test_a_run_that_finishes_rounds_is_never_given_up(authority: Authority) -> None:
    for rounds in range(2 * MOST_STARTS):
        authority.interrupt(rounds=rounds)
        authority.until(authority.time + 3.0, rounds=rounds)
    assert len(authority.started) == 2 * MOST_STARTS


def test_a_run_that_a_process_conducts_is_not_started_again_whatever_its_status_says(authority: Authority) -> None:
    assert authority.folder.status().code == "run-interrupted"
    with authority.folder.conducting():
        authority.until(60.0)
        assert authority.started == []
    authority.until(120.0)
    assert authority.started


def test_what_a_run_says_as_soon_as_it_has_a_process_stands(authority: Authority) -> None:
    """Flower may start it before the answer to the submission is there; whoever stops it has to know its process."""
    begun, done = Event(), Event()

    def carrier_of(_nodes: Mapping[DepartmentId, int]) -> GridCarrier:
        begun.set()
        done.wait(30.0)
        raise SetupError("spool-unusable", "Something happened.")

    def process() -> None:
        with contextlib.suppress(SetupError):
            conduct(authority.home, RUN, carrier_of)

    thread = Thread(target=process)

    def begin() -> None:
        thread.start()
        begun.wait(0.5)  # it cannot, before all about the submission is written

    authority.begin = begin
    authority.resumer.look()
    try:
        assert begun.wait(30.0)
        assert authority.folder.status().state == "running"
    finally:
        done.set()
        thread.join()


@pytest.mark.parametrize("fault", [SetupError("superlink-unreachable", "Away."), OSError("No descriptor is left.")])
def test_a_run_waits_for_a_superlink_and_a_machine_that_come_back(authority: Authority, fault: Exception) -> None:
    authority.fault = fault
    authority.until(60.0)
    assert authority.started == []
    authority.fault = None
    authority.until(200.0)
    assert authority.started


def test_nothing_is_started_while_the_authority_is_off(authority: Authority) -> None:
    (authority.home.service / STATUS_FILE).unlink()
    authority.until(60.0)
    assert authority.started == []
    assert authority.folder.status() == msgspec.structs.replace(
        authority.folder.status(), state="failed", code="run-interrupted"
    )


@pytest.mark.parametrize("damage", [None, b"{"])
@pytest.mark.parametrize("name", ["run.json", "status.json"])
def test_a_damaged_run_does_not_keep_another_from_going_on(
    authority: Authority, name: str, damage: bytes | None
) -> None:
    newer = RunFolder(authority.home.runs / ("cd" * 32))
    newer.submit(authority.folder.submitted(), process=ALIVE, now=now())
    path = newer.path / name
    path.unlink() if damage is None else path.write_bytes(damage)
    authority.until(3.0)
    assert authority.started


# --- whom a run that goes on calls ----------------------------------------------------------------------------------


def renew_key(home: AuthorityHome, department: str) -> None:
    config = home.root.parent / department / CONFIG_FILE
    rotate(home, read_request(request_rotation(config, new_identity=False).request), now=now())


def test_a_run_that_goes_on_calls_a_department_by_its_rotated_key(authority: Authority) -> None:
    before = authority.folder.submitted().nodes
    renew_key(authority.home, "police")
    authority.until(3.0)
    assert authority.called["police"] != before["police"]
    assert authority.called == authority.enrol(load_members(authority.home).node_keys)
    assert authority.folder.submitted().nodes == authority.called, "kept with the number of the run"


def test_a_run_that_goes_on_keeps_its_cohort(authority: Authority) -> None:
    before = authority.folder.submitted().nodes
    remove(authority.home, "police", now=now())
    authority.until(3.0)
    assert authority.called == before
