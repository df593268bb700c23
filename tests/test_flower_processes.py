"""What the processes of a deployment rely on in Flower: command lines, interfaces, settings.

A new release of Flower fails here first: read its changes, adapt `clients/runner.py`, `clients/up.py`,
`server/superlink.py`, `server/gateway.py`, `server/invitations.py` and `shared/flower.py`.
"""

from __future__ import annotations

import argparse
import inspect
import re
import sys
from collections.abc import Callable
from pathlib import Path

import flwr
import pytest
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import HEARTBEAT_PATIENCE, ErrorCode, SubStatus
from flwr.proto.control_pb2 import ListRunsResponse, RegisterNodeRequest, StartRunRequest
from flwr.proto.node_pb2 import NodeInfo
from flwr.proto.runtime_pb2 import AcquireTaskRequest, AcquireTaskResponse
from flwr.supercore.constant import TASK_TYPE_TO_COMMAND, TaskType
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.heartbeat import HeartbeatSender
from flwr.supercore.interceptors import RuntimeTokenHttpInterceptor, SuperExecAuthHttpInterceptor
from flwr.supercore.retry import http_retry
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.superlink.cli.flower_superlink import _parse_args_run_superlink
from flwr.superlink.routers.fleet.router import router as fleet_router
from flwr.supernode.cli.flower_supernode import _parse_args_run_supernode
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.runtime.run_clientapp import pull_task_input, push_message, push_task_output

from clients.config import load_config
from clients.runner import ACQUIRE, TASK_TYPE, LocalRunner
from clients.up import GIVEN_UP, supernode_command
from server.gateway import FLEET_ROUTES
from server.superlink import SuperLink
from shared.flower import SETTINGS, bundle_digest
from tests.deployed_city import deploy_city
from tests.flower_grid import InProcessGrid

FLOWER = Path(flwr.__file__).parent
LINK = SuperLink(folder=Path("/f"), secret=Path("/s"), port=18000)
SELF_SERVICE = {"/v1/fleet/register-node", "/v1/fleet/unregister-node"}


def parsed(parser: argparse.ArgumentParser, command: tuple[str, ...]) -> argparse.Namespace:
    return parser.parse_args(list(command[1:]))


def test_the_superlink_is_started_closed() -> None:
    arguments = parsed(_parse_args_run_superlink(), LINK.superlink_command())
    assert (arguments.isolation, arguments.host, arguments.port) == ("process", "127.0.0.1", 18000)
    assert arguments.enable_supernode_auth is True
    assert arguments.insecure is False
    assert arguments.runtime_dependency_install is False
    assert arguments.superexec_auth_secret_file == "/s"
    assert arguments.database == "/f/state.sqlite"
    assert arguments.health_server_address is None


def test_the_supernode_is_started_closed(tmp_path: Path) -> None:
    city = deploy_city(tmp_path, ("health",))
    config = load_config(city.config("health"))
    command = supernode_command(city.home("health"), config, "127.0.0.1:19094", Path("/s"))
    arguments = parsed(_parse_args_run_supernode(), command)
    assert (arguments.isolation, arguments.host, arguments.port) == ("process", "127.0.0.1", 19094)
    assert arguments.superlink == config.fleet
    assert arguments.insecure is False
    assert arguments.superexec_auth_secret_file == "/s"
    assert Path(arguments.root_certificates).exists()
    assert Path(arguments.auth_supernode_private_key).exists()


def test_superexec_knows_our_options() -> None:
    text = (FLOWER / "supercore/cli/flower_superexec.py").read_text()
    options = [word for word in LINK.superexec_command() if word.startswith("--")]
    assert options == ["--runtime-api-address", "--root-certificates", "--superexec-auth-secret-file"]
    known = set(re.findall(r'"(--[a-z-]+)"', text + (FLOWER / "supercore/auth/superexec_secret.py").read_text()))
    known |= set(re.findall(r'"(--[a-z-]+)"', (FLOWER / "supercore/tls.py").read_text()))
    assert set(options) <= known
    assert TASK_TYPE_TO_COMMAND[TaskType.SERVER_APP] == "flwr-serverapp"
    assert TASK_TYPE_TO_COMMAND[TaskType.CLIENT_APP] == TASK_TYPE == "flwr-clientapp"


def test_the_supernode_still_gives_up_on_a_broken_handshake_in_the_words_that_its_supervisor_knows() -> None:
    assert GIVEN_UP.decode() in inspect.getsource(http_retry)


@pytest.mark.parametrize("command", ["flower-superlink", "flower-supernode", "flower-superexec", "flwr-serverapp"])
def test_flowers_commands_lie_beside_the_interpreter(command: str) -> None:
    assert (Path(sys.executable).parent / command).exists()


