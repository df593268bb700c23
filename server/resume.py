"""Starts runs again whose process ended before they did, or before it began: each goes on from its checkpoint."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import msgspec

from server.ends import note_ends_now
from server.home import AuthorityHome
from server.roster import load_members
from server.run_lock import lock_runs_if_free
from server.runs import INTERRUPTED, RunFolder, RunStatus, run_folders
from server.superlink import Control, SuperLink, open_control
from shared.errors import CityFedError
from shared.identity import DepartmentId
from shared.supervise import read_status

_LOG = logging.getLogger(__name__)
_LOOK_S = 2.0
_NOTE_PAUSE_S = 30.0
_FIRST_PAUSE_S = 10.0
_LONGEST_PAUSE_S = 600.0
MOST_STARTS = 20
"""So often `cityfed-server up` starts a run again that finishes no round; then it has failed. With growing pauses in
between a full disk may last for two hours."""


@dataclass(frozen=True)
class _Tries:
    """How often a run was started again since it last finished a round, and when it may be next."""

    rounds: int
    starts: int = 0
    not_before: float = 0.0


@dataclass
class Resumer:
    """Looks for runs without a process every few seconds, and submits them again.

    Attributes:
        home: the authority's home.
        superlink: where to.
        clock: monotonic time in seconds.
        control_of: opens the control interface.
    """

    home: AuthorityHome
    superlink: SuperLink
    clock: Callable[[], float] = time.monotonic
    control_of: Callable[[SuperLink], AbstractContextManager[Control]] = open_control
    _not_before: float = 0.0
    _tries: dict[str, _Tries] = field(default_factory=dict)
    _noted: set[str] = field(default_factory=set)
    _note_not_before: float = 0.0

    def look(self) -> None:
        """Submit what was interrupted; a SuperLink or a disk that does not take it now gets it later."""
        if self.clock() < self._not_before:
            return
        self._not_before = self.clock() + _LOOK_S
        try:
            with lock_runs_if_free(self.home) as free:  # no process of a run begins before all about it is written
                for folder in run_folders(self.home) if free else ():
                    self._look(folder)
                if free:
                    self._note_ends()
        except (CityFedError, OSError) as error:
            _LOG.warning("no run was looked at: %s", type(error).__name__)

    def _look(self, folder: RunFolder) -> None:
        """Look at one run; whatever is wrong with it or on the way holds up no other one."""
        name = folder.path.name
        try:
            status = folder.status()
            gone = status.code == INTERRUPTED or never_began(self.superlink, folder)
            if gone and not folder.is_conducted():  # one that was submitted twice has a process although it seems not
                self._again(folder, status)
        except CityFedError as error:
            _LOG.info("run %s was not started again: %s", name, error.code)
        except OSError as error:
            _LOG.warning("run %s was not started again: %s", name, type(error).__name__)

    def _note_ends(self) -> None:
        """Let the journal know of runs that are over; asked once for as long as these are the same."""
        over = {folder.path.name for folder in run_folders(self.home) if not folder.status().goes_on}
        if over != self._noted and self.clock() >= self._note_not_before:
            if note_ends_now(self.home):
                self._noted = over
            else:
                self._note_not_before = self.clock() + _NOTE_PAUSE_S

    def _again(self, folder: RunFolder, status: RunStatus) -> None:
        """Submit one run again, under the same id, unless it was started too often or a moment ago."""
        name, service = folder.path.name, read_status(self.home.service)
        tries = self._tries.get(name)
        if tries is None or status.rounds > tries.rounds:
            tries = _Tries(status.rounds)
        if service is None or self.clock() < tries.not_before:
            return
        if tries.starts >= MOST_STARTS:
            folder.give_up(f"The process of the run ended {MOST_STARTS} times. {status.message}")
            return
        submitted = folder.submitted()
        with self.control_of(self.superlink) as control:
            enrolled = control.enrol(load_members(self.home).node_keys)
            # A rotated key is another node to Flower. Written first: the process of the run reads it as it begins.
            nodes = {member: enrolled.get(DepartmentId(member), node) for member, node in submitted.nodes.items()}
            folder.write_submitted(msgspec.structs.replace(submitted, nodes=nodes))
            flower_run = control.start(name)
        pause = min(_FIRST_PAUSE_S * 2**tries.starts, _LONGEST_PAUSE_S)
        self._tries[name] = _Tries(tries.rounds, tries.starts + 1, self.clock() + pause)
        _LOG.warning("run %s was interrupted and goes on from its checkpoint", name)
        folder.write_submitted(msgspec.structs.replace(submitted, nodes=nodes, flower_run=flower_run))
        folder.wait_for_process(service.supervisor)


def never_began(superlink: SuperLink, folder: RunFolder) -> bool:
    """Return whether Flower gave a submitted run up before the process of the run wrote a word.

    Raises:
        SetupError: ``superlink-unreachable``, ``superlink-refused``.
    """
    if folder.status().state != "submitted":
        return False
    number = folder.submitted().flower_run
    if not number:  # whoever submits it is about to write it
        return False
    with open_control(superlink) as control:
        finished = control.run(number).status == "finished"
    return finished and folder.status().state == "submitted"
