"""One invitation under way for each department, as long as the session is open, and no longer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from threading import Event
from types import SimpleNamespace
from typing import cast

import httpx
import pytest
from flwr.app import ConfigRecord, Context, Message
from flwr.clientapp import ClientApp
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.message_pb2 import (
    Metadata,
    ObjectTree,
    PullObjectRequest,
    PullObjectResponse,
)
from flwr.proto.runtime_pb2 import PullAppMessagesRequest, PullAppMessagesResponse
from flwr.supercore.inflatable.inflatable_object import get_object_id
from flwr.supercore.run import Run as FlowerRun
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.superlink.grid import HttpGrid

from clients.flower_app import client_app
from server.grid import GridCarrier
from server.invitations import Invitations
from server.replies import MOST_OBJECTS, only_small_replies
from shared.codec import encode
from shared.errors import ProtocolError
from shared.identity import DepartmentId
from shared.session import Left, LeftStatus
from tests.flower_grid import InProcessGrid

HEALTH, POLICE = DepartmentId("health"), DepartmentId("police")
NODES = {HEALTH: 11, POLICE: 12}


class Node:
    """Notes each invitation, and leaves the session at once with the next word; without one it stays."""

    def __init__(self, *words: LeftStatus | bytes) -> None:
        self.words = list(words)
        self.invited: list[bytes] = []

    def handle(self, request: bytes) -> bytes:
        self.invited.append(request)
        word = self.words.pop(0)
        return word if isinstance(word, bytes) else encode(Left(status=word))


class Slow(InProcessGrid):
    """Holds a message back while its node has nothing more to say, and fails now and then."""

    def __init__(self, nodes: dict[int, Node], failures: int = 0) -> None:
        self._nodes = nodes
        self.failures = failures
        super().__init__({number: self._app(node) for number, node in nodes.items()})

    def _app(self, node: Node) -> ClientApp:
        def participant(_context: Context) -> Node:
            return node

        return client_app(participant)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        if self.failures:
            self.failures -= 1
            raise httpx.ConnectError("away")
        waiting = {key: self._pushed[key].metadata.dst_node_id for key in message_ids if key in self._pushed}
        return super().pull_messages([key for key, node in waiting.items() if self._nodes[node].words])


def invitations(grid: Slow, look: Callable[[], None]) -> Invitations:
    return Invitations(
        GridCarrier(grid, NODES),
        tuple(NODES),
        b"ticket",
        pause_s=0.0,
        poll_s=0.001,
        farewell_s=0.2,
        each_look=look,
    )


def until(met: Callable[[], bool], grid: Slow) -> Invitations:
    """Call departments until something is seen, then close."""
    seen, deadline = Event(), time.monotonic() + 10.0

    def look() -> None:
        if met() or time.monotonic() > deadline:
            seen.set()

    calls = invitations(grid, look)
    calls.open()
    seen.wait(11.0)
    calls.close()
    assert met()
    return calls


def test_each_department_gets_one_invitation_and_no_second_while_it_stays() -> None:
    health, police = Node("unavailable"), Node()
    calls = until(lambda: len(health.invited) == 1 and bool(calls_looked(3)), Slow({11: health, 12: police}))
    assert health.invited == [b"ticket"]
    assert police.invited == []
    assert calls.left == {HEALTH: "unavailable"}


_looks = [0]


def calls_looked(least: int) -> bool:
    _looks[0] += 1
    return _looks[0] > least


def test_who_left_early_is_called_again() -> None:
    health, police = Node("unavailable", "refused", "unavailable"), Node()
    until(lambda: len(health.invited) == 3, Slow({11: health, 12: police}))
    assert health.invited == [b"ticket"] * 3


@pytest.mark.parametrize("word", [b"", b"no message of ours", encode(Left(status="closed")) + b"x"])
def test_a_word_that_is_none_of_ours_is_written_down_as_malformed(word: bytes) -> None:
    health = Node(word)
    calls = until(lambda: len(health.invited) == 1, Slow({11: health, 12: Node()}))
    assert calls.left == {HEALTH: "message-malformed"}


def test_a_superlink_that_is_away_for_a_moment_ends_nothing() -> None:
    health = Node("unavailable")
    until(lambda: len(health.invited) == 1, Slow({11: health, 12: Node()}, failures=5))
    assert health.invited == [b"ticket"]


def test_closing_waits_for_the_last_word_of_those_who_stay_and_calls_nobody_again() -> None:
    health, police = Node(), Node()
    grid = Slow({11: health, 12: police})
    calls = invitations(grid, lambda: None)
    calls.open()
    health.words.append("closed")
    deadline = time.monotonic() + 10.0
    while not calls.left and time.monotonic() < deadline:
        pass
    police.words.append("closed")
    calls.close()
    assert calls.left[POLICE] == "closed"
    assert police.invited == [b"ticket"]


def test_an_abandoned_session_waits_for_nobodys_last_word() -> None:
    called = Event()
    calls = invitations(Slow({11: Node(), 12: Node()}), called.set)
    calls.farewell_s = 60.0
    calls.open()
    assert called.wait(10.0)
    calls.abandon()
    assert calls._thread is not None
    assert not calls._thread.is_alive()
    assert calls.left == {}


# --- what a member or a machine can do to the calls -------------------------------------------------------------


@pytest.mark.parametrize("error", [OSError("No space is left."), RuntimeError("Something else.")])
def test_a_look_at_who_is_there_that_fails_ends_nothing(error: Exception) -> None:
    health, looks = Node("unavailable"), []

    def met() -> bool:
        looks.append(True)
        if len(looks) < 3:
            raise error
        return len(health.invited) == 1

    until(met, Slow({11: health, 12: Node()}))
    assert len(looks) >= 3
    assert health.invited == [b"ticket"]


EVIL = ConfigRecord({"a": 1}).deflate()
"""An object that Flower's SuperLink takes for the root of a reply, and that is no message."""


