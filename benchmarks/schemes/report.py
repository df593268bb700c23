"""What every benchmark prints: the machine, a table, and what it must show; with ``--json`` as one object."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

R = TypeVar("R")


@dataclass(frozen=True, kw_only=True)
class Target:
    """Something that a run must show: ``value`` is at least, or at most, ``limit``."""

    what: str
    value: float
    limit: float
    at_least: bool

    @property
    def met(self) -> bool:
        return self.value >= self.limit if self.at_least else self.value <= self.limit


def at_least(what: str, value: float, limit: float) -> Target:
    return Target(what=what, value=value, limit=limit, at_least=True)


def at_most(what: str, value: float, limit: float) -> Target:
    return Target(what=what, value=value, limit=limit, at_least=False)


def options_of(doc: str | None, quick: str, **flags: str) -> argparse.Namespace:
    """Read the command line; ``flags`` are further switches and what they do."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, help_text in {
        "quick": quick,
        "json": "print one JSON object with machine, targets and rows",
        **flags,
    }.items():
        parser.add_argument(f"--{name}", action="store_true", help=help_text)
    return parser.parse_args()


def report(
    rows: Iterable[R],
    *,
    as_json: bool,
    headings: Sequence[str],
    cells: Callable[[R], Sequence[object]],
    targets: Callable[[Sequence[R]], Sequence[Target]],
    libraries: Sequence[str],
    **more: str,
) -> None:
    """Print rows as they come, and then how they compare with what the benchmark must show.

    Args:
        rows: dataclasses, measured one by one.
        as_json: the object to standard output, the table to standard error.
        headings: of the table.
        cells: of one row.
        targets: from all rows.
        libraries: whose versions belong to the figures.
        more: what else does.
    """
    about, done = machine(libraries) | more, list[R]()
    out = sys.stderr if as_json else sys.stdout
    rule = "|---" * len(headings) + "|"
    print(json.dumps(about), f"| {' | '.join(headings)} |", rule, sep="\n", file=out, flush=True)
    for row in rows:
        done.append(row)
        print(f"| {' | '.join(map(str, cells(row)))} |", file=out, flush=True)
    about["load_after"] = round(os.getloadavg()[0], 1)
    judged = targets(done)
    for target in judged:
        print(f"{'met' if target.met else 'MISSED'}: {target.what}: {target.value:.3g} ({target.limit:g})", file=out)
    if as_json:
        shown = [asdict(target) | {"met": target.met} for target in judged]
        print(json.dumps({"machine": about, "targets": shown, "rows": [_plain(row) for row in done]}, indent=1))


def machine(libraries: Sequence[str]) -> dict[str, object]:
    """Describe the hardware and the libraries, and nothing that names the machine."""
    about: dict[str, object] = {
        "cpu": processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "python": platform.python_version(),
        "load_before": round(os.getloadavg()[0], 1),
    }
    return about | {name: importlib.metadata.version(name) for name in libraries}


def processor() -> str:
    """Return the processor's name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else ()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


def _plain(row: Any) -> dict[str, object]:
    """Return a row as it goes into JSON."""
    if not is_dataclass(row) or isinstance(row, type):
        raise TypeError("a row is a dataclass")
    return asdict(row)
