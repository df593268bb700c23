"""The in-memory network: the production Transport with faults that a scenario can switch on.

A participant is a function from request bytes to reply bytes, exactly what a Flower node or a gRPC peer
calls, so nothing below this file knows that it is simulated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from shared.codec import Record
from shared.identity import DepartmentId
from shared.messages import (
    CloseRound,
    ConfirmRequest,
    OpenEpoch,
    RevealRequest,
    SealRequest,
    UpdateRequest,
    decode_request,
)

Step = Literal["advert", "seal", "update", "confirm", "reveal", "close"]
FaultKind = Literal["drop-request", "drop-reply", "duplicate", "corrupt"]

STEP_OF: Mapping[type, Step] = {
    OpenEpoch: "advert",
    SealRequest: "seal",
    UpdateRequest: "update",
    ConfirmRequest: "confirm",
    RevealRequest: "reveal",
    CloseRound: "close",
}


class Fault(Record, frozen=True, kw_only=True):
    """One planned fault of the network.

    Attributes:
        department: whom it hits.
        step: which message; an ``advert`` or ``seal`` belongs to the round that is about to begin.
        kind: what happens to it.
        round: first round in which it happens, starting at 1.
        until: last round in which it happens; 0 means it stays.
    """

    department: str
    step: Step = "update"
    kind: FaultKind = "drop-request"
    round: int = 1
    until: int = 0

    def __post_init__(self) -> None:
        if self.round < 1 or (self.until and self.until < self.round):
            raise ValueError("`round` is at least 1 and `until` is 0 or not before `round`")


@dataclass
class InMemoryTransport:
    """Delivers requests one department after the other; counts what each department sent.

    Attributes:
        peers: reply function per department.
        faults: planned faults.
        sent_bytes: bytes that left each department so far.
        sent_messages: replies that left each department so far.
        hit: positions in ``faults`` of those that hit a message so far.
    """

    peers: Mapping[DepartmentId, Callable[[bytes], bytes]]
    faults: tuple[Fault, ...] = ()
    sent_bytes: dict[DepartmentId, int] = field(default_factory=dict)
    sent_messages: dict[DepartmentId, int] = field(default_factory=dict)
    hit: set[int] = field(default_factory=set)
    _round: int = 1
    _next: int = 1
    _opened: tuple[int, frozenset[str]] = (0, frozenset())

    def exchange(
        self,
        requests: Mapping[DepartmentId, bytes],
        *,
        timeout_s: float,  # noqa: ARG002 - nobody is late here; delays are drops
    ) -> Iterator[tuple[DepartmentId, bytes]]:
        """Deliver and answer; see :class:`shared.transport.Transport`."""
        for name, request in requests.items():
            reply = self._deliver(name, request)
            if reply is not None:
                yield name, reply
            del reply  # not held while the next department works

    def _deliver(self, name: DepartmentId, request: bytes) -> bytes | None:
        """Carry one request, with the faults planned for it."""
        kinds = self._faults_for(name, request)
        if "drop-request" in kinds:
            return None
        reply = self._reply(name, request)
        if "duplicate" in kinds:
            reply = self._reply(name, request)
        if "drop-reply" in kinds:
            return None
        if "corrupt" in kinds:
            middle = len(reply) // 2
            return reply[:middle] + bytes([reply[middle] ^ 1]) + reply[middle + 1 :]
        return reply

    def _reply(self, name: DepartmentId, request: bytes) -> bytes:
        """Let a department answer, and count what left it, whatever becomes of it on the way."""
        reply = self.peers[name](request)
        self.sent_bytes[name] = self.sent_bytes.get(name, 0) + len(reply)
        self.sent_messages[name] = self.sent_messages.get(name, 0) + 1
        return reply

    def _faults_for(self, name: DepartmentId, request: bytes) -> set[FaultKind]:
        """Return the kinds of fault that hit this request."""
        if not self.faults:
            return set()
        message = decode_request(request)
        if isinstance(message, UpdateRequest):
            self._round, self._next, self._opened = message.round, message.round + 1, (0, frozenset())
        elif isinstance(message, OpenEpoch):
            self._see_epoch(message.epoch, frozenset(message.cohort))
        step = STEP_OF[type(message)]
        number = self._round if step in ("update", "confirm", "reveal", "close") else self._next
        hitting = {
            position: fault.kind
            for position, fault in enumerate(self.faults)
            if fault.department == name
            and fault.step == step
            and fault.round <= number
            and (not fault.until or number <= fault.until)
        }
        self.hit |= hitting.keys()
        return set(hitting.values())

    def _see_epoch(self, epoch: int, cohort: frozenset[str]) -> None:
        """Notice that a round ended before its update: within a round every further epoch has a smaller cohort."""
        before, asked = self._opened
        if asked and epoch != before and not cohort < asked:
            self._next += 1
        self._opened = epoch, cohort
