"""What travels on the update channel: framed transfers, and every check on them.

Two methods carry everything. ``Attach`` is a department's standing stream on which requests come down; ``Answer``
takes one reply up. A transfer is one :class:`Start` that says its length up front, then :class:`Chunk` after
:class:`Chunk` in order. No sockets and no clock here: both ends drive the same checks.

A transfer has no digest of its own: TLS guards it on its way, and what it carries is bound by what is signed. A masked
vector has the digest and the length of its sender's signed receipt, and a model has the hash in the round's terms.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Annotated

import msgspec
from msgspec import Meta

from shared.codec import MAX_MESSAGE_BYTES, Encoded, Hash, Number, Record, Tagged, decode, encode
from shared.crypto.seal import ENVELOPE_OVERHEAD_BYTES
from shared.errors import ProtocolError
from shared.messages import UpdateRequest
from shared.plan import Plan
from shared.secagg.shamir import SHARE_BYTES

SERVICE = "cityfed.UpdateChannel"
ATTACH = "Attach"
ANSWER = "Answer"
ATTACHED = b""
"""First frame of a stream: the department was let in."""

TICKET_KEY = "cityfed-ticket-bin"
"""Key of the gRPC metadata under which every call names its session."""

CHUNK_BYTES = 1 << 18
"""Longest piece of a transfer; at most a few of them are in memory for each department."""

MAX_FRAME_BYTES = CHUNK_BYTES + 1024
"""Longest gRPC message that either end takes: a chunk and what stands around it."""

SESSION_BYTES = 16


class Ticket(Record, frozen=True, kw_only=True):
    """Names one session of one run; whoever attaches shows it.

    It is no secret and admits nobody: the certificate does. It keeps a call that was meant for another session out.
    """

    run: Hash
    session: Annotated[bytes, Meta(min_length=SESSION_BYTES, max_length=SESSION_BYTES)]


class Start(Tagged, frozen=True, kw_only=True):
    """A transfer begins; ``number`` is the request's in its session, and a reply repeats it."""

    number: Number
    length: Annotated[int, Meta(ge=1, le=MAX_MESSAGE_BYTES)]


class Chunk(Tagged, frozen=True, kw_only=True):
    """The next piece of the transfer ``number``; ``offset`` counts the bytes before it."""

    number: Number
    offset: Number
    data: memoryview


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one session takes up.

    Attributes:
        update_bytes: longest reply to an update request.
        other_bytes: longest reply to any other request.
        grace_s: time that an upload may take on top of what the slowest rate explains, in seconds.
        min_bytes_per_s: slowest rate of an upload; with the length it fixes the upload's deadline.
    """

    update_bytes: int
    other_bytes: int
    grace_s: float = 20.0
    min_bytes_per_s: float = 64 * 1024.0

    def __post_init__(self) -> None:
        if not (0 < self.other_bytes <= self.update_bytes <= MAX_MESSAGE_BYTES):
            raise ValueError("`other_bytes` lies above 0, `update_bytes` from there to the longest message")
        if not (self.grace_s > 0 and self.min_bytes_per_s > 0):
            raise ValueError("`grace_s` and `min_bytes_per_s` are above 0")

    def reply_bytes(self, request: bytes) -> int:
        """Return the longest reply to a request that this authority encoded itself."""
        return self.update_bytes if _kind(request) == UpdateRequest.__name__ else self.other_bytes

    def late(self, received: int, elapsed_s: float) -> bool:
        """Say whether an upload is behind the slowest rate; both totals count from its first byte on."""
        return elapsed_s > self.grace_s + received / self.min_bytes_per_s


def limits_of(plan: Plan) -> Limits:
    """Return the limits of a plan's session: four bytes a coordinate, and what a cohort of its size signs and seals."""
    n = len(plan.cohort)
    # Envelopes and reveals hold a share for each pair of departments; receipts and names are a few hundred bytes each.
    other = 65_536 + n * (1_024 + ENVELOPE_OVERHEAD_BYTES + 2 * n * (SHARE_BYTES + 64))
    return Limits(update_bytes=4 * plan.layout.total_size + other, other_bytes=other)


def largest_request(plan: Plan) -> int:
    """Return the longest request that a department of this plan has to take: the model, seals or envelopes of all."""
    n = len(plan.cohort)
    # A request repeats what each of the n departments sent, and carries the signed plan and roster.
    return 4 * plan.layout.size + (1 << 23) + n * (1_024 + 2 * n * (SHARE_BYTES + 1_200))


