"""The Opacus engine: hooks that form the gradient of every unit. The reference, and the one that knows more layers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from opacus.grad_sample import GradSampleHooks
from torch import Tensor, nn

from clients.training.clipping import Clip, ClippedSum, Loss, clipped_rows, trained_parameters
from clients.training.engines.fold import fold_of
from shared.tasks.text import Prepared

LAYERS = (nn.Linear, nn.LayerNorm, nn.RMSNorm, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.GroupNorm)
"""Layers whose per-unit gradients Opacus computes by a rule of their own."""


def knows(layer: nn.Module) -> bool:
    """Return whether a trainable layer has a rule."""
    return type(layer) in LAYERS


@contextmanager
def attach(model: nn.Module) -> Iterator[ClippedSum]:
    """Attach Opacus' hooks for the time of a training round and leave the model clean."""
    hooks = GradSampleHooks(model, loss_reduction="sum")
    trained = [layer for layer in model.modules() if any(p.requires_grad for p in layer.parameters(recurse=False))]
    asking = [layer.register_forward_pre_hook(_ask_for_a_gradient) for layer in trained]
    try:
        yield partial(_clipped_sum, model, hooks)
    finally:
        hooks.cleanup()
        for handle in asking:
            handle.remove()


def per_unit_gradients(model: nn.Module, hooks: GradSampleHooks, batch: Prepared, loss: Loss) -> list[Tensor]:
    """Return each unit's gradient of its own loss: the sum of its records'.

    Args:
        model: with ``hooks`` attached.
        hooks: Opacus' hooks.
        batch: at least one unit.
        loss: returns shape (records,).

    Returns:
        One tensor a trained parameter, shape (units, *parameter.shape).

    Raises:
        RuntimeError: when a trained parameter has no gradient for each unit.
    """
    parameters = trained_parameters(model)
    try:
        loss(model, batch).sum().backward()  # type: ignore[no-untyped-call]  # torch does not annotate backward
        gradients = [getattr(parameter, "grad_sample", None) for parameter in parameters]
    finally:
        hooks.set_grad_sample_to_none()
        for parameter in parameters:
            parameter.grad = None
    found = [gradient for gradient in gradients if gradient is not None and len(gradient) == len(batch)]
    if len(found) < len(parameters):
        raise RuntimeError("a trained parameter has no gradient for each unit")
    fold = fold_of(batch)
    return [fold.summed(gradient) for gradient in found]


def _clipped_sum(model: nn.Module, hooks: GradSampleHooks, batch: Prepared, loss: Loss, clip: Clip) -> Tensor:
    """Return the clipped sum of a micro-batch; see :class:`clients.training.clipping.ClippedSum`."""
    return clipped_rows(per_unit_gradients(model, hooks, batch, loss), clip)


def _ask_for_a_gradient(_layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Let a layer's float inputs ask for a gradient: its backward hook fires only then."""
    return tuple(
        value.detach().requires_grad_() if value.is_floating_point() and not value.requires_grad else value
        for value in inputs
    )
