"""Calls the departments of a run to the update channel by way of Flower, and calls them back when they left early.

For each department one message of Flower is under way as long as the session is open; its reply says that the
department has left. A node that was started again, or was away when the run began, thus finds its way in.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import httpx

from server.grid import GridCarrier
from shared.codec import decode
from shared.errors import ProtocolError
from shared.identity import DepartmentId
from shared.session import Left

_LOG = logging.getLogger(__name__)

LONGEST_S = 7 * 24 * 3600.0
"""How long Flower keeps an invitation, in seconds."""

_AT_ONCE = 16
"""So many departments are asked after in one look."""

_LAST_POLL_S = 0.2
"""Longest time between two looks for replies once the session is closed, in seconds: a run waits for them."""


@dataclass
class Invitations:
    """Keeps one invitation under way for each department.

    Attributes:
        carrier: sends messages and looks for replies.
        cohort: who is called.
        invitation: the encoded invitation.
        pause_s: time between a department's leaving and the next call, in seconds.
        poll_s: time between two looks for replies while the session is open, in seconds.
        farewell_s: how long to wait for the last replies, in seconds.
        clock: monotonic time in seconds.
        each_look: called after every look for replies.
        left: what each department said when it left last.
    """

    carrier: GridCarrier
    cohort: Sequence[DepartmentId]
    invitation: bytes
    pause_s: float = 5.0
    poll_s: float = 1.0
    farewell_s: float = 10.0
    clock: Callable[[], float] = time.monotonic
    each_look: Callable[[], None] = lambda: None
    left: dict[DepartmentId, str] = field(default_factory=dict)
    _closed: threading.Event = field(default_factory=threading.Event)
    _abandoned: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def open(self) -> None:
        """Begin to call, beside the caller's thread."""
        self._thread = threading.Thread(target=self._call, name="invitations", daemon=True)
        self._thread.start()

    def abandon(self) -> None:
        """Call nobody any more, and wait for nobody."""
        self._abandoned.set()
        self.close()

    def close(self) -> None:
        """Call nobody any more, and wait for the last replies."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join(self.farewell_s + 5.0)

    def _call(self) -> None:
        """Send, look, wait; until the session is closed and everybody has replied or the time is up."""
        waiting: dict[str, DepartmentId] = {}
        due = dict.fromkeys(self.cohort, 0.0)
        deadline = 0.0
        while True:
            now = self.clock()
            if not self._closed.is_set():
                deadline = now + self.farewell_s
            elif not waiting or now >= deadline or self._abandoned.is_set():
                return
            _outlive(partial(self._look, waiting, due, now))
            _outlive(self.each_look)
            if self._closed.wait(self.poll_s):
                time.sleep(min(self.poll_s, _LAST_POLL_S))

    def _look(self, waiting: dict[str, DepartmentId], due: dict[DepartmentId, float], now: float) -> None:
        """Call whoever is due, take what came back: from some at a time, in turns, one after the other."""
        called = set(waiting.values())
        for name in () if self._closed.is_set() else self.cohort:
            if name not in called and due[name] <= now:
                waiting.update(self.carrier.push({name: self.invitation}, ttl_s=LONGEST_S))
        for message_id in tuple(waiting)[:_AT_ONCE]:
            name = waiting.pop(message_id)
            waiting[message_id] = name  # at the end of the line
            if self._hear(message_id, name):
                del waiting[message_id]
                due[name] = now + self.pause_s

    def _hear(self, message_id: str, name: DepartmentId) -> bool:
        """Return whether there is a reply to one message, whatever is in it."""
        asked = {message_id: name}
        try:
            for _, reply in self.carrier.pull((message_id,), asked):
                self.left[name] = _status(reply)
                _LOG.info("%s has left the session: %s", name, self.left[name])
        except (httpx.HTTPError, OSError):  # the SuperLink is away, or this machine is short of something
            raise
        except Exception as error:  # noqa: BLE001 - a member decides what Flower meets in its reply
            _LOG.warning("the reply of %s cannot be read: %s", name, type(error).__name__)
            self.left[name] = "message-malformed"
            return True
        return not asked


def _outlive(step: Callable[[], None]) -> None:
    """Do something that may fail: the session outlives a SuperLink that is away and a full disk."""
    try:
        step()
    except Exception as error:  # noqa: BLE001 - whatever it is, nobody else calls the departments back
        _LOG.warning("a look for those who left has failed: %s", type(error).__name__)


def _status(reply: bytes) -> str:
    """Read why a department left."""
    try:
        return decode(reply, Left).status
    except ProtocolError as error:
        return error.code
