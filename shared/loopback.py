"""What both sides' `up` does on loopback: a free port, and the health endpoint with its one path.

The one file of this package that opens sockets, and none of them leaves the machine.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Final

from shared.errors import SetupError
from shared.health import HEALTH_PATH, health_answer

LOOPBACK: Final = "127.0.0.1"
_READ_TIMEOUT_S: Final = 5.0


def free_port() -> int:
    """Return a port of loopback that nobody uses now."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def health_endpoint(port: int, folder: Path) -> Iterator[None]:
    """Say on :data:`~shared.health.HEALTH_PATH` how a role's processes fare, for as long as the block runs.

    It answers beside the caller's thread.

    Args:
        port: TCP port on loopback; 0 for no endpoint.
        folder: of the supervisor whose processes are asked for.

    Raises:
        SetupError: ``health-port`` when it cannot listen there.
    """
    if not port:
        yield
        return

    class Answer(BaseHTTPRequestHandler):
        timeout = _READ_TIMEOUT_S

        def do_GET(self) -> None:  # the name is http.server's
            """Answer one path."""
            status, body = health_answer(folder) if self.path == HEALTH_PATH else (404, b"")
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing: whoever monitors asks often."""

    try:
        server = ThreadingHTTPServer((LOOPBACK, port), Answer)
    except OSError as cause:
        raise SetupError("health-port", f"The health endpoint cannot listen on {LOOPBACK}:{port}.") from cause
    with server:
        thread = Thread(target=server.serve_forever, name="health", daemon=True)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()
