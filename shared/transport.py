"""How messages travel: one method, bytes in, bytes out.

The Coordinator never knows whether a department is an object in the same process, a Flower node or a gRPC
peer. A department that does not answer is simply absent from the result.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from shared.identity import DepartmentId

CHANNEL = "cityfed"
"""Name under which a carrier with named messages files ours; its records hold one value, the encoded bytes."""

REQUEST = "request"
REPLY = "reply"


class Transport(Protocol):
    """Carries one batch of requests to departments and brings back the replies that came in time."""

    def exchange(self, requests: Mapping[DepartmentId, bytes], *, timeout_s: float) -> dict[DepartmentId, bytes]:
        """Send each department its request and collect replies.

        Args:
            requests: encoded request per department.
            timeout_s: how long to wait for the slowest, in seconds.

        Returns:
            Encoded reply per department that answered in time; missing departments dropped out.
        """
        ...
