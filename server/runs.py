"""The folder of a run: what was submitted, how it stands, what came out.

::

    runs/lock                held while a run is submitted, begins in a process, or is said to be over
    runs/RUN/                the run's id in hex
    ├── run.json              what was submitted: plan, Flower's number, node ids; a folder without it is no run
    ├── status.json           how it stands; written again and again while it goes on
    ├── log.jsonl             what the process of the run had to say
    ├── state/                checkpoint: from it the run goes on in another process
    ├── stop                  exists once somebody has told the run to stop
    └── model.safetensors     the released model, only of a completed run
"""

from __future__ import annotations

import contextlib
import datetime as dt
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, TypeVar

import msgspec

from server.checkpoint import forget_rounds
from server.home import AuthorityHome
from shared.codec import Record, dump_json, load_json
from shared.errors import ConfigError
from shared.identity import Signed
from shared.private_files import holding_lock, make_private_folder, replace_private_file
from shared.supervise import ProgramStatus, is_alive

State = Literal["submitted", "running", "completed", "failed"]
_FINISHED: Final = frozenset({"completed", "failed"})
_SUBMITTED: Final = "run.json"
_CLAIM: Final = "lock"
_STATUS: Final = "status.json"

INTERRUPTED: Final = "run-interrupted"
"""Code of a run whose process ended before the run did."""

UNREADABLE: Final = "run-unreadable"
"""Code of a run whose status file is lost or damaged: it holds up nobody, and does not go on."""

STOPPED: Final = "run-stopped"
STOPPED_MESSAGE: Final = "Somebody at the authority has stopped the run."

R = TypeVar("R", bound=Record)


class Submitted(Record, frozen=True, kw_only=True):
    """What was submitted.

    Attributes:
        plan: the signed plan.
        nodes: Flower's node id per department of the cohort.
        flower_run: Flower's number for the run; 0 while it does not know it yet.
    """

    plan: Signed
    nodes: dict[str, int]
    flower_run: int = 0


class Missing(Record, frozen=True, kw_only=True):
    """A department gave no usable answer in a step."""

    round: int
    step: str
    status: str


class Sign(Record, frozen=True, kw_only=True):
    """What is known of a department's connection.

    Attributes:
        attached: it stands.
        last_sign: when something last came from it, UTC; None if nothing ever did.
        refused: reason code of the last thing that was refused to it, or nothing.
        left: what it told Flower when it left the session last, or nothing.
    """

    attached: bool = False
    last_sign: dt.datetime | None = None
    refused: str = ""
    left: str = ""


class RunStatus(Record, frozen=True, kw_only=True):
    """How a run stands.

    Attributes:
        process: the process of the run; by it a run is told apart whose process was killed.
        round: attempt that goes on, or was the last.
        rounds: finished ones.
        missing: who gave no usable answer last, and where; a department that finished a later round is not in it.
        signs: every department of the cohort.
        code: reason of a failure.
        message: the same in one sentence; of an interrupted run what its process met, if it said so.
    """

    state: State
    process: ProgramStatus
    since: dt.datetime
    phase: str = ""
    round: int = 0
    rounds: int = 0
    missing: dict[str, Missing] = msgspec.field(default_factory=dict)
    signs: dict[str, Sign] = msgspec.field(default_factory=dict)
    code: str = ""
    message: str = ""

    @property
    def goes_on(self) -> bool:
        """Whether the run waits for a process, has one, or has lost it and waits for the next."""
        return self.state not in _FINISHED or self.code == INTERRUPTED


