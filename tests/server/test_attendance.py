"""A step waits for a department that trains, and not for one that is not there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from server.attendance import AttendedTransport
from server.switchboard import Presence
from shared.identity import DepartmentId

HEALTH, POLICE = DepartmentId("health"), DepartmentId("police")


@dataclass
class Channel:
    """Departments that attach at set times; every exchange is noted."""

    attached_at: Mapping[DepartmentId, float]
    now: float = 0.0
    asked: list[tuple[frozenset[DepartmentId], float]] = field(default_factory=list)

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def status(self) -> dict[DepartmentId, Presence]:
        return {name: Presence(attached=at <= self.now) for name, at in self.attached_at.items()}

    def exchange(
        self, requests: Mapping[DepartmentId, bytes], *, timeout_s: float
    ) -> Iterator[tuple[DepartmentId, bytes]]:
        self.asked.append((frozenset(requests), timeout_s))
        yield from requests.items()


def replies(channel: Channel, timeout_s: float = 3600.0) -> dict[DepartmentId, object]:
    transport = AttendedTransport(channel, 60.0, clock=channel.clock, sleep=channel.sleep)
    return dict(transport.exchange({HEALTH: b"h", POLICE: b"p"}, timeout_s=timeout_s))


def test_as_soon_as_all_are_there_all_are_asked() -> None:
    channel = Channel({HEALTH: 0.0, POLICE: 5.0})
    assert replies(channel) == {HEALTH: b"h", POLICE: b"p"}
    assert 5.0 <= channel.now < 5.2
    assert channel.asked == [(frozenset({HEALTH, POLICE}), 3600.0)]


def test_who_does_not_come_is_left_out_when_time_is_up() -> None:
    channel = Channel({HEALTH: 0.0, POLICE: 1e9})
    assert replies(channel) == {HEALTH: b"h"}
    assert channel.now == 60.0
    assert replies(Channel({HEALTH: 0.0})) == {HEALTH: b"h"}


def test_when_nobody_comes_nobody_is_asked() -> None:
    channel = Channel({})
    assert replies(channel, timeout_s=10.0) == {}
    assert (channel.now, channel.asked) == (10.0, [])
