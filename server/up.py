"""``cityfed-server up``: the authority's processes, kept running.

The SuperLink and the process that starts runs stay on loopback; the gateway is Flower's only door, the shelf is open as
long as these processes are, and the update channel opens with each run. Whoever is on the roster may come in, and
nobody else; the roster is read again when it changes.
"""

from __future__ import annotations

import datetime as dt
import logging
import os
import shutil
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from server.city import load_server_tls
from server.config import ServerConfig, load_server, split_address
from server.expiry import own_expiries
from server.flower_app import HOME_VARIABLE
from server.gateway import GatewaySettings, serve_gateway
from server.home import AuthorityHome
from server.resume import Resumer
from server.roster import load_members
from server.superlink import SuperLink, open_control
from shared.errors import CityFedError, SetupError
from shared.expiry import CertificateWatch
from shared.flower import environment
from shared.keystore import find_private
from shared.loopback import LOOPBACK, free_port, health_endpoint
from shared.private_files import make_private_folder, replace_private_file
from shared.supervise import Program, Supervisor, read_status

_LOG = logging.getLogger(__name__)
_ENROL_PAUSE_S = 2.0
_PORT_PAUSES_S = (0.1, 0.4, 1.5)


def run_authority(home: AuthorityHome, *, stopped: Event) -> None:
    """Keep the authority's processes running until told to stop.

    Raises:
        ConfigError: the home is not a city's.
        ProtocolError: the server's certificate cannot be used today.
        SetupError: ``health-port``, ``already-running``, ``home-not-writable``, ``port-unusable``.
    """
    now = _now()
    config = load_server(home)
    load_server_tls(home, now=now)
    for folder in (home.service, home.flower):
        make_private_folder(folder)
    superlink = SuperLink(folder=home.flower, secret=home.superexec_secret, port=free_port())
    inherited = environment(os.environ, home.flower)
    registrar, resumer = Registrar(home, superlink), Resumer(home, superlink)

    def look() -> None:
        registrar.look()
        resumer.look()

    supervisor = Supervisor(
        folder=home.service,
        programs=(
            Program(name="superlink", command=superlink.superlink_command(), environment=inherited),
            Program(
                name="superexec",
                command=superlink.superexec_command(),
                environment={**inherited, HOME_VARIABLE: str(home.root.absolute()), "PATH": str(_search_path(home))},
                due=lambda: _listens(superlink.port),
            ),
            Program(
                name="gateway",
                command=(sys.executable, "-m", "server", "gateway", "--home", str(home.root.absolute())),
                environment=inherited,
                due=lambda: _listens(superlink.port),
            ),
            Program(
                name="shelf",
                command=(sys.executable, "-m", "server", "shelf", "--home", str(home.root.absolute())),
                environment=inherited,
            ),
        ),
        clock=time.monotonic,
        prepare=lambda: _prepare(home, superlink, config, now),
        fault=CertificateWatch(lambda present: own_expiries(home, present), _now).fault,
        each_tick=look,
    )
    with health_endpoint(config.health_port, home.service):
        supervisor.run(stopped)


def run_gateway(home: AuthorityHome) -> None:
    """Serve the gateway in this process, in front of the SuperLink that `up` has started."""
    config, superlink = load_server(home), find_superlink(home)
    settings = GatewaySettings(
        host=config.listen,
        port=split_address(config.fleet)[1],
        certificate=home.server_certificate,
        key=find_private(home.server_key),
        superlink=f"https://{superlink.address}",
        superlink_root=superlink.certificate,
    )
    serve_gateway(settings)


def find_superlink(home: AuthorityHome) -> SuperLink:
    """Return the SuperLink that `up` keeps running.

    Raises:
        ConfigError: ``json-too-large``, ``json-content``, of the status of `up`.
        SetupError: ``authority-off``.
    """
    port = home.flower / "port"
    if read_status(home.service) is None or not port.exists():
        raise SetupError("authority-off", f"The processes of {home.root} are not on: start `cityfed-server up`.")
    return SuperLink(folder=home.flower, secret=home.superexec_secret, port=int(port.read_text()))


@dataclass
class Registrar:
    """Tells the SuperLink who may come in, whenever the roster has changed or the SuperLink was started anew."""

    home: AuthorityHome
    superlink: SuperLink
    clock: Callable[[], float] = time.monotonic
    _told: tuple[object, ...] | None = None
    _not_before: float = 0.0

    def look(self) -> None:
        """Compare with what was told last; a SuperLink that is not there yet is told later."""
        wanted = self._wanted()
        if wanted == self._told or self.clock() < self._not_before:
            return
        try:
            with open_control(self.superlink) as control:
                control.enrol(load_members(self.home).node_keys if self.home.roster.exists() else {})
        except CityFedError as error:
            if self._told is not None:  # before, it is about to start
                _LOG.warning("the departments that may come in were not told to the SuperLink: %s", error.code)
            self._not_before = self.clock() + _ENROL_PAUSE_S
        else:
            self._told = wanted

    def _wanted(self) -> tuple[object, ...]:
        """Return what the registration depends on."""
        try:
            stat = self.home.roster.stat()
        except OSError:
            return ()
        return (stat.st_ino, stat.st_mtime_ns)


def _now() -> dt.datetime:
    """Return the present time, UTC."""
    return dt.datetime.now(dt.UTC)


def _prepare(home: AuthorityHome, superlink: SuperLink, config: ServerConfig, now: dt.datetime) -> None:
    """Make what the processes of this start share, once it is sure that they can listen."""
    for address in (config.fleet, config.channel, config.shelf):
        require_free(config.listen, split_address(address)[1])
    _fill_search_path(_search_path(home))
    superlink.prepare(now)
    replace_private_file(home.flower / "port", str(superlink.port).encode())


def require_free(host: str, port: int, *, wait: Callable[[float], object] = time.sleep) -> None:
    """Refuse to start where somebody else listens; what a killed supervisor left behind is given a moment to end.

    Raises:
        SetupError: ``port-unusable``.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for pause in (*_PORT_PAUSES_S, None):
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the servers themselves
            try:
                probe.bind((host, port))
            except OSError as cause:
                if pause is None:
                    reason = cause.strerror or type(cause).__name__
                    raise SetupError("port-unusable", f"Port {port} of {host} cannot be used: {reason}.") from cause
                wait(pause)
            else:
                return


def _search_path(home: AuthorityHome) -> Path:
    """Return the only folder in which programs of Flower look for others."""
    return home.flower / "bin"


def _fill_search_path(folder: Path) -> None:
    """Put the program there that runs a ServerApp and nothing else: no other kind of task can start."""
    shutil.rmtree(folder, ignore_errors=True)
    make_private_folder(folder)
    (folder / "flwr-serverapp").symlink_to(Path(sys.executable).parent / "flwr-serverapp")


def _listens(port: int) -> bool:
    """Return whether somebody listens on a port of loopback."""
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex((LOOPBACK, port)) == 0
