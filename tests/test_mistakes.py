"""What a newcomer does wrong first: each is one sentence that says what to do, with the exit code of its family."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path

import pytest

import clients.cli
import server.cli
from server.runs import RunStatus, Sign, status_lines
from server.up import require_free
from shared.errors import SetupError
from shared.supervise import ProgramStatus
from tests.command_line import Run, runner
from tests.deployed_city import DeployedCity, deploy_city, now


@pytest.fixture
def office(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    return runner(server.cli.main, capsys, monkeypatch)


@pytest.fixture
def desk(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    return runner(clients.cli.main, capsys, monkeypatch)


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> DeployedCity:
    return deploy_city(tmp_path_factory.mktemp("mistakes"), ("health", "police"))


@pytest.mark.parametrize(
    "words", ["up", "run 00", "status", "runs", "logs 00", "model 00", "stop", "plan list", "plan sign 00"]
)
def test_in_the_wrong_folder_no_command_of_the_authority_pretends_that_all_is_well(
    office: Run, tmp_path: Path, words: str
) -> None:
    ended = office(*words.split(), "--home", tmp_path)
    assert (ended.code, ended.out) == (2, "")
    assert ended.sentence.endswith("[city-missing]")
    assert list(tmp_path.iterdir()) == []


def test_one_port_for_two_doors_founds_no_city(office: Run, tmp_path: Path) -> None:
    ports = ("--fleet-port", "9443", "--channel-port", "9443")
    ended = office("city", "init", "metropolis", "--host", "127.0.0.1", *ports, "--home", tmp_path / "authority")
    assert (ended.code, ended.sentence.endswith("[port-twice]")) == (2, True)
    assert list(tmp_path.iterdir()) == []


def test_up_names_a_port_that_somebody_else_uses_and_starts_nothing(office: Run, tmp_path: Path) -> None:
    home = tmp_path / "authority"
    with contextlib.ExitStack() as held:
        probes = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(3)]
        fleet, channel, shelf = (str(probe.getsockname()[1]) for probe in probes)
        probes[0].close()
        probes[2].close()
        ports = ("--fleet-port", fleet, "--channel-port", channel, "--shelf-port", shelf)
        office("city", "init", "metropolis", "--host", "127.0.0.1", *ports, "--home", home)
        ended = office("up", "--home", home)
    assert ended.code == SetupError.exit_code
    assert channel in ended.sentence
    assert ended.sentence.endswith("[port-unusable]")
    assert not (home / "flower" / "port").exists()


def test_a_port_that_is_left_a_moment_later_is_waited_for() -> None:
    somebody = socket.create_server(("127.0.0.1", 0))
    host, port = somebody.getsockname()
    require_free(host, port, wait=lambda _seconds: somebody.close())
    waits: list[float] = []
    with socket.create_server((host, port)), pytest.raises(SetupError):
        require_free(host, port, wait=waits.append)
    assert sum(waits) < 5


def test_a_missing_file_names_the_step_that_makes_it(desk: Run, city: DeployedCity, tmp_path: Path) -> None:
    config = tmp_path / "client.toml"
    ended = desk("plan", "list", config)
    assert (ended.code, "cityfed-client enrol" in ended.sentence) == (2, True)
    assert "is a folder" in desk("plan", "list", tmp_path).sentence
    config.write_bytes(city.config("health").read_bytes())
    ended = desk("budget", config)
    assert (ended.code, "cityfed-client policy draft" in ended.sentence) == (2, True)
    (tmp_path / "policy.toml").write_bytes((city.home("health") / "policy.toml").read_bytes())
    assert "cityfed-client policy sign" in desk("budget", config).sentence


def test_a_file_of_another_kind_is_named(desk: Run, city: DeployedCity) -> None:
    config = city.config("health")
    for words in (("plan", "add", config, config), ("roster", "show", config, city.authority.city)):
        ended = desk(*words)
        assert (ended.code, str(words[-1]) in ended.sentence) == (7, True)


def test_a_file_that_cannot_be_written_is_named_as_it_was_typed(desk: Run, city: DeployedCity) -> None:
    target = city.folder / "nowhere" / "summary.json"
    ended = desk("data", "declare", city.config("health"), "--out", target)
    assert (ended.code, ended.sentence.startswith(f"{target} cannot be used")) == (3, True)


def test_a_plan_in_another_state_is_said_to_be_there(office: Run, city: DeployedCity) -> None:
    digest = "0" * 64
    home = city.authority
    draft = home.plan("drafts", digest)
    draft.parent.mkdir(exist_ok=True)
    draft.touch()
    ended = office("plan", "publish", digest, "--home", home.root)
    draft.unlink()
    assert (ended.code, str(home.plans / "drafts") in ended.sentence) == (2, True)
    assert "64 hex digits" in office("plan", "publish", digest[:8], "--home", home.root).sentence


def test_a_department_that_was_never_heard_of_is_not_called_in_order() -> None:
    status = RunStatus(state="running", process=ProgramStatus(), since=now(), signs={"health": Sign()})
    assert "health: not here yet" in status_lines("00", status)[1]
    status = RunStatus(state="running", process=ProgramStatus(), since=now(), signs={"health": Sign(last_sign=now())})
    assert "health: in order" in status_lines("00", status)[1]
