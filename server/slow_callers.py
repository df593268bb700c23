"""Time limits that uvicorn does not have: for a TLS handshake, and for the head of a request.

Without them whoever opens connections and sends a byte now and then keeps places and file descriptors for ever. How
long a body may take is the application's affair, because it reads it.
"""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

from uvicorn.protocols.http.h11_impl import H11Protocol


class TimedLoop(asyncio.SelectorEventLoop):
    """An event loop whose servers end a TLS handshake, and a farewell, that takes longer than a time.

    Args:
        timeout_s: for each of them, in seconds; asyncio's own are 60 and 30.
    """

    def __init__(self, timeout_s: float) -> None:
        super().__init__()
        self._timeout_s = timeout_s

    async def create_server(self, *args: Any, **settings: Any) -> asyncio.Server:
        """Make a TLS server, as asyncio does."""
        settings |= {"ssl_handshake_timeout": self._timeout_s, "ssl_shutdown_timeout": self._timeout_s}
        made: asyncio.Server = await super().create_server(*args, **settings)
        return made


class TimedProtocol(H11Protocol):
    """HTTP/1.1 for a caller who sends the whole head of a request in time, first and after each answer, or is cut off.

    Bytes that arrive do not start the time anew, as they do uvicorn's own for connections that are kept open.
    """

    head_timeout_s: ClassVar[float] = 10.0
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to wait for a head."""
        super().connection_made(transport)  # type: ignore[arg-type]  # uvicorn narrows what asyncio promises
        self._keep_time()

    def data_received(self, data: bytes) -> None:
        """Take bytes; wait no longer once a head is complete."""
        super().data_received(data)
        self._keep_time()

    def on_response_complete(self) -> None:
        """Begin to wait for the next head."""
        super().on_response_complete()
        self._keep_time()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing any more."""
        super().connection_lost(exc)
        self._cancel()

    def _keep_time(self) -> None:
        """Let the timer run exactly while no request is at work."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._cancel()
        elif self._timer is None and not self.transport.is_closing():
            self._timer = self.loop.call_later(self.head_timeout_s, self.transport.abort)

    def _cancel(self) -> None:
        """Stop the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
