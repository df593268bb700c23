"""Extra coordinates of an update: noised sums over units, of the model that the round starts from (protocol 4)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from clients.training.clipping import GRID_BITS
from clients.training.noise import RandomSource
from clients.training.sampling import poisson_sample
from shared.parameters import ExtraSpec, Vector
from shared.privacy.extras import clamp_and_scale
from shared.tasks.text import Prepared, per_unit_loss


def per_record_correct(model: nn.Module, batch: Prepared) -> Tensor:
    """Return 1 for each record whose label the model gives a probability above one half, else 0; shape (batch,).

    Raises:
        ValueError: for records without labels.
    """
    if batch.labels is None:
        raise ValueError("records without labels cannot be judged")
    logits: Tensor = model(*batch.inputs)
    return ((logits > 0) == (batch.labels > 0.5)).float()


def per_record_one(_model: nn.Module, batch: Prepared) -> Tensor:
    """Return 1 for each record, shape (batch,)."""
    return torch.ones(len(batch))


RecordValues = Callable[[nn.Module, Prepared], Tensor]
"""One number a record, shape (batch,), which no other record of the batch has any part in."""

VALUES: Mapping[str, RecordValues] = {
    "correct-count": per_record_correct,
    "train-loss-sum": per_unit_loss,
    "unit-count": per_record_one,
}
"""What is summed, by the names of :data:`shared.privacy.extras.KNOWN`."""


def release_extras(
    model: nn.Module, units: Prepared, extras: Sequence[ExtraSpec], *, source: RandomSource, physical_batch_size: int
) -> Vector:
    """Return the declared extra coordinates of one round.

    Args:
        model: at the round's starting point; only read.
        units: the department's units with labels, possibly none; the value of one with several records is their mean.
        extras: what the plan declares.
        source: a stream of its own for each extra: coins, then noise.
        physical_batch_size: most units in one forward pass; changes speed only.

    Returns:
        Shape (len(extras),), float32, clamped and scaled for the ring.

    Guarantees:
        Each coordinate depends on the units only through one Poisson sample of clamped values, summed as integers, to
        which discrete Gaussian noise was added: adding or removing a unit moves the sum by at most ``unit_bound``.

    Source: privacy 3 and protocol 4.
    """
    sums = [_noised_sum(model, units, extra, source, physical_batch_size) for extra in extras]
    return clamp_and_scale(np.array(sums, dtype=np.float64), extras)


def _noised_sum(
    model: nn.Module, units: Prepared, extra: ExtraSpec, source: RandomSource, physical_batch_size: int
) -> float:
    """Sum one value over a Poisson sample and add its noise, both in steps of 2^-20 of the unit's bound."""
    stream = source.fork_step()
    sampled = units.take(poisson_sample(stream, units.units, extra.sample_rate))
    values = _record_values(model, sampled, VALUES[extra.name], physical_batch_size)
    clamped = np.clip(np.nan_to_num(values, nan=0.0, posinf=extra.unit_bound, neginf=0.0), 0.0, extra.unit_bound)
    if sampled.owners is not None:
        clamped = np.bincount(sampled.owners, weights=clamped, minlength=sampled.units) / sampled.sizes
    total = int(np.rint(clamped / extra.unit_bound * 2.0**GRID_BITS).astype(np.int64).sum())
    noise = int(stream.discrete_gaussian(1, extra.noise_multiplier * 2.0**GRID_BITS)[0])
    return (total + noise) * extra.unit_bound * 2.0**-GRID_BITS


def _record_values(
    model: nn.Module, units: Prepared, value_of: RecordValues, physical_batch_size: int
) -> NDArray[np.float64]:
    """Return each record's value, shape (records,), computed in micro-batches of similar length."""
    records = Prepared(units.inputs, units.labels, units.lengths)
    values = np.zeros(len(records))
    order = np.argsort(records.lengths, kind="stable").astype(np.int64)
    with torch.inference_mode():
        for start in range(0, len(records), physical_batch_size):
            chunk = order[start : start + physical_batch_size]
            values[chunk] = value_of(model, records.take(chunk)).double().cpu().numpy()
    return values
