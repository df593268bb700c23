"""The floor: the same bytes read and written and the same key streams made, nothing added up and nothing checked."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
from schemes.measuring import BOUND, Memory

from shared.crypto.stream import CHUNK_WORDS, RING_DTYPE, KeyStream, Scratch
from shared.secagg.ring import fraction_bits


def chunks(size: int) -> Iterator[slice]:
    """Cut a vector into the chunks of the streams."""
    return (slice(start, start + CHUNK_WORDS) for start in range(0, size, CHUNK_WORDS))


def client_floor(memory: Memory, streams: int) -> None:
    """Read x, encode, write y; make the key streams."""
    scale = np.float32(2.0 ** fraction_bits(streams, BOUND))
    scratch, scaled = Scratch(), np.empty(CHUNK_WORDS, dtype=np.float32)
    sources = [KeyStream(os.urandom(32), scratch) for _ in range(streams)]
    for part in chunks(memory.size):
        x, y = memory.update[part], memory.masked[part]
        np.multiply(x, scale, out=scaled[: x.size])
        np.rint(scaled[: x.size], out=scaled[: x.size])
        np.copyto(y.view("<i4"), scaled[: x.size], casting="unsafe")
        for source in sources:
            source.read(x.size)


def server_floor(upload: memoryview, uploads: int, streams: int) -> None:
    """Read each upload, as it lies in its message, into the cache; make the key streams."""
    words = np.frombuffer(upload, dtype=RING_DTYPE)
    scratch, near = Scratch(), np.empty(CHUNK_WORDS, dtype=RING_DTYPE)
    for _ in range(uploads):
        for part in chunks(words.size):
            np.copyto(near[: words[part].size], words[part])
    sources = [KeyStream(os.urandom(32), scratch) for _ in range(streams)]
    for part in chunks(words.size):
        for source in sources:
            source.read(words[part].size)
