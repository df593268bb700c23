"""Starts runs again whose process ended before they did, or before it began: each goes on from its checkpoint."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from server.home import AuthorityHome
from server.runs import INTERRUPTED, RunFolder, run_folders
from server.superlink import SuperLink, open_control
from shared.errors import CityFedError
from shared.supervise import read_status

_LOG = logging.getLogger(__name__)
_LOOK_S = 2.0
MOST_STARTS = 5
"""So often `cityfed-server up` starts a run again; a run that needs more has failed."""


@dataclass
class Resumer:
    """Looks for runs without a process every few seconds, and submits them again.

    Attributes:
        home: the authority's home.
        superlink: where to.
        clock: monotonic time in seconds.
    """

    home: AuthorityHome
    superlink: SuperLink
    clock: Callable[[], float] = time.monotonic
    _not_before: float = 0.0
    _starts: dict[str, int] = field(default_factory=dict)

    def look(self) -> None:
        """Submit what was interrupted; a SuperLink that is not there yet gets it later."""
        if self.clock() < self._not_before:
            return
        self._not_before = self.clock() + _LOOK_S
        try:
            for folder in run_folders(self.home):
                if folder.status().code == INTERRUPTED or never_began(self.superlink, folder):
                    self._again(folder)
        except CityFedError as error:
            _LOG.info("no run was started again: %s", error.code)

    def _again(self, folder: RunFolder) -> None:
        """Submit one run again, under the same id."""
        name = folder.path.name
        if self._starts.get(name, 0) >= MOST_STARTS:
            folder.give_up(f"The process of the run ended {MOST_STARTS} times.")
            return
        service = read_status(self.home.service)
        if service is None:
            return
        with open_control(self.superlink) as control:
            flower_run = control.start(name)
        self._starts[name] = self._starts.get(name, 0) + 1
        _LOG.warning("run %s was interrupted and goes on from its checkpoint", name)
        folder.write_submitted(msgspec.structs.replace(folder.submitted(), flower_run=flower_run))
        folder.wait_for_process(service.supervisor)


def never_began(superlink: SuperLink, folder: RunFolder) -> bool:
    """Return whether Flower gave a submitted run up before the process of the run wrote a word.

    Raises:
        SetupError: ``superlink-unreachable``, ``superlink-refused``.
    """
    number = folder.submitted().flower_run
    if not number or folder.status().state != "submitted":
        return False
    with open_control(superlink) as control:
        finished = control.run(number).status == "finished"
    return finished and folder.status().state == "submitted"
