import os

import pytest

from shared.crypto.seal import (
    ENVELOPE_OVERHEAD_BYTES,
    PUBLIC_KEY_BYTES,
    SEAL_OVERHEAD_BYTES,
    SealingKey,
    close_envelope,
    open_envelope,
    seal,
)
from shared.errors import ProtocolError


def flip(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def code(caught: pytest.ExceptionInfo[ProtocolError]) -> str:
    return caught.value.code


def test_what_is_sealed_opens_with_the_same_info_only() -> None:
    key = SealingKey.generate(os.urandom)
    sealed = seal(key.public, b"s" * 32, b"info")
    assert len(key.public) == PUBLIC_KEY_BYTES
    assert len(sealed) == SEAL_OVERHEAD_BYTES + 32
    assert key.open(sealed, b"info") == b"s" * 32
    with pytest.raises(ProtocolError) as caught:
        key.open(sealed, b"other")
    assert code(caught) == "seal-invalid"


@pytest.mark.parametrize("at", [0, 1087, 1088, 1119, 1120, -1])
def test_a_flipped_bit_in_either_half_or_the_ciphertext_is_found(at: int) -> None:
    key = SealingKey.generate(os.urandom)
    sealed = seal(key.public, b"s" * 32, b"info")
    with pytest.raises(ProtocolError) as caught:
        key.open(flip(sealed, at % len(sealed)), b"info")
    assert code(caught) == "seal-invalid"


def test_a_truncated_seal_is_refused() -> None:
    key = SealingKey.generate(os.urandom)
    for length in (0, 100, SEAL_OVERHEAD_BYTES - 1):
        with pytest.raises(ProtocolError) as caught:
            key.open(seal(key.public, b"", b"info")[:length], b"info")
        assert code(caught) == "seal-invalid"


@pytest.mark.parametrize(
    "spoil", [lambda k: k[:-1], lambda k: k[:1184] + bytes(32), lambda k: b"\xff" * 1184 + k[1184:]]
)
def test_a_malformed_public_key_is_refused(spoil: object) -> None:
    assert callable(spoil)
    with pytest.raises(ProtocolError) as caught:
        seal(spoil(SealingKey.generate(os.urandom).public), b"", b"info")
    assert code(caught) == "key-malformed"


def test_the_same_entropy_gives_the_same_key_pair() -> None:
    assert (
        SealingKey.generate(lambda count: b"e" * count).public == SealingKey.generate(lambda count: b"e" * count).public
    )


def test_an_envelope_opens_with_its_key_and_context_only() -> None:
    key = os.urandom(32)
    envelope = close_envelope(key, b"shares", b"aad", entropy=os.urandom)
    assert len(envelope) == ENVELOPE_OVERHEAD_BYTES + 6
    assert open_envelope(key, envelope, b"aad") == b"shares"
    for bad_key, bad_envelope, bad_context in (
        (os.urandom(32), envelope, b"aad"),
        (key, flip(envelope, 0), b"aad"),
        (key, flip(envelope, 12), b"aad"),
        (key, envelope[:-1], b"aad"),
        (key, b"", b"aad"),
        (key, envelope, b"other"),
    ):
        with pytest.raises(ProtocolError) as caught:
            open_envelope(bad_key, bad_envelope, bad_context)
        assert code(caught) == "envelope-invalid"
