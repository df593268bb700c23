"""A city's update channel on loopback: real certificates, the real service, departments in threads, and raw callers."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from threading import Event, Thread

import grpc
import pytest

from clients.update_channel import Patience, Stop, Waiting, serve_channel
from server.ca import CertificateAuthority, found_authority
from server.switchboard import Switchboard
from server.update_channel import UpdateChannel
from shared.certificates import TlsFiles, TlsKey, certificate_digest, certificate_pem, load_certificate
from shared.channel import ANSWER, ATTACH, SERVICE, TICKET_KEY, Limits, Ticket
from shared.codec import Encoded, encode
from shared.errors import CityFedError
from shared.identity import DepartmentId

HOST = "127.0.0.1"
RUN = bytes(32)
SMALL = Limits(update_bytes=4096, other_bytes=4096)
HASTE = Patience(first_s=0.01, longest_s=0.05, give_up_s=20.0)
STEP_S = 20.0
NAMES = ("environment", "health", "police", "transport")


def new_authority(city: str = "metropolis") -> CertificateAuthority:
    return found_authority(city, TlsKey.generate(), [HOST], now=dt.datetime.now(dt.UTC))


def member_files(authority: CertificateAuthority, name: str) -> TlsFiles:
    key = TlsKey.generate()
    certificate = authority.issue_member(key.private.public_key(), name, now=dt.datetime.now(dt.UTC))
    return TlsFiles(key.pem(), certificate_pem(certificate), certificate_pem(authority.certificate))


def server_files(authority: CertificateAuthority) -> TlsFiles:
    key = TlsKey.generate()
    certificate = authority.issue_server(key.private.public_key(), [HOST], now=dt.datetime.now(dt.UTC))
    return TlsFiles(key.pem(), certificate_pem(certificate), certificate_pem(authority.certificate))


@dataclass
class Clock:
    """Monotonic time that runs, and that a test can put ahead."""

    ahead: float = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.ahead


@dataclass
class Served:
    """One department that serves the channel in a thread."""

    stop: Stop
    thread: Thread
    errors: list[CityFedError]

    def left(self) -> str:
        """Wait until it is out; returns the reason code, or nothing after a clean end."""
        self.thread.join(30)
        assert not self.thread.is_alive()
        return self.errors[0].code if self.errors else ""


@dataclass
class ChannelCity:
    """Everything of one city's channel."""

    authority: CertificateAuthority = field(default_factory=new_authority)
    members: dict[bytes, DepartmentId] = field(default_factory=dict)
    files: dict[str, TlsFiles] = field(default_factory=dict)
    served: list[Served] = field(default_factory=list)
    clock: Clock = field(default_factory=Clock)
    board: Switchboard = field(default_factory=Switchboard)
    spool: Path | None = None

    def admit(self, name: str) -> TlsFiles:
        files = member_files(self.authority, name)
        self.members[certificate_digest(load_certificate(files.certificate, where=name))] = DepartmentId(name)
        self.files[name] = files
        return files

    def member_of(self, certificate: bytes) -> DepartmentId | None:
        return self.members.get(certificate)

    def revoke(self, name: str) -> None:
        self.members = {digest: member for digest, member in self.members.items() if member != name}

    @cached_property
    def channel(self) -> UpdateChannel:
        return UpdateChannel(
            f"{HOST}:0",
            server_files(self.authority),
            member_of=self.member_of,
            members=len(self.files),
            spool=self.spool,
            board=self.board,
        )

    @property
    def address(self) -> str:
        return f"{HOST}:{self.channel.port}"

    def serve(
        self,
        name: str,
        ticket: Ticket,
        handle: Callable[[bytes], bytes],
        *,
        address: str | None = None,
        leaving: Callable[[Encoded], Encoded] = lambda reply: reply,
        waits: Waiting | None = None,
        patience: Patience = HASTE,
        max_request_bytes: int = 1 << 28,
        files: TlsFiles | None = None,
    ) -> Served:
        stop, errors = Stop(), list[CityFedError]()

        def run() -> None:
            try:
                serve_channel(
                    address or self.address,
                    files or self.files[name],
                    lambda request: handle(bytes(request)),
                    leaving=leaving,
                    ticket=ticket,
                    max_request_bytes=max_request_bytes,
                    stop=stop,
                    patience=patience,
                    waits=waits,
                )
            except CityFedError as error:
                errors.append(error)

        served = Served(stop, Thread(target=run, name=f"department-{name}"), errors)
        served.thread.start()
        self.served.append(served)
        return served

    def ask(self, requests: dict[str, bytes]) -> dict[str, bytes]:
        """One exchange, with its replies copied."""
        asked = {DepartmentId(name): data for name, data in requests.items()}
        return {name: bytes(reply) for name, reply in self.channel.exchange(asked, timeout_s=STEP_S)}

    def ask_until(self, met: Callable[[], object], requests: dict[str, bytes]) -> dict[str, bytes]:
        """One exchange whose time is over as soon as ``met`` has returned."""

        def end() -> None:
            try:
                met()
            finally:
                self.clock.ahead += STEP_S

        with beside(end):
            return self.ask(requests)

    def close(self) -> None:
        for served in self.served:
            served.stop.set()
        self.channel.stop()
        for served in self.served:
            served.left()


