"""What all schemes share: the row that they fill, the clock, and the memory that they work in."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Self

import numpy as np
from numpy.typing import NDArray

from shared.crypto.stream import RING_DTYPE
from shared.parameters import Vector
from shared.secagg.ring import RingVector

BOUND = 1.0


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table.

    ``client_cpu_s`` is one client's round keys, encoding, masks, shares and signature (median over clients);
    ``server_cpu_s`` takes the uploads in and gets the ring sum out. Hashing stands apart, once per client (model and
    vector) and once per upload on the server, and so does ``decode_cpu_s``, the ring sum in double precision: the
    coordinator decodes where it averages.
    """

    scheme: str
    n: int
    parameters: int
    bits: int
    dropped: int
    client_cpu_s: float
    server_cpu_s: float
    digest_cpu_s: float = 0.0
    server_digest_cpu_s: float = 0.0
    decode_cpu_s: float = 0.0
    client_bytes: int
    max_error: float | None = None


class Meter:
    """CPU seconds of all threads, added up over every time it was entered."""

    total = 0.0

    def __enter__(self) -> Self:
        self._start = time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.total += time.process_time() - self._start


def timed(work: Callable[[], object], repeats: int) -> float:
    """Return the median CPU seconds of a piece of work."""
    found = []
    for _ in range(repeats):
        with (meter := Meter()):
            work()
        found.append(meter.total)
    return statistics.median(found)


@dataclass
class Memory:
    """Arrays that all schemes at one size reuse, touched once, so that nobody pays for fresh pages."""

    size: int
    update: Vector = field(init=False)
    masked: RingVector = field(init=False)
    decoded: NDArray[np.float64] = field(init=False)
    exact: NDArray[np.float64] = field(init=False)

    def __post_init__(self) -> None:
        self.update = np.ones(self.size, dtype=np.float32)
        self.masked = np.ones(self.size, dtype=RING_DTYPE)
        self.decoded, self.exact = np.ones(self.size), np.ones(self.size)

    def draw(self, client: int) -> Vector:
        """Make up a client's update, of L2 norm just below the bound, and add it to the exact sum."""
        np.random.Generator(np.random.PCG64(client)).random(out=self.update, dtype=np.float32)
        self.update -= np.float32(0.5)
        self.update *= np.float32(3 * BOUND / math.sqrt(self.size))
        return self.update

    def error(self, found: NDArray[np.float64], clients: int) -> float:
        """Return the largest coordinate error of a sum over the first clients."""
        self.exact.fill(0)
        for client in range(clients):
            self.exact += self.draw(client)
        np.subtract(self.exact, found, out=self.exact)
        return float(max(self.exact.max(), -self.exact.min()))
