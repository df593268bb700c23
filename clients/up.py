"""``cityfed-client up``: a department's processes, kept running: Flower's SuperNode and the node itself."""

from __future__ import annotations

import datetime as dt
import os
import secrets
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from threading import Event

from clients.config import ClientConfig, load_config, load_tls
from shared.certificates import load_certificate
from shared.expiry import CertificateWatch, Expiry
from shared.flower import environment
from shared.keystore import find_private
from shared.loopback import LOOPBACK, free_port, health_endpoint
from shared.private_files import make_private_folder, replace_private_file
from shared.supervise import Program, Supervisor

GIVEN_UP = b"SSL/TLS handshake error detected."
"""Flower's SuperNode says this when a connection ends in the middle of a handshake, and stays without trying again."""

SERVICE = "service"
"""Under the department's home: status, logs, and what Flower keeps."""

SUPERNODE = "supernode"


def node_command(config_path: Path) -> tuple[str, ...]:
    """Return what starts the node."""
    return (sys.executable, "-m", "clients", "node", str(config_path))


def run_department(config_path: Path, *, stopped: Event, node: Sequence[str] | None = None) -> None:
    """Keep a department's processes running until told to stop.

    A SuperNode that was killed has its good-bye said by the next one. If that fails, the next one is turned away for
    about a minute, until the authority has noticed, and is started again until it is let in.

    Args:
        config_path: this department's ``client.toml``.
        stopped: ends everything when set.
        node: command that starts the node; the shipped one if left out.

    Raises:
        ConfigError: as :func:`clients.config.load_config`.
        ProtocolError: this department's certificate cannot be used today.
        SetupError: ``health-port``, ``already-running``, ``home-not-writable``.
    """
    config_path = config_path.absolute()
    config = load_config(config_path)
    own_expiries(config_path, config, _now())
    folder = config_path.parent / SERVICE
    make_private_folder(folder / "flower")
    secret = folder / "superexec.secret"
    served = ("--runtime", f"{LOOPBACK}:{free_port()}", "--secret", str(secret))
    inherited = environment(os.environ, folder / "flower")
    programs = (
        Program(
            name=SUPERNODE,
            command=(sys.executable, "-m", "clients", "supernode", str(config_path), *served),
            environment={**inherited, "FLWR_LOG_LEVEL": "INFO"},  # or it does not say its number
            last_word=GIVEN_UP,
        ),
        Program(
            name="node",
            command=(*(node or node_command(config_path)), *served),
            environment=inherited,
        ),
    )
    with health_endpoint(config.health_port, folder):
        watch = CertificateWatch(lambda present: own_expiries(config_path, config, present), _now)
        Supervisor(
            folder=folder,
            programs=programs,
            clock=time.monotonic,
            prepare=lambda: replace_private_file(secret, secrets.token_hex(32).encode()),
            fault=watch.fault,
        ).run(stopped)


def supernode_command(home: Path, config: ClientConfig, runtime: str, secret: Path) -> tuple[str, ...]:
    """Return what starts the SuperNode: it dials the authority's gateway and serves the node on loopback."""
    host, _, port = runtime.rpartition(":")
    return (
        str(Path(sys.executable).parent / "flower-supernode"),
        *("--isolation", "process", "--host", host, "--port", port),
        *("--superlink", config.fleet, "--root-certificates", str(home / config.city_ca)),
        *("--auth-supernode-private-key", str(find_private(home / config.node_key))),
        *("--superexec-auth-secret-file", str(secret)),
    )


def own_expiries(config_path: Path, config: ClientConfig, now: dt.datetime) -> tuple[Expiry, ...]:
    """Return when this department's certificate and the city's CA end, if they can be used now.

    Raises:
        ConfigError: as :func:`clients.config.load_tls`.
        ProtocolError: as :func:`clients.config.load_tls`; ``certificate-expired`` and the like.
    """
    tls = load_tls(config_path, config, now=now)
    own, city = (load_certificate(pem, where="The certificate") for pem in (tls.certificate, tls.authority))
    return (
        Expiry(whose="this department", until=own.not_valid_after_utc, renew="`cityfed-client rotate --tls-only`"),
        Expiry(whose="the city's CA", until=city.not_valid_after_utc, renew="the authority founds a new city"),
    )


def _now() -> dt.datetime:
    """Return the present time, UTC."""
    return dt.datetime.now(dt.UTC)
