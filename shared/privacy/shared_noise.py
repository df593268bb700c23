"""Numbers of shared noise in the ring: its scale, its rounding and the room it needs (privacy 4.3).

A department's clipped sum is rounded to ring steps of 2^-f and gets its share of the noise as an integer, modulo the
ring. Departments and coordinator compute these numbers from the plan alone; every operation is a correctly rounded one,
so that all of them get the same bits on every machine.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from shared.privacy.plan import PrivacyParams
from shared.secagg.ring import fraction_bits

MIN_SHARE_STDDEV = 4.0
"""Least standard deviation of a share in ring steps: from here on a sum of discrete Gaussians is as good as one."""

MAX_ROUNDING = 0.25
"""Largest part of the clip that rounding to the ring may add to the sensitivity."""

WRAP_BITS = 40
"""A round's sum wraps with a probability of at most 2^-40."""


_SHRINK = 1 - 2.0**-22
"""Less than R by more than rounding to float32 can add: a projected sum never looks longer than R."""


def project_sum(total: NDArray[np.float64], bound: float) -> NDArray[np.float64]:
    """Project a clipped sum onto the L2 ball of radius ``bound``, shape (dimension,), before its noise.

    Guarantees:
        1-Lipschitz but for float64 rounding, which the clip's margin covers: one unit moves the result no farther than
        the sum. The norm stays at most ``bound`` when the result is rounded to float32.
    """
    norm, limit = float(np.linalg.norm(total)), bound * _SHRINK
    return total if norm <= limit else total * (limit / norm)


def honest_shares(min_contributors: int, max_colluders: int) -> int:
    """Return h = m - max(c, 1): the honest shares in every sum, whoever drops out (privacy 4.3).

    Even without colluders one department, merely curious, can subtract its own share.
    """
    return min_contributors - max(max_colluders, 1)


def rounding_steps(dimension: int) -> int:
    """Return sqrt(dimension) rounded up: how far rounding can move two sums apart, in ring steps."""
    return math.isqrt(dimension - 1) + 1


def share_stddev(privacy: PrivacyParams, *, dimension: int, bits: int) -> float:
    """Return the standard deviation of one department's noise, in ring steps of 2^-bits.

    The sensitivity of the rounded sum is C + sqrt(d) 2^-f, and h shares together have the noise multiplier times
    that; so the charge needs no f.
    """
    sensitivity = privacy.max_grad_norm * 2.0**bits + rounding_steps(dimension)
    return privacy.noise_multiplier * sensitivity / math.sqrt(privacy.noise_shares)


def ring_range(privacy: PrivacyParams, *, bound: float, participants: int, dimension: int) -> float:
    """Return what to allot each participant in the ring: R and its part of the room for all noise together.

    The noises are independent and subgaussian with their standard deviation s as parameter (Canonne et al. 2020), so
    a coordinate of n of them exceeds T with a probability of at most 2 exp(-T^2 / (2 n s^2)). T is chosen for 2^-40
    over all d coordinates, for the largest s that :func:`check_ring` allows, and with one step more a participant for
    the rounding of its sum.

    Args:
        privacy: the plan's parameters.
        bound: R, to which each clipped sum is projected before its noise.
        participants: n, departments in the sum.
        dimension: d, coordinates of the vector.

    Returns:
        An exact float32: with the fraction bits that follow from it, n sums and their noise stay inside the ring.
    """
    stddev = (1 + MAX_ROUNDING) * privacy.noise_multiplier * privacy.max_grad_norm / math.sqrt(privacy.noise_shares)
    tail_bits = WRAP_BITS + (2 * dimension).bit_length()
    # 2 ln 2 < 1.4; a step is at most a quarter of s.
    room = stddev * (math.sqrt(1.4 * participants * tail_bits) + participants / MIN_SHARE_STDDEV)
    exact = float(np.float32(bound)) + room / participants
    rounded = np.float32(exact)
    return float(rounded if float(rounded) >= exact else np.nextafter(rounded, np.float32(np.inf)))


def check_ring(privacy: PrivacyParams, *, bound: float, participants: int, dimension: int) -> None:
    """Refuse numbers for which the ring's steps are too coarse; with fewer participants they are never coarser.

    Raises:
        ValueError: rounding adds more than a quarter of the clip, a share's noise is below 4 steps, or nothing fits.
    """
    allotted = ring_range(privacy, bound=bound, participants=participants, dimension=dimension)
    bits = fraction_bits(participants, allotted)
    if rounding_steps(dimension) > MAX_ROUNDING * privacy.max_grad_norm * 2.0**bits:
        raise ValueError("rounding to the ring adds at most a quarter of `max_grad_norm` to the sensitivity")
    if share_stddev(privacy, dimension=dimension, bits=bits) < MIN_SHARE_STDDEV:
        raise ValueError("a department's share of the noise is at least 4 steps of the ring wide")
