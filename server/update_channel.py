"""The authority's end of the update channel: a gRPC service with mutual TLS, and nothing else on its port.

A department dials in, shows the certificate that the city issued to it, and stays attached; it opens no port of its
own. Who a caller is follows from the exact certificate and is looked up at every request, so that a revoked one is
refused at once. What is carried is sealed and signed from end to end besides (protocol 1).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import grpc

from server.mutual_tls import Door, MemberOf, not_admitted, shown
from server.spool import mapped, open_spool
from server.switchboard import Line, Presence, Question, Switchboard
from shared.certificates import TlsFiles
from shared.channel import (
    ANSWER,
    ATTACH,
    ATTACHED,
    SERVICE,
    TICKET_KEY,
    Incoming,
    Limits,
    Ticket,
    frames,
    read_start,
)
from shared.codec import decode
from shared.errors import CityFedError
from shared.identity import DepartmentId

_STATUS = {
    "session-foreign": grpc.StatusCode.FAILED_PRECONDITION,
    "attached-elsewhere": grpc.StatusCode.FAILED_PRECONDITION,
    "reply-late": grpc.StatusCode.ABORTED,
    "spool-unusable": grpc.StatusCode.UNAVAILABLE,
}
"""What a refusal means to the other end; any other one is INVALID_ARGUMENT: do not try that again."""

CALLS_EACH = 3
"""Of one member at once: one stream, one upload, and one that takes the place of either."""

_SPARE_CALLS = 4  # those that are refused take a place, too, for a moment


class UpdateChannel:
    """Serves departments that dial in; implements :class:`shared.transport.Transport` while a session is open.

    Args:
        address: host and port to listen on; port 0 takes any free one.
        tls: the authority's key, certificate and the city's CA certificate.
        member_of: whose a certificate is, asked at every request.
        members: how many departments the city has.
        spool: where requests wait to be sent and uploads to be added up; None for the system's temporary folder.
        board: who is attached and what was asked; without one, a new one.

    Attributes:
        port: where it listens.

    Raises:
        SetupError: ``channel-port`` when it cannot listen there.
    """

    def __init__(
        self,
        address: str,
        tls: TlsFiles,
        *,
        member_of: MemberOf,
        members: int,
        spool: Path | None = None,
        board: Switchboard | None = None,
    ) -> None:
        self._spool, self._board = spool, board or Switchboard(spool)
        self._door = Door(
            name="update channel",
            port_code="channel-port",
            member_of=member_of,
            calls_each=CALLS_EACH,
            status=_STATUS,
        )
        methods = {
            ATTACH: grpc.stream_stream_rpc_method_handler(self._attach),
            ANSWER: grpc.stream_unary_rpc_method_handler(self._answer),
        }
        calls = CALLS_EACH * members + _SPARE_CALLS
        self._server, self.port = self._door.listen(address, tls, SERVICE, methods, calls=calls)

    def open_session(self, run: bytes, limits: Limits) -> Ticket:
        """Begin a session of a run; see :meth:`server.switchboard.Switchboard.open_session`."""
        return self._board.open_session(run, limits)

    def close_session(self) -> None:
        """End the session; departments leave."""
        self._board.close_session()

    def exchange(
        self, requests: Mapping[DepartmentId, bytes], *, timeout_s: float
    ) -> Iterator[tuple[DepartmentId, memoryview]]:
        """Carry one batch; see :class:`shared.transport.Transport`."""
        return self._board.exchange(requests, timeout_s=timeout_s)

    def status(self) -> dict[DepartmentId, Presence]:
        """Return who is attached and when each department last gave a sign of life."""
        return self._board.status()

    def break_off(self) -> None:
        """Cut every call and end the service, but not the session: departments keep what they have of the run.

        They take it for a broken connection, and wait for the next session of the run.
        """
        self._server.stop(grace=None).wait()

    def stop(self) -> None:
        """End the session and the service; calls in progress are cut after a moment."""
        self.close_session()
        self._server.stop(grace=2.0).wait()

    # --- calls ---------------------------------------------------------------------------------------------

    def _attach(self, _nothing: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        """Send one department its requests for as long as the session is open.

        The other direction is open and never read: a call that had to bring one message would hold a thread before
        it is looked at, and nobody would have to let go of it.
        """
        with self._door.served(context) as name:
            ticket = decode(shown(context, TICKET_KEY), Ticket)
            if not context.add_callback(self._board.wake):
                return
            line = Line(cut=context.cancel, alive=context.is_active)
            with self._board.attached(name, ticket, line) as questions:
                yield ATTACHED
                for question in questions:
                    if self._door.caller(context) != name:
                        self._board.refuse(name, "certificate-not-admitted", question)
                        raise not_admitted()
                    yield from frames(question.number, question.payload)
                    del question  # or its model would be here until there is another one

    def _answer(self, incoming: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
        """Take one reply up into a spool file and hand it over once it is whole."""
        with self._door.served(context) as name:
            ticket = decode(shown(context, TICKET_KEY), Ticket)
            line = Line(cut=context.cancel, alive=context.is_active)
            try:
                question = self._board.answering(name, ticket, line)
                self._board.answered(name, question, self._receive(name, question, line, incoming))
            except CityFedError as error:
                # A call that was cut ends like one that stops midway, before gRPC says so; why is written down already.
                if context.is_active() and not line.ended:
                    self._board.refuse(name, error.code)
                raise
            finally:
                self._board.hung_up(name, line)
        return b""

    def _receive(self, name: DepartmentId, question: Question, line: Line, incoming: Iterator[bytes]) -> memoryview:
        """Return a whole upload, checked against what was announced; it lies in a file."""
        start = read_start(next(incoming, b""), number=question.number, max_bytes=question.max_bytes)
        with open_spool(self._spool, start.length) as file:
            transfer = Incoming(start, file.write)
            for raw in incoming:
                transfer.take(raw)
                self._board.progress(name, line, transfer.received)
            transfer.finish()
            return mapped(file)