@contextmanager
def open_channel(
    names: Iterable[str] = NAMES, *, spool: Path | None = None, board: Switchboard | None = None
) -> Iterator[ChannelCity]:
    """A city with its channel listening; ``city.clock`` is that of the switchboard that it makes itself."""
    clock = Clock()
    city = ChannelCity(spool=spool, clock=clock, board=board or Switchboard(spool, clock=clock))
    for name in names:
        city.admit(name)
    try:
        assert city.channel.port
        yield city
    finally:
        city.close()


@contextmanager
def emptied(city: ChannelCity) -> Iterator[ChannelCity]:
    """A city that is used again afterwards: everybody leaves, and whoever was revoked is a member again."""
    before = dict(city.members)
    try:
        yield city
    finally:
        city.members = before
        city.channel.close_session()
        while city.served:
            served = city.served.pop()
            served.stop.set()
            served.left()


@contextmanager
def beside(work: Callable[[], None]) -> Iterator[None]:
    """Do something in another thread."""
    thread = Thread(target=work)
    thread.start()
    yield
    thread.join(20)
    assert not thread.is_alive()


@contextmanager
def raw_channel(city: ChannelCity, files: TlsFiles | None, *, address: str | None = None) -> Iterator[grpc.Channel]:
    """A caller that does what it likes."""
    roots = certificate_pem(city.authority.certificate)
    credentials = (
        grpc.ssl_channel_credentials(roots)
        if files is None
        else grpc.ssl_channel_credentials(files.authority, files.key, files.certificate)
    )
    with grpc.secure_channel(
        address or city.address, credentials, options=[("grpc.use_local_subchannel_pool", 1)]
    ) as channel:
        yield channel


def metadata(ticket: Ticket) -> tuple[tuple[str, bytes], ...]:
    return ((TICKET_KEY, encode(ticket)),)


def attach(channel: grpc.Channel, ticket: Ticket) -> Iterator[bytes]:
    return channel.stream_stream(f"/{SERVICE}/{ATTACH}")(iter(()), metadata=metadata(ticket), timeout=20)  # type: ignore[no-any-return]  # grpc has no types


def answer(channel: grpc.Channel, ticket: Ticket, frames: Iterable[bytes]) -> bytes:
    return channel.stream_unary(f"/{SERVICE}/{ANSWER}")(iter(frames), metadata=metadata(ticket), timeout=20)  # type: ignore[no-any-return]  # grpc has no types


@dataclass
class Gate:
    """A handler that says when it was asked and answers when it is let."""

    asked: Event = field(default_factory=Event)
    go: Event = field(default_factory=Event)
    heard: list[bytes] = field(default_factory=list)

    def __call__(self, request: bytes) -> bytes:
        self.heard.append(request)
        self.asked.set()
        assert self.go.wait(30)
        return request


def code_of(call: Callable[[], object]) -> tuple[grpc.StatusCode, str]:
    """How a raw call was refused."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code(), caught.value.details()


def still_serves(city: ChannelCity, ticket: Ticket, name: str = "transport") -> bool:
    served = city.serve(name, ticket, bytes.upper)
    heard = city.ask({name: b"ping"})
    served.stop.set()
    return heard == {name: b"PING"} and served.left() == ""
