"""The sum of several departments' contributions as the ring gives it, without masks, which change no sum."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from clients.training.mechanisms import CONTRIBUTIONS, RoundInputs
from clients.training.noise import RandomSource
from clients.training.train import Trainer
from shared.crypto.stream import RING_DTYPE
from shared.parameters import Vector
from shared.privacy.shared_noise import ring_range
from shared.secagg.ring import RingSum, RingVector, encode_vector, fraction_bits
from shared.tasks.text import Prepared


def sum_of_contributions(holders: Iterable[tuple[Trainer, RoundInputs]], *, bits: int, allotted: float) -> RingSum:
    """Let every holder contribute as its plan's mechanism says, encode what is not encoded, and add up.

    Args:
        holders: trainer and inputs of each department; all inputs have the same bits.
        bits: fraction bits of the round.
        allotted: what a participant is allotted in the ring, exact in float32.

    Returns:
        Shape (layout.total_size,).

    Raises:
        CityFedError: as the mechanism.
    """

    def words() -> Iterator[RingVector]:
        for trainer, inputs in holders:
            ready = CONTRIBUTIONS[trainer.settings.privacy.mechanism](trainer, inputs).ready
            if ready.dtype == RING_DTYPE:
                yield ready.view(RING_DTYPE)
            else:
                yield encode_vector(ready.view(np.float32), bits=bits, bound=allotted)

    return RingSum(np.sum(list(words()), axis=0, dtype=RING_DTYPE), bits)


def sum_of_shares(
    holders: Sequence[tuple[Trainer, Prepared]], *, parameters: Vector, source: RandomSource, bound: float
) -> NDArray[np.float64]:
    """Let every holder contribute its noised share and decode the sum.

    Args:
        holders: trainer and units of each department; all trainers have the plan's numbers, with shared noise.
        parameters: the model at the start of the round, shape (layout.size,).
        source: randomness of sampling and noise.
        bound: R, to which each clipped sum is projected.

    Returns:
        Shape (layout.size,): the noised sum of clipped gradients.
    """
    privacy, size, count = holders[0][0].settings.privacy, parameters.size, len(holders)
    allotted = ring_range(privacy, bound=bound, participants=count, dimension=size)
    bits = fraction_bits(count, allotted)
    contributors = [
        (trainer, RoundInputs(parameters=parameters, data=data, source=source, weight=1.0, bound=bound, bits=bits))
        for trainer, data in holders
    ]
    return sum_of_contributions(contributors, bits=bits, allotted=allotted)[:]
