"""A city whose authority and departments run as processes of their own, on loopback."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from clients.shelf import fetch_plans
from server.asks import PlanAsk
from server.city import load_city
from server.config import split_address
from server.home import AuthorityHome
from server.overview import overview
from server.plan_files import load_published
from shared.identity import Signed
from shared.plan import Plan
from shared.supervise import read_status
from tests.city import FOUR
from tests.deployed_city import DeployedCity, approve_everywhere, deploy_city, now, publish_plan

HERE = Path(__file__).parent
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parents[1])}
SEEDS = {name: 7 + index for index, name in enumerate(FOUR)}


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, below those that a system gives to calls: a channel opens long after this."""
    ports: list[int] = []
    for port in secrets.SystemRandom().sample(range(20_000, 30_000), 1_000):
        with socket.socket() as probe:
            if len(ports) < count and probe.connect_ex(("127.0.0.1", port)) != 0:
                ports.append(port)
    return ports


def wait_until(met: Callable[[], object], what: str, timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not met():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s:g} s: {what}")
        time.sleep(0.1)


def tcp_sockets() -> Iterator[tuple[str, tuple[str, int, str]]]:
    """Every TCP socket of this machine by inode."""
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            local, remote = (item.split(":") for item in fields[1:3])
            yield fields[9], (address_of(local[0]), int(local[1], 16), address_of(remote[0]))


def address_of(digits: str) -> str:
    """An address as the kernel prints it, in words of the machine's byte order; empty for none or any."""
    raw = bytes.fromhex(digits)
    packed = b"".join(raw[at : at + 4][::-1] for at in range(0, len(raw), 4))
    address = ipaddress.ip_address(packed)
    return "" if address.is_unspecified else str(getattr(address, "ipv4_mapped", None) or address)


def parents() -> dict[int, int]:
    """Every process of this machine, and which one has started it."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended since
            found[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
    return found


@dataclass
class RunningCity:
    """Processes of a city, ended by pid when the block ends."""

    city: DeployedCity
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def authority(self) -> AuthorityHome:
        return self.city.authority

    def start(self, name: str, *command: str) -> None:
        with (self.city.folder / f"{name}.out").open("ab") as output:
            self.processes[name] = subprocess.Popen(
                command, stdout=output, stderr=output, stdin=subprocess.DEVNULL, env=ENVIRONMENT
            )

    def server(self, *arguments: str, timeout_s: float = 120.0) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "server", *arguments, "--home", str(self.authority.root)]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout_s, env=ENVIRONMENT)

    def client(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "clients", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120.0, env=ENVIRONMENT)

    def start_authority(self) -> None:
        self.start("authority", sys.executable, "-m", "server", "up", "--home", str(self.authority.root))

    def start_department(self, name: str) -> None:
        self.start(name, sys.executable, str(HERE / "unsafe_up.py"), str(SEEDS[name]), str(self.city.config(name)))

    def start_all(self) -> None:
        """Start everything and wait until every department has found its way in."""
        self.start_authority()
        wait_until(lambda: self.pid("authority", "gateway"), "the gateway runs")
        wait_until(self.shelf_open, "the shelf is open")
        for name in self.city.names:
            self.start_department(name)
        wait_until(lambda: self.online() == set(self.city.names), "every department is online", 120.0)

    def shelf_open(self) -> bool:
        """Whether somebody listens where the shelf should."""
        host, port = split_address(load_city(self.authority).shelf)
        with socket.socket() as probe:
            return probe.connect_ex((host, port)) == 0

    def online(self) -> set[str]:
        """The departments that Flower counts as online."""
        return {name for name, node in overview(self.authority, "").nodes.items() if node.online}

    def pid(self, side: str, program: str) -> int:
        """The process id of a supervised program; of the authority or a department."""
        folder = self.authority.service if side == "authority" else self.city.home(side) / "service"
        status = read_status(folder)
        return status.programs[program].pid if status else 0

    def children(self, side: str, program: str) -> list[int]:
        """The processes that a supervised program has started."""
        parent = self.pid(side, program)
        return [pid for pid, its in parents().items() if its == parent]

    def family(self) -> set[int]:
        """Every process of the city, down to the last child."""
        everybody = parents()
        found = {process.pid for process in self.processes.values()}
        while more := {pid for pid, parent in everybody.items() if parent in found} - found:
            found |= more
        return found

    def sockets(self) -> set[tuple[str, int, str]]:
        """Local address, local port and remote address of every TCP socket that a process of the city holds."""
        inodes = set()
        for pid in self.family():
            with contextlib.suppress(OSError):
                inodes |= {str(item.readlink()) for item in Path(f"/proc/{pid}/fd").iterdir()}
        return {seen for inode, seen in tcp_sockets() if f"socket:[{inode}]" in inodes}

    def stop(self) -> None:
        """End the departments, then the authority: a SuperNode says good-bye to it."""
        departments = [process for name, process in self.processes.items() if name != "authority"]
        authority = [process for name, process in self.processes.items() if name == "authority"]
        for group in (departments, authority):
            for process in group:
                process.send_signal(signal.SIGTERM)
            for process in group:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(20)
                process.kill()
                process.wait()


def agreed_plan(city: DeployedCity, ask: PlanAsk) -> tuple[Signed, Plan]:
    """Publish a plan that every department fetches from the shelf and approves."""
    digest = publish_plan(city, ask)
    for name in city.names:
        assert fetch_plans(city.config(name), now=now()) == (digest,)
    approve_everywhere(city, digest)
    return load_published(city.authority, digest)


@contextlib.contextmanager
def running_city(folder: Path, names: Sequence[str] = FOUR) -> Iterator[RunningCity]:
    """Provision a city and start all its processes."""
    fleet, channel, shelf = free_ports(3)
    folder.mkdir(parents=True, exist_ok=True)
    city = deploy_city(folder, names, fleet_port=fleet, channel_port=channel, shelf_port=shelf)
    running = RunningCity(city)
    try:
        running.start_all()
        yield running
    finally:
        running.stop()
