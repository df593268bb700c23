"""One supervisor for both sides: starts a role's processes, starts them again when they end, stops them all.

It writes one file that says how each process fares. A process gets a session of its own, so that Ctrl-C reaches the
supervisor only and everything that a process started ends with it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from shared.codec import Record, load_json
from shared.errors import CityFedError, SetupError
from shared.logs import put_aside
from shared.private_files import holding_lock, make_private_folder, replace_private_file

_LOG = logging.getLogger(__name__)

STATUS_FILE = "status.json"
_LOCK_FILE = "lock"
TICK_S = 0.2
_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 30.0
_STEADY_S = 60.0
_GRACE_S = 10.0


@dataclass(frozen=True, kw_only=True)
class Program:
    """One process of a role.

    Attributes:
        name: for the log file and the status.
        command: full path of the executable and its arguments.
        environment: the whole environment.
        due: whether what it needs is there, asked before each start.
        last_word: what it writes to its log when it has given up; it is ended then, in case it does not end by itself.
    """

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    due: Callable[[], bool] = lambda: True
    last_word: bytes = b""


class ProgramStatus(Record, frozen=True, kw_only=True):
    """How one process fares.

    Attributes:
        pid: process id; 0 while it does not run.
        started: kernel's start time of the process, by which a reused id is told apart.
        starts: how often it was started by this supervisor.
        last_exit: exit status of the last one that ended, negative for a signal; None before.
    """

    pid: int = 0
    started: str = ""
    starts: int = 0
    last_exit: int | None = None


class Status(Record, frozen=True, kw_only=True):
    """What a supervisor wrote down last; ``fault`` is the reason code for which nothing may run, empty when all may."""

    supervisor: ProgramStatus
    programs: dict[str, ProgramStatus]
    fault: str = ""


@dataclass
class _Child:
    """A program and its present process."""

    program: Program
    process: subprocess.Popen[bytes] | None = None
    status: ProgramStatus = field(default_factory=ProgramStatus)
    failures: int = 0
    not_before: float = 0.0
    since: float = 0.0
    read: int = 0

    def ended(self, code: int) -> None:
        """Note that the process is gone."""
        self.process = None
        self.status = msgspec.structs.replace(self.status, pid=0, started="", last_exit=code)

    def pause(self, now: float) -> None:
        """Put the next start off, for longer with each failure in a row."""
        self.failures += 1
        self.not_before = now + min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2 ** (self.failures - 1))


@dataclass(frozen=True)
class _Passing:
    """Faults that pass: each is logged once until it is over, because a look is made several times in a second."""

    known: dict[str, str] = field(default_factory=dict)

    @contextlib.contextmanager
    def __call__(self, what: str) -> Iterator[None]:
        """Let what the machine or the outside refuses pass."""
        try:
            yield
        except (OSError, CityFedError) as error:
            said = error.code if isinstance(error, CityFedError) else error.strerror or type(error).__name__
            if self.known.get(what) != said:
                self.known[what] = said
                _LOG.error("%s: %s; it is tried again", what, said)
        else:
            self.known.pop(what, None)


@dataclass(frozen=True, kw_only=True)
class Supervisor:
    """Runs programs until told to stop.

    Attributes:
        folder: private folder for the status file and, in ``log/``, the output of each program.
        programs: in the order in which they start; they stop in the opposite one.
        clock: monotonic time in seconds.
        prepare: called before the first start, when it is sure that no other supervisor is on.
        fault: asked at every look for a reason code for which nothing may run now, empty for none; while there is one
            every process is ended and none is started. Must not raise.
        each_tick: called between looks at the processes that may run; an error of the machine or of the outside passes.
        tick_s: pause between two looks, in seconds.
    """

    folder: Path
    programs: Sequence[Program]
    clock: Callable[[], float]
    prepare: Callable[[], None] = lambda: None
    fault: Callable[[], str] = lambda: ""
    each_tick: Callable[[], None] = lambda: None
    tick_s: float = TICK_S

    def run(self, stopped: threading.Event) -> None:
        """Start everything and keep it running; returns when stopped and every process has ended.

        What the machine cannot do now, a full disk before all, ends nothing: it is logged, and tried at each look.

        Raises:
            SetupError: ``already-running``, ``home-not-writable``.
        """
        make_private_folder(self.folder / "log")
        with _alone(self.folder):
            _end_orphans(self.folder)
            self.prepare()
            children = [_Child(program) for program in self.programs]
            passing, written = _Passing(), None
            try:
                while not stopped.is_set():
                    fault = self.fault()
                    if fault:
                        self._end(children)
                    for child in () if fault else children:
                        with passing(child.program.name):
                            self._look_after(child)
                    seen = (fault, [child.status for child in children])
                    if seen != written:
                        with passing(STATUS_FILE):
                            self._write(children, fault)
                            written = seen
                    if not fault:
                        with passing("the look between"):
                            self.each_tick()
                    stopped.wait(self.tick_s)
            finally:
                self._end(children)
                with contextlib.suppress(OSError):
                    (self.folder / STATUS_FILE).unlink()

    def _look_after(self, child: _Child) -> None:
        """Notice an end, start what is due."""
        now = self.clock()
        if child.process is None:
            if now >= child.not_before and child.program.due():
                self._begin(child, now)
            return
        code = child.process.poll()
        if code is not None:
            _end_group(child.process.pid, signal.SIGKILL)  # whatever it left behind
            child.failures = 0 if now - child.since > _STEADY_S else child.failures
            child.pause(now)
            child.ended(code)
            _LOG.warning(
                "%s ended with %d and is started again: see %s", child.program.name, code, self._log(child.program)
            )
        elif self._gave_up(child):
            _end_group(child.process.pid, signal.SIGKILL)
        elif put_aside(self._log(child.program)):
            child.read = 0

    def _begin(self, child: _Child, now: float) -> None:
        """Start a process; where that is not possible now, the pause is that of one that ended at once."""
        try:
            child.process, child.since = self._start(child), now
        except OSError:
            child.pause(now)
            raise
        pid = child.process.pid
        child.status = msgspec.structs.replace(
            child.status, pid=pid, started=_started(pid), starts=child.status.starts + 1
        )
        _LOG.info("%s is started", child.program.name)

    def _gave_up(self, child: _Child) -> bool:
        """Return whether a program has written its last word since its start; whole lines are looked at once."""
        if not child.program.last_word:
            return False
        with self._log(child.program).open("rb") as log:
            log.seek(child.read)
            new = log.read()
        child.read += new.rfind(b"\n") + 1
        return child.program.last_word in new

    def _log(self, program: Program) -> Path:
        """Return the file with what a program has to say."""
        return self.folder / "log" / f"{program.name}.log"

    def _start(self, child: _Child) -> subprocess.Popen[bytes]:
        """Start one process: its own session, files for this account only, output to its log."""
        program = child.program
        log = self._log(program)
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        with os.fdopen(descriptor, "ab") as output:
            child.read = output.tell()
            return subprocess.Popen(
                program.command,
                env=dict(program.environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                umask=0o077,
            )

    def _write(self, children: Sequence[_Child], fault: str = "") -> None:
        """Put the status file in place."""
        status = Status(
            supervisor=process_status(os.getpid()),
            programs={child.program.name: child.status for child in children},
            fault=fault,
        )
        replace_private_file(self.folder / STATUS_FILE, msgspec.json.encode(status))

    def _end(self, children: Sequence[_Child]) -> None:
        """End every process, first with a request, then without one."""
        alive = [(child, child.process) for child in reversed(children) if child.process is not None]
        for _, process in alive:
            _end_group(process.pid, signal.SIGTERM)
        deadline = self.clock() + _GRACE_S
        for child, process in alive:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - self.clock()))
            _end_group(process.pid, signal.SIGKILL)
            child.ended(process.wait())


def read_status(folder: Path) -> Status | None:
    """Return what the supervisor of a folder wrote down; None when none is on.

    Raises:
        ConfigError: ``json-too-large``, ``json-content``: the file is damaged, or another version's.
    """
    try:
        content = (folder / STATUS_FILE).read_bytes()
    except OSError:
        return None
    status = load_json(content, Status, where=str(folder / STATUS_FILE))
    return status if is_alive(status.supervisor) else None


def process_status(pid: int) -> ProgramStatus:
    """Return by what a process is known again."""
    return ProgramStatus(pid=pid, started=_started(pid), starts=1)


def is_alive(program: ProgramStatus) -> bool:
    """Return whether a process runs that is the one written down."""
    return program.pid > 0 and _started(program.pid) == program.started != ""


def stop_supervisor(folder: Path, *, patience_s: float, wait: Callable[[float], object]) -> bool:
    """Ask the supervisor of a folder to stop and wait until it did; return whether there was one.

    Args:
        folder: as given to :class:`Supervisor`.
        patience_s: how long to wait, in seconds.
        wait: sleeps for some seconds.

    Raises:
        ConfigError: ``json-too-large``, ``json-content``: as for :func:`read_status`.
        SetupError: ``stop-timeout``.
    """
    status = read_status(folder)
    if status is None:
        return False
    with contextlib.suppress(ProcessLookupError):  # it ended since
        os.kill(status.supervisor.pid, signal.SIGTERM)
    for _ in range(int(patience_s / TICK_S)):
        if not is_alive(status.supervisor):
            return True
        wait(TICK_S)
    raise SetupError("stop-timeout", f"The processes of {folder} did not end within {patience_s:g} s.")


def stop_on_signals(stopped: threading.Event) -> None:
    """Let SIGTERM and Ctrl-C set an event instead of ending this process; for the main thread."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: stopped.set())


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; it ends with this process."""
    with holding_lock(folder / _LOCK_FILE) as held:
        if not held:
            raise SetupError("already-running", f"The processes of {folder} are already on.")
        yield


def _end_orphans(folder: Path) -> None:
    """End what a supervisor left behind that was killed itself; a file that cannot be read names nobody."""
    with contextlib.suppress(OSError):
        content = (folder / STATUS_FILE).read_bytes()
        try:
            left = load_json(content, Status, where=str(folder / STATUS_FILE)).programs
        except CityFedError as error:
            _LOG.warning("what another supervisor of %s left behind is not known: %s", folder, error.code)
            return
        for program in left.values():
            if is_alive(program):
                _end_group(program.pid, signal.SIGKILL)


def _end_group(pid: int, number: signal.Signals) -> None:
    """Send a signal to a process and all that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, number)


def _started(pid: int) -> str:
    """Return the kernel's start time of a process; empty when there is none, or only its exit status is left."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else fields[19]
