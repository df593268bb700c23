"""What every gRPC service of the authority has in common: mutual TLS, callers by certificate, refusals by code only.

Who a caller is follows from the exact certificate and is looked up at every call, so that a revoked one is refused at
once; the name in a certificate decides nothing.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock

import grpc

from shared.certificates import TlsFiles, certificate_digest, load_certificate
from shared.channel import MAX_FRAME_BYTES
from shared.errors import CityFedError, ProtocolError, SetupError
from shared.identity import DepartmentId
from shared.logs import OnceInAWhile

_LOG = logging.getLogger(__name__)

MemberOf = Callable[[bytes], DepartmentId | None]
"""Says whose a certificate is, by :func:`shared.certificates.certificate_digest`; None: unknown, or revoked by now."""

_STATUS = {
    "certificate-not-admitted": grpc.StatusCode.PERMISSION_DENIED,
    "too-many-calls": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "internal-error": grpc.StatusCode.UNAVAILABLE,
}

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


@dataclass(frozen=True, kw_only=True)
class Door:
    """How one service treats its callers.

    Attributes:
        name: for sentences, such as ``update channel``.
        port_code: reason code when it cannot listen.
        member_of: whose a certificate is, asked at every call.
        calls_each: how many calls of one member are served at once; further ones are refused.
        status: what a refusal means to the other end, by reason code; any other one is INVALID_ARGUMENT: do not try
            that again.
    """

    name: str
    port_code: str
    member_of: MemberOf
    calls_each: int
    status: Mapping[str, grpc.StatusCode] = field(default_factory=dict)
    _calls: Counter[DepartmentId] = field(default_factory=Counter)
    _guard: Lock = field(default_factory=Lock)
    _refusals: OnceInAWhile = field(default_factory=lambda: OnceInAWhile(time.monotonic))

    def listen(
        self, address: str, tls: TlsFiles, service: str, methods: Mapping[str, grpc.RpcMethodHandler], *, calls: int
    ) -> tuple[grpc.Server, int]:
        """Serve the methods of one service and nothing else; bytes are not interpreted by gRPC.

        Args:
            address: host and port to listen on; port 0 takes any free one.
            tls: the authority's key, certificate and the city's CA certificate.
            service: the service's full name.
            methods: handlers by name; every other method is unknown.
            calls: how many are served at once; each has a thread, so that none waits for one. Further ones are refused.

        Returns:
            The started server, and the port.

        Raises:
            SetupError: ``port_code`` when it cannot listen there.
        """
        server = grpc.server(
            ThreadPoolExecutor(calls, thread_name_prefix=self.name.replace(" ", "-")),
            handlers=(grpc.method_handlers_generic_handler(service, methods),),
            options=_OPTIONS,
            maximum_concurrent_rpcs=calls,
        )
        credentials = grpc.ssl_server_credentials(
            [(tls.key, tls.certificate)], root_certificates=tls.authority, require_client_auth=True
        )
        try:
            port: int = server.add_secure_port(address, credentials)
        except RuntimeError as cause:
            raise SetupError(self.port_code, f"The {self.name} cannot listen on its port.") from cause
        server.start()
        return server, port

    def caller(self, context: grpc.ServicerContext) -> DepartmentId | None:
        """Return whose certificate the caller has shown."""
        (pem,) = context.auth_context()["x509_pem_cert"]  # the handshake has checked it against the city's CA
        return self.member_of(certificate_digest(load_certificate(pem, where="The caller's certificate")))

    def admit(self, context: grpc.ServicerContext) -> DepartmentId:
        """Return who calls.

        Raises:
            ProtocolError: ``certificate-not-admitted``.
        """
        name = self.caller(context)
        if name is None:
            raise not_admitted()
        return name

    @contextmanager
    def served(self, context: grpc.ServicerContext) -> Iterator[DepartmentId]:
        """Give who calls; end a call that fails with a reason code as its only text.

        gRPC would send the text of an exception. Refused by name are also ``certificate-not-admitted`` and
        ``too-many-calls``.
        """
        name = None
        try:
            name = self.admit(context)
            with self._counted(name):
                yield name
        except CityFedError as error:
            times = self._refusals.count((name, error.code))
            if times:
                _LOG.warning("the %s refused %s: %s, %d times", self.name, name or "a stranger", error.code, times)
            status = {**_STATUS, **self.status}.get(error.code, grpc.StatusCode.INVALID_ARGUMENT)
            context.abort(status, error.code)
        except grpc.RpcError:  # the call is over: nobody is there to be told
            raise
        except Exception:  # noqa: BLE001 - whatever goes wrong, gRPC must not send its text
            _LOG.exception("a call on the %s failed", self.name)
            context.abort(_STATUS["internal-error"], "internal-error")

    @contextmanager
    def _counted(self, name: DepartmentId) -> Iterator[None]:
        """Count a member's call for as long as it is served, so that nobody takes the places of the others."""
        with self._guard:
            if self._calls[name] >= self.calls_each:
                raise ProtocolError("too-many-calls", f"{self.calls_each} calls of {name} are being served.")
            self._calls[name] += 1
        try:
            yield
        finally:
            with self._guard:
                self._calls[name] -= 1


def shown(context: grpc.ServicerContext, key: str) -> bytes:
    """Return what the caller's metadata have under a key."""
    return b"".join(value for name, value in context.invocation_metadata() if name == key)


def not_admitted() -> ProtocolError:
    """The certificate is nobody's, or nobody's any more."""
    return ProtocolError("certificate-not-admitted", "The certificate is not one that this city admits.")
