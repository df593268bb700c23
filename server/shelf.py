"""The shelf: what the authority publishes, for departments to fetch; a gRPC service with mutual TLS on its own port.

It runs for as long as the authority's processes do, also between runs, and holds nothing: every call looks at the files
of the home (:mod:`server.shelf_files`). Departments pull; nothing is ever pushed, and nothing is taken up.
"""

from __future__ import annotations

import datetime as dt
import logging
from collections.abc import Callable, Iterator
from threading import Event, Timer

import grpc

from server.city import load_server_tls
from server.config import load_server
from server.home import AuthorityHome
from server.members import LiveMembers
from server.mutual_tls import Door, not_admitted, shown
from server.shelf_files import opened, shelf_listing
from shared.certificates import TlsFiles
from shared.channel import Payload, frames
from shared.codec import decode, encode
from shared.identity import DepartmentId
from shared.shelf import FETCH, ITEM_KEY, LIST, SERVICE, Item, deadline_s

_LOG = logging.getLogger(__name__)

CALLS = 256
CALLS_OF_A_MEMBER = 4
"""Calls in progress, of all and of one department; further ones are refused."""

_STATUS = {
    "not-on-shelf": grpc.StatusCode.NOT_FOUND,
    "shelf-changed": grpc.StatusCode.DATA_LOSS,
}


class Shelf:
    """Serves the shelf of one home.

    Args:
        home: the authority's home.
        address: host and port to listen on; port 0 takes any free one.
        tls: the authority's key, certificate and the city's CA certificate.
        deadline: how long a download of so many bytes may take, in seconds.

    Attributes:
        port: where it listens.

    Raises:
        SetupError: ``shelf-port`` when it cannot listen there.
    """

    def __init__(
        self, home: AuthorityHome, address: str, tls: TlsFiles, *, deadline: Callable[[int], float] = deadline_s
    ) -> None:
        self._home, self._deadline = home, deadline
        self._door = Door(
            name="shelf",
            port_code="shelf-port",
            member_of=LiveMembers(home).of,
            calls_each=CALLS_OF_A_MEMBER,
            status=_STATUS,
        )
        methods = {
            LIST: grpc.stream_stream_rpc_method_handler(self._list),
            FETCH: grpc.stream_stream_rpc_method_handler(self._fetch),
        }
        self._server, self.port = self._door.listen(address, tls, SERVICE, methods, calls=CALLS)

    def stop(self) -> None:
        """End the service; calls in progress are cut after a moment."""
        self._server.stop(grace=2.0).wait()

    def _list(self, _nothing: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        """Say what lies here; as in a fetch, nothing that the caller sends is read."""
        with self._door.served(context) as name:
            yield from self._sent(name, Payload.of(encode(shelf_listing(self._home, name))), context)

    def _fetch(self, _nothing: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        """Send one item."""
        with self._door.served(context) as name:
            item = decode(shown(context, ITEM_KEY), Item)
            with opened(self._home, item, name) as payload:
                _LOG.info("%s fetches %s %s", name, item.kind, item.name)
                yield from self._sent(name, payload, context)

    def _sent(self, name: DepartmentId, payload: Payload, context: grpc.ServicerContext) -> Iterator[bytes]:
        """Yield a transfer; whoever is removed meanwhile, or takes too long over it, does not get the rest."""
        timer = Timer(self._deadline(payload.length), self._cut, (name, context))
        timer.daemon = True
        timer.start()
        try:
            for frame in frames(0, payload):
                if self._door.caller(context) != name:
                    raise not_admitted()
                yield frame
        finally:
            timer.cancel()

    def _cut(self, name: DepartmentId, context: grpc.ServicerContext) -> None:
        """End a call whose thread waits for a reader that does not read."""
        _LOG.warning("the shelf refused %s: download-too-slow", name)
        context.cancel()


def run_shelf(home: AuthorityHome, *, stopped: Event) -> None:
    """Serve the shelf in this process until told to stop.

    Raises:
        ConfigError: the home is not a city's.
        ProtocolError: the server's certificate cannot be used today.
        SetupError: ``shelf-port``.
    """
    config = load_server(home)
    tls = load_server_tls(home, now=dt.datetime.now(dt.UTC))
    shelf = Shelf(home, config.listening(config.shelf), tls)
    stopped.wait()
    shelf.stop()
