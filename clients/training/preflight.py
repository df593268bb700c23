"""Checks of a model and its loss on synthetic units, before any real one is touched.

A model whose units influence one another has no per-unit gradients: one record then moves the sum by more than
the clip, and the accounting is void. The checks see synthetic units only, so their outcome says nothing about data
(privacy 2).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from clients.training.clipping import Loss, per_unit_gradients, per_unit_hooks, trained_parameters
from shared.errors import ConfigError
from shared.tasks.text import Prepared, export_vector, load_vector

KNOWN_LAYERS = (nn.Linear, nn.LayerNorm, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.GroupNorm)
"""Layers whose per-unit gradients the engine computes by a rule of their own."""

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)

TOLERANCE = 1e-4
"""Largest relative difference between a unit's gradient in a batch and alone."""

SYNTHETIC_UNITS = 4


def check_layers(model: nn.Module) -> None:
    """Refuse layers that couple units or that the engine does not know.

    Raises:
        ConfigError: ``nothing-trainable``, ``batch-norm``, ``unknown-layer``, ``layer-in-eval-mode``.
    """
    if not trained_parameters(model):
        raise ConfigError("nothing-trainable", "The model has no trainable parameter.")
    for name, module in model.named_modules():
        trained = any(parameter.requires_grad for parameter in module.parameters(recurse=False))
        if _couples_units(module):
            message = f"Layer {name} normalises over the batch; it is allowed only frozen and in eval mode."
            raise ConfigError("batch-norm", message)
        if trained and type(module) not in KNOWN_LAYERS:
            message = f"Trainable layer {name} is a {type(module).__name__}, which has no per-unit gradient rule."
            raise ConfigError("unknown-layer", message)
        if trained and not module.training:
            raise ConfigError("layer-in-eval-mode", f"Trainable layer {name} is in eval mode; train mode is needed.")


def check_gradients(model: nn.Module, batch: Prepared, loss: Loss) -> None:
    """Compare per-unit gradients of a batch with those of a loop over single units.

    The trained parameters are perturbed for the comparison and restored: at a zero-initialised head all encoder
    gradients vanish and would agree trivially.

    Args:
        model: passed :func:`check_layers`.
        batch: synthetic units, at least two.
        loss: returns shape (batch,).

    Raises:
        ConfigError: ``loss-not-per-unit``, ``units-coupled``, ``parameter-unused``.
    """
    start = export_vector(model)
    generator = np.random.default_rng(0)  # public: the point of comparison is no secret
    load_vector(model, (start + 0.05 * generator.standard_normal(start.size)).astype(np.float32))
    try:
        _check_loss_shape(model, batch, loss)
        together = _gradients_together(model, batch, loss)
        for index in range(len(batch)):
            alone = _gradient_alone(model, batch.take(np.array([index])), loss)
            _compare(together[index], alone)
    finally:
        load_vector(model, start)


def synthetic_units(data: Prepared) -> Prepared:
    """Return synthetic units with the shapes of the real ones and none of their values.

    Features become random unit vectors, token ids small numbers that every vocabulary has, with lengths of their
    own; labels alternate.

    Args:
        data: only the dtypes, the trailing shapes and the device are read.
    """
    generator = np.random.default_rng(1)
    device = data.inputs[0].device
    labels = torch.arange(SYNTHETIC_UNITS, device=device) % 2
    if len(data.inputs) == 1:
        rows = generator.standard_normal((SYNTHETIC_UNITS, data.inputs[0].shape[1])).astype(np.float32)
        features = nn.functional.normalize(torch.from_numpy(rows).to(device), dim=1)
        return Prepared((features,), labels.float(), np.ones(SYNTHETIC_UNITS, dtype=np.int64))
    lengths = np.arange(SYNTHETIC_UNITS, dtype=np.int64) + 3
    ids = torch.from_numpy(generator.integers(0, 5, size=(SYNTHETIC_UNITS, int(lengths.max())))).to(device)
    mask = torch.arange(ids.shape[1], device=device) < torch.from_numpy(lengths).to(device).unsqueeze(1)
    return Prepared((ids, mask), labels.float(), lengths)


def _couples_units(module: nn.Module) -> bool:
    """Return whether a layer's output for one unit depends on the others, or leaves a trace of them."""
    if isinstance(module, BATCH_NORMS):
        frozen = all(not parameter.requires_grad for parameter in module.parameters())
        return module.training or not frozen or module.running_mean is None
    return module.training and getattr(module, "running_mean", None) is not None


def _check_loss_shape(model: nn.Module, batch: Prepared, loss: Loss) -> None:
    """Refuse a loss that is not one number a unit."""
    shape = tuple(loss(model, batch).shape)
    if shape != (len(batch),):
        message = f"The loss of {len(batch)} units has shape {shape}; it must be one number a unit, not a mean."
        raise ConfigError("loss-not-per-unit", message)


def _gradients_together(model: nn.Module, batch: Prepared, loss: Loss) -> Tensor:
    """Return the engine's gradients, shape (batch, num_parameters)."""
    with per_unit_hooks(model) as hooks:
        try:
            gradients = per_unit_gradients(model, hooks, batch, loss)
        except (RuntimeError, ValueError, IndexError) as cause:
            raise ConfigError("parameter-unused", "A trainable parameter has no gradient for each unit.") from cause
    if any(len(gradient) != len(batch) for gradient in gradients):
        raise ConfigError("units-coupled", "A trainable parameter has not one gradient for each unit.")
    return torch.cat([gradient.flatten(1) for gradient in gradients], dim=1)


def _gradient_alone(model: nn.Module, unit: Prepared, loss: Loss) -> Tensor:
    """Return the ordinary gradient of a single unit, shape (num_parameters,)."""
    parts = torch.autograd.grad(loss(model, unit).sum(), trained_parameters(model))
    return torch.cat([part.flatten() for part in parts])


def _compare(together: Tensor, alone: Tensor) -> None:
    """Refuse when a unit's gradient depends on its batch."""
    difference = torch.linalg.vector_norm(together - alone)
    if not difference <= TOLERANCE * torch.linalg.vector_norm(alone).clamp(min=TOLERANCE):
        message = "A unit's gradient differs between a batch and the unit alone; the model or its loss couples units."
        raise ConfigError("units-coupled", message)
