"""What a deployed round costs beside stock Flower: every end is a process of its own and talks over TLS on loopback.

`small` has 4,096 parameters, `100MB` 25 million float32. A model goes to four departments and comes back from each;
nobody trains. With `--more` there are rows of stock Flower with its state in a database file, so that it survives a
restart as ours does, and of the update channel alone, without the protocol and without a log.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # the city is started as the tests start theirs

from schemes import channel, deployed, stock_flower
from schemes.processes import Case, DeploymentRow
from schemes.report import Target, at_least, options_of, report

SMALL = 4096
LARGE = 25_000_000  # float32: 100 MB


def measure(*, quick: bool, more: bool) -> Iterator[DeploymentRow]:
    """Measure one system after the other; ``more`` of them if that is asked for."""
    cases = [
        Case(name="small", size=SMALL, rounds=3 if quick else 10),
        Case(name="100MB", size=LARGE, rounds=2 if quick else 5),
    ]
    with tempfile.TemporaryDirectory() as folder:
        for scheme in (deployed, stock_flower):
            yield from scheme.rows(Path(folder), cases)
        if more:
            yield from stock_flower.durable_rows(Path(folder), cases[-1:])
            yield from channel.rows([LARGE], rounds=cases[-1].rounds)


def targets(rows: Sequence[DeploymentRow]) -> list[Target]:
    """Hold the run against what it must show."""
    by = {(row.system, row.case): row for row in rows}
    ours, theirs = ({case: by[system, case] for case in ("small", "100MB")} for system in ("cityfed", "flower"))
    faster = theirs["small"].round_overhead_s / ours["small"].round_overhead_s
    throughput = ours["100MB"].mb_per_s / theirs["100MB"].mb_per_s
    growth = theirs["100MB"].server_growth_mib / ours["100MB"].server_growth_mib
    return [
        at_least("small model: times less overhead of a round than stock Flower", faster, 2.5),
        at_least("100 MB: times the throughput of stock Flower", throughput, 10),
        at_least("100 MB: times less memory growth over idle than stock Flower", growth, 5),
    ]


def cells(row: DeploymentRow) -> list[object]:
    """Write a row of the table."""
    numbers = f"{row.round_overhead_s:.3g}", f"{row.mb_per_s:.3g}", f"{row.server_growth_mib:,.0f}"
    return [row.system, row.case, row.rounds, *numbers]


def main() -> None:
    options = options_of(__doc__, "fewer rounds, about five minutes", more="measure further systems, too")
    report(
        measure(quick=options.quick, more=options.more),
        as_json=options.json,
        headings=("system", "case", "rounds", "round s", "MB/s", "server growth MiB"),
        cells=cells,
        targets=targets,
        libraries=("flwr", "grpcio"),
    )


if __name__ == "__main__":
    main()
