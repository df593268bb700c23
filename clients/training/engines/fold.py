"""How records make up units: several records of a person, or the tokens of one record, are a unit's rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from shared.tasks.text import Prepared


@dataclass(frozen=True, eq=False)
class Fold:
    """The records of a micro-batch and the units that they belong to.

    Attributes:
        records: number of records, the first dimension of what a model computes.
        units: number of units.
        unit: shape (records,), the unit of each record; None where each record is a unit.
        place: shape (records,), the number of each record within its unit.
        most: records of the unit that has most of them.
    """

    records: int
    units: int
    unit: Tensor | None = None
    place: Tensor | None = None
    most: int = 1

    def rows(self, values: Sequence[Tensor], width: int) -> Tensor:
        """Return all uses of a layer as one block of rows a unit, shape (units, rows, width).

        Args:
            values: one tensor a use, each with one block of rows a record.
            width: size of the last dimension.

        Raises:
            RuntimeError: when a tensor is not one block for each record.
        """
        if any(len(value) % self.records for value in values):
            raise RuntimeError("a trained layer's input is not one block for each unit's record")
        blocks = [value.reshape(self.records, -1, width) for value in values]
        rows = blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim=1)
        if self.unit is None:
            return rows
        # A unit with fewer records than another gets rows of zeros: they add nothing to norms and sums.
        folded = rows.new_zeros((self.units, self.most, *rows.shape[1:]))
        folded[self.unit, self.place] = rows
        return folded.flatten(1, 2)

    def summed(self, gradients: Tensor) -> Tensor:
        """Return each unit's sum of its records' gradients, shape (units, ...) for shape (records, ...)."""
        if self.unit is None:
            return gradients
        return gradients.new_zeros((self.units, *gradients.shape[1:])).index_add_(0, self.unit, gradients)


def fold_of(batch: Prepared) -> Fold:
    """Return how the records of a micro-batch, at least one, make up its units."""
    if batch.owners is None:
        return Fold(len(batch), len(batch))
    sizes = batch.sizes
    place = np.arange(len(batch)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    device = batch.inputs[0].device
    unit, within = torch.from_numpy(batch.owners).to(device), torch.from_numpy(place).to(device)
    return Fold(len(batch), batch.units, unit, within, int(sizes.max()))
