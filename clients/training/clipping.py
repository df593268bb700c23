"""Per-unit gradients, clipped and summed as integers.

Opacus hooks give the gradient of every unit (privacy 2). Each one is clipped to C (1 - 2^-6), rounded to the grid
of 2^-20 C and only then summed, in int64: the sum is exact, so adding a unit changes it by that unit's integers and
by nothing else, however the batch was cut. C is charged; the margin covers the rounding, at most
sqrt(d) 2^-21 C (0.0016 C for the 10.6 million parameters of all encoder layers), and the order of float operations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from opacus.grad_sample import GradSampleHooks
from torch import Tensor, nn

from shared.tasks.text import Prepared

GRID_BITS = 20
"""Sums and noise live on a grid of 2^-20 times the clip."""

CLIP_MARGIN = 1 - 2.0**-6
"""Gradients are clipped to this part of the norm that is charged."""

Loss = Callable[[nn.Module, Prepared], Tensor]
"""A loss of shape (batch,), one number a unit."""


@contextmanager
def per_unit_hooks(model: nn.Module) -> Iterator[GradSampleHooks]:
    """Attach Opacus' hooks for the time of a training round and leave the model clean.

    The model stays the caller's: it is not wrapped, and its modes are not changed.
    """
    hooks = GradSampleHooks(model, loss_reduction="sum")
    try:
        yield hooks
    finally:
        hooks.cleanup()


def trained_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that require a gradient, in the layout's order."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def per_unit_gradients(model: nn.Module, hooks: GradSampleHooks, batch: Prepared, loss: Loss) -> list[Tensor]:
    """Return each unit's gradient of its own loss.

    Args:
        model: with ``hooks`` attached.
        hooks: from :func:`per_unit_hooks`.
        batch: at least one unit.
        loss: returns shape (batch,).

    Returns:
        One tensor a trained parameter, shape (batch, *parameter.shape).

    Raises:
        RuntimeError: when a trained parameter took no part in the loss.
    """
    loss(model, batch).sum().backward()  # type: ignore[no-untyped-call]  # torch does not annotate backward
    parameters = trained_parameters(model)
    gradients = [getattr(parameter, "grad_sample", None) for parameter in parameters]
    hooks.set_grad_sample_to_none()
    for parameter in parameters:
        parameter.grad = None
    if any(gradient is None for gradient in gradients):
        raise RuntimeError("a trained parameter took no part in the loss")
    return [gradient for gradient in gradients if gradient is not None]


def clipped_grid_sum(gradients: list[Tensor], max_grad_norm: float) -> Tensor:
    """Clip each unit's gradient over all parameters, round it to the grid and sum.

    Args:
        gradients: as :func:`per_unit_gradients` returns them; overwritten.
        max_grad_norm: the norm C that is charged.

    Returns:
        Shape (num_parameters,), dtype int64, in steps of 2^-20 C.

    Guarantees:
        - Each unit's part has L2 norm at most C.
        - A unit whose gradient holds NaN or infinity, or whose norm overflows, counts as zero.
    """
    flat = [gradient.flatten(1) for gradient in gradients]
    squares = torch.stack([torch.linalg.vector_norm(part, dim=1) for part in flat]).square().sum(0)
    norms = squares.sqrt()
    limit = CLIP_MARGIN * max_grad_norm
    factors = torch.where(norms.isfinite(), limit / norms.clamp(min=limit), 0) * (2.0**GRID_BITS / max_grad_norm)
    usable = norms.isfinite().unsqueeze(1)
    sums = []
    for part in flat:
        # NaN times zero is NaN, so rows that count as zero are overwritten first.
        part.masked_fill_(~usable, 0).mul_(factors.unsqueeze(1)).round_()
        sums.append(part.sum(0, dtype=torch.float64).to(torch.int64))  # integers below 2^53: exact
    return torch.cat(sums)


def summed_gradient(
    model: nn.Module,
    hooks: GradSampleHooks,
    batch: Prepared,
    *,
    max_grad_norm: float,
    physical_batch_size: int,
    loss: Loss,
) -> NDArray[np.int64]:
    """Return the clipped sum over one logical batch, computed in micro-batches of similar length.

    Args:
        model: with ``hooks`` attached.
        hooks: from :func:`per_unit_hooks`.
        batch: the sampled units, possibly none.
        max_grad_norm: the norm C that is charged.
        physical_batch_size: most units in one forward pass; changes speed and memory only.
        loss: returns shape (batch,).

    Returns:
        Shape (num_parameters,), dtype int64, in steps of 2^-20 C; zeros for an empty batch.
    """
    size = sum(parameter.numel() for parameter in trained_parameters(model))
    total = np.zeros(size, dtype=np.int64)
    order = np.argsort(batch.lengths, kind="stable").astype(np.int64)
    for start in range(0, len(batch), physical_batch_size):
        units = batch.take(order[start : start + physical_batch_size])
        gradients = per_unit_gradients(model, hooks, units, loss)
        total += clipped_grid_sum(gradients, max_grad_norm).cpu().numpy()
    return total
