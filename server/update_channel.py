"""The authority's end of the update channel: a gRPC service with mutual TLS, and nothing else on its port.

A department dials in, shows the certificate that the city issued to it, and stays attached; it opens no port of its
own. Who a caller is follows from the exact certificate and is looked up at every request, so that a revoked one is
refused at once. What is carried is sealed and signed from end to end besides (protocol 1).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc

from server.spool import mapped, open_spool
from server.switchboard import Line, Presence, Question, Switchboard
from shared.certificates import TlsFiles, certificate_digest, load_certificate
from shared.channel import (
    ANSWER,
    ATTACH,
    ATTACHED,
    MAX_FRAME_BYTES,
    SERVICE,
    TICKET_KEY,
    Incoming,
    Limits,
    Ticket,
    frames,
    read_start,
)
from shared.codec import decode
from shared.errors import CityFedError, ProtocolError, SetupError
from shared.identity import DepartmentId

_LOG = logging.getLogger(__name__)

MemberOf = Callable[[bytes], DepartmentId | None]
"""Says whose a certificate is, by :func:`shared.certificates.certificate_digest`; None: unknown, or revoked by now."""

_STATUS = {
    "certificate-not-admitted": grpc.StatusCode.PERMISSION_DENIED,
    "session-foreign": grpc.StatusCode.FAILED_PRECONDITION,
    "attached-elsewhere": grpc.StatusCode.FAILED_PRECONDITION,
    "reply-late": grpc.StatusCode.ABORTED,
    "spool-unusable": grpc.StatusCode.UNAVAILABLE,
    "internal-error": grpc.StatusCode.UNAVAILABLE,
}
"""What a refusal means to the other end; any other one is INVALID_ARGUMENT: do not try that again."""

_OPTIONS = (
    ("grpc.so_reuseport", 0),  # a second authority on this port is an error, not half of the calls
    ("grpc.max_receive_message_length", MAX_FRAME_BYTES),
    (
        "grpc.http2.bdp_probe",
        0,
    ),  # a probed window grows to tens of MB for each upload that the disk does not keep up with
    ("grpc.http2.lookahead_bytes", 1 << 21),
    ("grpc.max_metadata_size", 8 * 1024),
    ("grpc.max_concurrent_streams", 8),
    ("grpc.server_handshake_timeout_ms", 10_000),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 15_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
)


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
        self._member_of, self._spool, self._board = member_of, spool, board or Switchboard(spool)
        calls = 3 * members + 4  # one stream, one upload and one that takes their place, each
        self._server = grpc.server(
            ThreadPoolExecutor(calls, thread_name_prefix="update-channel"),
            handlers=(_service(self._attach, self._answer),),
            options=_OPTIONS,
            maximum_concurrent_rpcs=calls,
        )
        credentials = grpc.ssl_server_credentials(
            [(tls.key, tls.certificate)], root_certificates=tls.authority, require_client_auth=True
        )
        try:
            self.port: int = self._server.add_secure_port(address, credentials)
        except RuntimeError as cause:
            raise SetupError("channel-port", "The update channel cannot listen on its port.") from cause
        self._server.start()

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
        with _named_refusals(context):
            name, ticket = self._enter(context)
            if not context.add_callback(self._board.wake):
                return
            line = Line(cut=context.cancel, alive=context.is_active)
            with self._board.attached(name, ticket, line) as questions:
                yield ATTACHED
                for question in questions:
                    if self._caller(context) != name:
                        self._board.refuse(name, "certificate-not-admitted", question)
                        raise _not_admitted()
                    yield from frames(question.number, question.payload)
                    del question  # or its model would be here until there is another one

    def _answer(self, incoming: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
        """Take one reply up into a spool file and hand it over once it is whole."""
        with _named_refusals(context):
            name, ticket = self._enter(context)
            line = Line(cut=context.cancel, alive=context.is_active)
            try:
                question = self._board.answering(name, ticket, line)
                self._board.answered(name, question, self._receive(name, question, line, incoming))
            except CityFedError as error:
                if context.is_active():  # a call that was cut ends like one that stops midway; why is written down
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

    def _enter(self, context: grpc.ServicerContext) -> tuple[DepartmentId, Ticket]:
        """Return who calls and for which session.

        Raises:
            ProtocolError: ``certificate-not-admitted``, ``message-malformed``.
        """
        name = self._caller(context)
        if name is None:
            raise _not_admitted()
        shown = [value for key, value in context.invocation_metadata() if key == TICKET_KEY]
        return name, decode(b"".join(shown), Ticket)

    def _caller(self, context: grpc.ServicerContext) -> DepartmentId | None:
        """Return whose certificate the caller has shown."""
        (pem,) = context.auth_context()["x509_pem_cert"]  # the handshake has checked it against the city's CA
        return self._member_of(certificate_digest(load_certificate(pem, where="The caller's certificate")))


def _service(attach: object, answer: object) -> grpc.GenericRpcHandler:
    """Return the two methods; bytes are not interpreted by gRPC, and every other method is unknown."""
    methods = {
        ATTACH: grpc.stream_stream_rpc_method_handler(attach),
        ANSWER: grpc.stream_unary_rpc_method_handler(answer),
    }
    return grpc.method_handlers_generic_handler(SERVICE, methods)


def _not_admitted() -> ProtocolError:
    """The certificate is nobody's, or nobody's any more."""
    return ProtocolError("certificate-not-admitted", "The certificate is not one that this city admits.")


@contextmanager
def _named_refusals(context: grpc.ServicerContext) -> Iterator[None]:
    """End a call that fails with a reason code as its only text: gRPC would send the text of an exception."""
    try:
        yield
    except CityFedError as error:
        _LOG.warning("a call on the update channel was refused: %s", error.code)
        context.abort(_STATUS.get(error.code, grpc.StatusCode.INVALID_ARGUMENT), error.code)
    except grpc.RpcError:  # the call is over: nobody is there to be told
        raise
    except Exception:  # noqa: BLE001 - whatever goes wrong, gRPC must not send its text
        _LOG.exception("a call on the update channel failed")
        context.abort(_STATUS["internal-error"], "internal-error")
