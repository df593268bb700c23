"""Sealing to a peer: HPKE for the seeds of an epoch, ChaCha20-Poly1305 for the shares of a round.

HPKE (RFC 9180) with the hybrid KEM ML-KEM-768 + X25519: what is sealed stays secret if either of the two holds
(protocol 2 and 7).
"""

from __future__ import annotations

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hpke import (
    AEAD,
    KDF,
    KEM,
    MLKEM768X25519PrivateKey,
    MLKEM768X25519PublicKey,
    Suite,
)

from shared.crypto.keys import Entropy
from shared.errors import ProtocolError

_SUITE = Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA256, AEAD.CHACHA20_POLY1305)
_MLKEM_PUBLIC_BYTES = 1184

PUBLIC_KEY_BYTES = _MLKEM_PUBLIC_BYTES + 32
"""ML-KEM-768 public key, then X25519 public key."""

SEAL_OVERHEAD_BYTES = 1120 + 16
"""Encapsulation and tag in front of and behind what is sealed."""

NONCE_BYTES = 12
ENVELOPE_OVERHEAD_BYTES = NONCE_BYTES + 16


class SealingKey:
    """A fresh HPKE key pair of one epoch; lives in memory only, and its ``repr`` shows nothing."""

    def __init__(self, mlkem: MLKEM768PrivateKey, x25519: X25519PrivateKey) -> None:
        self._private = MLKEM768X25519PrivateKey(mlkem, x25519)
        self.public: bytes = mlkem.public_key().public_bytes_raw() + x25519.public_key().public_bytes_raw()

    @classmethod
    def generate(cls, entropy: Entropy) -> SealingKey:
        """Make a new key pair from 96 random bytes."""
        mlkem = MLKEM768PrivateKey.from_seed_bytes(entropy(64))
        return cls(mlkem, X25519PrivateKey.from_private_bytes(entropy(32)))

    def open(self, sealed: bytes, info: bytes) -> bytes:
        """Open what a peer sealed to this key under the same ``info``.

        Raises:
            ProtocolError: ``seal-invalid``.
        """
        try:
            return _SUITE.decrypt(sealed, self._private, info)
        except (InvalidTag, ValueError) as cause:
            raise ProtocolError("seal-invalid", "A sealed seed does not open with this epoch's key.") from cause

    def __repr__(self) -> str:
        return "SealingKey()"


def seal(public: bytes, plaintext: bytes, info: bytes) -> bytes:
    """Seal ``plaintext`` to the holder of ``public``; fresh randomness comes from the library itself.

    Raises:
        ProtocolError: ``key-malformed``.
    """
    try:
        return _SUITE.encrypt(plaintext, _parse_public(public), info)
    except ValueError as cause:  # for example an X25519 point of small order
        raise ProtocolError("key-malformed", "An HPKE key of an advert cannot be used.") from cause


def _parse_public(public: bytes) -> MLKEM768X25519PublicKey:
    """Cut a public key into its two halves; each refuses a wrong length with a ValueError."""
    mlkem = MLKEM768PublicKey.from_public_bytes(public[:_MLKEM_PUBLIC_BYTES])
    return MLKEM768X25519PublicKey(mlkem, X25519PublicKey.from_public_bytes(public[_MLKEM_PUBLIC_BYTES:]))


def close_envelope(key: bytes, plaintext: bytes, associated: bytes, *, entropy: Entropy) -> bytes:
    """Encrypt shares to one peer: random nonce, then ChaCha20-Poly1305 ciphertext with its tag."""
    nonce = entropy(NONCE_BYTES)
    return nonce + ChaCha20Poly1305(key).encrypt(nonce, plaintext, associated)


def open_envelope(key: bytes, envelope: bytes, associated: bytes) -> bytes:
    """Decrypt an envelope of a peer.

    Raises:
        ProtocolError: ``envelope-invalid``.
    """
    try:
        return ChaCha20Poly1305(key).decrypt(envelope[:NONCE_BYTES], envelope[NONCE_BYTES:], associated)
    except (InvalidTag, ValueError) as cause:
        raise ProtocolError("envelope-invalid", "An envelope with shares does not open.") from cause
