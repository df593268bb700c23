"""The worker from the inside: opens this department for one session of the update channel after the other.

Records, keys and the journal are held only while a session is open. Between sessions the journal is free for the
department's own commands, and what they changed counts for the next session.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import importlib
import logging
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

from clients.config import load_config, load_department, load_tls, open_journal
from clients.participant import Participant
from clients.plans import plan_of_run
from clients.training.noise import OsRandomSource, RandomSource
from clients.update_channel import Stop, serve_channel
from clients.worker import BUSY, CLOSED, FAILED, IDLE, REFUSED
from shared.channel import Ticket, largest_request
from shared.codec import decode
from shared.errors import CityFedError
from shared.logs import log_json

_LOG = logging.getLogger(__name__)


def run_worker(config_path: Path, pipe: Connection, *, source: Callable[[], RandomSource] = OsRandomSource) -> None:
    """Attend the sessions that the node names, until the node is gone.

    Args:
        config_path: this department's ``client.toml``.
        pipe: to the node; see :mod:`clients.worker`.
        source: makes the randomness of sampling and noise.
    """
    log_json()
    for module in ("clients.training.train", "shared.tasks.text"):
        importlib.import_module(module)  # loaded before anybody waits for it
    with contextlib.suppress(EOFError, OSError):
        while True:
            ticket = pipe.recv_bytes()
            pipe.send_bytes(_attends(config_path, ticket, pipe, source))


def _attends(config_path: Path, ticket: bytes, pipe: Connection, source: Callable[[], RandomSource]) -> bytes:
    """Attend one session; return the last word on it."""
    try:
        _attend(config_path, decode(ticket, Ticket), pipe, source)
    except CityFedError as error:
        _LOG.warning("the session was left: %s", error.code)
        return REFUSED if error.code == "plan-unknown" else FAILED
    return CLOSED


def _attend(config_path: Path, ticket: Ticket, pipe: Connection, source: Callable[[], RandomSource]) -> None:
    """Open this department, answer requests until the session is closed, close it again."""
    config = load_config(config_path)
    most = largest_request(plan_of_run(config_path, ticket.run))
    tls = load_tls(config_path, config, now=_now())
    department = load_department(config_path)
    with open_journal(config_path) as journal:
        participant = Participant(department, journal=journal, source=source(), clock=_now)

        def handle(request: bytes) -> bytes:
            """Answer one request, and let the node know for how long."""
            pipe.send_bytes(BUSY)
            reply = participant.handle(request)
            pipe.send_bytes(IDLE)
            return reply

        serve_channel(config.channel, tls, handle, ticket=ticket, max_request_bytes=most, stop=Stop())


def _now() -> dt.datetime:
    """Return the present time, UTC."""
    return dt.datetime.now(dt.UTC)
