"""A run that meets a passing fault of its machine is interrupted and goes on; one that was stopped does neither."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import msgspec
import pytest

from server.audit import OWNER, department_receipts
from server.city import load_plan_key
from server.config import load_server, split_address
from server.grid import GridTransport
from server.home import AuthorityHome
from server.roster import admit, read_request
from server.runs import RunFolder, Submitted
from server.session import PASSING, conduct
from shared.errors import CityFedError, SetupError
from shared.identity import DepartmentId, IdentityKey, sign_record
from shared.journal import Journal
from shared.plan import PLAN_LABEL
from shared.supervise import ProgramStatus, process_status
from tests.deployed_city import enrol, found, load_city, now
from tests.server.small_plan import plan_with

ALIVE, GONE = process_status(os.getpid()), ProgramStatus(pid=os.getpid(), started="1")


@pytest.fixture
def home(tmp_path: Path) -> AuthorityHome:
    """A city with one member, and ports that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        home = found(tmp_path, channel_port=probe.getsockname()[1])
    enrolled = enrol(
        tmp_path / "police",
        "police",
        city_file=home.city,
        city_fingerprint=load_city(home).fingerprint(),
        policy_owner_key=IdentityKey.generate().public.hex(),
    )
    admit(home, read_request(enrolled.request), fingerprint_typed=enrolled.fingerprint, now=now())
    return home


def submitted(home: AuthorityHome) -> RunFolder:
    plan = plan_with(dict.fromkeys(("environment", "health", "police"), 1.0))
    folder = RunFolder(home.runs / plan.run_id().hex())
    signed = sign_record(load_plan_key(home), PLAN_LABEL, plan)
    folder.submit(Submitted(plan=signed, nodes={}), process=ALIVE, now=now())
    return folder


def failing(code: str) -> Callable[[Mapping[DepartmentId, int]], GridTransport]:
    def carrier_of(_nodes: Mapping[DepartmentId, int]) -> GridTransport:
        raise SetupError(code, "Something happened.")

    return carrier_of


def conducted(home: AuthorityHome, folder: RunFolder, code: str) -> str:
    """Conduct a run that meets a fault; returns how it stands once its process is gone."""
    with pytest.raises(CityFedError):
        conduct(home, folder.path.name, failing(code))
    folder.write(msgspec.structs.replace(folder.status(), process=GONE))
    return folder.status().code


@pytest.mark.parametrize("code", sorted(PASSING))
def test_a_fault_that_may_pass_interrupts_a_run(home: AuthorityHome, code: str) -> None:
    folder = submitted(home)
    assert conducted(home, folder, code) == "run-interrupted"
    assert folder.status().message == "Something happened."
    folder.wait_for_process(ALIVE)
    assert (folder.status().state, folder.status().code, folder.status().message) == ("submitted", "", "")


def test_any_other_error_ends_a_run(home: AuthorityHome) -> None:
    assert conducted(home, submitted(home), "something-else") == "something-else"


def busy_port(home: AuthorityHome) -> AbstractContextManager[object]:
    listener = socket.socket()
    listener.bind(split_address(load_server(home).channel))
    listener.listen()
    return listener


def held_journal(home: AuthorityHome) -> AbstractContextManager[object]:
    return Journal.open(home.journal, owner=OWNER)


def unwritable_journal(home: AuthorityHome) -> AbstractContextManager[object]:
    home.journal.with_name(home.journal.name + ".lock").mkdir()
    return nullcontext()


@pytest.mark.parametrize("fault", [busy_port, held_journal, unwritable_journal])
def test_a_port_or_a_journal_that_is_taken_when_a_run_begins_only_interrupts_it(
    home: AuthorityHome, fault: Callable[[AuthorityHome], AbstractContextManager[object]]
) -> None:
    folder = submitted(home)
    with fault(home):
        assert conducted(home, folder, "never-comes-so-far") == "run-interrupted"


def test_the_authoritys_journal_can_be_looked_at_while_a_run_begins(home: AuthorityHome) -> None:
    """Who reads receipts page by page neither keeps a run from its journal nor waits for it."""
    with Journal.open(home.journal, owner=OWNER):
        assert list(department_receipts(home.journal)) == []
    with Journal.read(home.journal, owner=OWNER):
        assert conducted(home, submitted(home), "comes-so-far") == "comes-so-far"
