"""One run from beginning to end, in the process that Flower starts for it: the Coordinator over the update channel.

Flower opens the run and closes it: it starts this process, carries one invitation to each department, and brings back
that they have left. Everything between travels on the update channel.
"""

from __future__ import annotations

import datetime as dt
import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Final

import msgspec

from server.attendance import AttendedTransport
from server.audit import OWNER
from server.checkpoint import CheckpointFolder
from server.city import load_city, load_plan_key, load_server_tls
from server.config import ServerConfig, load_server
from server.coordinator import Coordinator
from server.ends import note_ends, note_ends_if_free
from server.grid import GridCarrier
from server.home import AuthorityHome
from server.invitations import Invitations
from server.members import LiveMembers
from server.release import write_model
from server.results import RoundResult
from server.roster import load_members
from server.run_lock import lock_runs
from server.runs import STOPPED, STOPPED_MESSAGE, Missing, RunFolder, Sign
from server.update_channel import UpdateChannel
from shared.certificates import TlsFiles
from shared.channel import limits_of
from shared.codec import encode
from shared.errors import CityFedError, ConfigError, RoundAbortedError
from shared.identity import DepartmentId
from shared.journal import Journal
from shared.logs import log_json
from shared.model_file import MODEL_FILE, read_model
from shared.plan import accept_plan
from shared.supervise import process_status

_LOG = logging.getLogger(__name__)

PASSING: Final = frozenset(
    {"spool-unusable", "journal-unwritable", "journal-locked", "channel-port", "home-not-writable"}
)
"""Faults of this machine that may pass; a run that meets one is interrupted and goes on from its checkpoint."""

CarrierOf = Callable[[Mapping[DepartmentId, int]], GridCarrier]
"""Makes the carrier of invitations from Flower's node ids."""


def conduct(home: AuthorityHome, run: str, carrier_of: CarrierOf) -> None:
    """Conduct a run that was submitted, or go on with one whose process was ended.

    Why a run failed is written down and raised; a run that is only interrupted, or that met a fault of
    :data:`PASSING`, stays one that can go on.

    Args:
        home: the authority's home.
        run: the run's id in hex.
        carrier_of: how invitations travel.

    Raises:
        ConfigError: ``run-active``: another process conducts it; ``run-over``: it has been completed. What is written
            down stays.
        CityFedError: why the run failed, now or before, or does not go on for now.
        OSError: the disk does not take what has to be written; the run goes on in another process.

    Guarantees:
        A run that is over does not begin again, and is the only kind whose end is written into the journal.
    """
    folder = RunFolder(home.runs / run)
    log_json(file=folder.log)
    try:
        with ExitStack() as claim:
            with lock_runs(home):  # whoever submits the run, or looks who conducts it, has done so before this does
                claim.enter_context(folder.conducting())
                progress = _begin(folder)
            try:
                _conduct(home, folder, progress, carrier_of)
            except BaseException as error:
                if folder.stop.exists():
                    progress.fail(_stopped())
                elif isinstance(error, CityFedError):
                    (progress.fail if _ends_run(folder, error) else progress.interrupt)(error)
                raise
            progress.change(state="completed", phase="")
    except BaseException:
        note_ends_if_free(home)
        raise


def _begin(folder: RunFolder) -> Progress:
    """Write down which process the run has, unless it is over: it may have been submitted twice."""
    status = folder.status()
    if status.state == "failed" and not status.goes_on:
        raise RoundAbortedError(status.code, status.message)
    if status.state == "completed":
        raise ConfigError("run-over", f"The run of {folder.path} has been completed.")
    return Progress(folder)


def _conduct(home: AuthorityHome, folder: RunFolder, progress: Progress, carrier_of: CarrierOf) -> None:
    """Open everything, run, close everything."""
    if folder.stop.exists():  # only now, when the status says which process to tell
        raise _stopped()
    config, submitted = load_server(home), folder.submitted()
    plan = accept_plan(submitted.plan, load_city(home).plan_key)
    members = load_members(home)
    nodes = {DepartmentId(name): node for name, node in submitted.nodes.items()}
    with (
        Journal.open(home.journal, owner=OWNER) as journal,
        _open_channel(home, folder, config, members=len(members.roster.members)) as channel,
    ):
        note_ends(home, journal)  # of runs before this one
        invitation = encode(channel.open_session(plan.run_id(), limits_of(plan)))
        invitations = Invitations(
            carrier_of(nodes), tuple(nodes), invitation, each_look=lambda: progress.see(channel, invitations)
        )
        coordinator = Coordinator(
            plan=plan,
            signed_plan=submitted.plan,
            signed_roster=members.signed,
            authority=load_plan_key(home),
            transport=AttendedTransport(channel, config.attend_timeout_s),
            journal=journal,
            clock=_now,
            observer=progress,
            checkpoints=CheckpointFolder(folder.state),
            timeouts=config.timeouts,
        )
        invitations.open()
        try:
            # Held by the run alone, which lets go of it after the first round.
            result = coordinator.run(read_model(home.model(plan.initial_model_sha256), plan.layout))
        except BaseException as error:
            if not _ends_run(folder, error):
                channel.break_off()
                invitations.abandon()
            raise
        finally:
            channel.close_session()
            invitations.close()
            channel.stop()
            progress.see(channel, invitations)
    write_model(folder.path / MODEL_FILE, result.model, plan)


