"""The update channel on loopback: who is let in, what is taken, and what goes on when something breaks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from threading import Event

import grpc
import numpy as np
import pytest

from clients.update_channel import Patience
from server.switchboard import Line, Switchboard
from server.update_channel import UpdateChannel
from shared.channel import (
    ATTACHED,
    CHUNK_BYTES,
    SERVICE,
    Chunk,
    Limits,
    Payload,
    Start,
    Ticket,
    frames,
    largest_request,
    limits_of,
    read_start,
)
from shared.codec import encode
from shared.errors import SetupError
from shared.identity import DepartmentId
from tests.channel_city import (
    NAMES,
    RUN,
    SMALL,
    STEP_S,
    ChannelCity,
    Gate,
    answer,
    attach,
    beside,
    code_of,
    emptied,
    metadata,
    open_channel,
    raw_channel,
    server_files,
)
from tests.city import FOUR, open_city

BRIEF = Patience(first_s=0.01, longest_s=0.05, give_up_s=0.3)
BIG = Limits(update_bytes=8 << 20, other_bytes=8 << 20)


@pytest.fixture(scope="module")
def shared_city() -> Iterator[ChannelCity]:
    """One city for the tests that leave it as it was."""
    with open_channel() as city:
        yield city


@pytest.fixture
def city(shared_city: ChannelCity) -> Iterator[ChannelCity]:
    with emptied(shared_city) as city:
        yield city


# --- carrying ----------------------------------------------------------------------------------------------


def test_every_department_gets_its_request_and_its_reply_comes_back(city: ChannelCity) -> None:
    ticket = city.channel.open_session(RUN, BIG)
    handles = {name: (lambda request, name=name: name.encode() + request) for name in NAMES}
    served = [city.serve(name, ticket, handles[name]) for name in NAMES]
    for payload in (b"one", bytes(3 * CHUNK_BYTES + 17), b"two"):
        requests = {name: payload + name[:1].encode() for name in NAMES}
        assert city.ask(requests) == {name: name.encode() + requests[name] for name in NAMES}
    assert all(seen.attached and not seen.asked and seen.last_sign for seen in city.channel.status().values())
    city.channel.close_session()
    assert [item.left() for item in served] == [""] * 4
    assert not any(seen.attached for seen in city.channel.status().values())


def test_a_session_that_is_broken_off_is_not_closed_for_those_who_attend_it() -> None:
    """They dial again until they give up, and hear of no end."""
    with open_channel() as city:
        ticket = city.channel.open_session(RUN, SMALL)
        served = [city.serve(name, ticket, bytes.upper, patience=BRIEF) for name in NAMES]
        assert city.ask(dict.fromkeys(NAMES, b"a")) == dict.fromkeys(NAMES, b"A")
        city.channel.break_off()
        assert [item.left() for item in served] == ["channel-unreachable"] * 4


def test_a_federation_over_the_channel_gives_the_same_model_as_in_memory(tmp_path: Path) -> None:
    with open_city(tmp_path / "memory") as city:
        expected = city.run()
    with open_city(tmp_path / "channel") as city, open_channel(FOUR, spool=tmp_path) as net:
        ticket = net.channel.open_session(city.world.plan.run_id(), limits_of(city.world.plan))
        most = largest_request(city.world.plan)
        served = [net.serve(name, ticket, peer, max_request_bytes=most) for name, peer in city.peers.items()]
        found = city.coordinator(net.channel).run(city.basis.initial)
        net.channel.close_session()
        assert [item.left() for item in served] == [""] * 4
        assert city.watcher.gone == []
    assert np.array_equal(found.model, expected.model)
    assert [item.survivors for item in found.rounds] == [item.survivors for item in expected.rounds]


def test_whoever_is_silent_is_missing_and_what_it_sends_too_late_is_dropped(city: ChannelCity) -> None:
    ticket = city.channel.open_session(RUN, SMALL)
    gate = Gate()
    slow, quick = city.serve("health", ticket, gate), city.serve("police", ticket, bytes.upper)
    asked = {DepartmentId(name): b"a" for name in ("health", "police", "transport")}
    replies = city.channel.exchange(asked, timeout_s=STEP_S)
    assert next(replies) == ("police", b"A")
    assert gate.asked.wait(20)
    city.clock.ahead += STEP_S
    assert list(replies) == []
    assert not city.channel.status()[DepartmentId("transport")].attached
    gate.go.set()
    assert city.ask({"health": b"b", "police": b"b"}) == {"health": b"b", "police": b"B"}
    assert gate.heard == [b"a", b"b"]
    city.channel.close_session()
    assert (slow.left(), quick.left()) == ("", "")


def test_a_department_that_attaches_late_is_waited_for(city: ChannelCity) -> None:
    ticket = city.channel.open_session(RUN, SMALL)
    replies = city.channel.exchange(dict.fromkeys(city.members.values(), b"a"), timeout_s=20)
    city.serve("health", ticket, bytes.upper)
    assert next(replies)[0] == "health"
    city.serve("police", ticket, bytes.upper)
    assert next(replies)[0] == "police"
    replies.close()  # type: ignore[attr-defined]  # it is a generator
    assert not any(seen.asked for seen in city.channel.status().values())


def test_misuse_by_the_authority_is_an_error(city: ChannelCity) -> None:
    with pytest.raises(RuntimeError):
        city.ask({"health": b"a"})
    city.channel.open_session(RUN, SMALL)
    with pytest.raises(RuntimeError):
        city.channel.open_session(RUN, SMALL)
    with pytest.raises(ValueError):
        city.channel.exchange({DepartmentId("health"): b"a"}, timeout_s=0)
    with pytest.raises(SetupError) as caught:
        UpdateChannel(city.address, server_files(city.authority), member_of=lambda _: None, members=1)
    assert caught.value.code == "channel-port"


# --- uploads that are not what they should be --------------------------------------------------------------


def wrong_then_good(
    city: ChannelCity, ticket: Ticket, make: Callable[[int], list[bytes]]
) -> tuple[grpc.StatusCode, str]:
    """Answer a request with crafted frames and then rightly, which must go through; returns how the first fared."""
    name, found = DepartmentId("health"), list[tuple[grpc.StatusCode, str]]()
    with raw_channel(city, city.files[name]) as channel:
        stream = attach(channel, ticket)
        assert next(stream) == ATTACHED
        replies = city.channel.exchange({name: b"ask"}, timeout_s=20)

        def misbehave() -> None:
            number = read_start(next(stream), max_bytes=1 << 20).number
            found.append(code_of(lambda: answer(channel, ticket, make(number))))
            answer(channel, ticket, frames(number, Payload.of(b"good")))

        with beside(misbehave):
            assert [bytes(reply) for _, reply in replies] == [b"good"]
    return found[0]


GOOD = Payload.of(b"0123456789")


def start(number: int, **changes: object) -> bytes:
    return encode(Start(**{"number": number, "length": 10, **changes}))  # type: ignore[arg-type]  # wrong on purpose


def chunk(number: int, offset: int, data: bytes) -> bytes:
    return encode(Chunk(number=number, offset=offset, data=memoryview(data)))


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (lambda n: [start(n, length=SMALL.other_bytes + 1)], "transfer-too-large"),
        (lambda n: [start(n), chunk(n, 0, bytes(11))], "transfer-overrun"),
        (lambda n: [*frames(n, GOOD), chunk(n, 10, b"x")], "transfer-overrun"),
        (lambda n: [start(n), *[chunk(n, 0, b"01234")] * 2], "chunk-out-of-order"),
        (lambda n: [start(n), chunk(n, 5, b"56789"), chunk(n, 0, b"01234")], "chunk-out-of-order"),
        (lambda n: [start(n), chunk(n - 1, 0, b"0123456789")], "chunk-foreign"),
        (lambda n: [start(n), chunk(n, 0, b"01234")], "transfer-unfinished"),
        (lambda n: list(frames(n + 1, GOOD)), "transfer-foreign"),
        (lambda n: list(frames(n - 1, GOOD)), "reply-late"),
        (lambda _: [b"rubbish"], "message-malformed"),
        (lambda _: [], "message-malformed"),
    ],
)
def test_a_wrong_upload_is_refused_by_name_and_the_right_one_is_taken_after_it(
    city: ChannelCity, make: Callable[[int], list[bytes]], code: str
) -> None:
    ticket = city.channel.open_session(RUN, SMALL)
    assert wrong_then_good(city, ticket, make)[1] == code
    assert city.channel.status()[DepartmentId("health")].refused == code


def test_an_upload_that_was_recorded_cannot_be_sent_again(city: ChannelCity) -> None:
    ticket = city.channel.open_session(RUN, SMALL)
    recorded: list[bytes] = []

    def replay(number: int) -> list[bytes]:
        sent, recorded[:] = list(recorded), list(frames(number, GOOD))
        return sent or [b"rubbish"]

    wrong_then_good(city, ticket, replay)
    assert wrong_then_good(city, ticket, replay)[1] == "reply-late"
    with raw_channel(city, city.files["health"]) as channel:  # and nobody takes a reply that was not asked for
        assert code_of(lambda: answer(channel, ticket, recorded))[1] == "reply-late"


def test_a_message_above_the_frame_limit_is_not_taken_in(city: ChannelCity) -> None:
    ticket = city.channel.open_session(RUN, BIG)
    long = bytes(2 * CHUNK_BYTES)

    def make(number: int) -> list[bytes]:
        return [start(number, length=len(long)), chunk(number, 0, long)]

    assert wrong_then_good(city, ticket, make)[0] is grpc.StatusCode.RESOURCE_EXHAUSTED


class Watching(Switchboard):
    """Says when the first bytes of an upload are there."""

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__(clock=clock)
        self.begun = Event()

    def progress(self, name: DepartmentId, line: Line, received: int) -> None:
        super().progress(name, line, received)
        self.begun.set()


def test_an_upload_that_drips_is_cut_and_the_others_are_not_held_up() -> None:
    times = [0.0]
    board = Watching(lambda: times[-1])
    with open_channel(board=board) as city:
        ticket = city.channel.open_session(RUN, SMALL)
        over = Event()

        def drip(number: int) -> Iterator[bytes]:
            yield start(number)
            yield chunk(number, 0, b"0")
            over.wait(30)

        def misbehave() -> None:
            with raw_channel(city, city.files["health"]) as channel:
                stream = attach(channel, ticket)
                assert next(stream) == ATTACHED
                number = read_start(next(stream), max_bytes=1 << 20).number
                upload = channel.stream_unary(f"/{SERVICE}/Answer")
                call = upload.future(drip(number), metadata=metadata(ticket), timeout=30)
                assert board.begun.wait(20)
                times.append(SMALL.grace_s + 1.0)
                cut.append(call.code())
                over.set()
                city.serve("police", ticket, bytes.upper)
                answer(channel, ticket, frames(number, Payload.of(b"good")))

        cut: list[grpc.StatusCode] = []
        requests = {DepartmentId(name): b"ask" for name in ("health", "police")}
        replies = city.channel.exchange(requests, timeout_s=1000)
        with beside(misbehave):
            found = {name: bytes(reply) for name, reply in replies}
        assert found == {"health": b"good", "police": b"ASK"}
        assert cut == [grpc.StatusCode.CANCELLED]
        assert city.channel.status()[DepartmentId("health")].refused == "upload-too-slow"


def test_a_member_that_is_refused_again_and_again_fills_no_log(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    with open_channel(("health",)) as city, raw_channel(city, city.files["health"]) as channel:
        city.channel._door._refusals.clock = lambda: now[0]
        ticket = city.channel.open_session(RUN, SMALL)
        for _ in range(20):
            assert code_of(lambda: answer(channel, ticket, ())) == (grpc.StatusCode.ABORTED, "reply-late")
        now[0] = 1.0
        code_of(lambda: answer(channel, ticket, ()))
    logged = [record.getMessage() for record in caplog.records if "refused" in record.getMessage()]
    assert logged == [f"the update channel refused health: reply-late, {times} times" for times in (1, 20)]


def test_a_member_that_opens_calls_and_says_nothing_keeps_nobody_out(city: ChannelCity) -> None:
    ticket = city.channel.open_session(RUN, SMALL)
    over, first = Event(), Event()

    def silence() -> Iterator[bytes]:
        first.set()
        over.wait(30)
        yield b""

    with raw_channel(city, city.files["health"]) as channel:
        attaches, answers = channel.stream_stream(f"/{SERVICE}/Attach"), channel.stream_unary(f"/{SERVICE}/Answer")
        replies = city.channel.exchange({DepartmentId(name): b"ask" for name in ("health", "police")}, timeout_s=20)

        def annoy() -> None:
            for _ in range(50):
                attaches(silence(), metadata=metadata(ticket), timeout=20)
                answers.future(silence(), metadata=metadata(ticket), timeout=20)
            city.serve("police", ticket, bytes.upper)

        with beside(annoy):
            assert [(name, bytes(reply)) for name, reply in islice(replies, 1)] == [("police", b"ASK")]
            assert first.is_set()
        over.set()
    replies.close()  # type: ignore[attr-defined]  # it is a generator
