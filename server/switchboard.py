"""Who is attached to the update channel, what each department was asked, and what has come back.

Nothing here knows gRPC: a call in progress is a :class:`Line` that can be cut. The Coordinator's thread runs
:meth:`Switchboard.exchange`, one thread for each call runs the other methods.
"""

from __future__ import annotations

import datetime as dt
import logging
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Condition

from server.spool import spooled
from shared.channel import SESSION_BYTES, Limits, Payload, Ticket
from shared.errors import ProtocolError
from shared.identity import DepartmentId

_LOG = logging.getLogger(__name__)

LOOK_S = 0.5
"""How often the waiting Coordinator looks for uploads that are too slow, in seconds."""

CLOSED_SESSIONS = 100
"""So many closed sessions are remembered, to tell those who come back for one that it is over."""


@dataclass(frozen=True, kw_only=True)
class Presence:
    """What the authority knows of a department's connection.

    Attributes:
        attached: its stream stands.
        asked: a request waits for its reply.
        received: bytes of its upload in progress.
        last_sign: when something last came from it; None if nothing ever did.
        refused: reason code of the last thing that was refused to it, or nothing.
    """

    attached: bool = False
    asked: bool = False
    received: int = 0
    last_sign: dt.datetime | None = None
    refused: str = ""


@dataclass(eq=False, frozen=True)
class Question:
    """One request to one department and where its reply goes."""

    number: int
    payload: Payload
    max_bytes: int
    replies: SimpleQueue[tuple[DepartmentId, memoryview | None]] = field(repr=False)


@dataclass(eq=False)
class Line:
    """A call in progress.

    Attributes:
        cut: ends it from any thread.
        alive: says whether the other side is still there.
        received: bytes that came up on it so far.
        sending: something goes down on it that the other side may not take, so that its thread hears nothing but a cut.
        ended: the switchboard has cut it; what its thread meets then is no reason of its own.
    """

    cut: Callable[[], object]
    alive: Callable[[], bool]
    started: float = 0.0
    received: int = 0
    sending: bool = True
    ended: bool = False

    def end(self) -> None:
        """Cut the call."""
        self.ended = True
        self.cut()


@dataclass
class _Desk:
    """One department's side of the board."""

    question: Question | None = None
    down: Line | None = None
    up: Line | None = None
    last_sign: dt.datetime | None = None
    refused: str = ""


@dataclass(frozen=True)
class _Session:
    """The one open session."""

    ticket: Ticket
    limits: Limits


