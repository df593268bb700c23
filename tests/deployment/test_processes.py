"""A real authority and four real departments as processes of their own: TLS in front, mutual TLS on the channel."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import signal
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import msgspec
import numpy as np
import pytest
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE

from clients.config import load_department
from clients.participant import Participant
from clients.supernode import NAMED
from clients.training.noise import UnsafeSeededSource
from clients.up import SERVICE
from server.audit import OWNER
from server.city import load_plan_key
from server.coordinator import Coordinator
from server.gateway import FLEET_ROUTES
from server.results import RunResult
from server.roster import load_members
from server.runs import RunFolder
from shared.errors import ConfigError, RoundAbortedError
from shared.identity import DepartmentId, Signed
from shared.journal import Journal
from shared.model_file import MODEL_FILE, read_model
from shared.parameters import Vector
from shared.plan import Plan
from simulation.network import InMemoryTransport
from tests.city import FOUR
from tests.deployed_city import SMALL_ASK, DeployedCity, now
from tests.deployment.faults import LOOK_S
from tests.deployment.running_city import SEEDS, RunningCity, agreed_plan, running_city, wait_until
from tests.finished_city import attack_audit

CLOSED_ROUTES = (
    "/",
    "/docs",
    "/openapi.json",
    "/v1/control/list-runs",
    "/v1/control/register-node",
    "/v1/control/start-run",
    "/v1/fleet/register-node",
    "/v1/fleet/unregister-node",
    "/v1/fleet/../control/list-runs",
    "/v1/fleet/%2e%2e/control/list-runs",
    "/v1/fleet/get-run/",
    "/v1/runtime/acquire-task",
    "/v1/runtime/push-logs",
)

pytestmark = pytest.mark.xdist_group("deployment")  # one city for the file


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningCity]:
    with running_city(tmp_path_factory.mktemp("deployment") / "city") as running:
        yield running


ASK = msgspec.structs.replace(SMALL_ASK, rounds=3)
SLOW = msgspec.structs.replace(SMALL_ASK, privacy=msgspec.structs.replace(SMALL_ASK.privacy, steps=200))
AFTER_UPDATES = ("reveal", "unmask", "close")
KILLED = (
    ("authority", "superlink"),
    ("authority", "gateway"),
    ("authority", "shelf"),
    ("authority", "superexec"),
    ("police", "node"),
    ("health", "supernode"),
)


def simulated(city: DeployedCity, journals: Path, signed: Signed, plan: Plan) -> RunResult:
    """Run the same plan over memory with the same seeds, on copies of the departments' journals."""
    with contextlib.ExitStack() as stack:
        peers = {}
        for name in city.names:
            journal = stack.enter_context(Journal.open(journals / f"{name}.sqlite", owner=name))
            department = load_department(city.config(name))
            source = UnsafeSeededSource(SEEDS[name])
            peers[DepartmentId(name)] = Participant(department, journal=journal, source=source, clock=now).handle
        members = load_members(city.authority)
        return Coordinator(
            plan=plan,
            signed_plan=signed,
            signed_roster=members.signed,
            authority=load_plan_key(city.authority),
            transport=InMemoryTransport(peers),
            journal=stack.enter_context(Journal.open(journals / "authority.sqlite", owner=OWNER)),
            clock=now,
        ).run(read_model(city.authority.model(plan.initial_model_sha256), plan.layout))


def copy_journals(city: DeployedCity, folder: Path) -> Path:
    """Copy what the departments' people have approved; nobody may be writing."""
    folder.mkdir()
    for name in city.names:
        shutil.copy(city.home(name) / "journal.sqlite", folder / f"{name}.sqlite")
    return folder


def released(city: RunningCity, plan: Plan) -> Vector:
    return read_model(city.authority.runs / plan.run_id().hex() / MODEL_FILE, plan.layout)


