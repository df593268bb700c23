"""The child process of a node, as the node sees it: it owns the Participant, and can be killed when it hangs.

The child's serving thread itself says that it is alive, so a child that stands still is noticed whatever it was at: in
a step by the time that the step takes, anywhere else by its silence. An update is never masked twice: what the journal
says was answered stays answered, whichever process asks it (protocol 3).
"""

from __future__ import annotations

import logging
import os
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from threading import Event
from typing import Final

from shared.session import Left, LeftStatus

_LOG = logging.getLogger(__name__)

BUSY: Final = b"busy"
"""The child has begun to answer a request."""

IDLE: Final = b"idle"
"""The child has answered it."""

ALIVE: Final = b"alive"
"""The child waits, for the authority or for a session; said every :data:`BEAT_S` seconds outside a step."""

CLOSED: Final = b"closed"
"""The authority has ended the session."""

REFUSED: Final = b"refused"
"""The child knows no plan for the session's run."""

FAILED: Final = b"failed"
"""The child has left the session for another reason."""

_LEFT: Final[dict[bytes, LeftStatus]] = {CLOSED: "closed", REFUSED: "refused", FAILED: "unavailable"}

BEAT_S: Final = 2.0
LEAST_SILENCE_S: Final = 10.0
"""A shorter silence says nothing: between two attempts to reach the authority there are pauses of 5 s."""

START_TIMEOUT_S: Final = 300.0
"""So long a child may take to load what training needs; a busy machine takes half a minute."""

_LOOK_S = 0.5


@dataclass
class Worker:
    """Takes one session after the other, and is started anew when it fails.

    Attributes:
        command: starts the child; the number of its end of the pipe is added.
        step_timeout_s: how long one request may take before the child is killed, in seconds.
        silence_timeout_s: how long nothing may be heard of the child outside a step before it is killed, in seconds.
        stopped: ends a session early when set.
        clock: monotonic time in seconds.
    """

    command: Sequence[str]
    step_timeout_s: float
    silence_timeout_s: float
    stopped: Event
    clock: Callable[[], float] = time.monotonic
    _process: subprocess.Popen[bytes] | None = None
    _pipe: Connection | None = None
    _may_take: tuple[str, float] = ("", 0.0)
    _heard: float = 0.0
    _looked: float = 0.0

    def start(self) -> None:
        """Start the child; it loads what training needs while nobody waits for it."""
        self.kill()
        self._pipe, theirs = Pipe()
        number = theirs.fileno()
        self._process = subprocess.Popen((*self.command, str(number)), pass_fds=(number,), env=dict(os.environ))
        theirs.close()
        self._may_take = ("the worker took longer than %g s to start: it is killed", START_TIMEOUT_S)
        self._looked = self._heard = self.clock()

    def attend(self, ticket: bytes) -> Left:
        """Let the child attend a session, from beginning to end.

        Returns:
            How it left; ``unavailable`` when it hung, crashed or was stopped.
        """
        if self._pipe is None or self._process is None or self._process.poll() is not None:
            self.start()
        try:
            word = self._watch(ticket)
        except (EOFError, OSError):
            _LOG.warning("the worker ended in the middle of a session")
            word = b""
        if word not in _LEFT:
            self.kill()
        return Left(status=_LEFT.get(word, "unavailable"))

    def look(self) -> None:
        """Look after the child between two sessions: one that hangs is replaced, one that ended by the next session."""
        if self._pipe is None:
            return
        try:
            while self._pipe.poll(0):
                self._hear(self._pipe)
        except (EOFError, OSError):
            _LOG.warning("the worker ended between two sessions")
            self.kill()
            return
        if self._hangs():
            self.start()

    def _watch(self, ticket: bytes) -> bytes:
        """Wait for the child's last word on a session; empty when it has to be killed."""
        if self._pipe is None:
            raise EOFError
        self._pipe.send_bytes(ticket)
        while not self.stopped.is_set():
            if self._pipe.poll(_LOOK_S):
                word = self._hear(self._pipe)
                if word not in (BUSY, IDLE, ALIVE):
                    return word
            elif self._hangs():
                return b""
        return b""

    def _hear(self, pipe: Connection) -> bytes:
        """Take the next word and note what it says of the child."""
        word = pipe.recv_bytes()
        self._heard = self.clock()
        if word == BUSY:
            self._may_take = ("a step took longer than %g s: the worker is killed", self.step_timeout_s)
        else:
            self._may_take = ("the worker was silent for longer than %g s: it is killed", self.silence_timeout_s)
        return word

    def _hangs(self) -> bool:
        """Return whether the child has to be killed; asked only when there is no word to be taken."""
        now = self.clock()
        if now - self._looked > self.silence_timeout_s:
            self._heard = now  # nobody listened meanwhile: this process stood still itself
        self._looked = now
        said, most_s = self._may_take
        hangs = now - self._heard > most_s
        if hangs:
            _LOG.warning(said, most_s)
        return hangs

    def kill(self) -> None:
        """End the child at once, if there is one; the next session gets a new one."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        if self._pipe is not None:
            self._pipe.close()
        self._process = self._pipe = None
