"""What a department contributes to a round, by the plan's mechanism (privacy 4)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clients.training.clipping import GRID_BITS
from clients.training.noise import RandomSource
from clients.training.train import Trainer
from shared.crypto.stream import RING_DTYPE
from shared.parameters import Vector, with_extras
from shared.privacy.plan import MechanismName
from shared.privacy.shared_noise import project_sum, share_stddev
from shared.secagg.ring import RingVector, encode_vector, l2_norm, project
from shared.tasks.text import Prepared


@dataclass(frozen=True, eq=False)
class Contribution:
    """What goes into the encrypted sum.

    Attributes:
        ready: shape (layout.total_size,); float32 to be encoded, or ring words that carry their noise already.
        judged: shape (layout.total_size,), float32: what the rules look at before it leaves, within the plan's bound.
        projected: whether a noised update lay outside the norm ball; it follows from noised numbers, and stays here
            nevertheless. Never set with shared noise, whose sums are projected before their noise: whether one was
            says something about records.
    """

    ready: Vector | RingVector
    judged: Vector
    projected: bool = False

    def __repr__(self) -> str:
        return f"Contribution({self.ready.size} coordinates)"


@dataclass(frozen=True, kw_only=True, eq=False)
class RoundInputs:
    """What a round is trained on.

    Attributes:
        parameters: the model at the start of the round, shape (layout.size,).
        data: the department's units.
        source: randomness of sampling and noise.
        weight: the department's public weight.
        bound: R of the plan.
        bits: fraction bits of the round: the ring's steps are 2^-bits.
    """

    parameters: Vector
    data: Prepared
    source: RandomSource
    weight: float
    bound: float
    bits: int

    def __repr__(self) -> str:
        return f"RoundInputs({self.parameters.size} coordinates)"


def local_update(trainer: Trainer, inputs: RoundInputs) -> Contribution:
    """Train with the full noise in every step; the update is weighted and projected onto the norm ball.

    The plan's extra coordinates stand behind it, without a weight.

    Raises:
        CityFedError: as :meth:`~clients.training.train.Trainer.train`.
        ProtocolError: ``update-not-finite``.
    """
    update = trainer.train(inputs.parameters, inputs.data, inputs.source)
    extras = trainer.extras(inputs.parameters, inputs.data, inputs.source)
    size = update.delta.size
    vector = np.empty(size + extras.size, dtype=np.float32)
    weighted = np.multiply(update.delta, inputs.weight, out=vector[:size])
    projected = l2_norm(weighted) > inputs.bound
    project(weighted, inputs.bound, out=weighted)
    vector[size:] = extras
    return Contribution(ready=vector, judged=vector, projected=projected)


def noised_share(trainer: Trainer, inputs: RoundInputs) -> Contribution:
    """Sum the clipped gradients of one batch, project, round to the ring and add this department's share of the noise.

    No divisor and no weight: a department that divided would also divide its noise. The plan's extra coordinates stand
    behind the sum, each with its full noise.

    Raises:
        ModelError: a vector that does not fit.

    Guarantees:
        - One unit more or less moves the words, before their noise, by at most C + sqrt(d) 2^-f.
        - Whatever the units are, nothing is refused: the sum is projected before the noise and added modulo the ring.

    Source: privacy 4.3.
    """
    privacy, bits, stream = trainer.settings.privacy, inputs.bits, inputs.source.fork_step()
    total = trainer.clipped_sum(inputs.parameters, inputs.data, stream)
    step = privacy.max_grad_norm * 2.0**-GRID_BITS
    projected = project_sum(total.astype(np.float64) * step, inputs.bound)
    words: NDArray[np.int64] = np.rint(projected * 2.0**bits).astype(np.int64)
    words += stream.discrete_gaussian(words.size, share_stddev(privacy, dimension=words.size, bits=bits))
    extras = trainer.extras(inputs.parameters, inputs.data, inputs.source)
    encoded = encode_vector(extras, bits=bits, bound=float(np.float32(inputs.bound)))
    ready = np.concatenate([words.astype(RING_DTYPE), encoded])
    return Contribution(ready=ready, judged=with_extras(projected.astype(np.float32), extras))  # words modulo 2^32


CONTRIBUTIONS: Mapping[MechanismName, Callable[[Trainer, RoundInputs], Contribution]] = {
    "poisson-dpsgd": local_update,
    "shared-noise": noised_share,
}
