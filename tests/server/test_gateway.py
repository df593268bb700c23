"""The gateway in one process: what is too long, too slow or not on the table does not reach the SuperLink."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import socket
import ssl
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
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


@contextlib.contextmanager
def serving(made: GatewaySettings) -> Iterator[tuple[str, int]]:
    """The gateway in a thread, on loopback."""
    server = gateway_server(made)

    def run() -> None:
        with asyncio.Runner(loop_factory=lambda: TimedLoop(made.read_timeout_s)) as runner:
            runner.run(server.serve())

    thread = threading.Thread(target=run)
    thread.start()
    try:
        deadline = time.monotonic() + 30
        while not server.started:
            assert time.monotonic() < deadline
            thread.join(0.01)
        yield server.servers[0].sockets[0].getsockname()
    finally:
        server.should_exit = True
        thread.join(30)


def tls(made: GatewaySettings, address: tuple[str, int]) -> ssl.SSLSocket:
    trusted = ssl.create_default_context(cafile=str(made.certificate.parents[1] / "ca" / "ca.crt"))
    return trusted.wrap_socket(socket.create_connection(address, timeout=30), server_hostname="127.0.0.1")


def is_not_found(connection: ssl.SSLSocket) -> bool:
    """Read one whole answer."""
    connection.settimeout(30)
    answered = b""
    while not answered.endswith(b"\r\n\r\nNot Found"):
        more = connection.recv(4096)
        if not more:
            return False
        answered += more
    return answered.startswith(b"HTTP/1.1 404 Not Found")


def is_cut_off(connection: socket.socket, *, byte: bytes) -> bool:
    """Drip a byte every now and then; return whether the other side has ended the connection."""
    connection.settimeout(0.02)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            if byte:
                connection.send(byte)
            if connection.recv(1) == b"":
                return True
        except TimeoutError:
            continue
        except OSError:
            return True
    return False


def test_whoever_drips_a_handshake_a_head_or_what_nobody_asked_for_is_cut_off_and_others_are_served(
    tmp_path: Path,
) -> None:
    made = settings(tmp_path, read_timeout_s=0.5)
    with serving(made) as address:
        with socket.create_connection(address) as silent:
            assert is_cut_off(silent, byte=b"")
        with tls(made, address) as first, tls(made, address) as other:
            first.sendall(b"POST / HTTP/1.1\r\nx: ")
            assert is_cut_off(first, byte=b"x")
            other.sendall(HEAD)
            assert is_not_found(other)
            assert is_cut_off(other, byte=b"x")
        with tls(made, address) as well:
            well.sendall(b"POST /no HTTP/1.1\r\nhost: gateway\r\ncontent-length: 0\r\n\r\n")
            assert is_not_found(well)


def test_a_kept_connection_is_served_again_and_cut_off_when_the_next_head_drips_in(tmp_path: Path) -> None:
    made = settings(tmp_path, read_timeout_s=1.0)
    with serving(made) as address, tls(made, address) as kept:
        for _ in range(3):
            kept.sendall(b"POST /no HTTP/1.1\r\nhost: gateway\r\ncontent-length: 0\r\n\r\n")
            assert is_not_found(kept)
        kept.sendall(b"P")
        assert is_cut_off(kept, byte=b"O")
