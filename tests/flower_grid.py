"""Flower's Grid in one process: the production ClientApps without Ray, sockets or a SuperLink."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from uuid import uuid4

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from server.grid import GridCarrier
from shared.identity import DepartmentId

RUN_ID = 1
TASK_ID = 1


class InProcessGrid(Grid):
    """Delivers each Message to the ClientApp of its node, one after the other, when its reply is asked for.

    Both directions are copied, so that no app sees an object of another one; a node keeps its Context for the run.

    Args:
        apps: ClientApp per node id. Any other node takes no message.
    """

    def __init__(self, apps: Mapping[int, ClientApp]) -> None:
        if SUPERLINK_NODE_ID in apps:
            raise ValueError(f"node {SUPERLINK_NODE_ID} is the server's own")
        self._run = Run.create_empty(RUN_ID)
        self._apps = dict(apps)
        self._contexts = {node: _context(node) for node in apps}
        self._pushed: dict[str, Message] = {}
        # Flower reads from these globals who writes a Message; every grid of this kind sets the same values.
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = RUN_ID, SUPERLINK_NODE_ID, TASK_ID

    def set_run(self, run: Run) -> None:
        """Keep what Flower knows about the run; nothing here depends on it."""
        self._run = run

    @property
    def run(self) -> Run:
        """Return what Flower knows about the run."""
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Return a new Message to a node; ``ttl`` is in seconds."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Return the nodes in the order in which they were given."""
        return tuple(self._apps)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Take messages; as in Flower's own memory grid, one to an unknown node gets no id."""
        accepted = []
        for message in messages:
            if message.metadata.dst_node_id in self._apps:
                copied = deepcopy(message)
                message_id = uuid4().hex
                copied.metadata.__dict__["_message_id"] = message_id  # Flower offers no setter for its own grids
                self._pushed[message_id] = copied
                accepted.append(message_id)
        return accepted

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Deliver the messages that were not delivered yet and return their replies."""
        return [self._deliver(self._pushed.pop(key)) for key in message_ids if key in self._pushed]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Push and pull; every node answers at once, so that ``timeout`` never passes."""
        del timeout
        return self.pull_messages(self.push_messages(messages))

    def _deliver(self, message: Message) -> Message:
        """Call a node's app; an exception becomes an error without text, as a node of Flower would report it."""
        node = message.metadata.dst_node_id
        try:
            return deepcopy(self._apps[node](message, self._contexts[node]))
        except Exception:  # noqa: BLE001 - a department that breaks must not break the others
            return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION), reply_to=message)


@dataclass(frozen=True)
class OverFlower:
    """Carries whole rounds through a grid that answers at once; implements the Transport of the Coordinator."""

    carrier: GridCarrier

    def exchange(
        self, requests: Mapping[DepartmentId, bytes], *, timeout_s: float
    ) -> Iterator[tuple[DepartmentId, bytes]]:
        """Send all requests, hand over one reply after the other."""
        waiting = self.carrier.push(requests, ttl_s=timeout_s)
        for message_id in tuple(waiting):
            yield from self.carrier.pull((message_id,), waiting)


def _context(node: int) -> Context:
    """Return a fresh Context without any configuration."""
    return Context(run_id=RUN_ID, node_id=node, node_config={}, state=RecordDict(), run_config={})
