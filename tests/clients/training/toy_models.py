"""Small models, one for each way in which a layer is used, and units for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from clients.training.clipping import Clip, Loss, trained_parameters
from clients.training.engines import BOOKKEEPING, OPACUS, Engine
from shared.tasks.lora import LoraLinear
from shared.tasks.text import Prepared

WIDTH = 12
TOKENS = 5
VOCABULARY = 9
WORDS = ["help", "water", "food", "road", "bridge", "storm", "we", "need", "the", "is", "closed", "please"]
ENGINES = (BOOKKEEPING, OPACUS)


def seeded(number: int) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def numbers(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed))


def set_parameters(model: nn.Module) -> nn.Module:
    """Give every parameter a general value without the global generator."""
    generator = seeded(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    return model


class Tower(nn.Module):
    """Layers one after another, then a fixed readout of every output number that is not linear in it."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, inputs: Tensor) -> Tensor:
        output: Tensor = torch.tanh(self.layers(inputs)).flatten(1)
        return output @ torch.cos(torch.arange(output.shape[1], dtype=output.dtype))


class Twice(nn.Module):
    """One layer used twice in a row."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)

    def forward(self, inputs: Tensor) -> Tensor:
        output: Tensor = self.layer(torch.tanh(self.layer(inputs)))
        return output


class SharedInput(nn.Module):
    """Two layers with the same input, as query and key have, and one whose input has the same shape."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, inputs: Tensor) -> Tensor:
        output: Tensor = self.query(inputs) * self.key(inputs) + self.value(inputs + 1)
        return output


class Folded(nn.Module):
    """Several channels of a unit go through one layer as if they were units: shape (batch * channels, ...)."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, inputs: Tensor) -> Tensor:
        batch, channels, width = inputs.shape
        output: Tensor = self.norm(self.layer(inputs.reshape(batch * channels, width)))
        return output.view(batch, channels, width)


@dataclass(frozen=True)
class Case:
    """A model, the shape of its input, and whether that is token ids."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...] = (TOKENS, WIDTH)
    tokens: bool = False
    opacus: bool = True

    def model(self) -> nn.Module:
        return set_parameters(Tower(self.make())).train()

    def units(self, count: int) -> Prepared:
        if self.tokens:
            rows = torch.randint(0, VOCABULARY, (count, *self.shape), generator=seeded(3))
        else:
            rows = numbers(count, *self.shape)
        return Prepared((rows,), torch.arange(count).float(), np.ones(count, dtype=np.int64))


def bias_only() -> nn.Module:
    layer = nn.Linear(WIDTH, 7)
    layer.weight.requires_grad = False
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), layer)


CASES = {
    "linear": Case(lambda: nn.Linear(WIDTH, 40)),
    "linear without bias": Case(lambda: nn.Linear(WIDTH, 40, bias=False)),
    "linear to fewer": Case(lambda: nn.Linear(40, WIDTH), shape=(TOKENS, 40)),
    "linear with many rows": Case(lambda: nn.Linear(WIDTH, 5), shape=(30, WIDTH)),
    "linear without rows": Case(lambda: nn.Linear(WIDTH, 6), shape=(WIDTH,)),
    "linear with two axes of rows": Case(lambda: nn.Linear(WIDTH, 40), shape=(2, 3, WIDTH)),
    "bias only": Case(bias_only),
    "layer norm": Case(lambda: nn.LayerNorm(WIDTH)),
    "layer norm over two axes": Case(lambda: nn.LayerNorm((TOKENS, WIDTH))),
    "rms norm": Case(lambda: nn.RMSNorm(WIDTH)),
    "embedding": Case(lambda: nn.Embedding(VOCABULARY, WIDTH), shape=(TOKENS,), tokens=True),
    "embedding with padding": Case(
        lambda: nn.Embedding(VOCABULARY, WIDTH, padding_idx=2), shape=(TOKENS,), tokens=True, opacus=False
    ),
    "lora": Case(lambda: LoraLinear(nn.Linear(WIDTH, 10), 3)),
    "in-place activation": Case(
        lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(inplace=True), nn.Linear(WIDTH, 4)), opacus=False
    ),
    "one layer twice": Case(Twice),
    "three layers on one input": Case(SharedInput),
    "channels folded into the batch": Case(Folded, opacus=False),
    "all together": Case(
        lambda: nn.Sequential(
            nn.Embedding(VOCABULARY, WIDTH), nn.Linear(WIDTH, 40), nn.LayerNorm(40), nn.Linear(40, 3)
        ),
        shape=(TOKENS,),
        tokens=True,
    ),
}

layer_cases = pytest.mark.parametrize(
    ("engine", "case"),
    [
        pytest.param(engine, case, id=f"{engine.name}, {name}")
        for name, case in CASES.items()
        for engine in ENGINES
        if engine is BOOKKEEPING or case.opacus
    ],
)
"""Each case with each engine that takes it."""


def loss_of(model: nn.Module, batch: Prepared) -> Tensor:
    """Return each unit's own loss."""
    assert batch.labels is not None
    losses: Tensor = model(*batch.inputs) * (1 + batch.labels)
    return losses


def gradients_alone(model: nn.Module, units: Prepared, loss: Loss = loss_of) -> Tensor:
    """Return every unit's gradient from a loop over single units, shape (units, num_parameters), float64."""
    rows = []
    for index in range(len(units)):
        parts = torch.autograd.grad(loss(model, units.take(np.array([index]))).sum(), trained_parameters(model))
        rows.append(torch.cat([part.flatten() for part in parts]).double())
    return torch.stack(rows)


def engine_sum(engine: Engine, model: nn.Module, units: Prepared, clip: Clip, loss: Loss = loss_of) -> Tensor:
    """Return an engine's clipped sum of one micro-batch, float64, in the gradient's own measure."""
    with engine.attach(model) as clipped_sum:
        return clipped_sum(units, loss, clip).double() * (clip.max_grad_norm * 2.0**-30)
