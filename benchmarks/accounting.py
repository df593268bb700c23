"""What it costs to quote a privacy budget over a history of unlike runs (privacy 5).

A history is so many runs that differ in noise, sampling rate and steps. `pld` is the ledger's figure as if all plans
had been fixed beforehand, `pld-next` the same for one more run in the same process, `filter` what counts against a
shared cap, `prv` Opacus' accountant. Every cell has a process of its own, so nothing is remembered from another.
"""

from __future__ import annotations

import importlib
import multiprocessing
import random
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from schemes.report import Target, at_most, options_of, report

from shared.privacy.accountant import MechanismEvent, epsilon, filter_epsilon

DELTA = 1e-5
SIZES, QUICK_SIZES = (1, 6, 12, 36, 100), (6, 36)
LARGEST_PRV, QUICK_LARGEST_PRV = 36, 6
SEED = 36
TARGET_RUNS, TARGET_S = 36, 2.0


@dataclass(frozen=True)
class Row:
    """One cell: CPU seconds of the libraries' import and of the figure, cold, and the figure."""

    runs: int
    method: str
    import_s: float
    cpu_s: float
    epsilon: float


def history(runs: int) -> list[MechanismEvent]:
    """Return runs of which no two have anything in common."""
    chance = random.Random(SEED)
    return [
        MechanismEvent(
            noise_multiplier=round(chance.uniform(1.5, 6.0), 4),
            sample_rate=round(chance.uniform(0.005, 0.1), 4),
            steps=chance.randint(50, 600),
        )
        for _ in range(runs)
    ]


def measure(runs: int, method: str) -> Row:
    """Measure one cell in this process."""
    began = time.process_time()
    for name in ("opacus.accountants",) if method == "prv" else ("dp_accounting.pld", "dp_accounting.rdp"):
        importlib.import_module(name)
    events = history(runs + (method == "pld-next"))
    if method == "pld-next":
        epsilon(events[:-1], DELTA)
    loaded = time.process_time()
    figure = {"pld": epsilon, "pld-next": epsilon, "filter": filter_epsilon, "prv": prv}[method](events, DELTA)
    done = time.process_time()
    return Row(runs, method, 0.0 if method == "pld-next" else loaded - began, done - loaded, figure)


def prv(events: list[MechanismEvent], delta: float) -> float:
    """Ask Opacus."""
    from opacus.accountants import PRVAccountant  # noqa: PLC0415 - imports torch

    accountant = PRVAccountant()
    accountant.history = [(event.noise_multiplier, event.sample_rate, event.steps) for event in events]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # about its own first guess
        return float(accountant.get_epsilon(delta))


def table(*, quick: bool) -> Iterator[Row]:
    """Measure every cell."""
    largest = QUICK_LARGEST_PRV if quick else LARGEST_PRV
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for runs in QUICK_SIZES if quick else SIZES:
            for method in ("pld", "pld-next", "filter", *(("prv",) if runs <= largest else ())):
                yield pool.apply(measure, (runs, method))


def targets(rows: Sequence[Row]) -> list[Target]:
    """Hold the run against what it must show."""
    (row,) = (row for row in rows if (row.runs, row.method) == (TARGET_RUNS, "pld"))
    what = f"{TARGET_RUNS} unlike runs quoted in CPU seconds, the library's import included"
    return [at_most(what, row.import_s + row.cpu_s, TARGET_S)]


def cells(row: Row) -> list[object]:
    """Write a row of the table."""
    return [row.runs, row.method, f"{row.import_s:.2f}", f"{row.cpu_s:.3f}", f"{row.epsilon:.4f}"]


def main() -> None:
    options = options_of(__doc__, "histories of 6 and 36 runs, under a minute")
    report(
        table(quick=options.quick),
        as_json=options.json,
        headings=("runs", "method", "import s", "CPU s", "epsilon"),
        cells=cells,
        targets=targets,
        libraries=("dp-accounting", "opacus", "scipy"),
    )


if __name__ == "__main__":
    main()
