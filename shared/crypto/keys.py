"""Seeds, labelled key derivation and the holder that gives a secret away once (protocol 2 and 3).

Every derived key carries a label and length-prefixed context, so no two purposes share a key.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, NoReturn, TypeVar

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand

from shared.codec import sha256

Entropy = Callable[[int], bytes]
"""Returns that many random bytes: ``os.urandom`` everywhere outside the frozen vectors."""

KEY_BYTES = 32
SEED_BITS = 254
SEED_BYTES = 32

T = TypeVar("T")


class OneUse(Generic[T]):
    """Holds secrets that leave exactly once, so that an old state cannot be used again.

    Guarantees:
        After :meth:`take` the holder is empty, in every state that shares it. It cannot be pickled or deep-copied,
        and its ``repr`` prints no secret.
    """

    def __init__(self, value: T) -> None:
        self._cell = [value]

    def peek(self) -> T:
        """Return the secrets without using them up, for checks that may still refuse.

        Raises:
            RuntimeError: they were taken already; the caller kept an old state.
        """
        if not self._cell:
            raise RuntimeError("this state was used already; go on with its successor")
        return self._cell[0]

    def take(self) -> T:
        """Return the secrets and forget them.

        Raises:
            RuntimeError: they were taken already.
        """
        value = self.peek()
        self._cell.clear()
        return value

    def __repr__(self) -> str:
        return "OneUse()"

    def __reduce__(self) -> NoReturn:
        raise TypeError("secrets are neither copied nor pickled")


def context(label: str, *parts: bytes | str | int) -> bytes:
    """Join a label and its parts, each with its length, so that different contexts give different bytes."""
    raw = [part if isinstance(part, bytes) else str(part).encode() for part in (f"cityfed/1/{label}", *parts)]
    return b"".join(len(part).to_bytes(4, "big") + part for part in raw)


def extract(material: bytes, salt: bytes, label: str, *parts: bytes | str | int) -> bytes:
    """Return the 32-byte key HKDF-SHA256(material; salt; label, parts)."""
    return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=salt, info=context(label, *parts)).derive(material)


def expand(key: bytes, label: str, *parts: bytes | str | int) -> bytes:
    """Return the 32-byte key HKDF-Expand-SHA256(key; label, parts)."""
    return HKDFExpand(algorithm=SHA256(), length=KEY_BYTES, info=context(label, *parts)).derive(key)


def advance(root: bytes, steps: int) -> bytes:
    """Move a root ``steps`` rounds forward; there is no way back (protocol 3)."""
    info = context("next")
    for _ in range(steps):
        root = HKDFExpand(algorithm=SHA256(), length=KEY_BYTES, info=info).derive(root)
    return root


def to_seed(raw: bytes) -> int:
    """Return the 254-bit seed in 32 little-endian bytes: the two top bits are dropped, so it fits the share field."""
    return int.from_bytes(raw, "little") & ((1 << SEED_BITS) - 1)


def seed_bytes(seed: int) -> bytes:
    """Return a seed as 32 little-endian bytes."""
    return seed.to_bytes(SEED_BYTES, "little")


def commit(label: str, seed: int, *parts: bytes | str | int) -> bytes:
    """Return the SHA-256 commitment of a seed; 254 random bits need no further blinding."""
    return sha256(context(label, *parts), seed_bytes(seed))
