"""What encrypted updates cost, beside Flower's SecAgg+, TenSEAL's CKKS and the floor, all in one run (protocol 5).

`cityfed` runs the real protocol; Flower's own functions do what its SecAgg+ client and server do between the messages;
`floor` moves the same bytes and makes the same key streams but adds nothing up. Times are CPU seconds.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence

from cryptography.hazmat.backends.openssl.backend import backend
from schemes import cityfed, homomorphic, secaggplus
from schemes.measuring import BOUND, Memory, Row
from schemes.report import Target, at_least, at_most, options_of, report

from shared.secagg.ring import fraction_bits

LARGEST = 22_700_000
COUNTS = (4, 10, 20, 50)
SIZES = (100_000, 1_000_000, 10_000_000, LARGEST)
FULL = [(count, size) for count in COUNTS for size in SIZES]
QUICK = [(4, 100_000), (4, 1_000_000), (4, LARGEST), (10, 100_000)]
DROPS = (0, 1)
FLOWER_WORK = 4_000_000_000  # n^2 x parameters: beyond this Flower's clients alone take minutes
CKKS_SIZE = 1_000_000
HAS_TENSEAL = importlib.util.find_spec("tenseal") is not None


def measure(cells: Sequence[tuple[int, int]]) -> Iterator[Row]:
    """Measure every cell with every scheme that is worth its time there."""
    for count in sorted({count for count, _ in cells}):
        city = cityfed.City(count)
        for size in sorted(size for other, size in cells if other == count):
            memory = Memory(size)
            for dropped in DROPS:
                yield from cityfed.rows(city, memory, dropped)
            if count * count * size <= FLOWER_WORK:
                yield from secaggplus.rows(count, memory, DROPS)
            if HAS_TENSEAL and count == 4 and size <= CKKS_SIZE:
                yield from homomorphic.rows(count, memory)


def targets(rows: Sequence[Row]) -> list[Target]:
    """Hold the run against what it must show."""
    by = {(row.scheme, row.n, row.parameters, row.dropped): row for row in rows}
    found: list[Target] = []
    for size, limit in ((1_000_000, 12), (LARGEST, 20)):
        ours, theirs = by["cityfed", 4, size, 0], by["flower", 4, size, 0]
        ratio = theirs.client_cpu_s / ours.client_cpu_s
        found.append(at_least(f"client CPU, times less than Flower, n = 4, {size:,} parameters", ratio, limit))
    where = f"of the floor, n = 4, {LARGEST:,} parameters"
    masking = [
        sum(by[scheme, 4, LARGEST, dropped].client_cpu_s for dropped in DROPS) for scheme in ("cityfed", "floor")
    ]
    found.append(at_most(f"client masking, times {where}", masking[0] / masking[1], 1.5))
    for dropped in DROPS:
        ours, least = by["cityfed", 4, LARGEST, dropped], by["floor", 4, LARGEST, dropped]
        for cost, what in ((ours.server_cpu_s, ""), (ours.server_cpu_s + ours.decode_cpu_s, " and decoding")):
            ratio = cost / least.server_cpu_s
            found.append(at_most(f"server unmasking{what}, times {where}, {dropped} dropped", ratio, 2))
    four = [row.client_bytes - 4 * row.parameters for row in rows if (row.scheme, row.n) == ("cityfed", 4)]
    shares = [
        row.max_error / ((row.n - row.dropped) * 2.0 ** -(fraction_bits(row.n, BOUND) + 1))
        for row in rows
        if row.scheme == "cityfed" and row.max_error is not None
    ]
    error = "largest coordinate error, as a share of n 2^-(f+1) with n who stayed, all rows"
    return [
        *found,
        at_most("bytes of an upload beyond 4 per parameter, n = 4", max(four), 2048),
        at_most(error, max(shares), 1),
    ]


HEADINGS = (
    *("n", "parameters", "dropped", "scheme", "client ms", "server ms", "digest ms", "decode ms"),
    *("bytes a parameter", "max error"),
)


def cells(row: Row) -> list[object]:
    """Write a row of the table."""
    seconds = row.client_cpu_s, row.server_cpu_s, row.digest_cpu_s, row.decode_cpu_s
    times = [f"{1000 * value:,.1f}" for value in seconds]
    error = "" if row.max_error is None else f"{row.max_error:.1e}"
    return [
        row.n,
        f"{row.parameters:,}",
        row.dropped,
        row.scheme,
        *times,
        f"{row.client_bytes / row.parameters:.3f}",
        error,
    ]


def main() -> None:
    options = options_of(__doc__, "four cells, under a minute")
    report(
        measure(QUICK if options.quick else FULL),
        as_json=options.json,
        headings=HEADINGS,
        cells=cells,
        targets=targets,
        libraries=["numpy", "cryptography", "flwr", *(["tenseal"] if HAS_TENSEAL else [])],
        openssl=backend.openssl_version_text(),
    )


if __name__ == "__main__":
    main()
