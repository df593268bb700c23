"""What every deployed scheme fills in, and how much memory a process and its children take."""

from __future__ import annotations

import contextlib
import itertools
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Thread

LOOK_S = 0.1


@dataclass(frozen=True, kw_only=True)
class DeploymentRow:
    """One line of the table.

    ``round_overhead_s`` is the median time of a round in which nobody trains; ``mb_per_s`` counts the bytes of the
    vector down and up over all departments; ``server_growth_mib`` is the peak of all authority processes over idle.
    """

    system: str
    case: str
    departments: int
    rounds: int
    round_overhead_s: float
    mb_per_s: float
    server_growth_mib: float


@dataclass(frozen=True, kw_only=True)
class Case:
    """A vector of ``size`` float32 that goes to every department and back, in ``rounds`` rounds after the first."""

    name: str
    size: int
    rounds: int

    def row(self, system: str, *, departments: int, ends: Sequence[float], growth: float) -> DeploymentRow:
        """Return the table's line.

        Args:
            ends: when each round was finished, in seconds; the first round is left out.
            growth: MiB.
        """
        seconds = statistics.median(later - earlier for earlier, later in itertools.pairwise(ends))
        return DeploymentRow(
            system=system,
            case=self.name,
            departments=departments,
            rounds=len(ends) - 1,
            round_overhead_s=seconds,
            mb_per_s=2 * departments * 4 * self.size / 1e6 / seconds,
            server_growth_mib=growth,
        )


def memory_mib(what: str, pid: int | str = "self") -> float:
    """Read ``VmRSS`` (now) or ``VmHWM`` (the peak) of a process; pages of mapped files count."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{what}:")) / 1024


def forget_peak(pid: int | str = "self") -> None:
    """Let ``VmHWM`` begin anew."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def family(pid: int) -> Iterator[int]:
    """Yield a process and all that descend from it, but for copies that have not begun their own program yet.

    Such a copy shares the memory of its parent, which would be counted twice.
    """
    yield pid
    with contextlib.suppress(OSError):
        program = Path(f"/proc/{pid}/cmdline").read_bytes()
        for thread in Path(f"/proc/{pid}/task").iterdir():
            for child in (thread / "children").read_text().split():
                if Path(f"/proc/{child}/cmdline").read_bytes() != program:
                    yield from family(int(child))


@dataclass
class Growth:
    """Watches a process and its children: the sum of each one's peak, over what they all had at the beginning."""

    root: int
    idle_mib: float = 0.0
    peaks: dict[int, float] = field(default_factory=dict)

    @property
    def mib(self) -> float:
        return sum(self.peaks.values()) - self.idle_mib

    def look(self) -> None:
        for pid in family(self.root):
            with contextlib.suppress(OSError, StopIteration):
                self.peaks[pid] = memory_mib("VmHWM", pid)


@contextlib.contextmanager
def growth_of(root: int) -> Iterator[Growth]:
    """Watch memory while the block runs; whoever ends is looked at until then."""
    watched, over = Growth(root), Event()
    for pid in family(root):
        forget_peak(pid)
        watched.idle_mib += memory_mib("VmRSS", pid)

    def watch() -> None:
        while not over.wait(LOOK_S):
            watched.look()

    thread = Thread(target=watch)
    thread.start()
    try:
        yield watched
    finally:
        over.set()
        thread.join()
        watched.look()
