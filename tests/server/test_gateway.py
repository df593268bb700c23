"""The gateway in one process: what is too long, too slow or not on the table does not reach the SuperLink."""

from __future__ import annotations

import asyncio
import datetime as dt
import math
import socket
import ssl
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from starlette.types import Message, Scope

from server.gateway import FLEET_ROUTES, GatewaySettings, gateway_app, gateway_server
from server.slow_callers import TimedLoop
from server.superlink import SuperLink
from tests.deployed_city import found

NOW = dt.datetime(2026, 11, 1, tzinfo=dt.UTC)


def settings(folder: Path, **changes: object) -> GatewaySettings:
    authority = found(folder)
    link = SuperLink(folder=folder, secret=folder / "secret", port=1)
    link.prepare(NOW)
    values: dict[str, object] = {
        "host": "127.0.0.1",
        "port": 0,
        "certificate": authority.server_certificate,
        "key": authority.server_key,
        "superlink": "https://127.0.0.1:1",
        "superlink_root": link.certificate,
    }
    return GatewaySettings(**{**values, **changes})  # type: ignore[arg-type]  # settings of a test


def answer(
    made: GatewaySettings, *, path: str, body: bytes = b"", seen: list[httpx.Request] | None = None, root: str = ""
) -> httpx.Response:
    """Send one request through the application to a SuperLink that notes it."""

    def superlink(request: httpx.Request) -> httpx.Response:
        (seen if seen is not None else []).append(request)
        return httpx.Response(200, content=b"fine", headers={"content-type": "application/x", "server": "flower"})

    async def send() -> httpx.Response:
        app = gateway_app(made)
        app.state.client = httpx.AsyncClient(transport=httpx.MockTransport(superlink), base_url=made.superlink)
        transport = httpx.ASGITransport(app=app, root_path=root)
        async with httpx.AsyncClient(transport=transport, base_url="https://gateway", trust_env=False) as client:
            headers = {"flwr-signature": "s", "cookie": "c", "x-forwarded-for": "1", "content-type": "application/x"}
            return await client.post(path, content=body, headers=headers)

    return asyncio.run(send())


def test_a_route_of_the_table_goes_through_with_flowers_headers_only(tmp_path: Path) -> None:
    seen: list[httpx.Request] = []
    back = answer(settings(tmp_path), path=FLEET_ROUTES[0], body=b"abc", seen=seen)
    assert (back.status_code, back.content, back.headers["content-type"]) == (200, b"fine", "application/x")
    assert "server" not in back.headers
    (request,) = seen
    assert (request.url.path, request.content) == (FLEET_ROUTES[0], b"abc")
    assert request.headers["flwr-signature"] == "s"
    assert not {"cookie", "x-forwarded-for"} & set(request.headers)


@pytest.mark.parametrize(
    "path", ["/v1/control/start-run", "/v1/fleet/register-node", "/v1/fleet/", "/v1/fleet/get-run/", "/health", "/"]
)
def test_whatever_is_not_on_the_table_is_not_found(tmp_path: Path, path: str) -> None:
    seen: list[httpx.Request] = []
    assert answer(settings(tmp_path), path=path, seen=seen).status_code == 404
    assert seen == []


def test_what_is_asked_of_the_superlink_is_the_path_of_the_route_and_nothing_that_the_caller_wrote(
    tmp_path: Path,
) -> None:
    seen: list[httpx.Request] = []
    written = f"/v1/control{FLEET_ROUTES[0]}?path=/v1/control"
    assert answer(settings(tmp_path), path=written, root="/v1/control", seen=seen).status_code == 200
    assert [request.url.raw_path for request in seen] == [FLEET_ROUTES[0].encode()]


def test_a_request_that_is_too_long_is_refused_unread(tmp_path: Path) -> None:
    seen: list[httpx.Request] = []
    made = settings(tmp_path, max_body_bytes=8)
    assert answer(made, path=FLEET_ROUTES[0], body=bytes(9), seen=seen).status_code == 413
    assert answer(made, path=FLEET_ROUTES[0], body=bytes(8), seen=seen).status_code == 200
    assert len(seen) == 1


