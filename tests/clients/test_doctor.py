"""The doctor finds what keeps a department from taking part, and says what to do about it."""

from __future__ import annotations

import datetime as dt
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import msgspec
import pytest

from clients.config import load_config
from clients.doctor import CHECKS, Check, Patient, doctor_lines, examine, require_ready
from server.home import AuthorityHome
from shared.errors import SetupError
from tests.deployed_city import DeployedCity, deploy_city, now

HEALTH = "health"
OURS = {name: ["cityfed"] for name in ("clients", "policies", "server", "shared", "simulation")}


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> DeployedCity:
    return deploy_city(tmp_path_factory.mktemp("doctor"), (HEALTH, "police"))


def patient(city: DeployedCity, **changes: object) -> Patient:
    path = city.config(HEALTH)
    values: dict[str, object] = {"path": path, "config": load_config(path), "now": now(), "packages": OURS}
    return Patient(**{**values, **changes})  # type: ignore[arg-type]  # a test's patient


def found(patient: Patient, name: str) -> Check:
    return next(check for check in examine(patient) if check.name == name)


@contextmanager
def gateway(home: AuthorityHome, date: dt.datetime | str) -> Iterator[str]:
    """Something that answers with the city's certificate and a date of its own."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(404)

        def date_time_string(self, timestamp: float | None = None) -> str:
            return date if isinstance(date, str) else date.strftime("%a, %d %b %Y %H:%M:%S GMT")

        def log_message(self, *args: object) -> None:  # type: ignore[override]  # says nothing, whatever it is told
            """Say nothing."""

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(home.server_certificate, home.server_key)
    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        server.handle_error = lambda *_: None  # type: ignore[method-assign]  # a refused handshake is what is tested
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def test_every_check_is_made_whatever_another_one_finds(city: DeployedCity, tmp_path: Path) -> None:
    nowhere = patient(city, path=tmp_path / "client.toml")
    checks = examine(nowhere)
    assert [check.name for check in checks] == list(CHECKS)
    assert {check.name for check in checks if check.todo} >= {"department", "certificate", "gateway", "processes"}
    with pytest.raises(SetupError) as caught:
        require_ready(checks)
    assert caught.value.code == "not-ready"


def test_a_department_in_order_has_nothing_to_do_but_what_needs_the_authority(city: DeployedCity) -> None:
    checks = examine(patient(city))
    assert {check.name for check in checks if check.todo} == {"gateway", "shelf", "processes"}
    lines = doctor_lines(checks)
    assert sum(line.startswith("TO DO") for line in lines) == 3


def test_another_distribution_with_a_package_of_our_names_is_found(city: DeployedCity) -> None:
    check = found(patient(city, packages={**OURS, "shared": ["cityfed", "stranger"]}), "packages")
    assert "stranger" in check.found
    assert "Remove stranger" in check.todo


def test_the_kill_switch_and_a_certificate_that_runs_out_are_shown(city: DeployedCity) -> None:
    switch = city.home(HEALTH) / "stopped"
    switch.touch()
    try:
        assert found(patient(city), "kill switch").found == "set"
    finally:
        switch.unlink()
    assert found(patient(city), "kill switch") == Check(name="kill switch", found="off")
    for days, warned in ((366, False), (368, True), (390, True)):
        check = found(patient(city, now=now() + dt.timedelta(days=days)), "certificate")
        assert ("`cityfed-client rotate" in check.todo) is warned
    assert found(patient(city, now=now() + dt.timedelta(days=400)), "certificate").found == "certificate-expired"


@pytest.mark.parametrize(("ahead_s", "wrong"), [(0, False), (-30, False), (30, True), (-600, True)])
def test_a_clock_that_the_authority_would_not_accept_is_found(city: DeployedCity, ahead_s: int, wrong: bool) -> None:
    with gateway(city.authority, now() - dt.timedelta(seconds=ahead_s)) as address:
        config = msgspec.structs.replace(load_config(city.config(HEALTH)), fleet=address)
        check = found(patient(city, config=config), "gateway")
    assert "answers" in check.found
    assert bool(check.todo) is wrong


@pytest.mark.parametrize(
    ("date", "said"), [("soon", "without a date"), ("Mon, 01 Jan 0001 00:00:00 -0000", "clock differs")]
)
def test_a_gateway_that_tells_no_time_is_found(city: DeployedCity, date: str, said: str) -> None:
    with gateway(city.authority, date) as address:
        config = msgspec.structs.replace(load_config(city.config(HEALTH)), fleet=address)
        check = found(patient(city, config=config), "gateway")
    assert (said in check.found, bool(check.todo)) == (True, True)


@pytest.mark.parametrize("field", ["fleet", "channel", "shelf"])
@pytest.mark.parametrize("address", ["host:port", "a..b:1"])
def test_what_is_no_address_is_said_and_keeps_no_other_check_from_being_made(
    city: DeployedCity, field: str, address: str
) -> None:
    config = msgspec.structs.replace(load_config(city.config(HEALTH)), **{field: address})
    check = found(patient(city, config=config), {"fleet": "gateway"}.get(field, field))
    assert "client.toml" in check.todo


def test_a_gateway_of_another_city_is_not_believed(city: DeployedCity, tmp_path: Path) -> None:
    other = deploy_city(tmp_path, (HEALTH,))
    with gateway(other.authority, now()) as address:
        config = msgspec.structs.replace(load_config(city.config(HEALTH)), fleet=address)
        assert found(patient(city, config=config), "gateway").todo


def test_an_update_channel_that_is_closed_is_as_it_should_be_between_runs(city: DeployedCity) -> None:
    check = found(patient(city), "channel")
    assert (check.todo, "closed" in check.found) == ("", True)


def test_the_shelf_has_to_be_named_and_open(city: DeployedCity) -> None:
    config = load_config(city.config(HEALTH))
    assert "client.toml" in found(patient(city, config=msgspec.structs.replace(config, shelf="")), "shelf").todo
    assert "firewall" in found(patient(city), "shelf").todo
    with gateway(city.authority, now()) as address:
        listening = patient(city, config=msgspec.structs.replace(config, shelf=address))
        assert found(listening, "shelf") == Check(name="shelf", found=f"{address} is open")
