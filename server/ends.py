"""Runs that are over without having said so: killed, stopped or given up, or failed where no journal was open.

A department that is restored pays in full for a run that may still go on. So every run that the journal knows is given
its end there, by the first process that can write it: the run's own, whoever stopped it, `cityfed-server up`, or the
process of the next run. None of them does so while the run can go on.
"""

from __future__ import annotations

import datetime as dt
import logging
from collections.abc import Callable

from server.audit import OWNER, ends_of_runs
from server.checkpoint import forget_rounds
from server.home import AuthorityHome
from server.records import RoundDone, RoundFailed, RunEnded
from server.run_lock import lock_runs_if_free
from server.runs import RunFolder, run_folders
from shared.codec import decode
from shared.errors import CityFedError, ConfigError, JournalError
from shared.journal import EntryKind, Journal

_LOG = logging.getLogger(__name__)


def note_ends(home: AuthorityHome, journal: Journal) -> bool:
    """Write the end of every run that has failed for good; that of a completed one is its coordinator's to write.

    What cannot be written now is logged, and holds up nobody.

    Args:
        home: the authority's home.
        journal: the coordinator's, open to write.

    Returns:
        Whether the journal knows of every end.
    """
    return _or_later(lambda: _write(home, journal))


def note_ends_now(home: AuthorityHome) -> bool:
    """Open the journal for :func:`note_ends`, unless a run goes on: its process has the journal, or wants it.

    To be called with the lock of the runs, so that none begins meanwhile.

    Returns:
        Whether the journal knows of every end.
    """
    return _or_later(lambda: _open_and_write(home))


def note_ends_if_free(home: AuthorityHome) -> None:
    """Write the ends now if nobody submits a run; otherwise that run does as it begins."""
    _or_later(lambda: _write_if_free(home))


def _write_if_free(home: AuthorityHome) -> bool:
    """Write the ends with the lock of the runs."""
    with lock_runs_if_free(home) as free:
        return free and _open_and_write(home)


def _or_later(step: Callable[[], bool]) -> bool:
    """Do what may fail."""
    try:
        return step()
    except (CityFedError, OSError) as error:
        said = error.code if isinstance(error, CityFedError) else type(error).__name__
        _LOG.warning("that a run is over was not written down, and will be later: %s", said)
        return False


def _open_and_write(home: AuthorityHome) -> bool:
    """Write the ends into the journal if it is nobody's."""
    if any(folder.status().goes_on for folder in run_folders(home)):
        return False
    if not home.journal.exists():  # no run has begun yet
        return True
    with Journal.open(home.journal, owner=OWNER) as journal:
        return _write(home, journal)


def _write(home: AuthorityHome, journal: Journal) -> bool:
    """Write the ends, and delete the uploads of whatever is over: a process that was killed could not."""
    for run, ended in ends_of_runs(journal).items():
        folder = RunFolder(home.runs / run.hex())
        if _is_over(folder):
            forget_rounds(folder.state)
            if not ended:
                body = RunEnded(run=run, status="failed", rounds=_finished_rounds(journal, run))
                journal.append(EntryKind.ENDED, body, now=dt.datetime.now(dt.UTC))
    return True


def _is_over(folder: RunFolder) -> bool:
    """Whether a run has failed and no process can take it up; one without a folder could be submitted anew."""
    try:
        status = folder.status()
    except ConfigError:
        return False
    return status.state == "failed" and not status.goes_on and not folder.is_conducted()


def _finished_rounds(journal: Journal, run: bytes) -> int:
    """Return how many rounds a run has finished; a round that failed is never finished under the same number."""
    done = (decode(item.body, RoundDone, error=JournalError) for item in journal.entries(EntryKind.ROUND))
    failed = (decode(item.body, RoundFailed, error=JournalError) for item in journal.entries(EntryKind.FAILED))
    lost = {item.round for item in failed if item.run == run}
    return len({item.round for item in done if item.run == run} - lost)
