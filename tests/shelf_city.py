"""A city on disk with its shelf listening on loopback, and raw callers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc

from clients.config import load_config, load_tls
from server.city import load_server_tls
from server.shelf import Shelf
from shared.certificates import TlsFiles
from shared.channel import Incoming, read_start
from shared.codec import encode
from shared.shelf import FETCH, ITEM_KEY, SERVICE, Item, deadline_s
from tests.deployed_city import DeployedCity, now

MEMBER = "police"


@dataclass(frozen=True)
class ShelfCity:
    """Where it listens, and what lies behind it."""

    city: DeployedCity
    address: str

    @property
    def config(self) -> Path:
        """A member's configuration."""
        return self.city.config(MEMBER)

    def files(self, name: str = MEMBER) -> TlsFiles:
        """What a department shows."""
        config = self.city.config(name)
        return load_tls(config, load_config(config), now=now())

    def roots(self) -> bytes:
        """The city's CA."""
        return self.city.authority.ca_certificate.read_bytes()


@contextmanager
def open_shelf_of(city: DeployedCity, deadline: Callable[[int], float] = deadline_s) -> Iterator[ShelfCity]:
    """Serve the shelf of a city, whose departments are told where it is."""
    tls = load_server_tls(city.authority, now=now())
    shelf = Shelf(city.authority, "127.0.0.1:0", tls, deadline=deadline)
    address = f"127.0.0.1:{shelf.port}"
    try:
        for name in city.names:
            city.edit_config(name, shelf=address)
        yield ShelfCity(city, address)
    finally:
        shelf.stop()


@contextmanager
def raw_caller(address: str, roots: bytes, files: TlsFiles | None) -> Iterator[grpc.Channel]:
    """A caller that does what it likes."""
    shown = (roots, files.key, files.certificate) if files else (roots,)
    # What is not read stays with the sender: a probed window may grow until a whole item is in it.
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.http2.bdp_probe", 0)]
    with grpc.secure_channel(address, grpc.ssl_channel_credentials(*shown), options=options) as channel:
        yield channel


def ask(channel: grpc.Channel, item: Item | bytes, *, method: str = FETCH) -> grpc.Call:
    """Begin a call for an item, or for whatever bytes."""
    named = item if isinstance(item, bytes) else encode(item)
    call = channel.stream_stream(f"/{SERVICE}/{method}")
    return call(iter(()), metadata=((ITEM_KEY, named),), timeout=20)


def take(channel: grpc.Channel, item: Item | bytes, *, method: str = FETCH) -> bytes:
    """Take one item, whatever it is."""
    call, content = ask(channel, item, method=method), bytearray()
    transfer = Incoming(read_start(next(call), number=0, max_bytes=1 << 30), content.extend)
    for raw in call:
        transfer.take(raw)
    transfer.finish()
    return bytes(content)
