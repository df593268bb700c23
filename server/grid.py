"""Flower's Grid as a carrier of invitations: one Message for each, and one reply, looked for when the caller likes.

A node's identity in Flower decides only where bytes go and whose they are taken for; who dials in to the session is
known by certificate, and what counts in a round is signed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from shared.identity import DepartmentId
from shared.transport import CHANNEL, REPLY, REQUEST

MESSAGE_TYPE = f"train.{CHANNEL}"
"""Flower's name of the action that every department registers."""


@dataclass(frozen=True)
class GridCarrier:
    """Sends requests through a Grid and takes their replies.

    Attributes:
        grid: Flower's.
        nodes: Flower's node id per department. A department without one is sent nothing.
    """

    grid: Grid
    nodes: Mapping[DepartmentId, int]

    def __post_init__(self) -> None:
        if len(set(self.nodes.values())) != len(self.nodes):
            raise ValueError("two departments may not share a node")

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