class EvilSuperLink:
    """Tells of a reply of the police's, of which nothing is as it should be."""

    def __init__(self, objects: int) -> None:
        self.objects = objects
        self.pulled = 0
        client = SimpleNamespace(
            PullMessages=self.replies, PullObject=self.content, ConfirmMessageReceived=lambda _request: None
        )
        self.client = cast("RuntimeHttpClient", client)

    def replies(self, request: PullAppMessagesRequest) -> PullAppMessagesResponse:
        if "message-12" not in request.message_ids:
            return PullAppMessagesResponse()
        root = get_object_id(EVIL)
        tree = ObjectTree(object_id=root, children=[ObjectTree(object_id=root)] * (self.objects - 1))
        reply = ProtoMessage(metadata=Metadata(message_id=root, reply_to_message_id="message-12"))
        return PullAppMessagesResponse(messages_list=[reply], message_object_trees=[tree])

    def content(self, request: PullObjectRequest) -> PullObjectResponse:
        self.pulled += 1
        return PullObjectResponse(object_found=True, object_available=True, object_content=EVIL)


def grid_over(superlink: EvilSuperLink) -> HttpGrid:
    grid = HttpGrid(token="none")
    grid._client = superlink.client
    grid.set_run(FlowerRun.create_empty(run_id=1))
    return grid


def test_a_reply_of_too_many_objects_is_refused_before_anything_of_it_is_fetched() -> None:
    superlink = EvilSuperLink(MOST_OBJECTS + 1)
    with pytest.raises(ProtocolError, match=f"more than {MOST_OBJECTS} objects") as caught:
        list(only_small_replies(grid_over(superlink)).pull_messages(["message-12"]))
    assert caught.value.code == "reply-too-large"
    assert superlink.pulled == 0


class Calling(GridCarrier):
    """Names each message after its node, so that one that is sent again has the same name."""

    def push(self, requests: Mapping[DepartmentId, bytes], *, ttl_s: float) -> dict[str, DepartmentId]:
        CALLED.extend(requests)
        return {f"message-{self.nodes[name]}": name for name in requests}


CALLED: list[DepartmentId] = []


@pytest.mark.parametrize(("objects", "pulled"), [(1, True), (MOST_OBJECTS, True), (MOST_OBJECTS + 1, False)])
def test_a_members_reply_that_flower_cannot_read_is_dropped_and_the_calls_go_on(objects: int, pulled: bool) -> None:
    """Nothing of a reply with too many objects is fetched."""
    CALLED.clear()
    superlink, done = EvilSuperLink(objects), Event()
    grid = grid_over(superlink)
    calls = Invitations(
        Calling(only_small_replies(grid), NODES),
        tuple(NODES),
        b"ticket",
        pause_s=0.0,
        poll_s=0.001,
        farewell_s=0.0,
        each_look=lambda: done.set() if CALLED.count(POLICE) > 2 else None,
    )
    calls.open()
    assert done.wait(10.0), "the police were called back"
    calls.close()
    assert calls.left == {POLICE: "message-malformed"}
    assert CALLED.count(HEALTH) == 1
    assert (superlink.pulled > 0) is pulled
