"""What every deployed scheme fills in, and how a process measures its own memory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


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


def memory_mib(what: str) -> float:
    """Read ``VmRSS`` (now) or ``VmHWM`` (the peak) of this process; pages of mapped files count."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{what}:")) / 1024


def forget_peak() -> None:
    """Let ``VmHWM`` begin anew."""
    Path("/proc/self/clear_refs").write_text("5")
