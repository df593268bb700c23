"""Shamir's secret sharing over GF(2^255 - 19): any ``threshold`` shares give the secret, fewer say nothing.

Source: Shamir 1979. The one primitive that the ``cryptography`` package lacks (protocol 3.1).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from shared.crypto.keys import Entropy
from shared.errors import ProtocolError

PRIME = 2**255 - 19
SHARE_BYTES = 32

_COEFFICIENT_BYTES = 48  # 384 random bits modulo a 255-bit prime: bias below 2^-128


def split(secret: int, threshold: int, xs: Sequence[int], entropy: Entropy) -> dict[int, int]:
    """Split a secret into one share for each x.

    Args:
        secret: 0 <= secret < 2^255 - 19.
        threshold: how many shares give the secret, 1..len(xs).
        xs: distinct evaluation points in 1..2^255 - 20.
        entropy: source of the polynomial's coefficients.

    Returns:
        Share by x.

    Raises:
        ValueError: for a secret, threshold or point out of range.
    """
    if not 0 <= secret < PRIME:
        raise ValueError("a secret lies in the field")
    if not 1 <= threshold <= len(xs):
        raise ValueError("the threshold lies in 1..number of shares")
    if len(set(xs)) != len(xs) or not all(0 < x < PRIME for x in xs):
        raise ValueError("points are distinct, in the field and not 0")
    random = [int.from_bytes(entropy(_COEFFICIENT_BYTES), "little") % PRIME for _ in range(threshold - 1)]
    return {x: _evaluate([secret, *random], x) for x in xs}


def _evaluate(coefficients: Sequence[int], x: int) -> int:
    """Horner's rule, lowest coefficient first."""
    value = 0
    for coefficient in reversed(coefficients):
        value = (value * x + coefficient) % PRIME
    return value


def combine(shares: Mapping[int, int]) -> int:
    """Interpolate at 0; exactly ``threshold`` true shares give the secret, anything else gives another number.

    Raises:
        ValueError: for no shares, or a point that is 0 in the field.
    """
    if not shares or any(x % PRIME == 0 for x in shares):
        raise ValueError("combining needs shares at points other than 0")
    total = 0
    for x, y in shares.items():
        numerator, denominator = y, 1
        for other in shares:
            if other != x:
                numerator = numerator * other % PRIME
                denominator = denominator * (other - x) % PRIME
        total += numerator * pow(denominator, -1, PRIME)
    return total % PRIME


def share_to_bytes(share: int) -> bytes:
    """Return a share as 32 little-endian bytes."""
    return share.to_bytes(SHARE_BYTES, "little")


def share_from_bytes(raw: bytes) -> int:
    """Read a share strictly.

    Raises:
        ProtocolError: ``share-malformed`` for a wrong length or a number outside the field.
    """
    share = int.from_bytes(raw, "little")
    if len(raw) != SHARE_BYTES or share >= PRIME:
        raise ProtocolError("share-malformed", f"A share has {SHARE_BYTES} bytes and lies below 2^255 - 19.")
    return share
