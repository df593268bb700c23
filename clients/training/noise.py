"""Cryptographic randomness of the training loop: Poisson coins and discrete Gaussian noise.

Every step draws from a stream of its own, an AES-256-CTR key stream whose key comes afresh from the operating
system, so that neither a fork nor a machine snapshot can repeat noise (privacy 3). torch's global generator is
never the source: with one seed all departments would draw the same noise and it could be subtracted.

The discrete Gaussian with standard deviation s (in grid steps) has P(y) proportional to exp(-y^2 / 2s^2) on the
integers. It is drawn by rejection: the half line is cut into blocks of 2^k steps, k the largest with 16 * 2^k <= s
(or blocks of one step); a block V is drawn with probability proportional to exp(-(V 2^k)^2 / 2s^2) by inversion of
a table of 64-bit thresholds; a place U in the block and a sign are fair bits; y = V 2^k + U is kept with
probability exp(-(y^2 - (V 2^k)^2) / 2s^2), and the sign of a zero is fair because "minus zero" is drawn again.
Approximation error: thresholds are rounded to 2^-64 (at most 400 blocks), the tail beyond 10 s is cut (below
2^-75) and the acceptance probability, never below 0.5, carries a relative error of at most 2^-50. One draw is
therefore within total variation 2^-49 of the exact law.
"""

from __future__ import annotations

import hashlib
import math
import os
from functools import lru_cache
from itertools import accumulate
from typing import Protocol

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

MAX_STDDEV = 2.0**41
"""Largest standard deviation in grid steps: a block and its sign fit into one 64-bit word."""

TAIL = 10
"""The table ends at this many standard deviations."""


class StepStream(Protocol):
    """The randomness of one training step."""

    def coins(self, count: int, rate: float) -> NDArray[np.bool_]:
        """Return ``count`` independent coins, each true with probability ``rate``."""
        ...

    def discrete_gaussian(self, size: int, stddev: float) -> NDArray[np.int64]:
        """Return ``size`` independent discrete Gaussians; ``stddev`` is in grid steps."""
        ...


class RandomSource(Protocol):
    """Gives each training step a stream of its own."""

    def fork_step(self) -> StepStream:
        """Return a new stream that shares nothing with any earlier one."""
        ...


class OsRandomSource:
    """The production source: a fresh operating-system key for every step.

    Guarantees:
        - Two steps, sources or processes never share a key; nothing is logged or can be checkpointed.
        - Use after a fork is refused.
    """

    def __init__(self) -> None:
        self._process = os.getpid()

    def fork_step(self) -> StepStream:
        """Return a stream under a fresh 256-bit key.

        Raises:
            RuntimeError: in a process other than the one that made the source.
        """
        _refuse_other_process(self._process)
        return CtrStream(os.urandom(32))

    def __repr__(self) -> str:
        return "OsRandomSource()"


