"""Signed fixed point in the ring of 32-bit words: the sum of all departments cannot wrap (protocol 4)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shared.crypto.stream import CHUNK_WORDS, RING_DTYPE
from shared.errors import ProtocolError
from shared.parameters import Vector

RingVector = NDArray[np.uint32]
"""A vector of ring words, shape (dimension,), dtype little-endian uint32."""

_LARGEST_SUM = 2**31 - 1
_MAX_FRACTION_BITS = 100  # 2^100 is still an exact float32
_SHRINK = 1 - 2.0**-22  # more than a float32 rounding of every coordinate can add to the norm


def fraction_bits(participants: int, bound: float) -> int:
    """Return the largest f with participants * ceil(bound * 2^f) <= 2^31 - 1, computed in integers (protocol 4).

    Args:
        participants: how many vectors are summed, at least 1.
        bound: R, a positive number that is exact in float32.

    Raises:
        ValueError: when the bound is not such a number, or no f in 0..99 fits.
    """
    if participants < 1 or not (0 < bound < 2.0**127 and float(np.float32(bound)) == bound):
        raise ValueError("there is at least one participant, and the bound is a positive, exact float32")
    top, bottom = bound.as_integer_ratio()
    for bits in range(_MAX_FRACTION_BITS, -1, -1):
        largest = -((-top << bits) // bottom)
        if participants * largest <= _LARGEST_SUM:
            break
    else:
        raise ValueError("the bound is too large for the ring")
    if bits == _MAX_FRACTION_BITS:
        raise ValueError("the bound is too small for the ring")
    return bits


def l2_norm(vector: Vector) -> float:
    """Return the L2 norm in double precision, NaN or infinity if a coordinate is; a chunk is widened at a time."""
    squared = 0.0
    for start in range(0, vector.size, CHUNK_WORDS):
        chunk = vector[start : start + CHUNK_WORDS].astype(np.float64)
        squared += float(np.dot(chunk, chunk))  # squares of float32 cannot overflow
    return math.sqrt(squared)


def project(vector: Vector, bound: float, *, out: Vector | None = None) -> Vector:
    """Project onto the L2 ball of radius ``bound``; a vector inside is returned as it is.

    Args:
        vector: shape (dimension,), dtype float32, already noised.
        bound: R, positive.
        out: where a vector from outside goes, of the same shape and dtype; it may be ``vector``. Without it, fresh
            memory.

    Raises:
        ProtocolError: ``update-not-finite``.

    Guarantees:
        The result's L2 norm is at most ``bound``; the map is 1-Lipschitz but for float32 rounding, and works on
        noised values only, so it costs no privacy.

    Source: protocol 4.
    """
    norm = l2_norm(vector)
    if not math.isfinite(norm):
        raise ProtocolError("update-not-finite", "The update holds NaN or infinity.")
    if norm <= bound:
        return vector
    projected, scale = np.empty_like(vector) if out is None else out, np.float64(bound / norm * _SHRINK)
    for start in range(0, vector.size, CHUNK_WORDS):
        part = slice(start, start + CHUNK_WORDS)
        projected[part] = vector[part] * scale
    return projected


class Encoder:
    """Encodes float32 chunks into ring words, with its own chunk of scratch memory.

    Args:
        bits: fraction bits f.
        bound: R, exact in float32; f must be :func:`fraction_bits` of it or less.
    """

    def __init__(self, *, bits: int, bound: float) -> None:
        if bits > fraction_bits(1, bound):
            raise ValueError("with so many fraction bits a coordinate could wrap")
        self._scale = np.float32(2.0**bits)
        self._bound = bound
        self._scaled = np.empty(CHUNK_WORDS, dtype=np.float32)

    def encode_into(self, out: RingVector, chunk: Vector) -> None:
        """Encode at most a chunk, shape (k,) with k <= CHUNK_WORDS; ``out`` may be the same memory.

        Raises:
            ProtocolError: ``update-not-finite``, ``update-beyond-bound``; never saturates.
        """
        if not (-self._bound <= chunk.min() and chunk.max() <= self._bound):  # NaN fails both
            _refuse(chunk)
        scaled = self._scaled[: chunk.size]
        np.multiply(chunk, self._scale, out=scaled)  # exact: a power of two
        np.rint(scaled, out=scaled)
        np.copyto(out.view("<i4"), scaled, casting="unsafe")  # exact: an integer below 2^31

    def __repr__(self) -> str:
        return "Encoder()"


def _refuse(chunk: Vector) -> None:
    """Raise with the code that fits."""
    if not np.isfinite(chunk).all():
        raise ProtocolError("update-not-finite", "The update holds NaN or infinity.")
    raise ProtocolError("update-beyond-bound", "A coordinate of the update lies beyond the bound of the plan.")


def encode_vector(vector: Vector, *, bits: int, bound: float) -> RingVector:
    """Encode a vector of shape (dimension,), dtype float32, into ring words of the same shape.

    Raises:
        ProtocolError: ``update-not-finite``, ``update-beyond-bound``; never saturates.

    Guarantees:
        A coordinate's error is at most 2^-(bits + 1).
    """
    encoder = Encoder(bits=bits, bound=bound)
    out = np.empty(vector.shape, dtype=RING_DTYPE)
    for start in range(0, vector.size, CHUNK_WORDS):
        part = slice(start, start + CHUNK_WORDS)
        encoder.encode_into(out[part], vector[part])
    return out


def decode_sum(ring_sum: RingVector, *, bits: int) -> NDArray[np.float64]:
    """Decode the sum of encoded vectors, shape (dimension,), into float64 of the same shape; exact."""
    decoded = ring_sum.view("<i4").astype(np.float64)
    decoded *= 2.0**-bits
    return decoded


@dataclass(frozen=True, eq=False)
class RingSum:
    """A sum of encoded vectors without masks; a slice of it is its decoded value, in float64 and exact.

    It stays in the ring until somebody reads it, for in float64 it would take twice the memory, and every use of it
    goes over a slice at a time.

    Attributes:
        words: shape (dimension,), dtype uint32; whoever has the sum may write over them.
        bits: fraction bits.
    """

    words: RingVector
    bits: int

    def __getitem__(self, part: slice) -> NDArray[np.float64]:
        return decode_sum(self.words[part], bits=self.bits)

    def __len__(self) -> int:
        return self.words.size

    def __repr__(self) -> str:
        return f"RingSum({self.words.size} coordinates)"