@dataclass(frozen=True)
class Payload:
    """Something to be sent, to however many departments.

    Attributes:
        length: bytes.
        read: returns the bytes from an offset on, as many as asked for or as there are.
    """

    length: int
    read: Callable[[int, int], Encoded] = field(repr=False)

    @classmethod
    def of(cls, data: Encoded) -> Payload:
        """Describe bytes in memory."""
        view = memoryview(data)
        return cls(len(view), lambda offset, size: view[offset : offset + size])


def frames(number: int, payload: Payload) -> Iterator[bytes]:
    """Yield a transfer as encoded frames, one chunk in memory at a time."""
    yield encode(Start(number=number, length=payload.length))
    for offset in range(0, payload.length, CHUNK_BYTES):
        data = memoryview(payload.read(offset, CHUNK_BYTES))
        yield encode(Chunk(number=number, offset=offset, data=data))


def read_start(raw: bytes, *, max_bytes: int, number: int | None = None) -> Start:
    """Decode the frame that a transfer begins with; nothing has been set aside for the transfer yet.

    Args:
        raw: the frame.
        max_bytes: longest transfer that is taken.
        number: the number that it must have, where that is known.

    Raises:
        ProtocolError: ``message-too-large``, ``message-malformed``, ``reply-late``, ``transfer-foreign``,
            ``transfer-too-large``.
    """
    start = decode(raw, Start, max_bytes=MAX_FRAME_BYTES)
    if number is not None and start.number < number:
        raise ProtocolError("reply-late", "A reply belongs to an older request than the one that is open.")
    if number is not None and start.number > number:
        raise ProtocolError("transfer-foreign", "A reply belongs to a request that was never made.")
    if start.length > max_bytes:
        raise ProtocolError("transfer-too-large", f"A transfer was announced that is longer than {max_bytes} bytes.")
    return start


class Incoming:
    """One transfer as it comes in.

    Args:
        start: its first frame.
        write: takes the bytes of each chunk, in order; a chunk that fails a check never reaches it.

    Attributes:
        received: bytes so far.

    Guarantees:
        Once :meth:`finish` has returned, ``write`` got as many bytes as were announced, in order, and never more.
    """

    def __init__(self, start: Start, write: Callable[[memoryview], object]) -> None:
        self.start = start
        self.received = 0
        self._write = write

    @property
    def complete(self) -> bool:
        """Whether all announced bytes are here."""
        return self.received == self.start.length

    def take(self, raw: bytes) -> None:
        """Take the next frame.

        Raises:
            ProtocolError: ``message-too-large``, ``message-malformed``, ``chunk-foreign``, ``chunk-out-of-order``,
                ``chunk-length``, ``transfer-overrun``.
        """
        chunk = decode(raw, Chunk, max_bytes=MAX_FRAME_BYTES)
        if chunk.number != self.start.number:
            raise ProtocolError("chunk-foreign", "A chunk belongs to another transfer than the one in progress.")
        if chunk.offset != self.received:
            raise ProtocolError("chunk-out-of-order", f"A chunk does not follow after {self.received} bytes.")
        if not 1 <= len(chunk.data) <= CHUNK_BYTES:
            raise ProtocolError("chunk-length", f"A chunk holds from 1 to {CHUNK_BYTES} bytes.")
        if self.received + len(chunk.data) > self.start.length:
            raise ProtocolError("transfer-overrun", f"A transfer goes on after its {self.start.length} bytes.")
        self._write(chunk.data)
        self.received += len(chunk.data)

    def finish(self) -> None:
        """Check that the transfer is whole.

        Raises:
            ProtocolError: ``transfer-unfinished``.
        """
        if not self.complete:
            raise ProtocolError("transfer-unfinished", f"A transfer ended before its {self.start.length} bytes.")


class _Kind(msgspec.Struct):
    """The tag of a message; the decoder skips the fields beside it without making anything of them."""

    type: str


def _kind(message: bytes) -> str:
    """Return a message's tag, or nothing: whatever has no tag gets the small limit."""
    try:
        return msgspec.msgpack.decode(message, type=_Kind).type
    except msgspec.DecodeError:
        return ""
