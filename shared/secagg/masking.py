"""The two long loops: mask a vector and take streams off a sum. Chunks outside, peers inside (protocol 5)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from shared.crypto.keys import context
from shared.crypto.stream import CHUNK_WORDS, RING_DTYPE, KeyStream, Scratch
from shared.mapped_file import let_go
from shared.parameters import Vector
from shared.secagg.ring import RingVector

_HASHED_WORDS = 16 * CHUNK_WORDS  # 4 MiB: few hand-overs between the threads, and still in a shared cache


def _cuts(start: int, stop: int, step: int) -> Iterator[slice]:
    """Cut start..stop into slices of ``step``."""
    return (slice(at, min(at + step, stop)) for at in range(start, stop, step))


def vector_hash() -> hashlib._Hash:
    """Start the labelled SHA-256 of a masked vector's bytes, which the receipt signs."""
    return hashlib.sha256(context("masked-vector"))


def add_hashed(total: RingVector, upload: memoryview, *, first: bool) -> bytes:
    """Add an upload to ``total`` in place and return its digest; to take a false one back, subtract it again.

    Args:
        total: shape (dimension,), dtype uint32.
        upload: 4 * dimension bytes, little-endian; faster where they are aligned. What was added of a mapped file is
            let go of.
        first: overwrite what ``total`` holds instead of adding to it.
    """
    digest, words = vector_hash(), np.frombuffer(upload, dtype=RING_DTYPE)
    for part in _cuts(0, total.size, CHUNK_WORDS):
        raw = upload[4 * part.start : 4 * part.stop]
        digest.update(raw)  # which brings them into the cache
        chunk = total[part]
        if first:
            chunk[:] = words[part]
        else:
            chunk += words[part]
        let_go(raw)
    return digest.digest()


def mask_into(
    out: RingVector,
    vector: Vector | RingVector,
    encode_into: Callable[[RingVector, Any], None],
    plus: Sequence[bytes],
    minus: Sequence[bytes],
) -> bytes:
    """Write encode(vector) + streams of ``plus`` - streams of ``minus`` into ``out`` and return its digest.

    Args:
        out: shape (dimension,), dtype uint32; may be the memory of ``vector``.
        vector: shape (dimension,): float32 to be encoded, or uint32 words that are ready.
        encode_into: writes at most a chunk of ``vector`` as ring words; ``out`` may be the same memory.
        plus: stream keys to add.
        minus: stream keys to subtract.

    Raises:
        ProtocolError: ``update-not-finite``, ``update-beyond-bound``; ``out`` then holds part of the work.
    """
    scratch = Scratch()
    added, taken = [KeyStream(key, scratch) for key in plus], [KeyStream(key, scratch) for key in minus]
    digest = vector_hash()

    def mask(words: slice) -> memoryview:
        for part in _cuts(words.start, words.stop, CHUNK_WORDS):
            encode_into(out[part], vector[part])
            _apply(out[part], added, taken)
        return out[words].data

    batches = list(_cuts(0, vector.size, _HASHED_WORDS))
    if len(batches) == 1:  # nothing to mask meanwhile: a thread would not pay
        digest.update(mask(batches[0]))
        return digest.digest()
    # One helper thread hashes a finished batch while the next one is masked; it works in order.
    with ThreadPoolExecutor(max_workers=1) as hashing:
        hashed = [hashing.submit(digest.update, mask(batch)) for batch in batches]
    for finished in hashed:
        finished.result()  # words that could not be hashed must not go unnoticed
    return digest.digest()


def unmask_in_place(total: RingVector, plus: Sequence[bytes], minus: Sequence[bytes]) -> None:
    """Add the streams of ``plus`` to ``total`` and subtract those of ``minus``.

    Args:
        total: the sum of masked vectors, shape (dimension,), dtype uint32; afterwards it is the unmasked ring sum.
        plus: stream keys to add.
        minus: stream keys to subtract.
    """
    scratch = Scratch()
    added, taken = [KeyStream(key, scratch) for key in plus], [KeyStream(key, scratch) for key in minus]
    for part in _cuts(0, total.size, CHUNK_WORDS):
        _apply(total[part], added, taken)


def _apply(chunk: RingVector, added: Sequence[KeyStream], taken: Sequence[KeyStream]) -> None:
    """Work one chunk through all streams while it is in the cache; words wrap modulo 2^32."""
    for stream in added:
        chunk += stream.read(chunk.size)
    for stream in taken:
        chunk -= stream.read(chunk.size)
