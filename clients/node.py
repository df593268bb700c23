"""``cityfed-client node``: the long-lived process of a department that answers the authority."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from clients.config import load_config
from clients.flower_app import client_app
from clients.runner import LocalRunner
from clients.worker import Worker
from shared.channel import Ticket
from shared.codec import decode, encode
from shared.flower import bundle_digest
from shared.session import Left

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class SessionDoor:
    """Answers an invitation to a session; what Flower carries ends here.

    Attributes:
        worker: attends the session.
        stop_file: the kill switch; while it exists every invitation is refused at once.
    """

    worker: Worker
    stop_file: Path

    def handle(self, request: bytes) -> bytes:
        """Attend the session that an invitation names, and say how it was left.

        Raises:
            ProtocolError: ``message-malformed``, ``message-too-large``.
        """
        ticket = decode(request, Ticket)
        if self.stop_file.exists():
            _LOG.warning("an invitation was refused: the kill switch is set")
            return encode(Left(status="refused"))
        _LOG.info("session %s of run %s begins", ticket.session.hex(), ticket.run.hex())
        left = self.worker.attend(request)
        _LOG.info("session %s is over: %s", ticket.session.hex(), left.status)
        return encode(left)


def worker_command(config_path: Path) -> tuple[str, ...]:
    """Return what starts the worker."""
    return (sys.executable, "-m", "clients", "worker", str(config_path.absolute()))


def run_node(
    config_path: Path, *, runtime: str, secret: bytes, stopped: Event, worker: Sequence[str] | None = None
) -> None:
    """Serve until told to stop.

    Args:
        config_path: this department's ``client.toml``.
        runtime: host and port of the SuperNode's runtime interface.
        secret: what the SuperNode asks of whoever takes tasks.
        stopped: ends the node when set, in the middle of a session too.
        worker: command that starts the worker; the shipped one if left out.

    Raises:
        ConfigError: as :func:`clients.config.load_config`.
    """
    config = load_config(config_path)
    command = worker or worker_command(config_path)
    child = Worker(command, config.step_timeout_s, config.silence_timeout_s, stopped)
    child.start()
    door = SessionDoor(child, config_path.parent / config.stop_file)
    app = client_app(lambda _context: door)
    try:
        runner = LocalRunner(
            address=runtime, secret=secret, app=app, bundles=(bundle_digest(),), between_tasks=child.look
        )
        runner.serve(stopped)
    finally:
        child.kill()
