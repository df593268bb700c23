"""What encrypted updates cost, beside Flower's SecAgg+, TenSEAL's CKKS and the floor, all in one run (protocol 5).

`cityfed` runs the real protocol; Flower's own functions do what its SecAgg+ client and server do between the messages;
`floor` moves the same bytes and makes the same key streams but adds nothing up. Times are CPU seconds.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from cryptography.hazmat.backends.openssl.backend import backend
from schemes import cityfed, homomorphic, secaggplus
from schemes.measuring import BOUND, Memory, Row

from shared.secagg.ring import fraction_bits

LARGEST = 22_700_000
COUNTS = (4, 10, 20, 50)
SIZES = (100_000, 1_000_000, 10_000_000, LARGEST)
FULL = [(count, size) for count in COUNTS for size in SIZES]
QUICK = [(4, 100_000), (4, 1_000_000), (4, LARGEST), (10, 100_000)]
DROPS = (0, 1)
FLOWER_WORK = 4_000_000_000  # n^2 x parameters: beyond this Flower's clients alone take minutes
CKKS_SIZE = 1_000_000


def measure(cells: Sequence[tuple[int, int]]) -> Iterator[Row]:
    """Measure every cell with every scheme that is worth its time there."""
    has_tenseal = importlib.util.find_spec("tenseal") is not None
    for count in sorted({count for count, _ in cells}):
        city = cityfed.City(count)
        for size in sorted(size for other, size in cells if other == count):
            memory = Memory(size)
            for dropped in DROPS:
                yield from cityfed.rows(city, memory, dropped)
            if count * count * size <= FLOWER_WORK:
                yield from secaggplus.rows(count, memory, DROPS)
            if has_tenseal and count == 4 and size <= CKKS_SIZE:
                yield from homomorphic.rows(count, memory)


def targets(rows: Sequence[Row]) -> list[dict[str, object]]:
    """Hold the run against what it must show."""
    by = {(row.scheme, row.n, row.parameters, row.dropped): row for row in rows}
    found: list[dict[str, object]] = []

    def judge(what: str, value: float, limit: float, *, at_least: bool) -> None:
        met = value >= limit if at_least else value <= limit
        found.append({"what": what, "value": value, "limit": limit, "met": met})

    for size, limit in ((1_000_000, 12), (LARGEST, 20)):
        ours, theirs = by["cityfed", 4, size, 0], by["flower", 4, size, 0]
        ratio = theirs.client_cpu_s / ours.client_cpu_s
        judge(f"client CPU, times less than Flower, n = 4, {size:,} parameters", ratio, limit, at_least=True)
    where = f"of the floor, n = 4, {LARGEST:,} parameters"
    masking = [
        sum(by[scheme, 4, LARGEST, dropped].client_cpu_s for dropped in DROPS) for scheme in ("cityfed", "floor")
    ]
    judge(f"client masking, times {where}", masking[0] / masking[1], 1.5, at_least=False)
    for dropped in DROPS:
        ours, least = by["cityfed", 4, LARGEST, dropped], by["floor", 4, LARGEST, dropped]
        for cost, what in ((ours.server_cpu_s, ""), (ours.server_cpu_s + ours.decode_cpu_s, " and decoding")):
            ratio = cost / least.server_cpu_s
            judge(f"server unmasking{what}, times {where}, {dropped} dropped", ratio, 2, at_least=False)
    four = [row.client_bytes - 4 * row.parameters for row in rows if (row.scheme, row.n) == ("cityfed", 4)]
    judge("bytes of an upload beyond 4 per parameter, n = 4", max(four), 2048, at_least=False)
    shares = [
        row.max_error / ((row.n - row.dropped) * 2.0 ** -(fraction_bits(row.n, BOUND) + 1))
        for row in rows
        if row.scheme == "cityfed" and row.max_error is not None
    ]
    judge(
        "largest coordinate error, as a share of n 2^-(f+1) with n who stayed, all rows", max(shares), 1, at_least=False
    )
    return found


def machine() -> dict[str, object]:
    """Describe the hardware and the libraries, and nothing that names the machine."""
    info = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(":")[2].strip() for line in info if line.startswith("model name")]
    about: dict[str, object] = {
        "cpu": models[0] if models else platform.machine(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "python": platform.python_version(),
        "openssl": backend.openssl_version_text(),
        "load_before": round(os.getloadavg()[0], 1),
    }
    libraries = ["numpy", "cryptography", "flwr", *(["tenseal"] if importlib.util.find_spec("tenseal") else [])]
    return about | {name: importlib.metadata.version(name) for name in libraries}


HEADINGS = (
    "| n | parameters | dropped | scheme | client ms | server ms | digest ms | decode ms "
    "| bytes a parameter | max error |"
)


def line(row: Row) -> str:
    """Write a row of the table."""
    error = "" if row.max_error is None else f"{row.max_error:.1e}"
    seconds = row.client_cpu_s, row.server_cpu_s, row.digest_cpu_s, row.decode_cpu_s
    times = [f"{1000 * value:,.1f}" for value in seconds]
    cells = [row.n, f"{row.parameters:,}", row.dropped, row.scheme, *times]
    return f"| {' | '.join(map(str, [*cells, f'{row.client_bytes / row.parameters:.3f}', error]))} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="four cells, under a minute")
    parser.add_argument("--json", action="store_true", help="print one JSON object with machine, targets and rows")
    options = parser.parse_args()
    about, rows = machine(), []
    if not options.json:
        print(json.dumps(about), HEADINGS, "|--:" * 3 + "|---" + "|--:" * 6 + "|", sep="\n")
    for row in measure(QUICK if options.quick else FULL):
        rows.append(row)
        print(line(row), file=sys.stderr if options.json else sys.stdout, flush=True)
    if options.json:
        print(json.dumps({"machine": about, "targets": targets(rows), "rows": [asdict(row) for row in rows]}, indent=1))
        return
    for target in targets(rows):
        print(f"{'met' if target['met'] else 'MISSED'}: {target['what']}: {target['value']:.3g} ({target['limit']})")


if __name__ == "__main__":
    main()