@dataclass(frozen=True)
class RunFolder:
    """One run's folder."""

    path: Path

    @property
    def log(self) -> Path:
        """Lines of JSON."""
        return self.path / "log.jsonl"

    @property
    def state(self) -> Path:
        """Folder of the checkpoint."""
        return self.path / "state"

    @property
    def stop(self) -> Path:
        """File that tells a run that its end is final."""
        return self.path / "stop"

    @contextlib.contextmanager
    def conducting(self) -> Iterator[None]:
        """Be the one process that conducts the run; the claim ends with the process.

        Raises:
            ConfigError: ``run-active``: another process conducts it, and nothing of the run was touched.
            OSError: when the folder cannot be written.
        """
        with holding_lock(self.path / _CLAIM) as claimed:
            if not claimed:
                raise ConfigError("run-active", f"Another process conducts the run of {self.path}.")
            yield

    def is_conducted(self) -> bool:
        """Return whether a process conducts the run, whatever the status says.

        Raises:
            OSError: when the folder cannot be written.
        """
        with holding_lock(self.path / _CLAIM) as claimed:
            return not claimed

    def submit(self, submitted: Submitted, *, process: ProgramStatus, now: dt.datetime) -> None:
        """Write down what is submitted; only the last of the files makes it a run.

        Args:
            submitted: what is.
            process: who answers for the run until it has a process of its own.
            now: the present time, UTC.

        Raises:
            ConfigError: ``run-exists``: one approval, one run.
            SetupError: ``home-not-writable``.
            OSError: when the disk is full; nothing is left of the run then.
        """
        if (self.path / _SUBMITTED).exists():
            raise ConfigError("run-exists", f"{self.path} exists, and one approval is one run: draft the plan again.")
        self.withdraw()  # what a submission left that was cut
        make_private_folder(self.path)
        try:
            self.write(RunStatus(state="submitted", process=process, since=now))
            self.write_submitted(submitted)
        except BaseException:
            self.withdraw()
            raise

    def write_submitted(self, submitted: Submitted) -> None:
        """Write what is submitted."""
        replace_private_file(self.path / _SUBMITTED, dump_json(submitted))

    def withdraw(self) -> None:
        """Take back what was written down; the run did not begin."""
        (self.path / _SUBMITTED).unlink(missing_ok=True)
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self.path)

    def submitted(self) -> Submitted:
        """Read what was submitted.

        Raises:
            ConfigError: ``run-unknown``, ``json-content``.
        """
        return self._read(_SUBMITTED, Submitted)

    def write(self, status: RunStatus) -> None:
        """Write down how the run stands; of one that is over, the uploads of an open round are deleted."""
        replace_private_file(self.path / _STATUS, dump_json(status))
        if not status.goes_on:
            forget_rounds(self.state)

    def status(self) -> RunStatus:
        """Read how the run stands; one whose process is gone has failed, for good if somebody has stopped it.

        One whose status is lost or damaged has failed, too (:data:`UNREADABLE`).

        Raises:
            ConfigError: ``run-unknown``.
            OSError: when a file is there and cannot be opened for now.
        """
        try:
            status = self._read(_STATUS, RunStatus)
        except ConfigError:
            return self._unreadable()
        if status.state in _FINISHED:
            return status
        alive = is_alive(status.process)
        if self.stop.exists() and not (alive and status.state == "running"):
            return msgspec.structs.replace(status, state="failed", code=STOPPED, message=STOPPED_MESSAGE)
        if alive:
            return status
        message = status.message or "The process of the run ended before the run did."
        return msgspec.structs.replace(status, state="failed", code=INTERRUPTED, message=message)

    def wait_for_process(self, process: ProgramStatus) -> None:
        """Write down that Flower has the run; until it has a process of its own, another one answers for it.

        To be called with the lock of the runs, without which no process begins and writes how it stands.
        """
        status = self._read(_STATUS, RunStatus)
        self.write(msgspec.structs.replace(status, state="submitted", process=process, phase="", code="", message=""))

    def give_up(self, message: str) -> None:
        """Write down that an interrupted run does not go on; to be called with the lock of the runs."""
        status = self._read(_STATUS, RunStatus)
        self.write(msgspec.structs.replace(status, state="failed", code="run-given-up", message=message))

    def _unreadable(self) -> RunStatus:
        """Say that nobody knows how the run stands."""
        try:
            since = dt.datetime.fromtimestamp((self.path / _SUBMITTED).stat().st_mtime, dt.UTC)
        except FileNotFoundError as cause:
            raise self._unknown() from cause
        message = f"How the run stands cannot be read from {self.path / _STATUS}; it does not go on."
        return RunStatus(state="failed", process=ProgramStatus(), since=since, code=UNREADABLE, message=message)

    def _read(self, name: str, record_type: type[R]) -> R:
        """Read one file."""
        path = self.path / name
        try:
            data = path.read_bytes()
        except FileNotFoundError as cause:
            raise self._unknown() from cause
        return load_json(data, record_type, where=str(path))

    def _unknown(self) -> ConfigError:
        """Say that this is no run's folder."""
        return ConfigError("run-unknown", f"There is no run in {self.path}.")


def run_folder(home: AuthorityHome, run: str) -> RunFolder:
    """Return the folder of a run; its first digits are enough if no other run has them.

    Raises:
        ConfigError: ``run-unknown``, ``run-ambiguous``.
    """
    found = [folder for folder in run_folders(home) if run and folder.path.name.startswith(run)]
    if not found:
        raise ConfigError("run-unknown", f"No run in {home.runs} begins with {run or 'nothing'}.")
    if len(found) > 1:
        raise ConfigError("run-ambiguous", f"{len(found)} runs in {home.runs} begin with {run}.")
    return found[0]


def run_folders(home: AuthorityHome) -> Iterator[RunFolder]:
    """Yield every run's folder, the newest first."""
    paths = [path for path in home.runs.glob("*") if (path / _SUBMITTED).exists()] if home.runs.exists() else []
    for path in sorted(paths, key=lambda path: (path / _SUBMITTED).stat().st_mtime, reverse=True):
        yield RunFolder(path)


def status_lines(run: str, status: RunStatus) -> list[str]:
    """Say how a run stands: one line for the run, one for each department that is missing or was heard of."""
    reason = f" [{status.code}]" if status.code else ""
    where = f", round {status.round} {status.phase}".rstrip() if status.state == "running" else ""
    lines = [f"Run {run[:16]} {status.state}{reason}: {status.rounds} rounds finished{where}."]
    for name, sign in sorted(status.signs.items()):
        missing = status.missing.get(name)
        lost = (
            f"missing in step {missing.step} of round {missing.round} ({missing.status})" if missing else _present(sign)
        )
        heard = f"{sign.last_sign:%Y-%m-%d %H:%M:%S} UTC" if sign.last_sign else "never"
        lines.append(f"  {name}: {lost}, last heard of on the update channel {heard}")
    return lines


def _present(sign: Sign) -> str:
    """Say how a department stands that missed no step yet."""
    return "in order" if sign.last_sign else "not here yet"