def called(made: GatewaySettings, receive: Callable[[], Awaitable[Message]]) -> list[Message]:
    """Call the application as a server would; return what it sends."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    scope: Scope = {
        "type": "http",
        "method": "POST",
        "path": FLEET_ROUTES[0],
        "raw_path": FLEET_ROUTES[0].encode(),
        "query_string": b"",
        "headers": [],
        "scheme": "https",
        "server": ("gateway", 443),
    }
    asyncio.run(gateway_app(made)(scope, receive, send))
    return sent


def test_a_request_that_drips_in_is_ended_and_holds_nothing_up(tmp_path: Path) -> None:
    async def drip() -> Message:
        await asyncio.sleep(0.01)
        return {"type": "http.request", "body": b"x", "more_body": True}

    sent = called(settings(tmp_path, read_timeout_s=0.05), drip)
    assert sent[0]["status"] == 408
    assert (b"connection", b"close") in sent[0]["headers"]


def test_a_superlink_that_is_away_is_said_to_be_so(tmp_path: Path) -> None:
    def away(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("no")

    async def send() -> int:
        app = gateway_app(settings(tmp_path))
        app.state.client = httpx.AsyncClient(transport=httpx.MockTransport(away), base_url="https://superlink")
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="https://gateway") as client:
            return (await client.post(FLEET_ROUTES[0])).status_code

    assert asyncio.run(send()) == 503


def test_the_server_speaks_tls_1_3_only_and_trusts_no_proxy_header(tmp_path: Path) -> None:
    config = gateway_server(settings(tmp_path)).config
    assert config.ssl is not None
    assert config.ssl.minimum_version is ssl.TLSVersion.TLSv1_3
    assert (config.proxy_headers, config.server_header, config.limit_concurrency) == (False, False, 256)


# --- callers who take their time ---------------------------------------------------------------------------

HEAD = b"POST /no HTTP/1.1\r\nhost: gateway\r\ncontent-length: 1000000\r\n\r\n"
WHOLE = b"POST /no HTTP/1.1\r\nhost: gateway\r\ncontent-length: 0\r\n\r\n"
PATIENCE_S = 30  # of these tests, in real time; the gateway's own limits pass by the loop's clock
_TURNS = 20  # of the loop: more than lie between a connection that arrives and the timer that is set for it


class HeldLoop(TimedLoop):
    """The gateway's loop with a clock that stands until a test puts it on."""

    now = 0.0

    def time(self) -> float:
        return self.now

    def put_on(self, seconds: float) -> None:
        """Let the loop deal with all that has arrived, put the clock on, and let it deal with what is due."""
        self._settle()
        self.now += seconds
        self._settle()

    def _settle(self) -> None:
        for _ in range(_TURNS):
            turned = threading.Event()
            self.call_soon_threadsafe(turned.set)
            assert turned.wait(PATIENCE_S)


@dataclass(frozen=True)
class Served:
    """A gateway that serves, and its clock."""

    made: GatewaySettings
    address: tuple[str, int]
    loop: HeldLoop

    def tls(self) -> ssl.SSLSocket:
        trusted = ssl.create_default_context(cafile=str(self.made.certificate.parents[1] / "ca" / "ca.crt"))
        plain = socket.create_connection(self.address, timeout=PATIENCE_S)
        return trusted.wrap_socket(plain, server_hostname="127.0.0.1")

    def cut_off_after(self, connection: socket.socket, *, byte: bytes) -> float:
        """Drip a byte at each quarter of the limit; return the limits that had gone by when the gateway hung up."""
        connection.settimeout(0.02)
        for quarters in range(12):
            try:
                if byte:
                    connection.send(byte)
                if connection.recv(1) == b"":
                    return quarters / 4
            except TimeoutError:
                self.loop.put_on(self.made.read_timeout_s / 4)
            except OSError:
                return quarters / 4
        return math.inf


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Served]:
    """The gateway in a thread, on loopback."""
    made = settings(tmp_path)
    server, loop = gateway_server(made), HeldLoop(made.read_timeout_s)

    def run() -> None:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(server.serve())

    thread = threading.Thread(target=run)
    thread.start()
    deadline = time.monotonic() + PATIENCE_S
    try:
        while not server.started:
            assert time.monotonic() < deadline
            thread.join(0.01)
        yield Served(made=made, address=server.servers[0].sockets[0].getsockname(), loop=loop)
    finally:
        server.should_exit = True
        while thread.is_alive() and time.monotonic() < deadline + PATIENCE_S:
            loop.now += 1  # it looks at its timers ten times a second of real time
            thread.join(0.01)
    assert not thread.is_alive()


def is_not_found(connection: ssl.SSLSocket) -> bool:
    """Read one whole answer."""
    connection.settimeout(PATIENCE_S)
    answered = b""
    while not answered.endswith(b"\r\n\r\nNot Found"):
        more = connection.recv(4096)
        if not more:
            return False
        answered += more
    return answered.startswith(b"HTTP/1.1 404 Not Found")


def test_whoever_never_begins_a_handshake_is_cut_off(gateway: Served) -> None:
    with socket.create_connection(gateway.address) as silent:
        assert gateway.cut_off_after(silent, byte=b"") == 1


def test_whoever_says_nothing_after_the_handshake_is_cut_off(gateway: Served) -> None:
    with gateway.tls() as silent:
        assert gateway.cut_off_after(silent, byte=b"") == 1


def test_whoever_drips_a_head_is_cut_off_and_others_are_served(gateway: Served) -> None:
    with gateway.tls() as drips:
        drips.sendall(b"POST / HTTP/1.1\r\nx: ")
        with gateway.tls() as other:
            other.sendall(WHOLE)
            assert is_not_found(other)
        assert gateway.cut_off_after(drips, byte=b"x") == 1
    with gateway.tls() as later:
        later.sendall(WHOLE)
        assert is_not_found(later)


def test_whoever_drips_a_body_that_nobody_asked_for_is_cut_off(gateway: Served) -> None:
    with gateway.tls() as drips:
        drips.sendall(HEAD)
        assert is_not_found(drips)
        assert gateway.cut_off_after(drips, byte=b"x") == 1


def test_a_kept_connection_is_served_again_and_cut_off_when_the_next_head_drips_in(gateway: Served) -> None:
    with gateway.tls() as kept:
        for _ in range(3):
            kept.sendall(WHOLE)
            assert is_not_found(kept)
            gateway.loop.put_on(gateway.made.read_timeout_s / 2)
        kept.sendall(b"P")
        assert gateway.cut_off_after(kept, byte=b"O") == 1 / 2  # the time of a head begins with the answer before it
