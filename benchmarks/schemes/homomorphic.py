"""TenSEAL's CKKS, where it is installed."""

from __future__ import annotations

import statistics
from typing import Any

import numpy as np
from schemes.measuring import Memory, Meter, Row


def rows(count: int, memory: Memory) -> list[Row]:
    """Measure TenSEAL's CKKS, 128-bit security, additions only; whoever holds the key decrypts the sum."""
    import tenseal  # noqa: PLC0415 - not a dependency: measured only where it is installed

    context = tenseal.context(tenseal.SCHEME_TYPE.CKKS, 8192, coeff_mod_bit_sizes=[60, 40, 60])
    context.global_scale = 2.0**40
    starts, clients, size, server = range(0, memory.size, 4096), [], 0, Meter()
    total: list[Any] = []
    for client in range(count):
        vector = memory.draw(client)
        with (meter := Meter()):
            sealed = [tenseal.ckks_vector(context, vector[start : start + 4096]) for start in starts]
            sent = [part.serialize() for part in sealed]
        clients.append(meter.total)
        size = sum(map(len, sent))
        with server:
            received = [tenseal.ckks_vector_from(context, part) for part in sent]
            total = [one + other for one, other in zip(total, received, strict=True)] if total else received
    with server:
        found = np.concatenate([part.decrypt() for part in total])
    row = Row(
        scheme="ckks",
        n=count,
        parameters=memory.size,
        bits=160,
        dropped=0,
        client_cpu_s=statistics.median(clients),
        server_cpu_s=server.total,
        client_bytes=size,
        max_error=memory.error(found, count),
    )
    return [row]
