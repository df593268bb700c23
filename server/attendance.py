"""The update channel as a Transport that does not wait long for a department that is not there.

A step may take an hour because a department trains; whether a department is attached shows within seconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from server.switchboard import Presence
from shared.codec import Encoded
from shared.identity import DepartmentId
from shared.transport import Transport


class Attended(Transport, Protocol):
    """A transport that knows who is there; :class:`server.update_channel.UpdateChannel` is one."""

    def status(self) -> dict[DepartmentId, Presence]:
        """Return what is known of everybody who ever dialled in or was asked."""
        ...


@dataclass(frozen=True)
class AttendedTransport:
    """Asks only departments that are attached; implements :class:`shared.transport.Transport`.

    Attributes:
        channel: carries the requests.
        attend_timeout_s: how long a step waits for those who are not attached, in seconds.
        clock: monotonic time in seconds.
        sleep: waits for some seconds.
    """

    channel: Attended
    attend_timeout_s: float
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep

    def exchange(
        self, requests: Mapping[DepartmentId, bytes], *, timeout_s: float
    ) -> Iterator[tuple[DepartmentId, Encoded]]:
        """Wait for the departments to be there, then ask those who are; see :class:`shared.transport.Transport`."""
        present = self._wait(set(requests), min(timeout_s, self.attend_timeout_s))
        asked = {name: request for name, request in requests.items() if name in present}
        del requests
        if asked:
            replies = self.channel.exchange(asked, timeout_s=timeout_s)
            del asked  # whoever carries a model lets go of it once it lies in a file
            yield from replies

    def _wait(self, names: set[DepartmentId], timeout_s: float) -> set[DepartmentId]:
        """Return who is attached as soon as all are, or time is up."""
        deadline = self.clock() + timeout_s
        while True:
            status = self.channel.status()
            present = {name for name in names if name in status and status[name].attached}
            left = deadline - self.clock()
            if present == names or left <= 0:
                return present
            self.sleep(min(0.1, left))
