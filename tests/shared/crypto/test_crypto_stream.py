import os

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from shared.crypto.stream import (
    CHUNK_WORDS,
    SEGMENT_BYTES,
    KeyStream,
    Scratch,
    ctr_segment,
    gcm_equals_ctr,
    gcm_segment,
)


def specified(key: bytes, count: int) -> bytes:
    """AES-256-CTR as written down, a megabyte at a time."""
    out = b""
    for segment in range(-(-count // SEGMENT_BYTES)):
        block = segment.to_bytes(12, "big") + b"\x00\x00\x00\x02"
        out += Cipher(algorithms.AES(key), modes.CTR(block)).encryptor().update(bytes(SEGMENT_BYTES))
    return out[:count]


@pytest.mark.parametrize("words", [1, 3, CHUNK_WORDS - 1, CHUNK_WORDS, 4 * CHUNK_WORDS + 1, 9 * CHUNK_WORDS + 17])
def test_the_stream_is_aes_256_ctr_by_segment(words: int) -> None:
    key = os.urandom(32)
    stream = KeyStream(key, Scratch())
    parts = [stream.read(min(CHUNK_WORDS, words - at)).tobytes() for at in range(0, words, CHUNK_WORDS)]
    assert b"".join(parts) == specified(key, 4 * words)


@pytest.mark.parametrize("segment", [0, 1, 2**32])
def test_the_gcm_key_stream_equals_the_ctr_stream(segment: int) -> None:
    key, zeros = os.urandom(32), bytes(SEGMENT_BYTES)
    assert gcm_segment(key, segment).update(zeros) == ctr_segment(key, segment).update(zeros)
    assert gcm_equals_ctr()


def test_streams_of_different_keys_differ() -> None:
    scratch = Scratch()
    first = KeyStream(os.urandom(32), scratch).read(8).copy()
    assert not np.array_equal(first, KeyStream(os.urandom(32), scratch).read(8))


def test_a_stream_is_read_in_full_chunks() -> None:
    stream = KeyStream(os.urandom(32), Scratch())
    stream.read(5)
    with pytest.raises(ValueError, match="full chunks"):
        stream.read(5)
    with pytest.raises(ValueError, match="full chunks"):
        KeyStream(os.urandom(32), Scratch()).read(CHUNK_WORDS + 1)