def fetch_everything(city: RunningCity, plan: Plan, tmp_path: Path) -> None:
    """A department fetches roster, plan and the model of a finished run from the shelf, whence the plan came as well."""
    config, folder = city.city.config("police"), RunFolder(city.authority.runs / plan.run_id().hex())
    run = folder.path.name
    shown = city.client("roster", "fetch", str(config))
    assert (shown.returncode, shown.stdout.count("approved")) == (0, len(FOUR)), shown.stderr
    assert city.client("plan", "fetch", str(config)).stdout == "The shelf holds no plan that does not lie here.\n"
    withheld = city.client("model", "fetch", str(config), run)
    assert (withheld.returncode, "[run-unknown]" in withheld.stderr) == (ConfigError.exit_code, True)
    assert "[audit-missing]" in city.server("model", run, "--release").stderr
    audit = attack_audit(city.city, "health", plan, tmp_path)
    assert city.server("model", run, "--release", "--audit", str(audit)).returncode == 0
    fetched = city.client("model", "fetch", str(config), run)
    assert "countersigned in the last round" in fetched.stdout, fetched.stderr
    installed = city.city.home("police") / "models" / run / MODEL_FILE
    assert installed.read_bytes() == (folder.path / MODEL_FILE).read_bytes()


def test_a_run_over_processes_gives_the_model_of_the_simulation_with_the_same_seeds(
    city: RunningCity, tmp_path: Path
) -> None:
    signed, plan = agreed_plan(city.city, ASK)
    journals = copy_journals(city.city, tmp_path / "journals")
    done = city.server("run", plan.digest().hex(), "--json")
    assert done.returncode == 0, done.stderr
    status = json.loads(done.stdout)
    assert (status["state"], status["rounds"], status["missing"]) == ("completed", 3, {})
    assert set(status["signs"]) == set(FOUR)
    expected = simulated(city.city, journals, signed, plan).model
    assert np.linalg.norm(expected) > 0
    np.testing.assert_allclose(released(city, plan), expected, rtol=0, atol=1e-6)
    fetch_everything(city, plan, tmp_path)


def test_the_gateway_passes_on_nothing_but_what_a_registered_node_needs(city: RunningCity) -> None:
    wait_until(lambda: city.pid("authority", "gateway"), "the gateway runs")
    trusted = ssl.create_default_context(cafile=str(city.authority.ca_certificate))
    base = f"https://{json.loads(city.authority.city.read_text())['fleet']}"
    with httpx.Client(verify=trusted, trust_env=False) as client:
        for path in CLOSED_ROUTES:
            for method in ("GET", "POST"):
                request = client.build_request(method, base)
                request.url = request.url.copy_with(raw_path=path.encode())
                assert client.send(request).status_code == 404, path
        for path in FLEET_ROUTES:
            assert client.get(base + path).status_code == 405
            unsigned = client.post(base + path, content=b"", headers={"content-type": PROTOBUF_MEDIA_TYPE})
            assert unsigned.status_code == 401, (path, unsigned.text)
        assert client.post(base + FLEET_ROUTES[0], content=bytes((1 << 20) + 1)).status_code == 413
    assert city.server("status").returncode == 0


def test_when_every_department_is_stopped_the_run_has_failed_by_name(city: RunningCity) -> None:
    _, plan = agreed_plan(city.city, ASK)
    switches = [city.city.home(name) / "stopped" for name in FOUR]
    for switch in switches:
        switch.touch()
    try:
        city.city.edit_authority(attend_timeout_s=2.0)
        failed = city.server("run", plan.digest().hex())
    finally:
        city.city.edit_authority(attend_timeout_s=60.0)
        for switch in switches:
            switch.unlink()
    assert failed.returncode == RoundAbortedError.exit_code
    assert "[below-threshold]" in failed.stderr
    shown = city.server("status", plan.run_id().hex()).stdout
    for name in FOUR:
        assert f"  {name}: missing in step advert" in shown
    assert not (city.authority.runs / plan.run_id().hex() / MODEL_FILE).exists()


def test_in_a_run_no_socket_is_open_but_the_configured_ones_and_a_killed_worker_is_replaced(city: RunningCity) -> None:
    _, plan = agreed_plan(city.city, SLOW)
    submitted = city.server("run", plan.digest().hex(), "--detach")
    assert submitted.returncode == 0, submitted.stderr
    folder = RunFolder(city.authority.runs / plan.run_id().hex())
    wait_until(lambda: folder.status().phase == "update", "the first update is asked for")
    seen = city.sockets()
    assert {(local, remote) for local, _, remote in seen} <= {("127.0.0.1", "127.0.0.1"), ("127.0.0.1", "")}
    listening = {port for _, port, remote in seen if not remote}
    described = json.loads(city.authority.city.read_text())
    doors = {int(described[name].rpartition(":")[2]) for name in ("fleet", "channel", "shelf")}
    superlink = int((city.authority.flower / "port").read_text())
    assert listening > doors | {superlink}
    assert len(listening) == 4 + len(FOUR)  # and one SuperNode of each department
    children = city.children("health", "node")
    assert len(children) == 1
    os.kill(children[0], signal.SIGKILL)
    wait_until(lambda: folder.status().state in {"completed", "failed"}, "the end of the run", 120.0)
    assert folder.status().state == "completed"
    assert city.pid("health", "node") > 0


