"""Frames of the update channel: what arrives is what was sent, or it is refused by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.channel import (
    CHUNK_BYTES,
    MAX_FRAME_BYTES,
    Chunk,
    Incoming,
    Limits,
    Payload,
    Start,
    frames,
    largest_request,
    limits_of,
    read_start,
)
from shared.codec import encode
from shared.errors import ProtocolError
from shared.messages import UpdateRequest
from tests.server.small_plan import plan_with

DATA = bytes(range(256)) * 20
LIMITS = Limits(update_bytes=1000, other_bytes=100, grace_s=2.0, min_bytes_per_s=10.0)


def receive(sent: Iterable[bytes], *, max_bytes: int = 1 << 24) -> bytes:
    first, *rest = sent
    parts: list[bytes] = []
    transfer = Incoming(read_start(first, max_bytes=max_bytes, number=7), lambda view: parts.append(bytes(view)))
    for frame in rest:
        transfer.take(frame)
    transfer.finish()
    return b"".join(parts)


def pieces(*cuts: tuple[int, int, int], number: int = 7) -> list[bytes]:
    """A start for DATA and the chunks (number, offset, length) of it."""
    start = encode(Start(number=number, length=len(DATA)))
    return [start, *(encode(Chunk(number=n, offset=at, data=memoryview(DATA)[at : at + m])) for n, at, m in cuts)]


@given(st.binary(min_size=1, max_size=3000), st.integers(0, 2))
def test_a_transfer_arrives_whole(data: bytes, megabytes: int) -> None:
    data = data + bytes(megabytes * CHUNK_BYTES)
    sent = list(frames(7, Payload.of(data)))
    assert receive(sent) == data
    assert max(map(len, sent)) <= MAX_FRAME_BYTES


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (lambda: pieces((7, 0, 5000)), "transfer-unfinished"),
        (lambda: pieces((7, 0, 5120), (7, 0, 5120)), "chunk-out-of-order"),
        (lambda: pieces((7, 0, 2000), (7, 0, 2000)), "chunk-out-of-order"),
        (lambda: pieces((7, 2000, 2000), (7, 0, 2000)), "chunk-out-of-order"),
        (lambda: pieces((7, 0, 2000), (6, 2000, 3120)), "chunk-foreign"),
        (lambda: pieces((7, 0, 0)), "chunk-length"),
        (lambda: [*pieces(), encode(Chunk(number=7, offset=0, data=memoryview(bytes(CHUNK_BYTES + 1))))], "chunk-length"),
        (lambda: [*pieces((7, 0, 5120)), encode(Chunk(number=7, offset=5120, data=memoryview(b"x")))], "transfer-overrun"),
        (lambda: [*pieces(), *pieces()], "message-malformed"),
        (lambda: [*pieces(), bytes(MAX_FRAME_BYTES + 1)], "message-too-large"),
        (lambda: pieces(number=6), "reply-late"),
        (lambda: pieces(number=8), "transfer-foreign"),
        (lambda: [b"", *pieces()], "message-malformed"),
    ],
)  # fmt: skip
def test_whatever_is_not_the_announced_transfer_is_refused_by_name(sent: Callable[[], list[bytes]], code: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        receive(sent())
    assert caught.value.code == code


def test_a_long_transfer_is_refused_by_its_announcement() -> None:
    first, *_ = frames(7, Payload.of(DATA))
    assert read_start(first, max_bytes=len(DATA)).length == len(DATA)
    with pytest.raises(ProtocolError) as caught:
        read_start(first, max_bytes=len(DATA) - 1)
    assert caught.value.code == "transfer-too-large"


@pytest.mark.parametrize("length", [0, -1, 1 << 31])
def test_a_start_says_a_length_that_some_message_can_have(length: int) -> None:
    with pytest.raises(ProtocolError) as caught:
        read_start(encode(Start(number=7, length=length)), max_bytes=1 << 40)
    assert caught.value.code == "message-malformed"


def test_nothing_is_written_of_a_chunk_that_is_refused() -> None:
    first, second = pieces((7, 100, 100))
    transfer = Incoming(read_start(first, max_bytes=1 << 20), lambda _: pytest.fail("written"))
    with pytest.raises(ProtocolError):
        transfer.take(second)


@given(st.integers(0, 10_000), st.floats(0, 5_000))
def test_an_upload_is_late_exactly_below_the_slowest_rate(received: int, elapsed_s: float) -> None:
    assert LIMITS.late(received, elapsed_s) == (elapsed_s > 2.0 + received / 10.0)


def test_only_an_update_may_be_as_long_as_the_model() -> None:
    request = UpdateRequest(
        run=bytes(32), epoch=1, round=1, participants=("a",), model=memoryview(bytes(4000)), seals={}
    )
    assert LIMITS.reply_bytes(encode(request)) == 1000
    for other in (b"", b"\xc1", b"\x80", encode(Start(number=1, length=1))):
        assert LIMITS.reply_bytes(other) == 100


@pytest.mark.parametrize(
    "wrong", [{"update_bytes": 99}, {"other_bytes": 0}, {"grace_s": 0.0}, {"min_bytes_per_s": 0.0}]
)
def test_limits_that_let_nothing_through_are_a_mistake(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError):
        Limits(**{"update_bytes": 1000, "other_bytes": 100, **wrong})  # type: ignore[arg-type]  # checked at run time


def test_the_limits_of_a_plan_hold_its_messages_and_little_more() -> None:
    plan = plan_with(dict.fromkeys("abcd", 1.0))
    limits = limits_of(plan)
    vector = 4 * plan.layout.total_size
    assert vector + 2048 < limits.update_bytes < vector + 200_000
    assert limits.other_bytes < 200_000
    assert 4 * plan.layout.size < largest_request(plan) < 4 * plan.layout.size + (10 << 20)
