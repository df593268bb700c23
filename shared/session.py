"""What a department tells Flower when it has left a session of the update channel; nothing in it comes from data."""

from __future__ import annotations

from typing import Literal

from shared.codec import Record

LeftStatus = Literal["closed", "refused", "unavailable"]


class Left(Record, frozen=True, kw_only=True):
    """A department is out of a session.

    Attributes:
        status: ``closed`` when the authority ended the session, ``refused`` when the department is stopped or was
            never shown the plan, and ``unavailable`` for everything else: a time-out, a crash, a lost connection.
    """

    status: LeftStatus
