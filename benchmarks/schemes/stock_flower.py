"""Flower as it comes: a SuperLink, four SuperNodes, FedAvg, every program with its own settings, TLS on loopback.

The app is built and installed as `flwr run` would; it is handed to this SuperLink by the same call, because the command
starts a SuperLink of its own.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from flwr.cli.build import build_fab_from_disk
from flwr.common.serde import user_config_to_proto
from flwr.proto.control_pb2 import ListNodesRequest, ListRunsRequest, StartRunRequest
from flwr.proto.fab_pb2 import Fab
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from schemes.processes import Case, DeploymentRow, family, growth_of

from server.superlink import SuperLink
from tests.deployment.running_city import ENVIRONMENT, free_ports, wait_until

APP = Path(__file__).with_name("stock_app")
DEPARTMENTS = 4
START_S = 180.0
RUN_S = 3600.0
QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
}
"""What would reach out of the machine; everything else is as it comes."""


DATABASE = "state.sqlite"


def rows(folder: Path, cases: Sequence[Case]) -> list[DeploymentRow]:
    """Start the peers anew for every case, so that no run pays for the one before, and measure it."""
    return [_row(folder / case.name, case, "flower") for case in cases]


def durable_rows(folder: Path, cases: Sequence[Case]) -> list[DeploymentRow]:
    """Measure the same with the SuperLink's state in a database file, so that a run survives its restart."""
    return [_row(folder / f"{case.name}-durable", case, "flower-durable") for case in cases]


def _row(folder: Path, case: Case, system: str) -> DeploymentRow:
    """Start everything, run once, stop everything."""
    folder.mkdir(parents=True)
    with contextlib.ExitStack() as stack:
        ports = free_ports(1 + DEPARTMENTS)
        state = ("--database", str(folder / DATABASE)) if system == "flower-durable" else ()
        link = SuperLink(folder=folder, secret=folder / "unused", port=ports[0])
        link.prepare(dt.datetime.now(dt.UTC))
        server = stack.enter_context(_program(folder, "flower-superlink", *_superlink(link), *state))
        control = stack.enter_context(_control(link))
        wait_until(lambda: _answers(control), "the SuperLink answers", START_S)
        for port in ports[1:]:
            name = f"node-{port}"
            stack.enter_context(_program(folder / name, "flower-supernode", *_supernode(link, port)))
        wait_until(lambda: _online(control) == DEPARTMENTS, "every SuperNode is online", START_S)
        times = folder / "times"
        with growth_of(server.pid) as growth:
            _run(control, case, times)
        ends = [float(line) for line in times.read_text().splitlines()][1:]
    return case.row(system, departments=DEPARTMENTS, ends=ends, growth=growth.mib)


def _superlink(link: SuperLink) -> tuple[str, ...]:
    """The arguments of a SuperLink with TLS."""
    pem, key = str(link.certificate), str(link.key)
    tls = ("--ssl-certfile", pem, "--ssl-keyfile", key, "--ssl-ca-certfile", pem)
    return ("--port", str(link.port), *tls, "--disable-runtime-dependency-installation")


def _supernode(link: SuperLink, port: int) -> tuple[str, ...]:
    """The arguments of a SuperNode."""
    return ("--superlink", link.address, "--root-certificates", str(link.certificate), "--port", str(port))


@contextlib.contextmanager
def _program(folder: Path, name: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run one of Flower's programs in a home of its own."""
    folder.mkdir(exist_ok=True)
    inherited = {key: value for key, value in ENVIRONMENT.items() if not key.startswith("FLWR_")}
    command = (str(Path(sys.executable).parent / name), *arguments)
    path = f"{Path(sys.executable).parent}{os.pathsep}{inherited.get('PATH', '')}"
    environment = {**inherited, **QUIET, "FLWR_HOME": str(folder), "PATH": path, "NO_PROXY": "127.0.0.1"}
    with (folder / f"{name}.out").open("ab") as output:
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    try:
        yield process
    finally:
        started = list(family(process.pid)) if process.poll() is None else []
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
        for pid in started:  # what Flower starts for a run outlives a SuperLink that is ended in the midst of it
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()


@contextlib.contextmanager
def _control(link: SuperLink) -> Iterator[ControlHttpClient]:
    """Connect as `flwr run` does."""
    client = ControlHttpClient.from_server_address(
        link.address,
        insecure=False,
        root_certificates=link.certificate.read_bytes(),
        interceptors=[RuntimeVersionHttpInterceptor(component_name="flwr")],
    )
    with client:
        yield client


def _answers(control: ControlHttpClient) -> bool:
    """Whether the SuperLink is up."""
    try:
        control.ListNodes(ListNodesRequest())
    except Exception:  # noqa: BLE001 - whatever it is, it is not up
        return False
    return True


def _online(control: ControlHttpClient) -> int:
    """How many SuperNodes are there."""
    return sum(node.status == "online" for node in control.ListNodes(ListNodesRequest()).nodes_info)


def _run(control: ControlHttpClient, case: Case, times: Path) -> None:
    """Submit the app and wait for its end."""
    bundle = build_fab_from_disk(APP)
    settings = {"size": case.size, "rounds": case.rounds + 1, "departments": DEPARTMENTS, "times": str(times)}
    answer = control.StartRun(
        StartRunRequest(
            fab=Fab(hash_str=hashlib.sha256(bundle).hexdigest(), content=bundle),
            override_config=user_config_to_proto(settings),
        )
    )

    def status() -> tuple[str, str]:
        state = control.ListRuns(ListRunsRequest(run_id=answer.run_id)).run_dict[answer.run_id].status
        return state.status, state.sub_status

    wait_until(lambda: status()[0] == "finished", "the end of Flower's run", RUN_S)
    if status()[1] != "completed":
        raise RuntimeError(f"Flower's run ended: {status()}")
