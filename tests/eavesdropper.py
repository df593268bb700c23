"""Hears every request and reply between a coordinator and its departments."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from shared.identity import DepartmentId
from shared.messages import MaskedUpdate, Reply, Request, UpdateRequest, decode_reply, decode_request

Peers = Mapping[DepartmentId, Callable[[bytes], bytes]]


@dataclass(frozen=True)
class Exchange:
    """One request and the answer to it."""

    department: DepartmentId
    request: bytes
    reply: bytes

    @property
    def asked(self) -> Request:
        return decode_request(self.request)

    @property
    def answered(self) -> Reply:
        return decode_reply(self.reply)


@dataclass(frozen=True)
class SentUpdate:
    """One department's masked update."""

    department: DepartmentId
    answered: MaskedUpdate


@dataclass
class Eavesdropper:
    """Wraps front doors and remembers what went through them."""

    heard: list[Exchange] = field(default_factory=list)

    def listen(self, peers: Peers) -> dict[DepartmentId, Callable[[bytes], bytes]]:
        return {name: self._wrap(name, peer) for name, peer in peers.items()}

    def _wrap(self, name: DepartmentId, peer: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
        def answer(request: bytes) -> bytes:
            reply = peer(request)
            self.heard.append(Exchange(name, request, reply))
            return reply

        return answer

    def updates(self, round_number: int) -> list[SentUpdate]:
        """Every update of a round, in the order of departments."""
        return [
            SentUpdate(item.department, item.answered)
            for item in self.heard
            if isinstance(item.asked, UpdateRequest)
            and isinstance(item.answered, MaskedUpdate)
            and item.asked.round == round_number
        ]

    def first(self, kind: type, department: str = "police") -> Exchange:
        """The first exchange with a department whose request is of a kind."""
        return next(item for item in self.heard if item.department == department and isinstance(item.asked, kind))
