"""The authority's one open door for Flower: TLS in front of the SuperLink, and only what a registered node needs.

The SuperLink serves departments, its own control interface and its app processes on one port, and asks nobody who
calls the last two for a name. It therefore listens on loopback, and this process passes on the routes of the table
below; everything else is 404 without a look at it. A route is matched as a whole, so that no spelling of a path can
reach another one.
"""

from __future__ import annotations

import asyncio
import math
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from server.slow_callers import TimedLoop, TimedProtocol

FLEET_ROUTES = tuple(
    f"/v1/fleet/{name}"
    for name in (
        "activate-node",
        "confirm-message-received",
        "deactivate-node",
        "get-fab",
        "get-run",
        "pull-messages",
        "pull-object",
        "push-messages",
        "push-object",
        "send-node-heartbeat",
    )
)
"""What a node that the authority registered calls; registering itself is not among it."""

_REQUEST_HEADERS = frozenset({"accept", "content-type"})
_RESPONSE_HEADERS = frozenset({"content-type"})
_FLOWER = "flwr-"
_FAREWELL_S = 2  # callers who do not read do not see that they are asked to close


@dataclass(frozen=True, kw_only=True)
class GatewaySettings:
    """Where the gateway listens, what it shows, and what lies behind it.

    Attributes:
        host: address to listen on.
        port: TCP port; 0 lets the system choose.
        certificate: PEM chain of the city's server certificate.
        key: its private key, PEM.
        superlink: the SuperLink's address, ``https://127.0.0.1:port``.
        superlink_root: PEM of the only certificate that the SuperLink may show.
        max_body_bytes: largest request that is read; vectors do not travel here.
        read_timeout_s: how long a caller may take for the TLS handshake, then for the head of a request, then for its
            body, in seconds.
        max_connections: callers served at once; further ones are told to come back.
    """

    host: str
    port: int
    certificate: Path
    key: Path
    superlink: str
    superlink_root: Path
    max_body_bytes: int = 1 << 20
    read_timeout_s: float = 10.0
    max_connections: int = 256


def gateway_app(settings: GatewaySettings) -> Starlette:
    """Return the application: one POST route per entry of :data:`FLEET_ROUTES`."""
    verify = ssl.create_default_context(cafile=str(settings.superlink_root))

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with httpx.AsyncClient(base_url=settings.superlink, verify=verify, timeout=30.0) as client:
            app.state.client = client
            yield

    async def forward(path: str, request: Request) -> Response:
        """Pass one request on, to the path of its route whatever the caller wrote, and bring the answer back."""
        try:
            async with asyncio.timeout(settings.read_timeout_s):
                body = await _body(request, settings.max_body_bytes)
        except (TimeoutError, ClientDisconnect):
            return Response(status_code=408, headers={"connection": "close"})
        if body is None:
            return Response(status_code=413, headers={"connection": "close"})
        headers = {name: value for name, value in request.headers.items() if _passes(name, _REQUEST_HEADERS)}
        try:
            answer = await request.app.state.client.post(path, content=body, headers=headers)
        except httpx.TransportError:
            return Response(status_code=503)
        kept = {name: value for name, value in answer.headers.items() if _passes(name, _RESPONSE_HEADERS)}
        return Response(answer.content, status_code=answer.status_code, headers=kept)

    routes = [Route(path, partial(forward, path), methods=["POST"]) for path in FLEET_ROUTES]
    app = Starlette(routes=routes, lifespan=lifespan)
    app.router.redirect_slashes = False
    return app


async def _body(request: Request, limit: int) -> bytes | None:
    """Read a request; None as soon as it is larger than the limit."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            return None
    return bytes(body)


def _passes(name: str, named: frozenset[str]) -> bool:
    """Return whether a header goes through: those of Flower, and the named ones."""
    return name in named or name.startswith(_FLOWER)


def serve_gateway(settings: GatewaySettings) -> None:
    """Serve until a signal ends this process."""
    with asyncio.Runner(loop_factory=lambda: TimedLoop(settings.read_timeout_s)) as runner:
        runner.run(gateway_server(settings).serve())


def gateway_server(settings: GatewaySettings) -> uvicorn.Server:
    """Return the server, ready for a :class:`~server.slow_callers.TimedLoop`; TLS 1.3 only."""

    class Protocol(TimedProtocol):
        head_timeout_s = settings.read_timeout_s

    config = uvicorn.Config(
        gateway_app(settings),
        host=settings.host,
        port=settings.port,
        ssl_certfile=settings.certificate,
        ssl_keyfile=settings.key,
        limit_concurrency=settings.max_connections,
        timeout_keep_alive=math.ceil(settings.read_timeout_s),
        timeout_graceful_shutdown=_FAREWELL_S,
        h11_max_incomplete_event_size=16 * 1024,
        http=Protocol,
        ws="none",
        server_header=False,
        proxy_headers=False,
        access_log=False,
        log_config=None,
    )
    config.load()
    if config.ssl is None:  # uvicorn serves in clear when it is given no certificate
        raise ValueError("the gateway has no certificate")
    config.ssl.minimum_version = ssl.TLSVersion.TLSv1_3
    return uvicorn.Server(config)
