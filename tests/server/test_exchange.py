"""One exchange: what is encoded, what counts as an answer, and for how long a reply is held."""

from __future__ import annotations

import tracemalloc
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from server.exchange import NO_ANSWER, encode_once, hand_over
from shared.codec import Encoded, encode
from shared.errors import ProtocolError
from shared.identity import DepartmentId, Signed
from shared.messages import CloseReply, CloseRound, ConfirmReply, Refusal
from shared.transport import Transport
from simulation.network import InMemoryTransport
from tests.city import FOUR, open_city

A, B, C = DepartmentId("a"), DepartmentId("b"), DepartmentId("c")
SIGNED, OTHER = Signed(body=b"body", signature=bytes(64)), Signed(body=b"other", signature=bytes(64))
REPLY_BYTES = 4 << 20


@dataclass
class Wordy:
    """Answers with a fresh reply of 4 MiB."""

    def handle(self, request: bytes) -> bytes:
        return request * REPLY_BYTES


def test_one_request_for_all_is_encoded_once_and_different_ones_are_not_mixed_up() -> None:
    one, other = CloseRound(closed=SIGNED), CloseRound(closed=OTHER)
    encoded = encode_once({"a": one, "b": one, "c": other})
    assert encoded[A] is encoded[B]
    assert encoded == {A: encode(one), B: encode(one), C: encode(other)}


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (encode(CloseReply(receipt=SIGNED)), None),
        (memoryview(encode(CloseReply(receipt=SIGNED))), None),
        (encode(ConfirmReply(confirmation=SIGNED)), NO_ANSWER),
        (encode(Refusal(status="refused")), "refused"),
        (b"\xc1", "message-malformed"),
        (memoryview(b"\xc1"), "message-malformed"),
    ],
    ids=["right", "view", "another kind", "refusal", "garbage", "view of garbage"],
)
def test_only_the_reply_that_was_asked_for_reaches_the_collector(raw: Encoded, status: str | None) -> None:
    received: list[CloseReply] = []
    assert hand_over(A, raw, CloseReply, lambda _name, reply: received.append(reply)) == status
    assert received == ([CloseReply(receipt=SIGNED)] if status is None else [])


def test_a_reply_that_the_collector_refuses_gives_its_reason() -> None:
    def refuse(_name: DepartmentId, _reply: CloseReply) -> None:
        raise ProtocolError("head-receipt-foreign", "Not this one.")

    assert hand_over(A, encode(CloseReply(receipt=SIGNED)), CloseReply, refuse) == "head-receipt-foreign"


def test_a_transport_holds_one_reply_at_a_time() -> None:
    transport = InMemoryTransport({name: Wordy().handle for name in (A, B, C)})
    replies = transport.exchange(dict.fromkeys((A, B, C), b"x"), timeout_s=5.0)
    tracemalloc.start()
    try:
        for _, reply in replies:
            assert len(reply) == REPLY_BYTES
            del reply
        highest = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert REPLY_BYTES <= highest < 1.5 * REPLY_BYTES


@dataclass
class Noisy:
    """Hands every reply over twice, and one that nobody asked for; watches who still holds the one before."""

    inner: Transport
    held: list[int] = field(default_factory=list)

    def exchange(
        self, requests: Mapping[DepartmentId, bytes], *, timeout_s: float
    ) -> Iterator[tuple[DepartmentId, Encoded]]:
        before: list[weakref.ref[memoryview]] = []
        for name, reply in self.inner.exchange(requests, timeout_s=timeout_s):
            for who in (name, name, DepartmentId("parks")):
                self.held.append(sum(view() is not None for view in before))
                view = memoryview(reply)
                before.append(weakref.ref(view))
                yield who, view
                del view


def test_the_coordinator_takes_one_reply_from_each_that_was_asked_and_lets_go_of_it(tmp_path: Path) -> None:
    with open_city(tmp_path / "noisy") as city:
        transport = Noisy(InMemoryTransport(city.peers))
        noisy = city.coordinator(transport).run(city.basis.initial)
        assert city.watcher.gone == []
    with open_city(tmp_path / "plain") as city:
        assert city.run().model.tobytes() == noisy.model.tobytes()
    assert len(transport.held) > 3 * 4 * len(FOUR)
    assert set(transport.held) == {0}
