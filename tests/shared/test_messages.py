"""Every field of a message has its natural length or largest length, and a byte more is refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

import msgspec
import pytest
from msgspec import inspect

from shared.codec import decode
from shared.errors import ProtocolError
from shared.identity import MAX_DEPARTMENTS, MAX_SIGNED_BYTES, Roster, Signed
from shared.messages import (
    ClosedRound,
    ConfirmedSet,
    HeadReceipt,
    KeyAdvert,
    MaskedUpdate,
    Receipt,
    Reply,
    Request,
    SealSet,
    decode_reply,
    decode_request,
)
from shared.parameters import MAX_COORDINATES, Layout, TensorSpec
from shared.plan import Plan

SIGNED_BODIES = (KeyAdvert, SealSet, Receipt, ConfirmedSet, ClosedRound, HeadReceipt, Roster)
MESSAGES = (*get_args(Request), *get_args(Reply), *SIGNED_BODIES, Signed, Plan)
# As long as the plan's layout says, and no longer than a message: 1 GiB.
BY_LAYOUT = {("UpdateRequest", "model"), ("MaskedUpdate", "words")}


def unlimited(kind: inspect.Type) -> Iterator[str]:
    """Name every part of a type that could have any length."""
    sized = inspect.BytesType | inspect.MemoryViewType | inspect.StrType | inspect.CollectionType | inspect.DictType
    if isinstance(kind, sized) and kind.max_length is None:
        yield type(kind).__name__
    if isinstance(kind, inspect.CollectionType):
        yield from unlimited(kind.item_type)
    if isinstance(kind, inspect.DictType):
        yield from unlimited(kind.key_type)
        yield from unlimited(kind.value_type)


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: message.__name__)
def test_every_field_has_a_largest_length(message: type[Any]) -> None:
    described = inspect.type_info(message)
    assert isinstance(described, inspect.StructType)
    for field in described.fields:
        if (message.__name__, field.name) not in BY_LAYOUT:
            assert list(unlimited(field.type)) == [], field.name


def test_the_check_sees_a_field_without_a_limit() -> None:
    class Loose(msgspec.Struct):
        fields: dict[str, list[bytes]]

    described = inspect.type_info(Loose)
    assert isinstance(described, inspect.StructType)
    assert list(unlimited(described.fields[0].type)) == ["DictType", "StrType", "ListType", "BytesType"]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: message.__name__)
def test_an_integer_is_never_negative_where_it_counts_something(message: type[Any]) -> None:
    described = inspect.type_info(message)
    assert isinstance(described, inspect.StructType)
    own_check = {("Plan", "rounds"), ("Plan", "spare_attempts")}
    for field in described.fields:
        if isinstance(field.type, inspect.IntType) and (message.__name__, field.name) not in own_check:
            assert (field.type.ge, field.type.le) == (0, 2**63 - 1), field.name


SIGNED = {"body": b"", "signature": bytes(64)}
CROWD = [f"d-{number}" for number in range(MAX_DEPARTMENTS + 1)]
ASK = {"type": "ConfirmRequest", "run": bytes(32), "round": 1, "sid": bytes(32), "survivors": ["health"]}
REVEAL = {"type": "Reveal", "sid": bytes(32), "self_shares": {"health": bytes(32)}, "pair_shares": {}}


def code_of(fields: dict[str, Any]) -> str:
    data = msgspec.msgpack.encode(fields)
    try:
        decode_request(data) if fields["type"].endswith("Request") else decode_reply(data)
    except ProtocolError as error:
        return error.code
    return ""


def test_the_messages_that_are_bent_here_are_right() -> None:
    assert code_of(ASK) == code_of(REVEAL) == ""
    assert code_of(ASK | {"survivors": CROWD[1:]}) == ""
    assert code_of({"type": "AdvertReply", "advert": SIGNED}) == ""


@pytest.mark.parametrize(
    ("good", "changes"),
    [
        pytest.param(ASK, {"run": bytes(31)}, id="short hash"),
        pytest.param(ASK, {"run": bytes(33)}, id="long hash"),
        pytest.param(ASK, {"round": -1}, id="negative round"),
        pytest.param(ASK, {"round": 2**63}, id="round beyond 63 bits"),
        pytest.param(ASK, {"survivors": CROWD}, id="too many survivors"),
        pytest.param(ASK, {"survivors": ["x" * 33]}, id="long name"),
        pytest.param(REVEAL, {"self_shares": {"health": bytes(31)}}, id="short share"),
        pytest.param(REVEAL, {"self_shares": {"health": bytes(33)}}, id="long share"),
        pytest.param(REVEAL, {"self_shares": dict.fromkeys(CROWD, bytes(32))}, id="too many shares"),
        pytest.param(REVEAL, {"pair_shares": {"health": dict.fromkeys(CROWD, bytes(32))}}, id="too many pair shares"),
        pytest.param({"type": "AdvertReply"}, {"advert": SIGNED | {"signature": bytes(63)}}, id="short signature"),
        pytest.param(
            {"type": "AdvertReply"}, {"advert": SIGNED | {"body": bytes(MAX_SIGNED_BYTES + 1)}}, id="long body"
        ),
        pytest.param({"type": "Refusal"}, {"status": "because of Jane"}, id="a reason"),
    ],
)
def test_a_field_beyond_its_natural_limit_is_refused(good: dict[str, Any], changes: dict[str, Any]) -> None:
    assert code_of(good | changes) == "message-malformed"


def test_a_layout_is_no_longer_than_a_message() -> None:
    half = TensorSpec(name="a", shape=(MAX_COORDINATES // 2,))
    Layout(tensors=(half, TensorSpec(name="b", shape=(MAX_COORDINATES // 2,))))
    with pytest.raises(ValueError, match="coordinates"):
        Layout(tensors=(half, TensorSpec(name="b", shape=(MAX_COORDINATES // 2, 1)), TensorSpec(name="c", shape=())))
    body = msgspec.msgpack.encode({"tensors": [{"name": "a", "shape": [2**40, 2**40]}]})
    with pytest.raises(ProtocolError, match="coordinates"):
        decode(body, Layout)


def test_a_vector_points_into_the_message() -> None:
    """Decoding an upload copies no 90 MB."""
    fields = {"type": "MaskedUpdate", "sid": bytes(32), "words": bytes(1000), "envelopes": {}, "receipt": SIGNED}
    update = decode_reply(msgspec.msgpack.encode(fields))
    assert isinstance(update, MaskedUpdate)
    assert isinstance(update.words, memoryview)
