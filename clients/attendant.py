"""The worker from the inside: opens this department for a run and attends the sessions of the update channel.

Records, keys and the journal are held while a session is open. When the authority has ended it, the journal is free for
the department's own commands, and what they changed counts for the next session. When a session broke off, the same
Participant waits for the next one of its run, because an epoch exists in its memory only (protocol 2). What people
change meanwhile, a policy before all, ends that: the department is let go of at once, its journal is free, and the next
request is answered by a department that was opened with what lies on disk then, or by nobody. A reply that has not left
by then does not leave.

One thread does all of this, and says to the node that it is alive while it waits; nobody else says it in its place.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import importlib
import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final

from clients.config import load_config, load_department, load_tls, open_journal
from clients.participant import Participant
from clients.plans import plan_of_run
from clients.training.noise import OsRandomSource, RandomSource
from clients.training.train import Trainer
from clients.update_channel import Patience, Stop, Waiting, serve_channel
from clients.worker import ALIVE, BEAT_S, BUSY, CLOSED, FAILED, IDLE, REFUSED
from shared.channel import Ticket, largest_request
from shared.codec import Encoded, decode, encode
from shared.errors import CityFedError
from shared.logs import log_json
from shared.messages import Refusal, decode_reply

_LOG = logging.getLogger(__name__)

WAIT_FOR_NEXT_S: Final = 900.0
"""So long a Participant waits for another session of its run, in seconds."""

_UNAVAILABLE: Final = encode(Refusal(status="unavailable"))


def run_worker(
    config_path: Path,
    pipe: Connection,
    *,
    source: Callable[[], RandomSource] = OsRandomSource,
    trainer: type[Trainer] = Trainer,
) -> None:
    """Attend the sessions that the node names, until the node is gone.

    Args:
        config_path: this department's ``client.toml``.
        pipe: to the node; see :mod:`clients.worker`.
        source: makes the randomness of sampling and noise, anew for each run that is opened.
        trainer: what trains; only benchmarks pass another kind.
    """
    log_json()
    for module in ("clients.training.train", "shared.tasks.text"):
        importlib.import_module(module)  # loaded before anybody waits for it
    attendant = Attendant(config_path, pipe, source, trainer)
    with contextlib.suppress(EOFError, OSError):
        pipe.send_bytes(IDLE)
        while True:
            for _ in range(int(WAIT_FOR_NEXT_S / BEAT_S)):
                if pipe.poll(BEAT_S):
                    pipe.send_bytes(attendant.attend(pipe.recv_bytes()))
                    break
                attendant.show()
            else:
                attendant.close()


@dataclass
class Attendant:
    """Attends sessions, one at a time, and keeps a run's Participant while its sessions break off."""

    config_path: Path
    pipe: Connection
    source: Callable[[], RandomSource]
    trainer: type[Trainer] = Trainer
    _run: bytes = b""
    _participant: Participant | None = None
    _open: ExitStack = field(default_factory=ExitStack)

    def attend(self, ticket: bytes) -> bytes:
        """Attend one session; return the last word on it."""
        try:
            self._attend(decode(ticket, Ticket))
        except CityFedError as error:
            _LOG.warning("the session was left: %s", error.code)
            return REFUSED if error.code == "plan-unknown" else FAILED
        self.close()
        return CLOSED

    def answer(self, run: bytes, request: Encoded) -> bytes:
        """Answer one request of a run; nobody is there as long as what people changed is not in order."""
        with self._step():
            try:
                reply = self._of_run(run).handle(request)
            except CityFedError as error:
                _LOG.warning("the department cannot be opened: %s", error.code)
                return _UNAVAILABLE
            self._look()
            return reply

    def leaving(self, reply: Encoded) -> Encoded:
        """Return what may leave in a reply's place; of a department that was let go of only a refusal."""
        if self._participant is not None:
            return self._participant.leaving(reply)
        return reply if isinstance(decode_reply(reply), Refusal) else _UNAVAILABLE

    def show(self) -> None:
        """Say to the node that this worker is alive, and let go of a department that its people changed."""
        self.pipe.send_bytes(ALIVE)
        self._look()

    def _look(self) -> None:
        """Let go of a department that is not what lies on disk any more."""
        if self._participant is not None and self._participant.is_outdated():
            self.close()

    def close(self) -> None:
        """Let go of the department."""
        self._open.close()
        self._run, self._participant = b"", None

    def _attend(self, ticket: Ticket) -> None:
        """Answer requests until the authority ends the session."""
        config = load_config(self.config_path)
        most = largest_request(plan_of_run(self.config_path, ticket.run))
        tls = load_tls(self.config_path, config, now=_now())
        with self._step():
            self._of_run(ticket.run)
        serve_channel(
            config.channel,
            tls,
            lambda request: self.answer(ticket.run, request),
            leaving=self.leaving,
            ticket=ticket,
            max_request_bytes=most,
            stop=Stop(),
            patience=Patience(longest_s=5.0),
            waits=Waiting(self.show, every_s=BEAT_S),
        )

    @contextlib.contextmanager
    def _step(self) -> Iterator[None]:
        """Let the node know for how long this takes."""
        self.pipe.send_bytes(BUSY)
        yield
        self.pipe.send_bytes(IDLE)

    def _of_run(self, run: bytes) -> Participant:
        """Return the Participant that attended this run before, or open the department for it."""
        if self._participant is None or run != self._run:
            self.close()
            department = load_department(self.config_path)
            with ExitStack() as opening:  # what cannot be opened whole is let go of
                journal = opening.enter_context(open_journal(self.config_path))
                self._participant = Participant(
                    department, journal=journal, source=self.source(), clock=_now, trainer=self.trainer
                )
                self._run, self._open = run, opening.pop_all()
        return self._participant


def _now() -> dt.datetime:
    """Return the present time, UTC."""
    return dt.datetime.now(dt.UTC)
