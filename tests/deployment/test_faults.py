"""Things that break while a city is at work: the run completes or is aborted by name, ledgers are right, the next works.

Kills that `make test` makes stand in `test_processes.py`; every process at every phase is `make soak`.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from clients.config import load_config
from clients.doctor import Patient, examine
from clients.enrol import CONFIG_FILE, enrol, install_admission
from clients.up import SERVICE
from server.ca import LEAF_LIFETIME
from server.city import found_city, load_authority, load_city
from server.config import load_server, new_config
from server.home import AuthorityHome
from server.roster import admit, read_request
from server.superlink import open_control
from server.up import find_superlink
from shared.certificates import certificate_pem, load_tls_key
from shared.codec import dump_json
from shared.errors import ProtocolError
from shared.health import health_answer
from shared.identity import IdentityKey
from shared.private_files import replace_private_file
from tests.city import FOUR
from tests.cutting_proxy import CuttingProxy
from tests.deployed_city import LOOPBACK, SMALL_ASK, deploy_city, now
from tests.deployment.faults import POINTS, VICTIM, Running, ended_well, submit
from tests.deployment.running_city import ENVIRONMENT, RunningCity, agreed_plan, free_ports, wait_until

STEP_TIMEOUT_S = 12.0
SILENCE_TIMEOUT_S = 15.0
ASK = msgspec.structs.replace(SMALL_ASK, privacy=msgspec.structs.replace(SMALL_ASK.privacy, epsilon=0.2, steps=100))
CHEAP = msgspec.structs.replace(ASK, privacy=msgspec.structs.replace(ASK.privacy, steps=2))

pytestmark = pytest.mark.xdist_group("deployment")  # one city at a time


@contextlib.contextmanager
def proxied(city_folder: Path) -> Iterator[tuple[RunningCity, CuttingProxy, CuttingProxy]]:
    """A running city whose victim gives up on a step soon, and dials by way of two proxies: gateway and channel."""
    fleet, channel, shelf = free_ports(3)
    city = deploy_city(city_folder, fleet_port=fleet, channel_port=channel, shelf_port=shelf)
    running = RunningCity(city)
    with CuttingProxy(fleet) as to_fleet, CuttingProxy(channel) as to_channel:
        city.edit_config(
            VICTIM,
            step_timeout_s=STEP_TIMEOUT_S,
            silence_timeout_s=SILENCE_TIMEOUT_S,
            fleet=f"127.0.0.1:{to_fleet.port}",
            channel=f"127.0.0.1:{to_channel.port}",
        )
        try:
            running.start_all()
            yield running, to_fleet, to_channel
        finally:
            running.stop()


Proxied = tuple[RunningCity, CuttingProxy, CuttingProxy]


@pytest.fixture(scope="module")
def proxied_city(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxied]:
    with proxied(tmp_path_factory.mktemp("faults") / "city") as both:
        yield both


@pytest.fixture
def city(proxied_city: Proxied) -> RunningCity:
    """The city, with everybody there."""
    running = proxied_city[0]
    wait_until(lambda: running.online() >= set(FOUR), "every department is online", 120.0)
    return running


def begun(city: RunningCity) -> Running:
    """A run whose first update is asked for."""
    running = submit(city, agreed_plan(city.city, ASK)[1])
    wait_until(lambda: running.folder.status().phase == "update", "the first update is asked for", 120.0)
    return running


def next_run_works(city: RunningCity) -> None:
    """A run after the fault has everybody in it again."""
    status = ended_well(submit(city, agreed_plan(city.city, CHEAP)[1]))
    assert (status.state, status.missing) == ("completed", {})


def log_of_node(city: RunningCity) -> str:
    return (city.city.home(VICTIM) / "service" / "log" / "node.log").read_text()


def kills(city: RunningCity) -> int:
    """How often the node has killed a worker that hung."""
    log = log_of_node(city)
    in_step, silent = "a step took longer than {:g} s", "the worker was silent for longer than {:g} s"
    return log.count(in_step.format(STEP_TIMEOUT_S)) + log.count(silent.format(SILENCE_TIMEOUT_S))


def hang(city: RunningCity) -> int:
    """Let the victim's worker stand still, wherever it is; return its process id."""
    (worker,) = city.children(VICTIM, "node")
    os.kill(worker, signal.SIGSTOP)
    return worker


