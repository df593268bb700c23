"""Extra coordinates of an update: noised sums over units, of the model that the round starts from (protocol 4)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from clients.training.clipping import GRID_BITS
from clients.training.noise import RandomSource
from clients.training.sampling import poisson_sample
from shared.parameters import ExtraSpec, Vector
from shared.privacy.extras import clamp_and_scale
from shared.tasks.classifiers import HeadClassifier, head_logits
from shared.tasks.text import Prepared

Values = NDArray[np.float64]

VALUES: Mapping[str, Callable[[Values, Values], Values]] = {
    "correct-count": lambda logits, labels: ((logits > 0) == (labels > 0.5)).astype(np.float64),
    "train-loss-sum": lambda logits, labels: np.logaddexp(0, logits) - labels * logits,
    "unit-count": lambda logits, _labels: np.ones(logits.size),
}
"""What is summed, by the names of :data:`shared.privacy.extras.KNOWN`: one number a record, from its logit and label,
all of shape (records,). A record is correct where the model gives its label a probability above one half."""


def release_extras(model: nn.Module, units: Prepared, extras: Sequence[ExtraSpec], *, source: RandomSource) -> Vector:
    """Return the declared extra coordinates of one round.

    Args:
        model: at the round's starting point; only read.
        units: the department's units with labels, possibly none; the value of one with several records is their mean.
        extras: what the plan declares.
        source: a stream of its own for each extra: coins, then noise.

    Returns:
        Shape (len(extras),), float32, clamped and scaled for the ring.

    Raises:
        ValueError: for units without labels.

    Guarantees:
        Each coordinate depends on the units only through one Poisson sample of clamped values, summed as integers, to
        which discrete Gaussian noise was added: adding or removing a unit moves the sum by at most ``unit_bound``,
        because a unit's value is a function of that unit and the model alone, bit for bit.

    Source: privacy 3 and protocol 4.
    """
    sums = [_noised_sum(model, units, extra, source) for extra in extras]
    return clamp_and_scale(np.array(sums, dtype=np.float64), extras)


def _noised_sum(model: nn.Module, units: Prepared, extra: ExtraSpec, source: RandomSource) -> float:
    """Sum one value over a Poisson sample and add its noise, both in steps of 2^-20 of the unit's bound."""
    stream = source.fork_step()
    sampled = units.take(poisson_sample(stream, units.units, extra.sample_rate))
    if sampled.labels is None:
        raise ValueError("units without labels have no values")
    with np.errstate(over="ignore", invalid="ignore"):
        values = VALUES[extra.name](_record_logits(model, sampled), sampled.labels.double().cpu().numpy())
    clamped = np.clip(np.nan_to_num(values, nan=0.0, posinf=extra.unit_bound, neginf=0.0), 0.0, extra.unit_bound)
    if sampled.owners is not None:
        clamped = np.bincount(sampled.owners, weights=clamped, minlength=sampled.units) / sampled.sizes
    total = int(np.rint(clamped / extra.unit_bound * 2.0**GRID_BITS).astype(np.int64).sum())
    noise = int(stream.discrete_gaussian(1, extra.noise_multiplier * 2.0**GRID_BITS)[0])
    return (total + noise) * extra.unit_bound * 2.0**-GRID_BITS


def _record_logits(model: nn.Module, units: Prepared) -> Values:
    """Return each record's logit, shape (records,); no record goes through the model with another."""
    if isinstance(model, HeadClassifier):
        return head_logits(model, units.inputs[0])[1]
    records = Prepared(units.inputs, units.labels, units.lengths)
    logits = np.zeros(len(records))
    with torch.inference_mode():
        for number in range(len(records)):
            logits[number] = float(model(*records.take(np.array([number])).inputs))
    return logits
