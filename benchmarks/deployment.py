"""What a deployed round costs beside stock Flower: every end is a process of its own and talks over TLS on loopback.

`small` has 4,096 parameters, `100MB` 25 million float32. A model goes to four departments and comes back from each;
nobody trains. With `--channel` there is a row of the update channel alone, without the protocol and without a log.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # the city is started as the tests start theirs

from schemes import channel, deployed, stock_flower
from schemes.processes import Case, DeploymentRow

SMALL = 4096
LARGE = 25_000_000  # float32: 100 MB


def measure(*, quick: bool, alone: bool) -> list[DeploymentRow]:
    """Measure one system after the other, and the update channel ``alone`` if that is asked for."""
    cases = [
        Case(name="small", size=SMALL, rounds=3 if quick else 10),
        Case(name="100MB", size=LARGE, rounds=2 if quick else 5),
    ]
    with tempfile.TemporaryDirectory() as folder:
        ours, peer = (scheme.rows(Path(folder), cases) for scheme in (deployed, stock_flower))
    return [*ours, *peer, *(channel.rows([LARGE], rounds=cases[-1].rounds) if alone else ())]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--channel", action="store_true", help="measure the update channel alone, too")
    parser.add_argument("--json", action="store_true", help="print one JSON object with load and rows")
    options = parser.parse_args()
    load = [round(os.getloadavg()[0], 1)]
    rows = measure(quick=options.quick, alone=options.channel)
    load.append(round(os.getloadavg()[0], 1))
    if options.json:
        print(json.dumps({"load": load, "rows": [asdict(row) for row in rows]}, indent=1))
        return
    print("| system | case | rounds | round s | MB/s | server growth MiB |", "|---|---|--:|--:|--:|--:|", sep="\n")
    for row in rows:
        cells = (f"{row.rounds}", f"{row.round_overhead_s:.2f}", f"{row.mb_per_s:.3g}", f"{row.server_growth_mib:.0f}")
        print(f"| {row.system} | {row.case} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
