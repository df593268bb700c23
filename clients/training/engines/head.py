"""The engine of a head on fixed features: every unit's gradient in closed form, in float64, a unit by itself.

The gradient of a record's cross-entropy is (sigmoid(z) - y) times its input, with z = w x + b summed row by row. What
a unit adds to the sum is hence a function of that unit and the model alone, bit for bit: neither how many other units
there are nor which model a coordinator sends has any part in it (privacy 3). A product of matrices does not give
that: the last bits of its rows depend on how many rows there are, and a model with large weights makes much of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from clients.training.clipping import Clip, ClippedSum, Loss
from shared.tasks.classifiers import HeadClassifier, head_logits
from shared.tasks.text import Prepared, per_unit_loss


def knows(layer: nn.Module) -> bool:
    """Return whether a trainable layer may be a head's; :func:`attach` looks at the whole model."""
    return isinstance(layer, nn.Linear)


@contextmanager
def attach(model: nn.Module) -> Iterator[ClippedSum]:
    """Give the engine's sum; nothing is hooked.

    Raises:
        TypeError: for another model.
    """
    if not isinstance(model, HeadClassifier):
        raise TypeError("the model is a head on fixed features")
    head = model

    def clipped_sum(batch: Prepared, loss: Loss, clip: Clip) -> Tensor:
        if loss is not per_unit_loss:
            raise ValueError("the closed form is that of the units' cross-entropy")
        sums = torch.from_numpy(_summed(head, batch, clip))
        return sums.to(head.head.weight.device)

    yield clipped_sum


def _summed(model: HeadClassifier, batch: Prepared, clip: Clip) -> NDArray[np.int64]:
    """Return the sum of the units' clipped gradients, shape (width + 1,), in steps of 2^-30 C."""
    if batch.labels is None:
        raise ValueError("records without labels have no loss")
    inputs, logits = head_logits(model, batch.inputs[0])
    with np.errstate(over="ignore", invalid="ignore"):  # what is no number counts as zero
        slopes = 1 / (1 + np.exp(-logits)) - batch.labels.cpu().numpy()
        gradients = inputs * slopes[:, None]
        if batch.owners is not None:
            starts = np.flatnonzero(np.diff(batch.owners, prepend=-1))
            gradients = np.add.reduceat(gradients, starts, axis=0) / batch.sizes[:, None]
        squares = np.square(gradients).sum(axis=1)
        factors = clip.factors(torch.from_numpy(squares)).numpy()
        steps = np.rint(gradients * factors[:, None])
    steps[factors == 0] = 0
    total: NDArray[np.int64] = steps.astype(np.int64).sum(axis=0)
    return total
