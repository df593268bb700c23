"""A member that opens calls and takes nothing of what it is sent, in HTTP/2 by hand: it keeps its own places only."""

from __future__ import annotations

import base64
import os
import socket
import ssl
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc
import pytest

from server.update_channel import CALLS_EACH
from shared.channel import ATTACH, ATTACHED, SERVICE, TICKET_KEY, Ticket
from shared.codec import encode
from shared.identity import DepartmentId
from tests.channel_city import HOST, NAMES, RUN, SMALL, ChannelCity, attach, open_channel, raw_channel

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS, HEADERS, INITIAL_WINDOW_SIZE, END_HEADERS = 4, 1, 4, 4
POLICE = DepartmentId("police")


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def literal(name: str, value: bytes) -> bytes:
    """One header field, not compressed."""
    assert len(name) < 127 > len(value)
    return b"\x00" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value


def attach_head(ticket: Ticket) -> bytes:
    fields = {
        ":method": b"POST",
        ":scheme": b"https",
        ":path": f"/{SERVICE}/{ATTACH}".encode(),
        ":authority": b"city",
        "content-type": b"application/grpc",
        "te": b"trailers",
        TICKET_KEY: base64.b64encode(encode(ticket)).rstrip(b"="),
    }
    return b"".join(literal(name, value) for name, value in fields.items())


@contextmanager
def deaf_connection(city: ChannelCity, folder: Path, ticket: Ticket, *, streams: int) -> Iterator[None]:
    """A connection of the police department's whose windows stay shut, with some streams."""
    files = city.files["police"]
    for name, content in (("certificate", files.certificate), ("key", files.key)):
        (folder / name).write_bytes(content)
    context = ssl.create_default_context(cadata=files.authority.decode())
    context.check_hostname = False
    context.load_cert_chain(folder / "certificate", folder / "key")
    context.set_alpn_protocols(["h2"])
    shut = frame(SETTINGS, 0, 0, struct.pack(">HI", INITIAL_WINDOW_SIZE, 0))
    with (
        socket.create_connection((HOST, city.channel.port)) as plain,
        context.wrap_socket(plain, server_hostname=HOST) as connection,
    ):
        connection.sendall(PREFACE + shut)
        head = attach_head(ticket)
        connection.sendall(b"".join(frame(HEADERS, END_HEADERS, 1 + 2 * number, head) for number in range(streams)))
        yield


def let_in(city: ChannelCity, name: str, ticket: Ticket) -> bool:
    """Attach as anybody would, and again for some seconds if it is refused."""
    deadline = time.monotonic() + 20
    with raw_channel(city, city.files[name]) as channel:
        while time.monotonic() < deadline:
            try:
                return next(attach(channel, ticket)) == ATTACHED
            except grpc.RpcError:
                continue
    return False


@pytest.mark.parametrize("streams", [1, 8])
def test_calls_whose_caller_takes_nothing_leave_room_for_everybody(tmp_path: Path, streams: int) -> None:
    with open_channel(NAMES) as city, ExitStack() as stack:
        ticket = city.channel.open_session(RUN, SMALL)
        for _ in range(24 // streams):
            stack.enter_context(deaf_connection(city, tmp_path, ticket, streams=streams))
        deadline = time.monotonic() + 20
        while POLICE not in city.channel.status() and time.monotonic() < deadline:
            os.sched_yield()
        assert all(let_in(city, name, ticket) for name in NAMES), "the police department's own worker as well"
        assert 0 <= city.channel._door._calls[POLICE] <= CALLS_EACH
