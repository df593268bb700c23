"""The authority's memory does not grow with the number of departments that upload at a time."""

from __future__ import annotations

import multiprocessing
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from server.update_channel import UpdateChannel
from shared.certificates import TlsFiles
from shared.channel import Limits
from shared.identity import DepartmentId
from tests.channel_city import HOST, NAMES, RUN, ChannelCity, server_files

SIZE = 25_000_000
MIB = 1 << 20
BUFFERS_MIB = 30
"""A window of 2 MiB and a few chunks for each department, and what the allocator keeps of them."""


def memory_mib(what: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{what}:")) / 1024


def be_the_authority(parent: Connection, tls: TlsFiles, members: Mapping[bytes, DepartmentId]) -> None:
    """Send a model to everybody, add up what comes back, and tell by how much memory grew at its peak."""
    channel = UpdateChannel(f"{HOST}:0", tls, member_of=members.get, members=len(members))
    parent.send((channel.port, channel.open_session(RUN, Limits(update_bytes=SIZE, other_bytes=SIZE))))
    for _ in channel.exchange(dict.fromkeys(members.values(), b"x"), timeout_s=60):
        pass
    idle = memory_mib("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    total = np.zeros(SIZE, dtype=np.uint8)
    for _, reply in channel.exchange(dict.fromkeys(members.values(), bytes([1]) * SIZE), timeout_s=60):
        total += np.frombuffer(reply, dtype=np.uint8)
        del reply
    parent.send((bool((total == len(members)).all()), memory_mib("VmHWM") - idle))
    channel.stop()


def test_the_authority_holds_one_sum_one_model_and_one_upload_at_a_time() -> None:
    city = ChannelCity()
    for name in NAMES:
        city.admit(name)
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    args = (theirs, server_files(city.authority), city.members)
    authority = context.Process(target=be_the_authority, args=args, daemon=True)
    authority.start()
    assert ours.poll(60)
    port, ticket = ours.recv()
    served = [city.serve(name, ticket, lambda data: data, address=f"{HOST}:{port}") for name in NAMES]
    assert ours.poll(60)
    correct, growth_mib = ours.recv()
    authority.join(60)
    assert [item.left() for item in served] == [""] * len(NAMES)
    assert correct
    assert growth_mib < 3 * SIZE / MIB + BUFFERS_MIB  # four uploads in memory would be 5 or 6 times SIZE
