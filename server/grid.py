"""Flower's Grid as a Transport: one Message per request, one reply per department.

What travels is sealed and signed from end to end (protocol 1), so a node's identity in Flower decides only where
bytes go and whose they are taken for; the collectors check the signatures.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from shared.identity import DepartmentId
from shared.transport import CHANNEL, REPLY, REQUEST

MESSAGE_TYPE = f"train.{CHANNEL}"
"""Flower's name of the action that every department registers."""


@dataclass(frozen=True)
class GridTransport:
    """Carries one batch of requests through a Grid; implements :class:`shared.transport.Transport`.

    Attributes:
        grid: Flower's, or one in the same process.
        nodes: Flower's node id per department. A department without one is missing.
        clock: monotonic time in seconds.
        sleep: waits for some seconds.
        poll_s: pause between two looks for replies, in seconds; Flower's own 3 s would set the pace of a round.
    """

    grid: Grid
    nodes: Mapping[DepartmentId, int]
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    poll_s: float = 0.2

    def __post_init__(self) -> None:
        if len(set(self.nodes.values())) != len(self.nodes):
            raise ValueError("two departments may not share a node")

    def exchange(
        self, requests: Mapping[DepartmentId, bytes], *, timeout_s: float
    ) -> Iterator[tuple[DepartmentId, bytes]]:
        """Push all requests, hand over replies until nobody is awaited or time is up.

        Args:
            requests: encoded request per department.
            timeout_s: how long to wait for the slowest, in seconds; a message lives as long in Flower.

        Returns:
            Pairs of department and encoded reply. An error of Flower, a malformed reply and silence leave the
            department out; a reply by another node than the one asked, or to another message, is not looked at.

        Raises:
            ValueError: ``timeout_s`` is not above 0.
        """
        if not timeout_s > 0:
            raise ValueError("`timeout_s` is above 0")
        return self._replies(requests, timeout_s)

    def _replies(
        self, requests: Mapping[DepartmentId, bytes], timeout_s: float
    ) -> Iterator[tuple[DepartmentId, bytes]]:
        """Push, then pull for one message at a time, so that only one reply is in memory."""
        deadline = self.clock() + timeout_s
        waiting = self.push(requests, ttl_s=timeout_s)
        while waiting:
            for message_id in tuple(waiting):
                if message_id in waiting:
                    yield from self.pull((message_id,), waiting)
            left = deadline - self.clock()
            if not waiting or left <= 0:
                break
            self.sleep(min(self.poll_s, left))

    def push(self, requests: Mapping[DepartmentId, bytes], *, ttl_s: float) -> dict[str, DepartmentId]:
        """Send each request, which Flower keeps for ``ttl_s`` seconds; return who is awaited under which message id."""
        waiting: dict[str, DepartmentId] = {}
        for name, request in requests.items():
            if name not in self.nodes:
                continue
            content = RecordDict({CHANNEL: ConfigRecord({REQUEST: request})})
            message = Message(content, self.nodes[name], MESSAGE_TYPE, ttl=ttl_s)
            # One at a time: of a batch Flower may return fewer ids than messages and not say whose are missing.
            waiting.update({message_id: name for message_id in self.grid.push_messages([message]) if message_id})
        return waiting

    def pull(
        self, message_ids: Collection[str], waiting: dict[str, DepartmentId]
    ) -> Iterator[tuple[DepartmentId, bytes]]:
        """Look once for replies to some messages; whoever is heard of leaves ``waiting``, an error yields nothing."""
        for message in self.grid.pull_messages(message_ids):
            yield from self._take(message, waiting)
            del message

    def _take(self, message: Message, waiting: dict[str, DepartmentId]) -> Iterator[tuple[DepartmentId, bytes]]:
        """Match one reply to the department that was asked; the first one counts."""
        meta = message.metadata
        name = waiting.get(meta.reply_to_message_id)
        # A Grid that lost a reply says so in its own name, from the node that it delivers to.
        by_grid = message.has_error() and meta.src_node_id == meta.dst_node_id
        if name is None or not (meta.src_node_id == self.nodes[name] or by_grid):
            return
        del waiting[meta.reply_to_message_id]
        reply = _reply(message)
        if reply is not None:
            yield name, reply


def _reply(message: Message) -> bytes | None:
    """Return the one value of the one record, or None for an error or anything else."""
    if not message.has_content() or len(message.content) != 1:
        return None
    record = message.content.get(CHANNEL)
    value = record.get(REPLY) if isinstance(record, ConfigRecord) and len(record) == 1 else None
    return value if isinstance(value, bytes) else None
