"""The child process of a node, as the node sees it: it owns the Participant, and can be killed when a step hangs.

An update is never masked twice: what the journal says was answered stays answered, whichever process asks it
(protocol 3).
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

CLOSED: Final = b"closed"
"""The authority has ended the session."""

REFUSED: Final = b"refused"
"""The child knows no plan for the session's run."""

FAILED: Final = b"failed"
"""The child has left the session for another reason."""

_LEFT: Final[dict[bytes, LeftStatus]] = {CLOSED: "closed", REFUSED: "refused", FAILED: "unavailable"}

_LOOK_S = 0.5


@dataclass
class Worker:
    """Takes one session after the other, and is started anew when it fails.

    Attributes:
        command: starts the child; the number of its end of the pipe is added.
        step_timeout_s: how long one request may take before the child is killed, in seconds.
        stopped: ends a session early when set.
        clock: monotonic time in seconds.
    """

    command: Sequence[str]
    step_timeout_s: float
    stopped: Event
    clock: Callable[[], float] = time.monotonic
    _process: subprocess.Popen[bytes] | None = None
    _pipe: Connection | None = None

    def start(self) -> None:
        """Start the child; it loads what training needs while nobody waits for it."""
        self.kill()
        self._pipe, theirs = Pipe()
        number = theirs.fileno()
        self._process = subprocess.Popen((*self.command, str(number)), pass_fds=(number,), env=dict(os.environ))
        theirs.close()

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

    def _watch(self, ticket: bytes) -> bytes:
        """Wait for the child's last word on a session; empty when it has to be killed."""
        if self._pipe is None:
            raise EOFError
        self._pipe.send_bytes(ticket)
        busy_since: float | None = None
        while not self.stopped.is_set():
            if not self._pipe.poll(_LOOK_S):
                if busy_since is not None and self.clock() - busy_since > self.step_timeout_s:
                    _LOG.warning("a step took longer than %g s: the worker is killed", self.step_timeout_s)
                    return b""
                continue
            word = self._pipe.recv_bytes()
            if word not in (BUSY, IDLE):
                return word
            busy_since = self.clock() if word == BUSY else None
        return b""

    def kill(self) -> None:
        """End the child at once, if there is one; the next session gets a new one."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        if self._pipe is not None:
            self._pipe.close()
        self._process = self._pipe = None
