"""Whose certificate counts at this moment, for whatever listens."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field

from server.home import AuthorityHome
from server.roster import load_members
from shared.errors import CityFedError
from shared.identity import DepartmentId

_LOG = logging.getLogger(__name__)


@dataclass
class LiveMembers:
    """Whose certificate counts, by the roster as it lies in the home now: whoever was removed is out at once."""

    home: AuthorityHome
    _seen: tuple[int, int] | None = None
    _members: Mapping[bytes, DepartmentId] = field(default_factory=dict)
    _guard: threading.Lock = field(default_factory=threading.Lock)

    def of(self, digest: bytes) -> DepartmentId | None:
        """Return whose certificate has a digest; nobody's when the roster cannot be read."""
        with self._guard:
            try:
                stat = self.home.roster.stat()
                if self._seen != (stat.st_ino, stat.st_mtime_ns):
                    self._members = load_members(self.home).by_certificate
                    self._seen = (stat.st_ino, stat.st_mtime_ns)
            except (OSError, CityFedError):
                _LOG.exception("the roster cannot be read: nobody is admitted")
                return None
            return self._members.get(digest)