def test_a_department_that_hangs_is_killed_after_its_step_timeout_and_the_others_go_on(city: RunningCity) -> None:
    """It may hang in a step or between two, which have a time each; and between two runs, before the next."""
    running, before = begun(city), kills(city)
    hang(city)
    status = ended_well(running)
    assert (status.state, status.rounds) == ("completed", ASK.rounds)
    assert f"{VICTIM} is missing in step" in running.folder.log.read_text()
    assert kills(city) == before + 1
    next_run_works(city)
    idle = hang(city)
    wait_until(lambda: city.children(VICTIM, "node") not in ([idle], []), "the worker is replaced")
    assert kills(city) == before + 2
    next_run_works(city)


@contextlib.contextmanager
def full_disk(city: RunningCity) -> Iterator[None]:
    """No file of the victim's node, its worker and whatever they start may grow beyond its first page."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(most: int) -> None:
        for pid in (city.pid(VICTIM, "node"), *city.children(VICTIM, "node")):
            with contextlib.suppress(ProcessLookupError):
                resource.prlimit(pid, resource.RLIMIT_FSIZE, (most, hard))

    limit(4096)
    try:
        yield
    finally:
        limit(hard)


def test_a_department_whose_disk_is_full_lets_nothing_out_and_the_others_go_on(city: RunningCity) -> None:
    running = begun(city)
    with full_disk(city):
        status = ended_well(running)
    assert (status.state, status.rounds, set(status.missing)) == ("completed", ASK.rounds, {VICTIM})
    next_run_works(city)


def test_a_connection_that_is_cut_in_the_middle_of_an_update_heals_and_nobody_is_missing(
    city: RunningCity, proxied_city: Proxied
) -> None:
    _, to_fleet, to_channel = proxied_city
    running, cuts = begun(city), to_channel.cuts
    to_channel.cut_after(4096)
    to_fleet.cut_after(1)
    status = ended_well(running)
    assert to_channel.cuts == cuts + 1
    assert (status.state, status.rounds, status.missing) == ("completed", ASK.rounds, {})
    next_run_works(city)


# --- clocks ------------------------------------------------------------------------------------------------


def later_city(folder: Path) -> tuple[AuthorityHome, Path]:
    """A city whose certificates were all issued by a clock that is three days ahead of this one."""
    later = now() + dt.timedelta(days=3)
    home, owner = AuthorityHome(folder / "authority"), IdentityKey.generate()
    ports = dict(zip(("fleet_port", "channel_port", "shelf_port"), free_ports(3), strict=True))
    settings = new_config("metropolis", LOOPBACK, listen="127.0.0.1", **ports)
    found_city(home, settings, now=later)
    enrolled = enrol(
        folder / VICTIM,
        VICTIM,
        city_file=home.city,
        city_fingerprint=load_city(home).fingerprint(),
        policy_owner_key=owner.public.hex(),
    )
    admission = admit(home, read_request(enrolled.request), fingerprint_typed=enrolled.fingerprint, now=later)
    replace_private_file(folder / "admission.json", dump_json(admission))
    install_admission(folder / VICTIM / CONFIG_FILE, folder / "admission.json", now=later)
    return home, folder / VICTIM / CONFIG_FILE


def test_whoever_starts_with_a_clock_before_the_certificates_is_told_so(tmp_path: Path) -> None:
    home, config = later_city(tmp_path)
    for command in (("server", "up", "--home", str(home.root)), ("clients", "up", str(config))):
        ended = subprocess.run(
            [sys.executable, "-m", *command], capture_output=True, text=True, check=False, timeout=60, env=ENVIRONMENT
        )
        assert ended.returncode == ProtocolError.exit_code, ended.stderr
        assert "[certificate-not-yet-valid]" in ended.stderr
        assert "check this clock" in ended.stderr
    patient = Patient(path=config, config=load_config(config), now=now(), packages={})
    (found,) = [check for check in examine(patient) if check.name == "certificate"]
    assert (found.found, "check this clock" in found.todo) == ("certificate-not-yet-valid", True)


def ended_certificates(city: RunningCity) -> dict[Path, bytes]:
    """The authority's own certificate and the victim's as they would be a second after their last moment."""
    home, long_ago = city.authority, now() - LEAF_LIFETIME - dt.timedelta(seconds=1)
    ca, hosts = load_authority(home, now=now()), load_server(home).hosts
    folder, config = city.city.home(VICTIM), load_config(city.city.config(VICTIM))
    own, its = load_tls_key(home.server_key), load_tls_key(folder / config.tls_key)
    return {
        home.server_certificate: certificate_pem(ca.issue_server(own.private.public_key(), hosts, now=long_ago)),
        folder / config.tls_certificate: certificate_pem(
            ca.issue_member(its.private.public_key(), VICTIM, now=long_ago)
        ),
    }


def test_when_certificates_end_under_running_processes_these_end_until_there_are_new_ones(city: RunningCity) -> None:
    ended, services = ended_certificates(city), (city.authority.service, city.city.home(VICTIM) / SERVICE)
    present = {path: path.read_bytes() for path in ended}
    for path, content in ended.items():
        replace_private_file(path, content)
    for service in services:
        wait_until(lambda service=service: b"certificate-expired" in health_answer(service)[1], "it is noticed")
        status, body = health_answer(service)
        assert (status, b'"running":true' in body) == (503, False)
    for path, content in present.items():
        replace_private_file(path, content)
    wait_until(lambda: all(health_answer(service)[0] == 200 for service in services), "everything runs again")
    for output in ("authority.out", f"{VICTIM}.out"):
        text = (city.city.folder / output).read_text()
        assert text.index("no process runs until this is set right") < text.index("the certificates are in order again")
    wait_until(lambda: city.online() >= set(FOUR), "every department is online", 120.0)
    next_run_works(city)


# --- every process at every phase --------------------------------------------------------------------------


@pytest.mark.soak
@pytest.mark.parametrize(("kind", "phase"), POINTS)
def test_a_run_in_which_a_process_was_killed_completes_or_is_aborted_by_name(
    city: RunningCity, kind: str, phase: str, record_property: Callable[[str, object], None]
) -> None:
    """The next point's run is the next run; a department that is not back yet is waited for."""
    running = submit(city, agreed_plan(city.city, CHEAP)[1])
    assert running.kill(kind, phase), "the phase was over within a look in every round"
    status = ended_well(running)
    record_property("outcome", status.code or status.state)
    wait_until(lambda: running.pid(kind) or kind in {"run", "worker"}, f"{kind} is started again")


@pytest.mark.soak
def test_a_run_whose_process_was_killed_before_it_wrote_a_word_begins_again(city: RunningCity) -> None:
    """Flower takes about a minute to notice."""
    running = submit(city, agreed_plan(city.city, CHEAP)[1])
    number = running.folder.submitted().flower_run
    with open_control(find_superlink(city.authority)) as control:
        wait_until(lambda: control.run(number).status == "running", "Flower has started the process of the run")
    for process in city.children("authority", "superexec"):
        os.kill(process, signal.SIGKILL)
    assert running.folder.status().state == "submitted"
    assert ended_well(running).state == "completed"
    assert f"run {running.folder.path.name} was interrupted" in (city.city.folder / "authority.out").read_text()
