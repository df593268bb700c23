"""What a deployed round costs: every end is a process of its own and talks over TLS on loopback.

`100MB` sends a vector of 100 MB to four departments and gets one back from each; nobody trains.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import asdict

from schemes import channel

SIZE = 25_000_000  # float32: 100 MB


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="three rounds instead of ten")
    parser.add_argument("--json", action="store_true", help="print one JSON object with load and rows")
    options = parser.parse_args()
    load = round(os.getloadavg()[0], 1)
    rows = channel.rows([SIZE], rounds=3 if options.quick else 10)
    if options.json:
        print(json.dumps({"load_before": load, "rows": [asdict(row) for row in rows]}, indent=1))
        return
    print("| system | case | round s | MB/s | server growth MiB |", "|---|---|--:|--:|--:|", sep="\n")
    for row in rows:
        cells = (f"{row.round_overhead_s:.2f}", f"{row.mb_per_s:.0f}", f"{row.server_growth_mib:.0f}")
        print(f"| {row.system} | {row.case} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
