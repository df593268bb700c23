"""What Flower would fetch for a reply, looked at before it is fetched: a member decides what lies in one."""

from __future__ import annotations

from typing import Final

from flwr.proto.runtime_pb2 import PullAppMessagesRequest, PullAppMessagesResponse
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.superlink.grid import HttpGrid

from shared.errors import ProtocolError

MOST_OBJECTS: Final = 8
"""So many objects a reply may have, each of which the gateway keeps below a MiB; a department's own has three."""


def only_small_replies(grid: Grid) -> Grid:
    """Let a Grid over HTTP fetch no reply of more than :data:`MOST_OBJECTS`; any other Grid stays as it is.

    ``pull_messages`` raises ``ProtocolError`` then: ``reply-too-large``.
    """
    if not isinstance(grid, HttpGrid):
        return grid
    client = grid._runtime_client  # noqa: SLF001 - Flower asks nobody between the list of objects and the objects
    listed = client.PullMessages

    def narrow(request: PullAppMessagesRequest) -> PullAppMessagesResponse:
        """List replies; refuse all of them when one is too large."""
        response = listed(request)
        for tree in response.message_object_trees:
            if sum(1 for _ in iterate_object_tree(tree)) > MOST_OBJECTS:
                raise ProtocolError("reply-too-large", f"A reply through Flower has more than {MOST_OBJECTS} objects.")
        return response

    vars(client)["PullMessages"] = narrow
    return grid
