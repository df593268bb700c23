"""Clipping, and the exact sum over a logical batch.

An engine (:mod:`clients.training.engines`) clips each unit's gradient over all parameters to C (1 - 2^-6) and gives
the sum of a micro-batch in integer steps of 2^-30 C. Here those sums are added in int64, so that nothing depends on
their order, and rounded once to the grid of 2^-20 C on which the noise lives. C is charged; the margin of 2^-6 C pays
for

- the two roundings, of the sum with and the sum without a unit: at most sqrt(d) 2^-20 C, 0.0031 C for the 10.6
  million parameters of all encoder layers, and never more than half the margin (:data:`MAX_PARAMETERS`);
- the last bits of a unit's own norm and factor, a few 2^-24 of themselves in float32.

That is all where a unit's integers are a function of that unit and the model alone: with the engine of heads for any
micro-batch, with the others for micro-batches of one unit. In larger ones float32 lets units touch: forward passes
give other last bits in other company, and book-keeping's sum of n units with one row each is off by at most
n^2 2^-24 C. With ordinary models this nearly cancels, which is measured and not proven; a model that is made for it
breaks the bound (privacy 3).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from shared.tasks.text import Prepared

GRID_BITS = 20
"""Sums and noise live on a grid of 2^-20 times the clip."""

SUM_BITS = 30
"""Micro-batches are summed in steps of 2^-30 times the clip, so that rounding happens once, not once a micro-batch."""

CLIP_MARGIN = 1 - 2.0**-6
"""Gradients are clipped to this part of the norm that is charged."""

AUTOMATIC_STABILITY = 0.01
"""What automatic clipping adds to a norm, so that a vanishing gradient is not blown up to the clip."""

MAX_PARAMETERS = 1 << 26
"""With more trained parameters the last rounding could use more than half of the clip's margin."""

MOST_AT_ONCE = 1 << 13
"""Most records in one part, whatever a setting says: float32 loses more with every unit that one product adds."""

Loss = Callable[[nn.Module, Prepared], Tensor]
"""A loss of shape (records,); a unit's loss is the sum over its records."""


@dataclass(frozen=True)
class Clip:
    """How far a unit's gradient may reach.

    Attributes:
        max_grad_norm: the norm C that is charged, at least 1e-6 so that its square is an ordinary float32.
        rule: ``flat`` shortens what is longer than C; ``automatic`` scales every unit by C / (norm + 0.01)
            (Bu et al. 2023).
    """

    max_grad_norm: float
    rule: Literal["flat", "automatic"] = "flat"

    def factors(self, squares: Tensor) -> Tensor:
        """Return what each unit's gradient is multiplied with, in steps of 2^-30 C.

        Args:
            squares: squared norms, shape (batch,), float32 or wider.

        Returns:
            Shape (batch,); 0 for a unit whose squared norm is NaN or infinite.
        """
        norms = squares.sqrt()
        limit = CLIP_MARGIN * self.max_grad_norm
        divisor = norms.clamp(min=limit) if self.rule == "flat" else norms + AUTOMATIC_STABILITY
        return torch.where(squares.isfinite(), limit / divisor, 0) * (2.0**SUM_BITS / self.max_grad_norm)


class ClippedSum(Protocol):
    """What an engine attached to a model does with one micro-batch."""

    def __call__(self, batch: Prepared, loss: Loss, clip: Clip) -> Tensor:
        """Return the sum of the clipped gradients, in steps of 2^-30 C.

        Args:
            batch: at least one unit.
            loss: returns shape (records,).
            clip: the norm that is charged and the rule.

        Returns:
            Shape (num_parameters,), dtype int64, on the model's device.

        Raises:
            RuntimeError: when a trained parameter has no gradient for each unit.

        Guarantees:
            - Each unit's part has L2 norm at most C (1 - 2^-6), up to float32.
            - A unit whose gradient holds NaN or infinity, or whose norm overflows, counts as zero.
            - The model is left without gradients and trains the same parameters as before.
        """
        ...


def trained_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that require a gradient, in the layout's order."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def clipped_rows(gradients: list[Tensor], clip: Clip) -> Tensor:
    """Clip each unit's gradient over all parameters, round it to steps of 2^-30 C and sum.

    Args:
        gradients: one tensor a trained parameter, shape (batch, *parameter.shape); overwritten.
        clip: the norm that is charged and the rule.

    Returns:
        Shape (num_parameters,), dtype int64. The sum is exact: a unit more adds its own integers and nothing else.
    """
    flat = [gradient.flatten(1) for gradient in gradients]
    factors = clip.factors(torch.stack([torch.linalg.vector_norm(part, dim=1) for part in flat]).square().sum(0))
    unusable = (factors == 0).unsqueeze(1)
    sums = []
    for part in flat:
        # NaN times zero is NaN, so rows that count as zero are overwritten first.
        part.masked_fill_(unusable, 0).mul_(factors.unsqueeze(1)).round_()
        sums.append(part.sum(0, dtype=torch.float64).to(torch.int64))  # integers below 2^53: exact
    return torch.cat(sums)


def micro_batches(batch: Prepared, records: int) -> Iterator[Prepared]:
    """Cut a logical batch into parts of similar length; only their sum is used, so the cuts change nothing else.

    An engine gives every unit of a part as many places as the largest has records. These places are what is counted:
    a unit with many records ends a part early, and sets memory and time of its own part only.

    Args:
        batch: the sampled units, possibly none.
        records: most places in a part, at least 1; more than :data:`MOST_AT_ONCE` counts as that. A unit with more
            records is a part of its own: they are never parted.
    """
    at_most = min(records, MOST_AT_ONCE)
    sizes = batch.sizes
    if batch.units * int(sizes.max(initial=0)) <= at_most:
        if len(batch):
            yield batch
        return
    longest = np.maximum.reduceat(batch.lengths, np.cumsum(sizes) - sizes)
    order = np.lexsort((sizes, longest)).astype(np.int64)
    while order.size:
        most = np.maximum.accumulate(sizes[order[:at_most]])
        places = most * np.arange(1, most.size + 1)
        cut = max(1, int(np.searchsorted(places, at_most, side="right")))
        yield batch.take(order[:cut])
        order = order[cut:]


def summed_gradient(
    clipped_sum: ClippedSum, batch: Prepared, *, size: int, clip: Clip, physical_batch_size: int, loss: Loss
) -> NDArray[np.int64]:
    """Return the clipped sum over one logical batch, computed in micro-batches of similar length.

    Args:
        clipped_sum: an engine attached to the model.
        batch: the sampled units, possibly none.
        size: number of trained parameters.
        clip: the norm that is charged and the rule.
        physical_batch_size: most records in one forward pass, as in :func:`micro_batches`; changes speed and memory
            only.
        loss: returns shape (records,).

    Returns:
        Shape (size,), dtype int64, in steps of 2^-20 C; zeros for an empty batch.
    """
    total = np.zeros(size, dtype=np.int64)
    for part in micro_batches(batch, physical_batch_size):
        total += clipped_sum(part, loss, clip).cpu().numpy()
    surplus = SUM_BITS - GRID_BITS
    total += 1 << (surplus - 1)  # half a step, so that the shift rounds to the nearest
    total >>= surplus
    return total