def test_a_coordinator_killed_in_the_middle_of_a_round_ends_with_the_same_model_bit_for_bit(
    city: RunningCity, tmp_path: Path
) -> None:
    signed, plan = agreed_plan(city.city, SLOW)
    journals = copy_journals(city.city, tmp_path / "journals")
    assert city.server("run", plan.digest().hex(), "--detach").returncode == 0
    folder = RunFolder(city.authority.runs / plan.run_id().hex())
    wait_until(lambda: (folder.status().round, folder.status().phase) == (2, "update"), "the second round", 120.0)
    killed = folder.status().process.pid
    os.kill(killed, signal.SIGKILL)
    wait_until(lambda: folder.status().process.pid != killed, "the run is submitted again")
    wait_until(lambda: folder.status().state == "completed", "the end of the run", 180.0)
    expected = simulated(city.city, journals, signed, plan).model
    assert released(city, plan).tobytes() == expected.tobytes()


def still_after_an_update(folder: RunFolder) -> int:
    """Let the process of a run stand still when every update of a round has come; returns its pid."""
    while (status := folder.status()).goes_on:
        if status.phase in AFTER_UPDATES:
            os.kill(status.process.pid, signal.SIGSTOP)
            if folder.status().phase in AFTER_UPDATES:
                return status.process.pid
            os.kill(status.process.pid, signal.SIGCONT)
        time.sleep(LOOK_S)
    raise AssertionError(status)


def test_a_full_disk_at_the_authority_in_the_middle_of_a_round_costs_no_attempt_and_changes_nothing(
    city: RunningCity, tmp_path: Path
) -> None:
    """The departments keep their epoch, and the process that goes on has room again."""
    signed, plan = agreed_plan(city.city, msgspec.structs.replace(SLOW, spare_attempts=0))
    journals = copy_journals(city.city, tmp_path / "journals")
    assert city.server("run", plan.digest().hex(), "--detach").returncode == 0
    folder = RunFolder(city.authority.runs / plan.run_id().hex())
    met = still_after_an_update(folder)
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.prlimit(met, resource.RLIMIT_FSIZE, (4096, hard))
    os.kill(met, signal.SIGCONT)
    wait_until(lambda: folder.status().process.pid != met, "the run is submitted again", 120.0)
    wait_until(lambda: not folder.status().goes_on, "the end of the run", 180.0)
    status = folder.status()
    assert (status.state, status.missing) == ("completed", {}), status
    expected = simulated(city.city, journals, signed, plan).model
    assert released(city, plan).tobytes() == expected.tobytes()


def times_let_in(city: RunningCity, department: str) -> int:
    """How often a SuperNode of the department was let in."""
    return len(NAMED.findall((city.city.home(department) / SERVICE / "log" / "supernode.log").read_bytes()))


def test_after_every_process_was_killed_once_the_next_run_completes(city: RunningCity) -> None:
    let_in = times_let_in(city, "health")
    for side, program in KILLED:
        before = city.pid(side, program)
        os.kill(before, signal.SIGKILL)
        wait_until(
            lambda side=side, program=program, before=before: city.pid(side, program) not in {0, before},
            f"{program} of {side} is started again",
        )
    wait_until(city.shelf_open, "the shelf is open again")
    _, plan = agreed_plan(city.city, ASK)
    wait_until(lambda: times_let_in(city, "health") > let_in, "the SuperNode is let in, because its good-bye was said")
    wait_until(lambda: city.online() >= set(FOUR), "every department is online again", 120.0)
    done = city.server("run", plan.digest().hex(), timeout_s=240.0)
    assert done.returncode == 0, done.stderr
