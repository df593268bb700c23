"""How messages travel: one method, encoded requests in, encoded replies out, one by one.

The Coordinator never knows whether a department is an object in the same process, a Flower node or a gRPC
peer. A department that does not answer is simply absent from what comes back.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol

from shared.codec import Encoded
from shared.identity import DepartmentId

CHANNEL = "cityfed"
"""Name under which a carrier with named messages files ours; its records hold one value, the encoded bytes."""

REQUEST = "request"
REPLY = "reply"


class Transport(Protocol):
    """Carries one batch of requests to departments and brings back the replies that come in time."""

    def exchange(
        self, requests: Mapping[DepartmentId, bytes], *, timeout_s: float
    ) -> Iterator[tuple[DepartmentId, Encoded]]:
        """Send each department its request and hand over replies one by one, as they come in.

        The requests are sent once the first reply is asked for. All of it happens in the caller's thread; a carrier
        that receives several replies at a time keeps those that nobody has asked for yet out of memory.

        Args:
            requests: encoded request per department; equal ones may be one object.
            timeout_s: how long to wait for the slowest, in seconds.

        Returns:
            Pairs of a department that answered in time and its whole encoded reply, at most one for each that was
            asked, in any order. A department that never appears dropped out.

        Guarantees:
            A reply that was handed over is not held on to: when the next one is asked for, and nobody else keeps
            it, its memory is free.
        """
        ...
