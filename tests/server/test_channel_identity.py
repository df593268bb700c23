"""Who is let in on the update channel: exactly the certificates that the city admitted, and nothing else is served."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import grpc
import pytest

from server.update_channel import UpdateChannel
from shared.channel import SERVICE, Payload, Ticket, frames
from shared.identity import DepartmentId
from tests.channel_city import (
    HASTE,
    HOST,
    RUN,
    SMALL,
    ChannelCity,
    answer,
    attach,
    code_of,
    emptied,
    member_files,
    metadata,
    new_authority,
    open_channel,
    raw_channel,
    still_serves,
)


@pytest.fixture(scope="module")
def shared_city() -> Iterator[ChannelCity]:
    with open_channel() as city:
        yield city


@pytest.fixture
def city(shared_city: ChannelCity) -> Iterator[ChannelCity]:
    with emptied(shared_city) as city:
        yield city


def test_a_caller_without_certificate_is_not_let_in(city: ChannelCity) -> None:
    ticket = city.channel.open_session(RUN, SMALL)
    with raw_channel(city, None) as channel:
        assert code_of(lambda: next(attach(channel, ticket)))[0] is grpc.StatusCode.UNAVAILABLE
    assert still_serves(city, ticket)


def test_another_citys_certificate_is_not_let_in(city: ChannelCity) -> None:
    ticket = city.channel.open_session(RUN, SMALL)
    theirs = member_files(new_authority("gotham"), "health")
    with raw_channel(city, replace(theirs, authority=city.files["health"].authority)) as channel:
        assert code_of(lambda: next(attach(channel, ticket)))[0] is grpc.StatusCode.UNAVAILABLE
    assert still_serves(city, ticket)


@pytest.mark.parametrize("name", ["health", "harbour"])
def test_a_certificate_that_the_roster_does_not_have_is_refused(city: ChannelCity, name: str) -> None:
    ticket = city.channel.open_session(RUN, SMALL)
    refused = (grpc.StatusCode.PERMISSION_DENIED, "certificate-not-admitted")
    stranger = member_files(city.authority, name)  # the city's, even a member's name, and yet not the admitted one
    with raw_channel(city, stranger) as channel:
        assert code_of(lambda: next(attach(channel, ticket))) == refused
        assert code_of(lambda: answer(channel, ticket, frames(1, Payload.of(b"x")))) == refused
    assert still_serves(city, ticket)


def test_a_revoked_department_is_refused_at_the_next_request_on_a_standing_stream(city: ChannelCity) -> None:
    ticket = city.channel.open_session(RUN, SMALL)
    revoked, other = city.serve("health", ticket, bytes.upper), city.serve("police", ticket, bytes.upper)
    assert set(city.ask({"health": b"a", "police": b"a"})) == {"health", "police"}
    city.revoke("health")
    assert city.ask({"health": b"b", "police": b"b"}) == {"police": b"B"}  # and it is not waited for
    assert revoked.left() == "certificate-not-admitted"
    assert city.channel.status()[DepartmentId("health")].refused == "certificate-not-admitted"
    assert city.serve("health", ticket, bytes.upper).left() == "certificate-not-admitted"
    assert not other.stop.is_set()


def test_a_department_revoked_while_it_trains_cannot_send_its_reply(city: ChannelCity) -> None:
    ticket = city.channel.open_session(RUN, SMALL)

    def handle(request: bytes) -> bytes:
        city.revoke("health")
        return request

    served = city.serve("health", ticket, handle)
    assert city.ask_until(served.left, {"health": b"a"}) == {}
    assert served.left() == "certificate-not-admitted"


def test_a_member_cannot_play_the_authority(city: ChannelCity) -> None:
    ticket = city.channel.open_session(RUN, SMALL)
    fake = UpdateChannel(f"{HOST}:0", city.files["police"], member_of=city.members.get, members=4)
    try:
        patience = replace(HASTE, give_up_s=0.2)
        address = f"{HOST}:{fake.port}"
        served = city.serve("health", ticket, lambda _: pytest.fail("asked"), address=address, patience=patience)
        assert served.left() == "channel-unreachable"
        assert fake.status() == {}
    finally:
        fake.stop()


def test_nothing_else_is_served_on_the_port(city: ChannelCity) -> None:
    ticket = city.channel.open_session(RUN, SMALL)
    methods = [f"/{SERVICE}/Detach", "/cityfed.Other/Attach", "/grpc.health.v1.Health/Check"]
    reflection = [f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo" for version in ("v1", "v1alpha")]
    with raw_channel(city, city.files["health"]) as channel:
        for method in [*methods, *reflection]:
            assert code_of(partial(channel.unary_unary(method), b"", timeout=20))[0] is grpc.StatusCode.UNIMPLEMENTED
    assert still_serves(city, ticket)


@pytest.mark.parametrize("shown", ["foreign session", "foreign run", "nothing", "rubbish"])
def test_a_call_for_another_session_is_refused(city: ChannelCity, shown: str) -> None:
    ticket = city.channel.open_session(RUN, SMALL)
    foreign = {
        "foreign session": metadata(Ticket(run=RUN, session=bytes(16))),
        "foreign run": metadata(Ticket(run=bytes([1] * 32), session=ticket.session)),
        "nothing": (),
        "rubbish": ((metadata(ticket)[0][0], b"rubbish"),),
    }[shown]
    expected = {"nothing": "message-malformed", "rubbish": "message-malformed"}.get(shown, "session-foreign")
    with raw_channel(city, city.files["health"]) as channel:
        stream = channel.stream_stream(f"/{SERVICE}/Attach")
        upload = channel.stream_unary(f"/{SERVICE}/Answer")
        assert code_of(lambda: next(stream(iter(()), metadata=foreign, timeout=20)))[1] == expected
        assert code_of(lambda: upload(iter([b""]), metadata=foreign, timeout=20))[1] == expected
    assert still_serves(city, ticket)


def test_who_comes_back_for_a_closed_session_is_told_that_it_is_over(city: ChannelCity) -> None:
    ticket = city.channel.open_session(RUN, SMALL)
    city.channel.close_session()
    assert city.serve("health", ticket, bytes.upper).left() == ""
    newer = city.channel.open_session(RUN, SMALL)
    assert newer.session != ticket.session
    assert city.serve("health", ticket, bytes.upper).left() == ""
    with raw_channel(city, city.files["health"]) as channel:
        assert code_of(lambda: answer(channel, ticket, frames(1, Payload.of(b"x"))))[1] == "reply-late"


def test_the_newest_stream_of_a_department_counts(city: ChannelCity) -> None:
    ticket = city.channel.open_session(RUN, SMALL)
    older = city.serve("health", ticket, bytes.lower)
    assert city.ask({"health": b"Aa"}) == {"health": b"aa"}
    newer = city.serve("health", ticket, bytes.upper)
    assert older.left() == "attached-elsewhere"
    assert city.ask({"health": b"Aa"}) == {"health": b"AA"}
    city.channel.close_session()
    assert newer.left() == ""
