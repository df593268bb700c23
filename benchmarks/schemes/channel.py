"""CityFed's update channel with every end in a process of its own: mutual TLS, spool files, the ring sum."""

from __future__ import annotations

import datetime as dt
import multiprocessing
import statistics
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection

import numpy as np
from schemes.processes import DeploymentRow, forget_peak, memory_mib

from clients.update_channel import Stop, serve_channel
from server.ca import CertificateAuthority, found_authority
from server.update_channel import UpdateChannel
from shared.certificates import TlsFiles, TlsKey, certificate_digest, certificate_pem, load_certificate
from shared.channel import Limits, Ticket
from shared.codec import decode, encode
from shared.crypto.stream import RING_DTYPE
from shared.identity import DepartmentId, Signed
from shared.messages import MaskedUpdate, UpdateRequest, decode_reply, decode_request
from shared.parameters import vector_to_bytes
from shared.secagg.masking import add_hashed
from shared.secagg.ring import RingVector

HOST = "127.0.0.1"
NAMES = tuple(DepartmentId(name) for name in ("environment", "health", "police", "transport"))
RUN = bytes(32)
NO_SIGNATURE = Signed(body=b"", signature=bytes(64))
SLACK_BYTES = 65_536
WAIT_S = 300.0


def row(*, size: int, rounds: int) -> DeploymentRow:
    """Send a model of ``size`` float32 to four departments, get it back as masked vectors and add them up."""
    context = multiprocessing.get_context("spawn")
    now = dt.datetime.now(dt.UTC)
    authority = found_authority("benchmark", TlsKey.generate(), [HOST], now=now)
    files = {name: _files(authority, name, now=now) for name in NAMES}
    members = {certificate_digest(load_certificate(item.certificate, where=name)): name for name, item in files.items()}
    ours, theirs = context.Pipe()
    server = context.Process(target=_authority, args=(theirs, _files(authority, None, now=now), members, size, rounds))
    server.start()
    port, ticket = ours.recv()
    departments = [
        context.Process(target=_department, args=(f"{HOST}:{port}", files[name], ticket, size)) for name in NAMES
    ]
    for process in departments:
        process.start()
    seconds, growth = ours.recv()
    for process in [*departments, server]:
        process.join(WAIT_S)
    return DeploymentRow(
        system="cityfed-channel",
        case=f"{4 * size // 1_000_000}MB",
        departments=len(NAMES),
        rounds=rounds,
        round_overhead_s=statistics.median(seconds),
        mb_per_s=2 * len(NAMES) * 4 * size / 1e6 / statistics.median(seconds),
        server_growth_mib=growth,
    )


def _files(authority: CertificateAuthority, name: str | None, *, now: dt.datetime) -> TlsFiles:
    """Make a key and have it certified, as a department's or as the server's."""
    key = TlsKey.generate()
    public = key.private.public_key()
    certificate = (
        authority.issue_member(public, name, now=now) if name else authority.issue_server(public, [HOST], now=now)
    )
    return TlsFiles(key.pem(), certificate_pem(certificate), certificate_pem(authority.certificate))


def _authority(parent: Connection, tls: TlsFiles, members: dict[bytes, DepartmentId], size: int, rounds: int) -> None:
    """Be the authority's process: serve, measure, report."""
    channel = UpdateChannel(f"{HOST}:0", tls, member_of=members.get, members=len(members))
    ticket = channel.open_session(RUN, Limits(update_bytes=4 * size + SLACK_BYTES, other_bytes=SLACK_BYTES))
    parent.send((channel.port, encode(ticket)))
    _round(channel, np.ones(1, dtype=np.float32), np.empty(1, dtype=RING_DTYPE))  # everybody is there
    idle = memory_mib("VmRSS")
    forget_peak()
    model = np.random.default_rng(1).standard_normal(size, dtype=np.float32)
    total = np.empty(size, dtype=RING_DTYPE)
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        _round(channel, model, total)
        seconds.append(time.perf_counter() - start)
    if not np.array_equal(total, model.view(RING_DTYPE) * len(NAMES)):
        raise RuntimeError("the sum is not the sum")
    parent.send((seconds, memory_mib("VmHWM") - idle))
    channel.stop()


def _round(channel: UpdateChannel, model: np.ndarray, total: RingVector) -> None:
    """Ask everybody for an update and add each to the sum as it comes in."""
    replies = channel.exchange(dict.fromkeys(NAMES, _request(model)), timeout_s=WAIT_S)
    taken = 0
    for _, raw in replies:
        reply = decode_reply(raw)
        if not isinstance(reply, MaskedUpdate) or add_hashed(total, reply.words, first=not taken) != reply.sid:
            raise RuntimeError("a reply is not an update")
        taken += 1
        del raw, reply
    if taken != len(NAMES):
        raise RuntimeError("a department is missing")


def _request(model: np.ndarray) -> bytes:
    """Encode the request of a round."""
    vector = vector_to_bytes(model)
    return encode(UpdateRequest(run=RUN, epoch=1, round=1, participants=NAMES, model=vector, seals={}))


def _department(address: str, tls: TlsFiles, ticket: bytes, size: int) -> None:
    """Be a department's process: send the model back as if it were a masked vector."""
    serve_channel(
        address,
        tls,
        _answer,
        leaving=lambda reply: reply,
        ticket=decode(ticket, Ticket),
        max_request_bytes=4 * size + SLACK_BYTES,
        stop=Stop(),
    )


def _answer(request: bytes) -> bytes:
    """Echo; the digest that a receipt would sign travels in the place of the round's name."""
    message = decode_request(request)
    if not isinstance(message, UpdateRequest):
        raise TypeError("only updates are asked for")
    words = message.model
    digest = add_hashed(np.empty(len(words) // 4, dtype=RING_DTYPE), words, first=True)
    return encode(MaskedUpdate(sid=digest, words=words, envelopes={}, receipt=NO_SIGNATURE))


def rows(sizes: Sequence[int], *, rounds: int) -> list[DeploymentRow]:
    """Measure every size."""
    return [row(size=size, rounds=rounds) for size in sizes]