class CtrStream:
    """Coins and noise from one AES-256-CTR key stream.

    Args:
        key: 32 bytes, used for this stream only.
    """

    def __init__(self, key: bytes) -> None:
        # The key is used once, so the counter may start at zero.
        self._cipher = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
        self._process = os.getpid()

    def coins(self, count: int, rate: float) -> NDArray[np.bool_]:
        """Return Poisson coins: 64-bit words compared with floor(rate * 2^64).

        Args:
            count: number of coins.
            rate: probability of true, in [0, 1].

        Returns:
            Shape (count,), dtype bool. The probability of true is never above ``rate``.

        Raises:
            ValueError: for a rate outside [0, 1].
            RuntimeError: after a fork.
        """
        if not 0 <= rate <= 1:
            raise ValueError("`rate` lies in [0, 1]")
        words = self._words(count)
        if rate == 1:
            return np.ones(count, dtype=np.bool_)
        return words < np.uint64(int(rate * 2.0**64))

    def discrete_gaussian(self, size: int, stddev: float) -> NDArray[np.int64]:
        """Return discrete Gaussian noise; the law and its error are in the module's docstring.

        Args:
            size: number of draws.
            stddev: standard deviation parameter in grid steps, in (0, 2^41].

        Returns:
            Shape (size,), dtype int64.

        Raises:
            ValueError: for a standard deviation outside the range.
            RuntimeError: after a fork.
        """
        if not 0 < stddev <= MAX_STDDEV:
            raise ValueError("`stddev` lies in (0, 2^41]")
        drawn = self._candidates(size, stddev)
        while drawn.size < size:
            drawn = np.concatenate([drawn, self._candidates(size - drawn.size, stddev)])
        return drawn[:size]

    def _candidates(self, size: int, stddev: float) -> NDArray[np.int64]:
        """Draw enough proposals that ``size`` survive nearly always, so that time does not follow the noise."""
        shift, thresholds = _block_table(stddev)
        count = size + size // 8 + 64
        blocks, places, coins = self._words(3 * count).reshape(3, count)
        start = np.searchsorted(thresholds, blocks, side="right").astype(np.int64) << shift
        offset = (places & np.uint64((1 << shift) - 1)).astype(np.int64)
        excess = offset.astype(np.float64) * (2 * start + offset).astype(np.float64) / (2 * stddev * stddev)
        accepted = (coins >> np.uint64(11)).astype(np.float64) * 2.0**-53 < np.exp(-excess)
        negative = (places >> np.uint64(63)).astype(np.bool_)
        value = start + offset
        accepted &= ~(negative & (value == 0))
        return np.where(negative, -value, value)[accepted]

    def _words(self, count: int) -> NDArray[np.uint64]:
        """Return the next ``count`` words of the key stream."""
        _refuse_other_process(self._process)
        return np.frombuffer(self._cipher.update(bytes(8 * count)), dtype="<u8").astype(np.uint64, copy=False)

    def __repr__(self) -> str:
        return "CtrStream(...)"


class UnsafeSeededSource:
    """A reproducible source for tests and comparisons: who knows the seed can subtract the noise.

    Args:
        seed: any integer; step number n of equal seeds draws equal coins and noise.
        noise: False gives zero noise; the coins stay Poisson.
    """

    def __init__(self, seed: int, *, noise: bool = True) -> None:
        self._seed = seed
        self._noise = noise
        self._step = 0

    def fork_step(self) -> StepStream:
        """Return the stream of the next step."""
        key = hashlib.sha256(f"unsafe seeded source {self._seed} {self._step}".encode()).digest()
        self._step += 1
        return CtrStream(key) if self._noise else UnsafeNoiselessStream(key)

    def __repr__(self) -> str:
        return "UnsafeSeededSource(...)"


class UnsafeNoiselessStream(CtrStream):
    """Poisson coins as in production, noise of zero."""

    def discrete_gaussian(self, size: int, stddev: float) -> NDArray[np.int64]:
        """Return zeros of shape (size,), dtype int64; ``stddev`` is ignored."""
        del stddev
        return np.zeros(size, dtype=np.int64)


@lru_cache(maxsize=8)
def _block_table(stddev: float) -> tuple[int, NDArray[np.uint64]]:
    """Return k and the 64-bit inversion thresholds of the blocks of 2^k steps.

    The weights become integers first and are summed exactly, so that a block far out in the tail keeps its own
    relative precision instead of that of the sum.
    """
    shift = max(0, math.floor(math.log2(stddev)) - 4)
    blocks = math.ceil(TAIL * stddev / 2**shift) + 1
    weights = [int(math.exp(-0.5 * (block * 2**shift / stddev) ** 2) * 2.0**120) for block in range(blocks)]
    total = sum(weights)
    thresholds = [(part << 64) // total for part in accumulate(weights)]
    # The last threshold is 2^64, which no word reaches; weights below one 2^-64 share it.
    return shift, np.array([threshold for threshold in thresholds if threshold < 1 << 64], dtype=np.uint64)


def _refuse_other_process(process: int) -> None:
    """Refuse to draw in a process that would repeat its parent's stream."""
    if os.getpid() != process:
        raise RuntimeError("a random source may not be used after a fork; make a new one in this process")