def _ends_run(folder: RunFolder, error: BaseException) -> bool:
    """Whether an error is the end of the run; otherwise it is that of this process, and another one goes on."""
    return folder.stop.exists() or (isinstance(error, CityFedError) and error.code not in PASSING)


def _stopped() -> RoundAbortedError:
    """What has become of a run that somebody has stopped."""
    return RoundAbortedError(STOPPED, STOPPED_MESSAGE)


@contextmanager
def _open_channel(
    home: AuthorityHome, folder: RunFolder, config: ServerConfig, *, members: int
) -> Iterator[UpdateChannel]:
    """Listen for departments, to the end; whose certificate counts is read from the home at every request."""
    tls: TlsFiles = load_server_tls(home, now=_now())
    channel = UpdateChannel(
        config.listening(config.channel), tls, member_of=LiveMembers(home).of, members=members, spool=home.spool
    )
    try:
        yield channel
    except BaseException as error:
        if not _ends_run(folder, error):  # departments that are told to leave would forget their epoch
            channel.break_off()
        raise
    finally:
        channel.stop()


class Progress:
    """Hears what happens in a run and keeps its status file up to date; implements the Coordinator's observer."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._guard = threading.Lock()
        self._status = msgspec.structs.replace(
            folder.status(), state="running", process=process_status(os.getpid()), since=_now(), code="", message=""
        )
        folder.write(self._status)

    def change(self, **changes: object) -> None:
        """Write the status again if anything in it is new."""
        with self._guard:
            changed = msgspec.structs.replace(self._status, **changes)
            if changed != self._status:
                self._status = changed
                self._folder.write(changed)

    def fail(self, error: CityFedError) -> None:
        """The run is over without a model."""
        _LOG.error("the run failed: %s", error.code)
        self.change(state="failed", code=error.code, message=error.message)

    def interrupt(self, error: CityFedError) -> None:
        """The run does not go on in this process; the code stands there until the process has ended."""
        _LOG.error("the run is interrupted: %s", error.code)
        self.change(code=error.code, message=error.message)

    def see(self, channel: UpdateChannel, invitations: Invitations) -> None:
        """Write down who is there."""
        known, left = channel.status(), dict(invitations.left)
        signs = {
            str(name): Sign(
                attached=name in known and known[name].attached,
                last_sign=known[name].last_sign if name in known else None,
                refused=known[name].refused if name in known else "",
                left=left.get(name, ""),
            )
            for name in invitations.cohort
        }
        self.change(signs=signs)

    def phase(self, round_number: int, phase: str) -> None:
        """A step of a round begins."""
        _LOG.info("round %d: %s", round_number, phase)
        self.change(round=round_number, phase=phase)

    def missing(self, round_number: int, step: str, department: str, status: str) -> None:
        """A department gave no usable answer."""
        _LOG.warning("round %d: %s is missing in step %s: %s", round_number, department, step, status)
        missing = Missing(round=round_number, step=step, status=status)
        self.change(missing=self._status.missing | {department: missing})

    def closed(self, result: RoundResult) -> None:
        """A round is finished."""
        _LOG.info("round %d is closed with %s", result.round, ", ".join(result.survivors))
        still = {name: item for name, item in self._status.missing.items() if name not in result.survivors}
        self.change(rounds=self._status.rounds + 1, missing=still)

    def failed(self, round_number: int, error: RoundAbortedError) -> None:
        """A round ended without a sum."""
        _LOG.warning("round %d was aborted: %s", round_number, error.code)


def _now() -> dt.datetime:
    """Return the present time, UTC."""
    return dt.datetime.now(dt.UTC)
