"""The models: a head on fixed features, and an encoder with a head."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

FEATURE_LENGTH = 2.0
"""Length to which the head stretches unit features. A unit's clipped gradient is shared between the features and
the bias, whose input is 1: at length 2 the bias takes a fifth of the clip's square instead of half of it."""


class HeadClassifier(nn.Module):
    """One zero-initialised linear layer on fixed features."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.head = _zero_linear(width)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits of shape (batch,) for features of shape (batch, width)."""
        logits: Tensor = self.head(FEATURE_LENGTH * features)
        return logits.squeeze(-1)


def head_logits(model: HeadClassifier, features: Tensor) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return what a head multiplies its parameters with, and its logits, row by row in float64.

    Args:
        model: a head on features of shape (batch, width).
        features: shape (batch, width), in any order in memory.

    Returns:
        Inputs of shape (batch, width + 1), the last one the bias' 1, and logits of shape (batch,).

    Guarantees:
        A row's values are a function of that row and the parameters alone, bit for bit; in a product of matrices they
        depend on how many rows there are.
    """
    rows = FEATURE_LENGTH * features.detach().cpu().contiguous().numpy().astype(np.float64)  # sums follow the memory
    inputs = np.concatenate([rows, np.ones((len(rows), 1))], axis=1)
    parameters = [value.detach().cpu().numpy().astype(np.float64).reshape(-1) for value in model.parameters()]
    with np.errstate(over="ignore", invalid="ignore"):
        return inputs, (inputs * np.concatenate(parameters)).sum(axis=1)


class EncoderClassifier(nn.Module):
    """An encoder with some trained layers or adapters and a zero-initialised linear head."""

    def __init__(self, encoder: nn.Module, width: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = _zero_linear(width)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return logits of shape (batch,) for ids and mask of shape (batch, tokens)."""
        logits: Tensor = self.head(FEATURE_LENGTH * self.encoder(input_ids, attention_mask))
        return logits.squeeze(-1)


def _zero_linear(width: int) -> nn.Linear:
    """Return a linear layer with one output and all parameters zero."""
    # Made without values, so that nothing is drawn from torch's global generator.
    layer = nn.Linear(width, 1, device="meta").to_empty(device="cpu")
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
