"""Truncated, oversized and bit-flipped messages (protocol 6), over every message that a department receives.

A changed message is refused and leaves no trace but its refusal: the unchanged one is answered right after it.
Only what a coordinator may choose freely can be changed into another good message; it is listed in :data:`FREE`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared.codec import MAX_MESSAGE_BYTES, encode
from shared.errors import ProtocolError
from shared.identity import Signed
from shared.messages import CloseReply, Refusal, Request, UpdateRequest, decode_request
from tests.protocol.liar import Liar, replace
from tests.protocol.lies import FIRST_THREE, VICTIM, account

FREE = {"OpenEpoch": {"epoch"}, "UpdateRequest": {"round", "seals"}}
"""Fields that the department cannot know better: numbers only have to grow, seals are read once per epoch."""

Scene = Callable[[Liar], Request]


def offered(liar: Liar) -> Request:
    return liar.offer()


def advertised(liar: Liar) -> Request:
    return liar.advertise().all_adverts()


def asked(liar: Liar) -> Request:
    return liar.stand().ask(1)


def asked_to_confirm(liar: Liar) -> Request:
    return liar.stand().upload(1, *FIRST_THREE).list_of(FIRST_THREE)


def asked_to_reveal(liar: Liar) -> Request:
    return liar.stand().upload(1, *FIRST_THREE).confirm(FIRST_THREE).demand(VICTIM, FIRST_THREE)


def asked_to_reveal_everybody(liar: Liar) -> Request:
    return liar.stand().upload(1).demand(VICTIM, liar.names)


def closed(liar: Liar) -> Request:
    liar.stand().upload(1).reveal(liar.names)
    return account(liar)


SCENES = pytest.mark.parametrize(
    "scene",
    [offered, advertised, asked, asked_to_confirm, asked_to_reveal, asked_to_reveal_everybody, closed],
    ids=lambda scene: scene.__name__,
)

short = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


def next_round(request: Request) -> int:
    """An offer and adverts belong to no round yet."""
    return 2 if type(request).__name__ not in {"OpenEpoch", "SealRequest"} else 1


def still_good(raw: bytes, good: Request) -> bool:
    """Whether changed bytes are another message that nobody can tell from a good one."""
    try:
        changed = decode_request(raw)
    except ProtocolError:
        return False
    if type(changed) is not type(good):
        return False
    free = FREE.get(type(good).__name__, set())
    if isinstance(changed, UpdateRequest) and changed.round > 1:
        free = free | {"model"}  # only the first round's model is pinned by the plan
    return replace(changed, **{field: getattr(good, field) for field in free}) == good


def every_signed(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Signed]]:
    """Every signed part of a message and where it is."""
    if isinstance(value, Signed):
        yield path, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from every_signed(item, (*path, key))
    elif hasattr(value, "__struct_fields__"):
        for field in value.__struct_fields__:
            yield from every_signed(getattr(value, field), (*path, field))


@SCENES
def test_p2_truncated_messages_are_refused(liar: Liar, scene: Scene) -> None:
    good = scene(liar)
    raw = encode(good)

    @short
    @given(st.integers(min_value=0, max_value=len(raw) - 1))
    def cut(length: int) -> None:
        liar.assert_refused(VICTIM, raw[:length], "message-malformed")

    cut()
    assert not isinstance(liar.send(VICTIM, good), Refusal)
    liar.honest_round(next_round(good))


@SCENES
def test_p2_bit_flipped_messages_are_refused(liar: Liar, scene: Scene) -> None:
    good = scene(liar)
    raw = encode(good)

    @short
    @given(st.lists(st.integers(min_value=0, max_value=8 * len(raw) - 1), min_size=1, max_size=3, unique=True))
    def flip(bits: list[int]) -> None:
        changed = bytearray(raw)
        for bit in bits:
            changed[bit // 8] ^= 1 << bit % 8
        if not still_good(bytes(changed), good):
            assert liar.post(VICTIM, bytes(changed)) == Refusal(status="refused")

    flip()
    assert not isinstance(liar.send(VICTIM, good), Refusal)
    liar.honest_round(next_round(good))


@SCENES
def test_p2_messages_with_something_added_are_refused(liar: Liar, scene: Scene) -> None:
    good = scene(liar)
    raw = encode(good)

    @short
    @given(st.binary(min_size=1, max_size=64))
    def add(tail: bytes) -> None:
        liar.assert_refused(VICTIM, raw + tail, "message-malformed")

    add()
    assert not isinstance(liar.send(VICTIM, good), Refusal)
    liar.honest_round(next_round(good))


@SCENES
def test_p2_a_flipped_bit_in_any_signed_part_is_refused(liar: Liar, scene: Scene) -> None:
    """Signatures cover exactly the bytes that travel; with seals this happens before they are read."""
    good = scene(liar)
    parts = [(path, signed) for path, signed in every_signed(good) if path[-1] != VICTIM]
    for path, signed in parts:
        for field in ("body", "signature"):
            data = getattr(signed, field)
            changed = replace(signed, **{field: bytes([data[0] ^ 1]) + data[1:]})
            top, *keys = path
            value = changed if not keys else getattr(good, top) | {keys[0]: changed}
            liar.assert_refused(VICTIM, replace(good, **{top: value}), "signature-invalid")
    assert not isinstance(liar.send(VICTIM, good), Refusal)
    liar.honest_round(next_round(good))


def test_p2_oversized_messages_are_refused_unread(liar: Liar) -> None:
    liar.stand()
    liar.assert_refused(VICTIM, bytes(MAX_MESSAGE_BYTES + 1), "message-too-large")
    liar.honest_round(1)


def test_p2_oversized_parts_are_refused(liar: Liar) -> None:
    crowd = tuple(f"sybil-{number:06}" for number in range(100_000))
    liar.assert_refused(VICTIM, liar.offer(cohort=crowd), "message-malformed")
    liar.assert_refused(VICTIM, liar.offer(cohort=crowd[:1000]), "cohort-foreign")
    liar.stand()
    liar.assert_refused(VICTIM, liar.ask(1, participants=crowd), "message-malformed")
    liar.assert_refused(VICTIM, liar.ask(1, model=bytes(10_000_000)), "vector-bytes")
    liar.upload(1, *FIRST_THREE)
    liar.assert_refused(VICTIM, liar.list_of(crowd), "message-malformed")
    liar.assert_refused(VICTIM, liar.list_of(crowd[:1000]), "survivor-foreign")
    liar.confirm(FIRST_THREE)
    honest = liar.demand(VICTIM, FIRST_THREE)
    large = {name: bytes(10_000_000) for name in honest.envelopes}
    liar.assert_refused(VICTIM, replace(honest, envelopes=large), "message-malformed")
    liar.assert_refused(
        VICTIM, replace(honest, receipts=dict.fromkeys(crowd, honest.receipts[VICTIM])), "message-malformed"
    )
    # A length that promises 4 GiB is refused before anything of that size is allocated.
    liar.assert_refused(VICTIM, b"\xdd\xff\xff\xff\xff", "message-malformed")
    liar.assert_refused(VICTIM, b"\x81\xa4type\xc6\xff\xff\xff\xff", "message-malformed")
    liar.honest_round(2)


@pytest.mark.parametrize(
    "raw", [b"", b"\x00", b"\xc1", b"\x80", b"\x81\xa4type\xa7Refusal", b"\x91" * 100_000], ids=len
)
def test_p2_what_is_no_message_is_refused(liar: Liar, raw: bytes) -> None:
    liar.assert_refused(VICTIM, raw, "message-malformed")


def test_p2_an_unknown_field_is_refused(liar: Liar) -> None:
    raw = encode(liar.offer())
    assert raw[0] == 0x86  # a map of six: the type and five fields
    liar.assert_refused(VICTIM, b"\x87" + raw[1:] + b"\xa5extra\xc0", "message-malformed")
    assert isinstance(liar.offer(), type(decode_request(raw)))
    liar.honest_round(1)


@short
@given(st.binary(max_size=200))
def test_p2_random_bytes_are_refused(liar: Liar, raw: bytes) -> None:
    liar.assert_refused(VICTIM, raw, "message-malformed")


def test_p2_a_reply_sent_back_is_refused(liar: Liar) -> None:
    liar.stand().upload(1)
    for reply in (liar.updates["police"], Refusal(status="refused")):
        liar.assert_refused(VICTIM, encode(reply), "message-malformed")
    liar.honest_round(2)


def test_p2_a_run_ended_early_gives_nothing_away(liar: Liar) -> None:
    """The authority alone can end a run, under its signature; afterwards no round is answered."""
    liar.stand().upload(1).reveal(liar.names)
    liar.get(VICTIM, account(liar, final=True), CloseReply)
    liar.assert_refused(VICTIM, liar.ask(2), "run-already-settled")
