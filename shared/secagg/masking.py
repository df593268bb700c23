"""The two long loops: mask a vector and take streams off a sum. Chunks outside, peers inside (protocol 5)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from shared.crypto.keys import context
from shared.crypto.stream import CHUNK_WORDS, SEGMENT_BYTES, KeyStream, Scratch
from shared.parameters import Vector
from shared.secagg.ring import Encoder, RingVector

_SEGMENT_WORDS = SEGMENT_BYTES // 4


def _cuts(start: int, stop: int, step: int) -> Iterator[slice]:
    """Cut start..stop into slices of ``step``."""
    return (slice(at, min(at + step, stop)) for at in range(start, stop, step))


def vector_digest(vector: memoryview) -> bytes:
    """Return the labelled SHA-256 of a masked vector's bytes, which the receipt signs."""
    digest = hashlib.sha256(context("masked-vector"))
    digest.update(vector)
    return digest.digest()


def mask_into(
    out: RingVector, vector: Vector, encoder: Encoder, plus: Sequence[bytes], minus: Sequence[bytes]
) -> bytes:
    """Write encode(vector) + streams of ``plus`` - streams of ``minus`` into ``out`` and return its digest.

    Args:
        out: shape (dimension,), dtype uint32; may be the memory of ``vector``.
        vector: shape (dimension,), dtype float32.
        encoder: knows fraction bits and bound.
        plus: stream keys to add.
        minus: stream keys to subtract.

    Raises:
        ProtocolError: ``update-not-finite``, ``update-beyond-bound``; ``out`` then holds part of the work.
    """
    scratch = Scratch()
    added, taken = [KeyStream(key, scratch) for key in plus], [KeyStream(key, scratch) for key in minus]
    digest = hashlib.sha256(context("masked-vector"))
    # One helper thread hashes a finished segment while the next one is masked; it works in order.
    with ThreadPoolExecutor(max_workers=1) as hashing:
        for segment in _cuts(0, vector.size, _SEGMENT_WORDS):
            for part in _cuts(segment.start, segment.stop, CHUNK_WORDS):
                encoder.encode_into(out[part], vector[part])
                _apply(out[part], added, taken)
            hashing.submit(digest.update, out[segment].data)
    return digest.digest()


def unmask_in_place(total: RingVector, plus: Sequence[bytes], minus: Sequence[bytes]) -> None:
    """Add the streams of ``plus`` to ``total`` and subtract those of ``minus``, in place."""
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
