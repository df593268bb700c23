"""Submit a run, watch it, stop it: what `cityfed-server run` does beside the process of the run."""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import signal
import time
from collections.abc import Callable
from contextlib import AbstractContextManager

import msgspec

from server.ends import note_ends_if_free
from server.home import AuthorityHome
from server.plan_files import load_published
from server.resume import never_began
from server.roster import load_members
from server.run_lock import lock_runs
from server.runs import INTERRUPTED, RunFolder, RunStatus, Submitted, run_folder, run_folders
from server.superlink import Control, SuperLink, open_control
from server.up import find_superlink
from shared.errors import CityFedError, ConfigError, RoundAbortedError, SetupError
from shared.identity import Signed
from shared.model_file import read_model
from shared.plan import Plan
from shared.private_files import replace_private_file
from shared.supervise import ProgramStatus, process_status, read_status

_LOOK_S = 0.5
PATIENCE_S = 120.0
"""So long a run is watched with which nothing goes on at the authority: a restart of `cityfed-server up` is over by
then."""


def submit_run(
    home: AuthorityHome,
    digest: str,
    *,
    now: dt.datetime,
    control_of: Callable[[SuperLink], AbstractContextManager[Control]] = open_control,
) -> RunFolder:
    """Submit the run of a published plan to the SuperLink.

    Args:
        home: the authority's home, whose processes are on.
        digest: of the plan, in hex.
        now: the present time, UTC.
        control_of: opens the control interface.

    Raises:
        ConfigError: ``plan-unknown``, ``plan-dates``, ``cohort-not-admitted``, ``run-active``, ``run-exists``;
            ``json-too-large``, ``json-content`` of the city file or of the status of `up`.
        ProtocolError: ``message-malformed``, ``signature-invalid``, ``plan-changed``.
        ModelError: the starting point that the plan names is not in the home.
        SetupError: ``home-not-writable``, ``authority-off``, ``superlink-unreachable``, ``superlink-refused``.
        OSError: when the disk is full.
    """
    signed, plan = load_published(home, digest)
    with lock_runs(home):
        _check(home, plan, now)
        with control_of(find_superlink(home)) as control:
            return _submit(home, control, signed, plan, now)


def _submit(home: AuthorityHome, control: Control, signed: Signed, plan: Plan, now: dt.datetime) -> RunFolder:
    """Write down what is submitted, and hand it to the SuperLink.

    Until Flower has it this process answers for the run: if it ends before, the run is an interrupted one. The run's
    own process begins only after that, when the lock of the runs is free.
    """
    nodes = control.enrol(load_members(home).node_keys)
    folder = RunFolder(home.runs / plan.run_id().hex())
    submitted = Submitted(plan=signed, nodes={name: nodes[name] for name in nodes if name in plan.cohort})
    folder.submit(submitted, process=process_status(os.getpid()), now=now)
    try:
        flower_run = control.start(folder.path.name)
    except SetupError:
        folder.withdraw()
        raise
    # First: by it `up`, which answers for the run from then on, sees what became of it.
    folder.write_submitted(msgspec.structs.replace(submitted, flower_run=flower_run))
    service = read_status(home.service)
    folder.wait_for_process(service.supervisor if service else ProgramStatus())
    return folder


def stop_run(home: AuthorityHome, run: str) -> None:
    """Stop a run for good, whether it waits for a process, has one, or has lost it.

    Raises:
        ConfigError: ``run-unknown``, ``run-ambiguous``, ``run-over``.
        OSError: it cannot be written down that the run is stopped.
    """
    folder = run_folder(home, run)
    status = folder.status()
    if not status.goes_on:
        raise ConfigError("run-over", f"Run {folder.path.name} does not go on: it is {status.state}.")
    replace_private_file(folder.stop, b"")
    status = folder.status()  # only now: a process that wrote its status after the file was there has seen it
    if status.state == "running":
        with contextlib.suppress(ProcessLookupError):
            os.kill(status.process.pid, signal.SIGTERM)
    else:
        folder.write(status)
        note_ends_if_free(home)


def _check(home: AuthorityHome, plan: Plan, now: dt.datetime) -> None:
    """Refuse what every department would refuse, before anybody is called."""
    if not plan.valid_from <= now.date() <= plan.valid_until:
        raise ConfigError("plan-dates", f"The plan is valid from {plan.valid_from} to {plan.valid_until}.")
    strangers = set(plan.cohort) - set(load_members(home).roster.members)
    if strangers:
        raise ConfigError("cohort-not-admitted", f"Not on the roster: {', '.join(sorted(strangers))}.")
    active = [folder.path.name for folder in run_folders(home) if folder.status().goes_on]
    if active:
        raise ConfigError("run-active", f"Run {active[0]} goes on or will; wait for its end, or stop it.")
    read_model(home.model(plan.initial_model_sha256), plan.layout)


def watch_run(
    home: AuthorityHome,
    folder: RunFolder,
    *,
    tell: Callable[[RunStatus], None],
    stands_still: Callable[[str], None],
    wait: Callable[[float], object],
    clock: Callable[[], float] = time.monotonic,
) -> RunStatus:
    """Wait for the end of a run, through a restart of `cityfed-server up`, too.

    Args:
        home: the authority's home.
        folder: the run's.
        tell: hears of each change.
        stands_still: hears a reason code once, each time that nothing goes on with the run at the authority.
        wait: sleeps for some seconds.
        clock: monotonic time in seconds.

    Raises:
        ConfigError: ``run-unknown``; ``json-too-large``, ``json-content`` of the status of `up`.
        RoundAbortedError: the reason for which the run failed, as its process gave it; after :data:`PATIENCE_S`
            ``run-interrupted`` while `up` is off, or ``run-not-started``: Flower gave it up.
        SetupError: ``authority-off``, ``superlink-unreachable``, ``superlink-refused``, after :data:`PATIENCE_S`, while
            the run has no process.
    """
    seen: RunStatus | None = None
    still_since: float | None = None
    while True:
        status = folder.status()
        if status != seen:
            tell(status)
            seen = status
        if status.state == "completed":
            return status
        if not status.goes_on:
            raise RoundAbortedError(status.code, status.message)
        fault = _why_still(home, folder, status)
        if fault is None:
            still_since = None
        elif still_since is None:
            still_since = clock()
            stands_still(fault.code)
        elif clock() - still_since >= PATIENCE_S:
            raise fault
        wait(_LOOK_S)


def _why_still(home: AuthorityHome, folder: RunFolder, status: RunStatus) -> CityFedError | None:
    """Return why nothing goes on with a run now, None if it does or will; a restart of `up` mends whatever it is."""
    if status.code == INTERRUPTED:
        return None if read_status(home.service) else RoundAbortedError(status.code, status.message)
    if status.state != "submitted":
        return None
    try:
        lost = never_began(find_superlink(home), folder)
    except SetupError as error:
        return error
    sentence = f"Flower could not start the run: see {home.service / 'log'}."
    return RoundAbortedError("run-not-started", sentence) if lost else None
