"""Certificates near their end: who is told, from when on, and what a running role does when one has ended.

Nothing runs with a certificate that cannot be used: others would refuse it call by call, and say so only in their logs.
"""

from __future__ import annotations

import datetime as dt
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from shared.codec import Record
from shared.errors import CityFedError

_LOG = logging.getLogger(__name__)

WARN_DAYS: Final = 30
"""From so many days before a certificate's last one people are told."""

ENDED: Final = frozenset({"certificate-expired", "certificate-not-yet-valid"})
"""What the clock brings about. Anything else is somebody at work on the files, and shows at the next start."""

_LOOK = dt.timedelta(seconds=5)


class Expiry(Record, frozen=True, kw_only=True):
    """When a certificate ends: whose it is, its last moment (UTC), and what makes a new one."""

    whose: str
    until: dt.datetime
    renew: str

    def days(self, now: dt.datetime) -> int:
        """Return how many whole days it has left; negative when it has ended."""
        return (self.until - now).days


def expiry_warnings(expiries: Sequence[Expiry], *, now: dt.datetime) -> tuple[str, ...]:
    """Return a sentence for each certificate that ends within :data:`WARN_DAYS`, or has ended."""
    return tuple(_sentence(item, now) for item in expiries if item.days(now) < WARN_DAYS)


def _sentence(item: Expiry, now: dt.datetime) -> str:
    """Say when one certificate ends."""
    day = f"{item.until:%Y-%m-%d}"
    ends = f"expired on {day}" if item.until < now else f"expires on {day}, in {item.days(now)} days"
    return f"The certificate of {item.whose} {ends}: {item.renew}."


@dataclass
class CertificateWatch:
    """Looks at a role's own certificates for as long as it runs; warns in the log once a day.

    Attributes:
        judge: reads the files as they lie there now and returns when each ends; raises what makes one unusable at the
            time that it is given.
        now: the present time, UTC.
    """

    judge: Callable[[dt.datetime], Sequence[Expiry]]
    now: Callable[[], dt.datetime]
    _fault: str = ""
    _looked: dt.datetime | None = None
    _warned: dt.date | None = None

    def fault(self) -> str:
        """Return the reason code for which nothing may run now; empty when all is in order."""
        now = self.now()
        if self._looked is None or abs(now - self._looked) >= _LOOK:
            self._looked = now
            self._look(now)
        return self._fault

    def _look(self, now: dt.datetime) -> None:
        """Judge, and say what is new."""
        before = self._fault
        try:
            expiries = self.judge(now)
        except CityFedError as error:
            if error.code in ENDED:
                self._fault = error.code
                if before != error.code:
                    _LOG.error("no process runs until this is set right: %s", error.message)
            return
        self._fault = ""
        if before:
            _LOG.info("the certificates are in order again")
        if self._warned != now.date():
            self._warned = now.date()
            for sentence in expiry_warnings(expiries, now=now):
                _LOG.warning(sentence)
