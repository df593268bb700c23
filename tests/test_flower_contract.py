"""What the adapters rely on in Flower, and what they do with messages that are not as they should be.

A new release of Flower fails here first: read its changes, adapt `clients/flower_app.py`, `server/flower_app.py`,
`server/grid.py`, `server/replies.py` and `tests/flower_grid.py`, then move the version below.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterable, Mapping

import flwr
import pytest
from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.serverapp import Grid, ServerApp

from clients.flower_app import client_app
from server.grid import MESSAGE_TYPE, GridCarrier
from shared.identity import DepartmentId
from shared.messages import Refusal, decode_reply
from tests.flower_grid import InProcessGrid

HEALTH, POLICE = DepartmentId("health"), DepartmentId("police")
NODES = {HEALTH: 11, POLICE: 12}
UNAVAILABLE = Refusal(status="unavailable")
SECRET = "the caller lives at 5 Harbour Road"

IMPLEMENTED = {
    "create_message",
    "get_node_ids",
    "pull_messages",
    "push_messages",
    "run",
    "send_and_receive",
    "set_run",
}


class Reversing:
    """Answers with the request backwards."""

    def handle(self, request: bytes) -> bytes:
        return request[::-1]


class ScriptedGrid(InProcessGrid):
    """Answers each pull with what a script makes of the messages pushed so far."""

    def __init__(self, script: Callable[[list[Message]], Iterable[Message]]) -> None:
        super().__init__(dict.fromkeys(NODES.values(), ClientApp()))
        self.sent: list[Message] = []
        self._script = script

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = list(super().push_messages(messages))
        self.sent.extend(self._pushed[message_id] for message_id in ids)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        awaited = set(message_ids)
        assert awaited <= {message.metadata.message_id for message in self.sent}
        return self._script(self.sent)


def content(value: bytes | str, *, record: str = "cityfed", key: str = "reply") -> RecordDict:
    return RecordDict({record: ConfigRecord({key: value})})


def reply_to(message: Message, value: bytes | str = b"fine", **names: str) -> Message:
    return Message(content(value, **names), reply_to=message)


def from_node(message: Message, node: int) -> Message:
    message.metadata.__dict__["_src_node_id"] = node
    return message


def looked_for(
    script: Callable[[list[Message]], Iterable[Message]], *, ttl_s: float = 1.0
) -> tuple[dict[DepartmentId, bytes], set[DepartmentId]]:
    """Call two departments and look once for replies: what came, and who is still awaited."""
    carrier = GridCarrier(ScriptedGrid(script), NODES)
    waiting = carrier.push({HEALTH: b"one", POLICE: b"two"}, ttl_s=ttl_s)
    return dict(carrier.pull(tuple(waiting), waiting)), set(waiting.values())


def request_message(records: Mapping[str, ConfigRecord] | None = None) -> Message:
    InProcessGrid({})
    return Message(RecordDict(dict(records or {})), 11, MESSAGE_TYPE)


def answer_of(app: ClientApp, message: Message) -> bytes:
    context = Context(run_id=1, node_id=11, node_config={}, state=RecordDict(), run_config={})
    reply = app(message, context)
    assert list(reply.content) == ["cityfed"]
    assert list(reply.content.config_records["cityfed"]) == ["reply"]
    value = reply.content.config_records["cityfed"]["reply"]
    assert isinstance(value, bytes)
    return value


# --- what Flower promises --------------------------------------------------------------------------------


def test_flower_is_the_release_that_the_adapters_were_checked_with() -> None:
    assert flwr.__version__.startswith("1.41."), "a new Flower: check the adapters, then move this version"


def test_a_grid_asks_for_exactly_the_methods_that_ours_has() -> None:
    assert set(Grid.__abstractmethods__) == IMPLEMENTED
    assert not InProcessGrid.__abstractmethods__


@pytest.mark.parametrize("name", sorted(IMPLEMENTED - {"run"}))
def test_every_method_of_our_grid_takes_what_flower_passes(name: str) -> None:
    def taken(owner: type) -> list[tuple[str, object, object]]:
        parameters = inspect.signature(getattr(owner, name)).parameters.values()
        return [(item.name, item.kind, item.default) for item in parameters]

    assert taken(InProcessGrid) == taken(Grid)


@pytest.mark.parametrize(("app", "names"), [(ClientApp, ["message", "context"]), (ServerApp, ["grid", "context"])])
def test_an_app_is_called_with_these_two_arguments(app: type, names: list[str]) -> None:
    assert list(inspect.signature(app.__call__).parameters) == ["self", *names]


def test_a_reply_swaps_the_nodes_and_names_its_request() -> None:
    grid = InProcessGrid({11: client_app(lambda _context: Reversing())})
    message = Message(content(b"abc", key="request"), 11, MESSAGE_TYPE, ttl=5.0)
    (message_id,) = grid.push_messages([message])
    (reply,) = grid.pull_messages([message_id])
    assert reply.metadata.reply_to_message_id == message_id
    assert (reply.metadata.src_node_id, reply.metadata.dst_node_id) == (11, message.metadata.src_node_id)
    assert reply.metadata.message_type == "train.cityfed"


def test_our_bytes_survive_flowers_own_serialisation() -> None:
    raw = bytes(range(256)) * 4096
    message = request_message({"cityfed": ConfigRecord({"request": raw})})
    copied = message_from_proto(message_to_proto(message))
    assert copied.content.config_records["cityfed"]["request"] == raw


# --- the department's adapter ----------------------------------------------------------------------------


def test_the_client_app_carries_bytes_that_it_does_not_read() -> None:
    message = request_message({"cityfed": ConfigRecord({"request": b"\x00\xffno message of ours"})})
    assert answer_of(client_app(lambda _context: Reversing()), message) == b"\x00\xffno message of ours"[::-1]


@pytest.mark.parametrize(
    "records",
    [
        {},
        {"other": ConfigRecord({"request": b"abc"})},
        {"cityfed": ConfigRecord({"other": b"abc"})},
        {"cityfed": ConfigRecord({"request": "abc"})},
        {"cityfed": ConfigRecord({"request": b"abc", "more": 1})},
        {"cityfed": ConfigRecord({"request": b"abc"}), "other": ConfigRecord()},
    ],
)
def test_a_message_of_another_shape_is_unavailable(records: dict[str, ConfigRecord]) -> None:
    app = client_app(lambda _context: Reversing())
    assert decode_reply(answer_of(app, request_message(records))) == UNAVAILABLE


class Talkative:
    def handle(self, request: bytes) -> bytes:
        del request
        raise ValueError(SECRET)


def no_participant(_context: Context) -> Reversing:
    raise KeyError(SECRET)


@pytest.mark.parametrize("participant_of", [lambda _context: Talkative(), no_participant], ids=["handle", "lookup"])
def test_an_exception_leaves_the_department_as_one_word(
    participant_of: Callable[[Context], Reversing], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    message = request_message({"cityfed": ConfigRecord({"request": b"abc"})})
    assert decode_reply(answer_of(client_app(participant_of), message)) == UNAVAILABLE
    assert "Error" in caplog.text
    assert SECRET not in caplog.text


# --- the authority's carrier -----------------------------------------------------------------------------


def test_each_reply_goes_to_the_department_that_was_asked_whatever_the_order() -> None:
    replies, awaited = looked_for(
        lambda sent: [reply_to(message, b"from %d" % message.metadata.dst_node_id) for message in sent[::-1]]
    )
    assert (replies, awaited) == ({HEALTH: b"from 11", POLICE: b"from 12"}, set())


def test_a_message_lives_as_long_as_the_caller_says() -> None:
    seen: list[Message] = []

    def script(sent: list[Message]) -> list[Message]:
        seen.extend(sent)
        return []

    looked_for(script, ttl_s=0.5)
    assert {message.metadata.ttl for message in seen} == {0.5}
    assert {message.metadata.message_type for message in seen} == {"train.cityfed"}


def test_a_silent_department_is_still_awaited() -> None:
    assert looked_for(lambda sent: [reply_to(sent[1])]) == ({POLICE: b"fine"}, {HEALTH})


def broken_by_node(message: Message) -> Message:
    return Message(Error(2, SECRET), reply_to=message)


def lost_by_grid(message: Message) -> Message:
    return from_node(broken_by_node(message), message.metadata.src_node_id)


@pytest.mark.parametrize(
    "answer",
    [
        broken_by_node,
        lost_by_grid,
        lambda message: Message(RecordDict(), reply_to=message),
        lambda message: reply_to(message, record="other"),
        lambda message: reply_to(message, key="other"),
        lambda message: reply_to(message, "text"),
        lambda message: Message(RecordDict({**content(b"fine"), "more": ConfigRecord()}), reply_to=message),
    ],
    ids=["error", "lost", "empty", "record", "key", "type", "more"],
)
def test_an_error_or_a_malformed_reply_says_nothing_and_is_awaited_no_longer(
    answer: Callable[[Message], Message],
) -> None:
    assert looked_for(lambda sent: [answer(sent[0]), reply_to(sent[1])]) == ({POLICE: b"fine"}, set())


@pytest.mark.parametrize(
    ("node", "make"),
    # An error in the server's own name is the grid's, which says that a reply was lost.
    [(12, reply_to), (12, broken_by_node), (999, reply_to), (999, broken_by_node), (1, reply_to)],
    ids=["another", "error by another", "unknown", "error by unknown", "server"],
)
def test_a_reply_by_a_node_that_was_not_asked_neither_counts_nor_silences(
    node: int, make: Callable[[Message], Message]
) -> None:
    def script(sent: list[Message]) -> list[Message]:
        return [from_node(make(sent[0]), node), reply_to(sent[0], b"mine"), reply_to(sent[1])]

    assert looked_for(script) == ({HEALTH: b"mine", POLICE: b"fine"}, set())


def test_the_first_reply_counts_and_a_reply_to_nothing_that_was_asked_does_not() -> None:
    def script(sent: list[Message]) -> list[Message]:
        stray = reply_to(sent[0], b"stray")
        stray.metadata.__dict__["_reply_to_message_id"] = "of an earlier step"
        return [stray, reply_to(sent[0], b"first"), reply_to(sent[0], b"second"), reply_to(sent[1])]

    assert looked_for(script) == ({HEALTH: b"first", POLICE: b"fine"}, set())


def test_a_department_without_a_node_or_with_one_that_takes_no_message_is_not_awaited() -> None:
    carrier = GridCarrier(InProcessGrid({11: client_app(lambda _context: Reversing())}), NODES)
    requests = {HEALTH: b"abc", POLICE: b"abc", DepartmentId("parks"): b"abc"}
    waiting = carrier.push(requests, ttl_s=5.0)
    assert list(waiting.values()) == [HEALTH]
    assert dict(carrier.pull(tuple(waiting), waiting)) == {HEALTH: b"cba"}


def test_two_departments_on_one_node_are_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="share a node"):
        GridCarrier(InProcessGrid({}), {HEALTH: 11, POLICE: 11})


# --- the grid in one process -----------------------------------------------------------------------------


def test_every_app_gets_a_copy_and_keeps_its_own_context() -> None:
    app = ClientApp()

    @app.train("cityfed")
    def spoil(message: Message, context: Context) -> Message:
        record = message.content.config_records["cityfed"]
        record["request"] = b"spoilt"
        counted = context.state.setdefault("seen", ConfigRecord({"count": 0}))
        assert isinstance(counted, ConfigRecord)
        counted["count"] = int(str(counted["count"])) + 1
        return Message(RecordDict({"cityfed": record, "seen": counted}), reply_to=message)

    grid = InProcessGrid({11: app, 12: app})
    shared = content(b"abc", key="request")
    first = list(grid.send_and_receive([Message(shared, node, MESSAGE_TYPE) for node in (11, 12)]))
    first[0].content.config_records["seen"]["count"] = 100
    second = list(grid.send_and_receive([Message(shared, 11, MESSAGE_TYPE)]))
    assert shared.config_records["cityfed"]["request"] == b"abc"
    assert [reply.content.config_records["seen"]["count"] for reply in (*first[1:], *second)] == [1, 2]


def test_an_app_that_raises_becomes_an_error_without_its_text() -> None:
    app = ClientApp()

    @app.train("cityfed")
    def fail(message: Message, context: Context) -> Message:
        raise ValueError(SECRET)

    (reply,) = InProcessGrid({11: app}).send_and_receive([request_message()])
    assert reply.has_error()
    assert SECRET not in repr(reply)


def test_the_servers_own_node_takes_no_app() -> None:
    with pytest.raises(ValueError, match="server's own"):
        InProcessGrid({1: ClientApp()})