@pytest.mark.parametrize("name", sorted(SETTINGS.keys() - {"RAY_USAGE_STATS_ENABLED"}))
def test_flower_still_reads_every_setting(name: str) -> None:
    assert any(name in path.read_text() for path in FLOWER.rglob("*.py"))


def test_the_gateway_passes_on_all_of_the_fleet_interface_but_self_service() -> None:
    served = {route.path for route in fleet_router.routes}  # type: ignore[attr-defined]  # every route has a path
    called = set(re.findall(r'path="(/v1/fleet/[a-z-]+)"', inspect.getsource(FleetHttpClient)))
    assert served == called
    assert set(FLEET_ROUTES) == served - SELF_SERVICE


@pytest.mark.parametrize(
    ("method", "names"),
    [
        (RuntimeHttpClient.AcquireTask, ["self", "request"]),
        (RuntimeHttpClient.SendTaskHeartbeat, ["self", "request"]),
        (ControlHttpClient.StartRun, ["self", "request"]),
        (ControlHttpClient.ListRuns, ["self", "request"]),
        (ControlHttpClient.ListNodes, ["self", "request"]),
        (ControlHttpClient.RegisterNode, ["self", "request"]),
        (ControlHttpClient.UnregisterNode, ["self", "request"]),
        (ControlHttpClient.StopRun, ["self", "request"]),
        (HeartbeatSender.__init__, ["self", "heartbeat_fn"]),
        (RuntimeTokenHttpInterceptor.__init__, ["self", "token"]),
        (SuperExecAuthHttpInterceptor.__init__, ["self", "master_secret", "protected_methods"]),
        (pull_task_input, ["client"]),
        (push_message, ["client", "message", "context"]),
        (push_task_output, ["client", "context", "sub_status", "details"]),
    ],
)
def test_what_we_call_takes_what_we_pass(method: Callable[..., object], names: list[str]) -> None:
    assert list(inspect.signature(method).parameters) == names


def test_the_messages_of_the_interfaces_have_the_fields_that_we_use() -> None:
    def fields(kind: type) -> set[str]:
        return set(kind.DESCRIPTOR.fields_by_name)  # type: ignore[attr-defined]  # every message has one

    assert {"supported_task_types"} <= fields(AcquireTaskRequest)
    assert {"task", "token"} <= fields(AcquireTaskResponse)
    assert {"fab", "override_config"} <= fields(StartRunRequest)
    assert {"public_key", "name"} <= fields(RegisterNodeRequest)
    assert {"run_dict"} <= fields(ListRunsResponse)
    assert {"node_id", "public_key", "status", "online_until", "heartbeat_interval"} <= fields(NodeInfo)
    assert f"{ACQUIRE}" in inspect.getsource(RuntimeHttpClient.AcquireTask)
    assert (HEARTBEAT_PATIENCE, ErrorCode.INVALID_FAB, SubStatus.FAILED) == (2, 7, "failed")


# --- the local runner ------------------------------------------------------------------------------------


def runner(app: ClientApp) -> LocalRunner:
    return LocalRunner(address="127.0.0.1:1", secret=b"s", app=app, bundles=(bundle_digest(),))


def invitation() -> Message:
    InProcessGrid({})
    return Message(RecordDict(), 11, "train.cityfed")


def test_a_task_with_a_foreign_bundle_is_refused_before_any_app_is_called() -> None:
    app, called = ClientApp(), []

    @app.train("cityfed")
    def note(message: Message, context: Context) -> Message:
        called.append(message)
        return Message(RecordDict(), reply_to=message)

    context = Context(run_id=1, node_id=11, node_config={}, state=RecordDict(), run_config={})
    foreign = runner(app).reply(invitation(), context, "0" * 64)
    assert (foreign.has_error(), foreign.error.code, called) == (True, ErrorCode.INVALID_FAB, [])
    own = runner(app).reply(invitation(), context, bundle_digest())
    assert (own.has_error(), len(called)) == (False, 1)


def test_an_app_that_raises_becomes_an_error_without_its_text(caplog: pytest.LogCaptureFixture) -> None:
    app = ClientApp()

    @app.train("cityfed")
    def fail(message: Message, context: Context) -> Message:
        raise ValueError("the caller lives at 5 Harbour Road")

    context = Context(run_id=1, node_id=11, node_config={}, state=RecordDict(), run_config={})
    reply = runner(app).reply(invitation(), context, bundle_digest())
    assert (reply.has_error(), reply.error.code) == (True, ErrorCode.CLIENT_APP_RAISED_EXCEPTION)
    assert "Harbour" not in repr(reply)
    assert "Harbour" not in caplog.text
