"""The sum of several departments' shares as the ring gives it, without masks, which change no sum."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from clients.training.mechanisms import RoundInputs, noised_share
from clients.training.noise import RandomSource
from clients.training.train import Trainer
from shared.crypto.stream import RING_DTYPE
from shared.parameters import Vector
from shared.privacy.shared_noise import ring_range
from shared.secagg.ring import decode_sum, fraction_bits
from shared.tasks.text import Prepared


def sum_of_shares(
    holders: Sequence[tuple[Trainer, Prepared]], *, parameters: Vector, source: RandomSource, bound: float
) -> NDArray[np.float64]:
    """Let every holder contribute its noised share and decode the sum.

    Args:
        holders: trainer and units of each department; all trainers have the plan's numbers.
        parameters: the model at the start of the round, shape (layout.size,).
        source: randomness of sampling and noise.
        bound: R, to which each clipped sum is projected.

    Returns:
        Shape (layout.size,): the noised sum of clipped gradients.
    """
    privacy, size, count = holders[0][0].settings.privacy, parameters.size, len(holders)
    bits = fraction_bits(count, ring_range(privacy, bound=bound, participants=count, dimension=size))

    def shares() -> Iterator[NDArray[np.uint32]]:
        for trainer, data in holders:
            inputs = RoundInputs(parameters=parameters, data=data, source=source, weight=1.0, bound=bound, bits=bits)
            yield noised_share(trainer, inputs).ready.view(RING_DTYPE)

    return decode_sum(np.sum(list(shares()), axis=0, dtype=RING_DTYPE), bits=bits)
