"""Low-rank adapters (LoRA): a frozen linear layer plus a trained product of two thin ones.

Both thin layers are ordinary linear layers without bias, so every engine of per-unit gradients knows them.

Source: Hu et al. 2021, section 4.1, applied to the query and value projections.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn


class LoraLinear(nn.Module):
    """A frozen linear layer with a trained correction of low rank, zero at the start.

    Args:
        base: the pretrained layer; it is frozen.
        rank: rank of the correction, at most ``base.in_features``.
        first: number of the first cosine that ``down`` starts from.
    """

    def __init__(self, base: nn.Linear, rank: int, *, first: int = 0) -> None:
        super().__init__()
        self.base = base.requires_grad_(requires_grad=False)
        # Made without values, so that nothing is drawn from torch's global generator.
        device = base.weight.device
        self.down = nn.Linear(base.in_features, rank, bias=False, device="meta").to_empty(device=device)
        self.up = nn.Linear(rank, base.out_features, bias=False, device="meta").to_empty(device=device)
        with torch.no_grad():
            self.down.weight.copy_(_cosines(base.in_features, rank, first))
        nn.init.zeros_(self.up.weight)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the frozen layer's output plus the correction, shape (..., out_features)."""
        output: Tensor = self.base(inputs) + self.up(self.down(inputs))
        return output


def add_lora(layers: Iterable[nn.Module], rank: int) -> None:
    """Give the query and value projections of BERT layers a trained correction; everything else stays as it is.

    Args:
        layers: layers with ``attention.self.query`` and ``attention.self.value``.
        rank: rank of each correction.
    """
    for number, layer in enumerate(layers):
        attention = layer.get_submodule("attention.self")
        for name in ("query", "value"):
            base = attention.get_submodule(name)
            if not isinstance(base, nn.Linear):
                raise TypeError("a projection is a linear layer")
            setattr(attention, name, LoraLinear(base, rank, first=number * rank))


def _cosines(width: int, rank: int, first: int) -> Tensor:
    """Return orthonormal rows without drawing them: cosines of rising frequency, never the constant one.

    Row k is sqrt(2 / width) cos(pi (k + 1) (j + 1/2) / width), of the orthonormal basis of the cosine transform.
    """
    frequency = 1 + torch.remainder(torch.arange(first, first + rank, dtype=torch.float64), max(width - 1, 1))
    place = torch.arange(width, dtype=torch.float64) + 0.5
    return math.sqrt(2 / width) * torch.cos(math.pi / width * frequency.unsqueeze(1) * place)
