"""The mask stream: AES-256-CTR by specification, AES-256-GCM as the fast route to the same bits (protocol 5).

The stream of a key is cut into segments of 1 MiB. Segment k is the CTR key stream that starts at the counter block
``k`` (12 bytes, big-endian) followed by the 4-byte counter 2, which is where GCM starts to encrypt under the nonce
``k``. Words are little-endian.
"""

from __future__ import annotations

import functools

import numpy as np
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, modes
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from numpy.typing import NDArray

RING_DTYPE = np.dtype("<u4")
"""A ring word as it travels: little-endian uint32."""

SEGMENT_BYTES = 1 << 20
CHUNK_BYTES = 1 << 18
CHUNK_WORDS = CHUNK_BYTES // 4
"""Words worked on at a time: a chunk, its stream and its float copy stay in the second-level cache."""

_ZEROS = memoryview(bytes(CHUNK_BYTES))
_BLOCK_SLACK = 15  # `update_into` wants one block less a byte of room


def ctr_segment(key: bytes, segment: int) -> CipherContext:
    """Return the specified stream of one segment."""
    return Cipher(AES(key), modes.CTR(segment.to_bytes(12, "big") + (2).to_bytes(4, "big"))).encryptor()


def gcm_segment(key: bytes, segment: int) -> CipherContext:
    """Return the same stream by the faster GCM code; the tag is never asked for."""
    return Cipher(AES(key), modes.GCM(segment.to_bytes(12, "big"))).encryptor()


@functools.cache
def gcm_equals_ctr() -> bool:
    """Return whether this machine's GCM gives the specified bits; if not, CTR is used."""
    probe, zeros = bytes(range(32)), bytes(1024)
    try:
        return gcm_segment(probe, 1).update(zeros) == ctr_segment(probe, 1).update(zeros)
    except UnsupportedAlgorithm:
        return False


class Scratch:
    """One chunk of memory that all streams of a loop write in turn, so that it stays in the cache."""

    def __init__(self) -> None:
        self.buffer = bytearray(CHUNK_BYTES + _BLOCK_SLACK)
        self.words: NDArray[np.uint32] = np.frombuffer(self.buffer, dtype=RING_DTYPE, count=CHUNK_WORDS)

    def __repr__(self) -> str:
        return "Scratch()"


class KeyStream:
    """One key's stream, read front to back a chunk at a time.

    Args:
        key: 32 bytes, used for this one stream only.
        scratch: where words are written; the next read of any stream on it overwrites them.
    """

    def __init__(self, key: bytes, scratch: Scratch) -> None:
        self._key = key
        self._scratch = scratch
        self._open = gcm_segment if gcm_equals_ctr() else ctr_segment
        self._cipher = self._open(key, 0)
        self._position = 0

    def read(self, count: int) -> NDArray[np.uint32]:
        """Return the next ``count`` words, shape (count,), dtype uint32: a full chunk, or fewer as the last read.

        Raises:
            ValueError: for more than a chunk, or after a shorter read.
        """
        if not 0 < count <= CHUNK_WORDS or self._position % CHUNK_BYTES:
            raise ValueError("a stream is read in full chunks; only the last may be shorter")
        segment, offset = divmod(self._position, SEGMENT_BYTES)
        if offset == 0 and segment:
            self._cipher = self._open(self._key, segment)
        self._cipher.update_into(_ZEROS[: 4 * count], self._scratch.buffer)
        self._position += 4 * count
        return self._scratch.words[:count]

    def __repr__(self) -> str:
        return "KeyStream()"
