"""What a health endpoint answers: whether every process of a role runs, and nothing about data, plans or people."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from shared.codec import Record
from shared.errors import CityFedError
from shared.supervise import is_alive, read_status

HEALTH_PATH: Final = "/health"
_WELL: Final = 200
_UNWELL: Final = 503


class ProcessHealth(Record, frozen=True, kw_only=True):
    """One process: whether it runs, how often it was started, and how the last one ended that did."""

    running: bool
    starts: int
    last_exit: int | None


class Health(Record, frozen=True, kw_only=True):
    """A role's processes by name; ``healthy`` when all of them run; ``fault`` says why none may run, if so."""

    healthy: bool
    processes: dict[str, ProcessHealth]
    fault: str = ""


def health_answer(folder: Path) -> tuple[int, bytes]:
    """Return HTTP status and JSON body for the processes of one supervisor.

    Args:
        folder: as given to :class:`shared.supervise.Supervisor`.

    Returns:
        200 when every process runs, else 503; a status file that cannot be read is not well either.
    """
    try:
        status = read_status(folder)
    except CityFedError:
        status = None
    programs = status.programs if status else {}
    processes = {
        name: ProcessHealth(running=is_alive(item), starts=item.starts, last_exit=item.last_exit)
        for name, item in programs.items()
    }
    health = Health(
        healthy=bool(processes) and all(item.running for item in processes.values()),
        processes=processes,
        fault=status.fault if status else "",
    )
    return _WELL if health.healthy else _UNWELL, msgspec.json.encode(health)
