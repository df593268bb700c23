"""Where processes of a running city are killed, and what must hold of a run after any fault."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from clients.desk import open_memory
from server.home import AuthorityHome
from server.runs import INTERRUPTED, RunFolder, RunStatus
from server.submit import submit_run
from shared.plan import Plan
from shared.privacy.ledger import PrivacyLedger
from tests.city import FOUR
from tests.deployed_city import now
from tests.deployment.running_city import RunningCity, wait_until

VICTIM = "police"
KINDS = ("superlink", "superexec", "gateway", "run", "supernode", "node", "worker")
PHASES = ("submitted", "cohort", "update", "reveal", "unmask", "close")
_ALL = ((kind, phase) for phase in PHASES for kind in KINDS if (kind, phase) != ("run", "submitted"))
POINTS = tuple(sorted(_ALL, key=lambda point: point[0] == "supernode"))
"""Before a run has a process of its own there is none to kill. A killed SuperNode is away for a minute: those last."""

BEFORE = {"unmask": "reveal"}
LOOK_S = 0.0005


@dataclass(frozen=True)
class Running:
    """A run that was submitted."""

    city: RunningCity
    plan: Plan

    @property
    def folder(self) -> RunFolder:
        return RunFolder(self.city.authority.runs / self.plan.run_id().hex())

    def over(self) -> bool:
        """Whether it has ended for good: one that was interrupted is started again."""
        status = self.folder.status()
        return status.state == "completed" or (status.state == "failed" and status.code != INTERRUPTED)

    def end(self, timeout_s: float = 300.0) -> RunStatus:
        wait_until(self.over, "the end of the run", timeout_s)
        return self.folder.status()

    def pid(self, kind: str) -> int:
        """The process of one kind; of the departments the victim's."""
        if kind == "run":
            return self.folder.status().process.pid
        if kind == "worker":
            return next(iter(self.city.children(VICTIM, "node")), 0)
        return self.city.pid(VICTIM if kind in {"supernode", "node"} else "authority", kind)

    def kill(self, kind: str, phase: str) -> bool:
        """Kill a process in a phase; the run's own process stands still meanwhile, so that the phase is the one meant.

        Returns whether the phase was met: one that is over within a look is tried again in the next round. The process
        goes from look to look once the phase before a short one has begun.
        """
        while not self.over():
            status = self.folder.status()
            if phase == status.state == "submitted":
                os.kill(self.pid(kind), signal.SIGKILL)
                return True
            if status.phase in {phase, BEFORE.get(phase)}:
                with standing_still(status.process.pid):
                    if self.folder.status().phase == phase:
                        os.kill(self.pid(kind), signal.SIGKILL)
                        return True
            time.sleep(LOOK_S)
        return False


@contextlib.contextmanager
def standing_still(pid: int) -> Iterator[None]:
    """Stop a process for as long as the block runs; one that has ended is none."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)
        deadline = time.monotonic() + 1.0
        while state_of(pid) not in {"T", "Z", ""} and time.monotonic() < deadline:
            os.sched_yield()
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def state_of(pid: int) -> str:
    """The kernel's letter for the state of a process; empty when there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def submit(city: RunningCity, plan: Plan) -> Running:
    """Start a run and do not wait for it."""
    submit_run(AuthorityHome(city.authority.root), plan.digest().hex(), now=now())
    return Running(city, plan)


def ledgers_right(city: RunningCity, plan: Plan) -> None:
    """Every department has charged at least what left it: one attempt for each round that it answered."""
    for name in FOUR:
        with open_memory(city.city.config(name), now) as memory:
            reservation = PrivacyLedger(memory.journal, now).reservation(plan.run_id())
            answered = memory.runs[plan.run_id()].updated if plan.run_id() in memory.runs else set[int]()
        assert answered <= (reservation.burned if reservation else frozenset()), name


def ended_well(running: Running) -> RunStatus:
    """The run has completed, or was aborted by name; no ledger shows less than what left."""
    status = running.end()
    assert status.state == "completed" or (status.code and status.message), status
    ledgers_right(running.city, running.plan)
    return status
