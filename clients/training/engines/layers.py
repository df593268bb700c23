"""What each layer adds to the units' norms and to the weighted sum, from its input and its output's gradient.

A layer's parameters have one gradient a unit, the sum over the unit's rows (its tokens, or the tokens of all its
records and channels: whatever is folded into a unit is only a longer block of rows). For a linear layer with input
rows a_t and output gradients g_t it is sum_t g_t a_t^T. Its squared norm is sum_ts (a_t a_s)(g_t g_s), two products
of T x T instead of one of d x p: the *ghost norm*, cheaper when T (d + p) < d p.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeGuard

import torch
from torch import Tensor, nn

from clients.training.engines.fold import Fold
from clients.training.engines.products import gram, transposed_product

GHOST_GUARD = 2.0**-22
"""A ghost norm is a sum in which terms can cancel, and float32 then leaves too small a number: a gradient would be
clipped too little. Four units of float32 rounding of the sum of the terms' absolute values are added, so that the norm
is never underestimated by more than the clip's margin. For ordinary texts this adds less than 1e-4 of the norm."""


class Part(Protocol):
    """One or two parameters' share of norms and sums."""

    squares: Tensor
    """Squared norm of each unit's gradient, shape (units,)."""

    def drop(self, unusable: Tensor) -> None:
        """Set units' rows to zero where ``unusable``, shape (units,), holds: NaN times a factor of 0 would be NaN."""
        ...

    def weighted(self, factors: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Give, for each parameter, the sum of the units' gradients times their factors, shape (units,)."""
        ...


@dataclass(eq=False)
class Reuse:
    """Products that layers with one and the same input share, as query, key and value do."""

    _kept: dict[tuple[object, ...], tuple[Tensor, Tensor]] = field(default_factory=dict)

    def get(self, what: str, rows: Tensor, compute: Callable[[], Tensor]) -> Tensor:
        """Return a product of ``rows``, computed once for every tensor with the same memory and shape."""
        key = (what, rows.data_ptr(), rows.shape, rows.stride())
        if key not in self._kept:
            self._kept[key] = rows, compute()  # the rows too: while they are kept, nothing else has their memory
        return self._kept[key][1]


@dataclass(eq=False)
class PerUnit:
    """A parameter whose per-unit gradients are small enough to form: shape (units, *parameter.shape)."""

    parameter: Tensor
    gradients: Tensor
    squares: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.squares = _squares(self.gradients)

    def drop(self, unusable: Tensor) -> None:
        """See :class:`Part`."""
        self.gradients = _zeroed(self.gradients, unusable)

    def weighted(self, factors: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """See :class:`Part`."""
        yield self.parameter, factors @ self.gradients.flatten(1)


@dataclass(eq=False)
class GhostLinear:
    """A linear layer whose per-unit gradients are never formed.

    Attributes:
        layer: its weight is trained, its bias perhaps.
        inputs: shape (units, rows, d).
        gradients: shape (units, rows, p).
        reuse: products of the same input.
    """

    layer: nn.Linear
    inputs: Tensor
    gradients: Tensor
    reuse: Reuse
    squares: Tensor = field(init=False)

    def __post_init__(self) -> None:
        if self.inputs.shape[1] == 1:
            self.squares = self._product_of_squares()
            return
        between_inputs = self.reuse.get("gram", self.inputs, lambda: gram(self.inputs))
        if _trained(self.layer.bias):
            between_inputs = between_inputs + 1  # a bias is a weight whose input is 1
        products = gram(self.gradients)
        lengths = products.diagonal(dim1=1, dim2=2) * between_inputs.diagonal(dim1=1, dim2=2)
        guard = GHOST_GUARD * lengths.sqrt().sum(1).square()
        self.squares = products.mul_(between_inputs).sum((1, 2)).clamp(min=0) + guard

    def _product_of_squares(self) -> Tensor:
        """Return the squared norms of one row a unit: a product, in which nothing can cancel.

        In float64, where neither factor can vanish or overflow while the product is an ordinary number.
        """
        inputs, gradients = (
            torch.linalg.vector_norm(rows.flatten(1), dim=1, dtype=torch.float64).square()
            for rows in (self.inputs, self.gradients)
        )
        squares: Tensor = gradients * (inputs + (1 if _trained(self.layer.bias) else 0))
        return squares.to(self.gradients.dtype)

    def drop(self, unusable: Tensor) -> None:
        """See :class:`Part`."""
        self.inputs = self.reuse.get("usable", self.inputs, lambda: _zeroed(self.inputs, unusable))
        self.gradients = _zeroed(self.gradients, unusable)

    def weighted(self, factors: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """See :class:`Part`."""
        left, right = self.gradients, self.inputs
        if right.shape[2] <= left.shape[2]:  # the factors go to the smaller side
            right = self.reuse.get("scaled", right, lambda: self.inputs * factors[:, None, None])
        else:
            left = left * factors[:, None, None]
        yield self.layer.weight, transposed_product(left.flatten(0, 1), right.flatten(0, 1))
        if _trained(self.layer.bias):
            yield self.layer.bias, factors.repeat_interleave(left.shape[1]) @ self.gradients.flatten(0, 1)


@dataclass(eq=False)
class EmbeddingRows:
    """An embedding: a unit's gradient is its output gradients added up token by token, in the tokens' rows."""

    layer: nn.Embedding
    unit: Tensor
    token: Tensor
    gradients: Tensor
    squares: Tensor

    def drop(self, unusable: Tensor) -> None:
        """See :class:`Part`."""
        self.gradients = _zeroed(self.gradients, unusable[self.unit])

    def weighted(self, factors: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """See :class:`Part`."""
        total = torch.zeros_like(self.layer.weight, dtype=self.gradients.dtype)
        total.index_add_(0, self.token, self.gradients * factors[self.unit].unsqueeze(1))
        yield self.layer.weight, total


def linear(
    layer: nn.Linear, inputs: Sequence[Tensor], gradients: Sequence[Tensor], fold: Fold, reuse: Reuse
) -> Iterator[Part]:
    """Ghost norm where it is cheaper, per-unit gradients elsewhere."""
    width = layer.in_features
    if len(inputs) == 1:
        left = reuse.get("rows", inputs[0], lambda: fold.rows(_wide(inputs), width))
    else:
        left = fold.rows(_wide(inputs), width)
    right = fold.rows(_wide(gradients), layer.out_features)
    rows = left.shape[1]
    ghost = rows == 1 or rows * (width + layer.out_features) < width * layer.out_features
    if _trained(layer.weight) and ghost:
        yield GhostLinear(layer, left, right, reuse)
        return
    if _trained(layer.weight):
        yield PerUnit(layer.weight, right.mT @ left)
    if _trained(layer.bias):
        yield PerUnit(layer.bias, right.sum(1))


def layer_norm(
    layer: nn.LayerNorm, inputs: Sequence[Tensor], gradients: Sequence[Tensor], fold: Fold, reuse: Reuse
) -> Iterator[Part]:
    """Scale and shift; the normalised input is computed again, because a scale of zero would hide it."""
    del reuse
    shape, size = layer.normalized_shape, layer.weight.numel()
    right = fold.rows(_wide(gradients), size)
    if _trained(layer.weight):
        normal = [nn.functional.layer_norm(value, shape, eps=layer.eps) for value in _wide(inputs)]
        yield PerUnit(layer.weight, (fold.rows(normal, size) * right).sum(1))
    if _trained(layer.bias):
        yield PerUnit(layer.bias, right.sum(1))


def rms_norm(
    layer: nn.RMSNorm, inputs: Sequence[Tensor], gradients: Sequence[Tensor], fold: Fold, reuse: Reuse
) -> Iterator[Part]:
    """Scale; see :func:`layer_norm`."""
    del reuse
    shape, size = list(layer.normalized_shape), layer.weight.numel()
    normal = [nn.functional.rms_norm(value, shape, eps=layer.eps) for value in _wide(inputs)]
    yield PerUnit(layer.weight, (fold.rows(normal, size) * fold.rows(_wide(gradients), size)).sum(1))


def embedding(
    layer: nn.Embedding, inputs: Sequence[Tensor], gradients: Sequence[Tensor], fold: Fold, reuse: Reuse
) -> Iterator[Part]:
    """Add up each unit's equal tokens first; no terms are left that could cancel in the norm."""
    del reuse
    tokens = fold.rows(inputs, 1).squeeze(2)
    rows = fold.rows(_wide(gradients), layer.embedding_dim)
    if layer.padding_idx is not None:
        rows = rows * (tokens != layer.padding_idx).unsqueeze(2)
    unit = torch.arange(fold.units, device=tokens.device).unsqueeze(1)
    keys, places = torch.unique(unit * layer.num_embeddings + tokens, return_inverse=True)
    sums = rows.new_zeros((len(keys), layer.embedding_dim)).index_add_(0, places.flatten(), rows.flatten(0, 1))
    unit, token = keys // layer.num_embeddings, keys % layer.num_embeddings
    squares = rows.new_zeros(fold.units).index_add_(0, unit, sums.square().sum(1))
    yield EmbeddingRows(layer, unit, token, sums, squares)


RULES: dict[type[nn.Module], Callable[..., Iterator[Part]]] = {
    nn.Linear: linear,
    nn.LayerNorm: layer_norm,
    nn.RMSNorm: rms_norm,
    nn.Embedding: embedding,
}
"""Each takes the layer, its inputs and output gradients (one tensor for each use), how records make up units, and
what is reused."""


def supports(layer: nn.Module) -> bool:
    """Return whether the table has the layer, with the options that it has."""
    if isinstance(layer, nn.Embedding) and (layer.max_norm is not None or layer.scale_grad_by_freq or layer.sparse):
        return False  # the first changes weights by what is looked up, the second counts tokens over all units
    return type(layer) in RULES


def _trained(parameter: Tensor | None) -> TypeGuard[Tensor]:
    """Return whether a parameter is there and trained."""
    return parameter is not None and parameter.requires_grad


def _wide(values: Sequence[Tensor]) -> list[Tensor]:
    """Return tensors in float32 or wider: norms and sums are never in less."""
    return [value.to(torch.promote_types(value.dtype, torch.float32)) for value in values]


def _squares(values: Tensor) -> Tensor:
    """Return each unit's sum of squares, shape (units,), for shape (units, ...)."""
    norms: Tensor = torch.linalg.vector_norm(values.flatten(1), dim=1)
    return norms.square_()


def _zeroed(rows: Tensor, where: Tensor) -> Tensor:
    """Return rows, shape (n, ...), with zeros where the mask, shape (n,), is true."""
    return rows.masked_fill(where.view(-1, *[1] * (rows.dim() - 1)), 0)
