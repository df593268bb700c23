"""A department on the update channel: what it does when the network breaks, when it is stopped, when it is refused."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from clients.update_channel import Patience, Stop, Waiting
from shared.channel import CHUNK_BYTES, Limits
from shared.codec import Encoded, sha256
from tests.channel_city import HOST, RUN, SMALL, ChannelCity, Gate, emptied, open_channel
from tests.cutting_proxy import CuttingProxy

BIG = Limits(update_bytes=8 << 20, other_bytes=8 << 20)


@pytest.fixture(scope="module")
def shared_city() -> Iterator[ChannelCity]:
    with open_channel(["health"]) as city:
        yield city


@pytest.fixture
def city(shared_city: ChannelCity) -> Iterator[ChannelCity]:
    with emptied(shared_city) as city:
        yield city


@pytest.mark.parametrize("after_bytes", [CHUNK_BYTES // 2, 3 * CHUNK_BYTES])
def test_an_upload_cut_midway_starts_again_and_the_department_is_asked_once(
    city: ChannelCity, after_bytes: int
) -> None:
    ticket = city.channel.open_session(RUN, BIG)
    reply = bytes(range(256)) * (4 * CHUNK_BYTES // 256)
    heard: list[bytes] = []

    def handle(request: bytes) -> bytes:
        heard.append(request)
        proxy.cut_after(after_bytes)
        return reply

    with CuttingProxy(city.channel.port) as proxy:
        city.serve("health", ticket, handle, address=f"{HOST}:{proxy.port}")
        assert city.ask({"health": b"ask"}) == {"health": reply}
        assert proxy.cuts == 1
        city.channel.close_session()
        assert city.served[-1].left() == ""
    assert heard == [b"ask"]


def test_p4_a_reply_that_waits_for_the_network_leaves_only_if_it_may_then(city: ChannelCity) -> None:
    ticket = city.channel.open_session(RUN, BIG)
    may_leave = [b"no", bytes(4 * CHUNK_BYTES)]
    asked: list[int] = []

    def handle(_: bytes) -> bytes:
        proxy.cut_after(CHUNK_BYTES)
        return may_leave[-1]

    def leaving(reply: Encoded) -> Encoded:
        asked.append(len(reply))
        return may_leave.pop() if may_leave else reply

    with CuttingProxy(city.channel.port) as proxy:
        city.serve("health", ticket, handle, address=f"{HOST}:{proxy.port}", leaving=leaving)
        assert city.ask({"health": b"ask"}) == {"health": b"no"}
        assert proxy.cuts == 1
        city.channel.close_session()
        assert city.served[-1].left() == ""
    assert asked == [4 * CHUNK_BYTES, 4 * CHUNK_BYTES]


def test_p4_an_upload_under_way_is_broken_off_once_it_may_not_leave(city: ChannelCity) -> None:
    ticket = city.channel.open_session(RUN, BIG)
    asked: list[int] = []

    def handle(_: bytes) -> bytes:
        proxy.flows.clear()
        return bytes(8 << 20)  # more than any buffer on the way takes

    def leaving(reply: Encoded) -> Encoded:
        asked.append(len(reply))
        if len(asked) == 1:
            return reply
        proxy.flows.set()
        return b"no"

    with CuttingProxy(city.channel.port) as proxy:
        city.serve(
            "health", ticket, handle, address=f"{HOST}:{proxy.port}", leaving=leaving, waits=Waiting(every_s=0.05)
        )
        assert city.ask({"health": b"ask"}) == {"health": b"no"}
        assert proxy.cuts == 0
        city.channel.close_session()
        assert city.served[-1].left() == ""
    assert asked[:2] == [8 << 20, 8 << 20]
    assert set(asked[2:]) == {2}


def test_a_request_cut_midway_is_sent_again(city: ChannelCity) -> None:
    ticket = city.channel.open_session(RUN, SMALL)
    request = bytes(range(256)) * (4 * CHUNK_BYTES // 256)
    with CuttingProxy(city.channel.port) as proxy:
        proxy.cut_down_after(2 * CHUNK_BYTES)
        city.serve("health", ticket, sha256, address=f"{HOST}:{proxy.port}")
        assert city.ask({"health": request}) == {"health": sha256(request)}
        assert proxy.cuts == 1


@pytest.mark.parametrize(("every_s", "least", "most"), [(1e-9, 40, 1_000_000), (600.0, 1, 1)])
def test_a_long_request_is_taken_with_signs_of_life_and_no_more_of_them_than_asked_for(
    city: ChannelCity, every_s: float, least: int, most: int
) -> None:
    ticket = city.channel.open_session(RUN, SMALL)
    shown: list[None] = []
    shows: list[int] = []

    def handle(request: bytes) -> bytes:
        shows.append(len(shown))
        return sha256(request)

    request = bytes(40 * CHUNK_BYTES)
    city.serve("health", ticket, handle, waits=Waiting(lambda: shown.append(None), every_s=every_s))
    assert city.ask({"health": request}) == {"health": sha256(request)}
    assert least <= shows[0] <= most


def test_a_stopped_department_answers_nothing_and_leaves_at_once(city: ChannelCity) -> None:
    ticket = city.channel.open_session(RUN, SMALL)
    idle = city.serve("health", ticket, bytes.upper)
    assert city.ask({"health": b"a"}) == {"health": b"A"}
    idle.stop.set()
    assert idle.left() == ""

    gate = Gate()
    busy = city.serve("health", ticket, gate)

    def stop() -> None:
        assert gate.asked.wait(20)
        busy.stop.set()
        gate.go.set()
        busy.left()

    assert city.ask_until(stop, {"health": b"b"}) == {}
    assert busy.left() == ""


def test_a_request_longer_than_the_department_takes_is_refused_there(city: ChannelCity) -> None:
    ticket = city.channel.open_session(RUN, SMALL)
    served = city.serve("health", ticket, lambda _: pytest.fail("asked"), max_request_bytes=99)
    assert city.ask_until(served.left, {"health": bytes(100)}) == {}
    assert served.left() == "transfer-too-large"


def test_an_authority_that_is_away_is_dialled_until_it_is_back(city: ChannelCity) -> None:
    ticket = city.channel.open_session(RUN, SMALL)
    with CuttingProxy(city.channel.port) as proxy:
        proxy.cut_down_after(1)  # the first connection does not even finish its handshake
        city.serve("health", ticket, bytes.upper, address=f"{HOST}:{proxy.port}")
        assert city.ask({"health": b"a"}) == {"health": b"A"}
        assert proxy.cuts == 1
        city.served[-1].stop.set()
        assert city.served[-1].left() == ""


def test_a_department_gives_up_by_name_when_nobody_is_there(city: ChannelCity) -> None:
    ticket = city.channel.open_session(RUN, SMALL)
    with CuttingProxy(city.channel.port) as proxy:
        nobody = f"{HOST}:{proxy.port}"
    served = city.serve(
        "health", ticket, bytes.upper, address=nobody, patience=Patience(first_s=0.01, longest_s=0.01, give_up_s=0.1)
    )
    assert served.left() == "channel-unreachable"


def test_a_switch_that_was_set_before_cuts_at_once() -> None:
    stop, cuts = Stop(), list[str]()
    with stop.cutting(lambda: cuts.append("first")):
        stop.set()
        assert cuts == ["first"]
    with stop.cutting(lambda: cuts.append("second")):
        assert cuts == ["first", "second"]
    stop.set()
    assert cuts == ["first", "second"]
