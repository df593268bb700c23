"""The in-memory network: faults hit whom, what and when they name, and nothing else."""

from __future__ import annotations

import pytest

from shared.codec import encode
from shared.identity import DepartmentId, Signed
from shared.messages import (
    CloseRound,
    ConfirmRequest,
    OpenEpoch,
    Request,
    RevealRequest,
    SealRequest,
    UpdateRequest,
)
from simulation.network import STEP_OF, Fault, InMemoryTransport

A, B = DepartmentId("a"), DepartmentId("b")
SIGNED = Signed(body=b"", signature=bytes(64))
REPLY = b"0123456789"


def update(number: int) -> UpdateRequest:
    return UpdateRequest(run=bytes(32), epoch=1, round=number, participants=("a", "b"), model=memoryview(b""), seals={})


def requests_of(number: int) -> dict[str, Request]:
    run, sid, both = bytes(32), bytes(32), ("a", "b")
    return {
        "advert": OpenEpoch(run=run, epoch=number, cohort=both, plan=SIGNED, roster=SIGNED),
        "seal": SealRequest(run=run, epoch=number, adverts={}),
        "update": update(number),
        "confirm": ConfirmRequest(run=run, round=number, sid=sid, survivors=both),
        "reveal": RevealRequest(
            run=run, round=number, sid=sid, survivors=both, receipts={}, confirmations={}, envelopes={}
        ),
        "close": CloseRound(closed=SIGNED),
    }


class Peer:
    """Counts what reached it."""

    def __init__(self) -> None:
        self.requests: list[bytes] = []

    def __call__(self, request: bytes) -> bytes:
        self.requests.append(request)
        return REPLY


def network(*faults: Fault) -> tuple[InMemoryTransport, dict[DepartmentId, Peer]]:
    peers = {A: Peer(), B: Peer()}
    return InMemoryTransport(peers, faults), peers


def send(transport: InMemoryTransport, message: Request) -> dict[DepartmentId, bytes]:
    return dict(transport.exchange(dict.fromkeys((A, B), encode(message)), timeout_s=1.0))


def test_without_faults_everything_arrives_and_is_counted() -> None:
    transport, peers = network()
    for message in requests_of(1).values():
        assert send(transport, message) == {A: REPLY, B: REPLY}
    assert transport.sent_bytes == {A: 60, B: 60}
    assert transport.sent_messages == {A: 6, B: 6}
    assert len(peers[A].requests) == 6


@pytest.mark.parametrize("step", STEP_OF.values())
def test_a_dropped_request_never_reaches_its_department_and_the_others_get_theirs(step: str) -> None:
    transport, peers = network(Fault(department="a", step=step))  # type: ignore[arg-type]  # the steps of the table
    for name, message in requests_of(1).items():
        assert send(transport, message) == ({B: REPLY} if name == step else {A: REPLY, B: REPLY})
    assert len(peers[A].requests) == 5


def test_a_dropped_reply_was_sent_and_counts_as_sent() -> None:
    transport, peers = network(Fault(department="a", kind="drop-reply"))
    assert send(transport, update(1)) == {B: REPLY}
    assert len(peers[A].requests) == 1
    assert transport.sent_bytes[A] == 10


def test_a_duplicate_reaches_its_department_twice() -> None:
    transport, peers = network(Fault(department="a", kind="duplicate"))
    assert send(transport, update(1)) == {A: REPLY, B: REPLY}
    assert peers[A].requests == [encode(update(1))] * 2
    assert (transport.sent_messages, transport.sent_bytes) == ({A: 2, B: 1}, {A: 2 * len(REPLY), B: len(REPLY)})


def test_a_corrupt_reply_differs_in_one_bit() -> None:
    transport, _ = network(Fault(department="a", kind="corrupt"))
    (changed,) = (one ^ other for one, other in zip(send(transport, update(1))[A], REPLY, strict=True) if one != other)
    assert changed == 1


def test_a_fault_lasts_from_its_first_to_its_last_round() -> None:
    transport, _ = network(Fault(department="a", round=2, until=3))
    answered = [A in send(transport, update(number)) for number in (1, 2, 3, 4)]
    assert answered == [True, False, False, True]
    assert transport.hit == {0}


def test_a_fault_without_an_end_stays() -> None:
    transport, _ = network(Fault(department="a", round=2))
    assert [A in send(transport, update(number)) for number in (1, 2, 9)] == [True, False, False]


def test_an_advert_belongs_to_the_round_that_is_about_to_begin() -> None:
    transport, _ = network(Fault(department="a", step="advert", round=2, until=2))
    advert = requests_of(1)["advert"]
    assert A in send(transport, advert)
    send(transport, update(1))
    assert A not in send(transport, advert)
    send(transport, update(2))
    assert A in send(transport, advert)


def test_a_confirmation_belongs_to_the_round_in_progress() -> None:
    transport, _ = network(Fault(department="a", step="confirm", round=2, until=2))
    for number, heard in ((1, True), (2, False), (3, True)):
        send(transport, update(number))
        assert (A in send(transport, requests_of(number)["confirm"])) is heard