class Switchboard:
    """Implements :class:`shared.transport.Transport` for departments that dial in.

    Args:
        spool: where long requests wait until everybody has them; None for the system's temporary folder.
        clock: monotonic time in seconds.
        now: the present time, UTC.
    """

    def __init__(
        self,
        spool: Path | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC),
    ) -> None:
        self._spool, self._clock, self._now = spool, clock, now
        self._changed = Condition()
        self._desks: dict[DepartmentId, _Desk] = {}
        self._session: _Session | None = None
        self._closed: deque[Ticket] = deque(maxlen=CLOSED_SESSIONS)
        self._number = 0
        self._exchanging = False

    # --- for the authority ---------------------------------------------------------------------------------

    def open_session(self, run: bytes, limits: Limits) -> Ticket:
        """Begin a session; departments that show its ticket may attach.

        Raises:
            RuntimeError: another session is open.
        """
        with self._changed:
            if self._session is not None:
                raise RuntimeError("one session at a time")
            ticket = Ticket(run=run, session=secrets.token_bytes(SESSION_BYTES))
            self._session = _Session(ticket, limits)
            return ticket

    def close_session(self) -> None:
        """End the session, if one is open; every attached department is told to leave."""
        with self._changed:
            if self._session is not None:
                self._closed.append(self._session.ticket)
            self._session = None
            self._changed.notify_all()

    def status(self) -> dict[DepartmentId, Presence]:
        """Return what is known of everybody who ever dialled in or was asked."""
        with self._changed:
            return {name: _presence(desk) for name, desk in sorted(self._desks.items())}

    def exchange(
        self, requests: Mapping[DepartmentId, bytes], *, timeout_s: float
    ) -> Iterator[tuple[DepartmentId, memoryview]]:
        """Ask, and hand over replies as they become complete; see :class:`shared.transport.Transport`.

        Departments that are not attached yet are waited for. A reply is a view of its spool file. While the caller
        waits here, uploads below the slowest rate are cut.

        Raises:
            ValueError: ``timeout_s`` is not above 0.
            SetupError: ``spool-unusable``.
            RuntimeError: no session is open, or another exchange is going on.

        Guarantees:
            No request that is longer than a chunk is held in memory, nor more than one reply.
        """
        if not timeout_s > 0:
            raise ValueError("`timeout_s` is above 0")
        return self._exchange(requests, self._clock() + timeout_s)

    def _exchange(
        self, requests: Mapping[DepartmentId, bytes], deadline: float
    ) -> Iterator[tuple[DepartmentId, memoryview]]:
        """Run one exchange in the caller's thread."""
        replies: SimpleQueue[tuple[DepartmentId, memoryview | None]] = SimpleQueue()
        waiting = self._ask(requests, replies)
        del requests  # a long one lies in a file now
        try:
            while waiting and (left := deadline - self._clock()) > 0:
                try:
                    name, reply = replies.get(timeout=min(left, LOOK_S))
                except Empty:
                    self._cut_slow()
                    continue
                waiting.discard(name)
                if reply is not None:
                    yield name, reply
                del reply  # or it would be here until the next one has come
        finally:
            self._withdraw()

    def _ask(
        self, requests: Mapping[DepartmentId, bytes], replies: SimpleQueue[tuple[DepartmentId, memoryview | None]]
    ) -> set[DepartmentId]:
        """Put one question on each desk; equal requests are one object and are hashed once."""
        distinct = {id(data): data for data in requests.values()}
        payloads = {key: spooled(self._spool, data) for key, data in distinct.items()}
        with self._changed:
            if self._session is None or self._exchanging:
                raise RuntimeError("an exchange needs an open session that no other exchange is using")
            self._exchanging = True
            self._number += 1
            for name, data in requests.items():
                most = self._session.limits.reply_bytes(data)
                self._desk(name).question = Question(self._number, payloads[id(data)], most, replies)
            self._changed.notify_all()
        return set(requests)

    def _withdraw(self) -> None:
        """Take back what nobody answered in time, and cut what is still under way for it."""
        with self._changed:
            self._exchanging = False
            for desk in self._desks.values():
                if desk.question is None:
                    continue
                # A reader that hangs would hold this model while the next one is made.
                late = [line for line in (desk.up, desk.down) if line and (line is desk.up or line.sending)]
                desk.question = None
                for line in late:
                    line.end()

    def _cut_slow(self) -> None:
        """End uploads below the slowest rate; the department may begin again."""
        with self._changed:
            if self._session is None:
                return
            for name, desk in self._desks.items():
                line = desk.up
                if line and self._session.limits.late(line.received, self._clock() - line.started):
                    desk.up, desk.refused = None, "upload-too-slow"
                    _LOG.warning("the update channel refused %s: %s", name, desk.refused)
                    line.end()

    # --- for one call of one department --------------------------------------------------------------------

    @contextmanager
    def attached(self, name: DepartmentId, ticket: Ticket, line: Line) -> Iterator[Iterator[Question]]:
        """Attach a department; gives what it is asked, until the session is closed or the call is over.

        The newest call counts: an older one is told so by ``attached-elsewhere`` where it waits for the next question,
        and is cut anywhere else.

        Raises:
            ProtocolError: ``session-foreign``.
        """
        with self._changed:
            over = not self._admit(ticket)
            desk = self._desk(name)
            older, desk.down, desk.last_sign = desk.down, line, self._now()
            if older is not None and older.sending:
                older.end()
            self._changed.notify_all()
        try:
            yield iter(()) if over else self._questions(desk, ticket, line)
        finally:
            with self._changed:
                if desk.down is line:
                    desk.down = None

    def _questions(self, desk: _Desk, ticket: Ticket, line: Line) -> Iterator[Question]:
        """Yield one question after the other."""
        number = 0
        while True:
            question = self._next(desk, ticket, line, number)
            if question is None:
                return
            number = question.number
            yield question
            del question  # or its model would be here until there is another one

    def _next(self, desk: _Desk, ticket: Ticket, line: Line, after: int) -> Question | None:
        """Wait for a newer question than number ``after``; None when the call is to end.

        Raises:
            ProtocolError: ``attached-elsewhere``.
        """
        with self._changed:
            line.sending = False
            while True:
                if desk.down is not line:
                    raise ProtocolError("attached-elsewhere", "The department has attached in another process.")
                if ticket in self._closed or not line.alive():
                    return None
                if desk.question is not None and desk.question.number > after:
                    line.sending = True
                    return desk.question
                self._changed.wait()

    def wake(self) -> None:
        """Let every waiting call look again: one of them may be over."""
        with self._changed:
            self._changed.notify_all()

    def answering(self, name: DepartmentId, ticket: Ticket, line: Line) -> Question:
        """Begin an upload; an older one of the same department is cut.

        Raises:
            ProtocolError: ``session-foreign``, ``reply-late``.
        """
        with self._changed:
            desk = self._desk(name)
            if not self._admit(ticket) or desk.question is None:
                raise _late()
            older, desk.up = desk.up, line
            line.started, desk.last_sign = self._clock(), self._now()
            if older is not None:
                older.end()
            return desk.question

    def progress(self, name: DepartmentId, line: Line, received: int) -> None:
        """Write down how far an upload is."""
        with self._changed:
            line.received, self._desk(name).last_sign = received, self._now()

    def answered(self, name: DepartmentId, question: Question, reply: memoryview) -> None:
        """Hand a whole upload to the exchange that waits for it.

        Raises:
            ProtocolError: ``reply-late``.
        """
        with self._changed:
            desk = self._desk(name)
            if desk.question is not question:
                raise _late()
            desk.question = None
        question.replies.put((name, reply))

    def hung_up(self, name: DepartmentId, line: Line) -> None:
        """An upload is over, whole or not."""
        with self._changed:
            desk = self._desk(name)
            if desk.up is line:
                desk.up = None

    def refuse(self, name: DepartmentId, code: str, question: Question | None = None) -> None:
        """Keep a refusal's reason; with a question, the exchange no longer waits for this department."""
        with self._changed:
            desk = self._desk(name)
            desk.refused = code
            if question is not None and desk.question is question:
                desk.question = None
                question.replies.put((name, None))

    def _admit(self, ticket: Ticket) -> bool:
        """Say whether a ticket's session is open; one that was closed is over, any other is refused."""
        if ticket in self._closed:
            return False
        if self._session is None or ticket != self._session.ticket:
            raise ProtocolError("session-foreign", "The call is for a session that is not open here.")
        return True

    def _desk(self, name: DepartmentId) -> _Desk:
        """Return a department's desk."""
        return self._desks.setdefault(name, _Desk())


def _late() -> ProtocolError:
    """Nobody waits for this reply."""
    return ProtocolError("reply-late", "Nobody waits for this reply any more.")


def _presence(desk: _Desk) -> Presence:
    """Describe one desk."""
    return Presence(
        attached=desk.down is not None,
        asked=desk.question is not None,
        received=desk.up.received if desk.up else 0,
        last_sign=desk.last_sign,
        refused=desk.refused,
    )
