"""Checks of a model and its loss on synthetic units, before any real one is touched.

A model whose units influence one another has no per-unit gradients: one record then moves the sum by more than
the clip, and the accounting is void. The checks see synthetic units only, so their outcome says nothing about data
(privacy 2).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from clients.training.clipping import MAX_PARAMETERS, SUM_BITS, Clip, ClippedSum, Loss, trained_parameters
from clients.training.engines import CANDIDATES, HEAD, Engine
from shared.errors import ConfigError
from shared.tasks.text import Prepared, export_vector, load_vector, per_unit_loss

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)

TOLERANCE = 1e-4
"""Largest difference between clipped gradients in a batch and alone, as a part of the clip."""

SYNTHETIC_UNITS = 4


def choose_engine(model: nn.Module, batch: Prepared, loss: Loss, requested: str = "auto") -> Engine:
    """Return the first allowed engine that knows every trained layer and agrees with single units.

    The trained parameters are perturbed for the comparison and restored: at a zero-initialised head all encoder
    gradients vanish and would agree trivially.

    Args:
        model: on its device, in the modes in which it will be trained.
        batch: synthetic units, at least two.
        loss: returns shape (records,).
        requested: ``auto`` or an engine's name; see :data:`clients.training.engines.CANDIDATES`.

    Raises:
        ConfigError: ``nothing-trainable``, ``too-many-parameters``, ``batch-norm``, ``layer-in-eval-mode``,
            ``loss-not-per-unit``; and from the last engine that was tried ``unknown-layer``, ``parameter-unused``,
            ``units-coupled``.
    """
    check_model(model)
    with _perturbed(model):
        _check_loss_shape(model, batch, loss)
        alone = [_gradient_alone(model, batch.take(np.array([index])), loss) for index in range(batch.units)]
        *preferred, last = CANDIDATES[requested]
        for engine in preferred:
            try:
                _check_engine(engine, model, batch, loss, alone)
            except ConfigError:
                continue  # the next one is held to the same checks
            return engine
        _check_engine(last, model, batch, loss, alone)
        return last


def checked_head(model: nn.Module, batch: Prepared) -> Engine:
    """Return the engine of heads, once it agrees with single units, and together they are their sum bit for bit.

    Args:
        model: a head on fixed features.
        batch: synthetic units, at least two.

    Raises:
        ConfigError: ``nothing-trainable``, ``too-many-parameters``, ``layer-in-eval-mode``, ``units-coupled``.
    """
    check_model(model)
    total: Tensor | int = 0
    with _perturbed(model), HEAD.attach(model) as clipped_sum:
        units = [batch.take(np.array([index])) for index in range(batch.units)]
        alone = [_gradient_alone(model, unit, per_unit_loss) for unit in units]
        clip = Clip(max(float(np.median([float(torch.linalg.vector_norm(one)) for one in alone])), TOLERANCE))
        for unit, gradient in zip(units, alone, strict=True):
            _compare(_sum(clipped_sum, unit, per_unit_loss, clip), _clipped(gradient, clip), clip)
            total = total + clipped_sum(unit, per_unit_loss, clip)
        if not torch.equal(clipped_sum(batch, per_unit_loss, clip), torch.as_tensor(total)):
            raise ConfigError("units-coupled", "A unit's gradient differs between a batch and the unit alone.")
    return HEAD


def check_model(model: nn.Module) -> None:
    """Refuse a model that no engine may train.

    Raises:
        ConfigError: ``nothing-trainable``, ``too-many-parameters``, ``batch-norm``, ``layer-in-eval-mode``.
    """
    size = sum(parameter.numel() for parameter in trained_parameters(model))
    if size == 0:
        raise ConfigError("nothing-trainable", "The model has no trainable parameter.")
    if size > MAX_PARAMETERS:
        message = f"The model trains {size} parameters; the clip's margin covers the rounding of {MAX_PARAMETERS}."
        raise ConfigError("too-many-parameters", message)
    for name, module in model.named_modules():
        if _couples_units(module):
            message = f"Layer {name} normalises over the batch; it is allowed only frozen and in eval mode."
            raise ConfigError("batch-norm", message)
        if _trains(module) and not module.training:
            raise ConfigError("layer-in-eval-mode", f"Trainable layer {name} is in eval mode; train mode is needed.")


def synthetic_units(data: Prepared) -> Prepared:
    """Return synthetic units with the shapes of the real ones and none of their values.

    Features become random unit vectors, token ids small numbers that every vocabulary has, with lengths of their
    own; labels alternate. Where units may have several records, the synthetic ones have one, two, three and one.

    Args:
        data: only the dtypes, the trailing shapes, the device and whether records have owners are read.
    """
    generator = np.random.default_rng(1)
    device = data.inputs[0].device
    owners = None if data.owners is None else np.array([0, 1, 1, 2, 2, 2, 3])
    count = SYNTHETIC_UNITS if owners is None else owners.size
    labels = (torch.arange(count, device=device) % 2).float()
    if len(data.inputs) == 1:
        rows = generator.standard_normal((count, data.inputs[0].shape[1])).astype(np.float32)
        features = nn.functional.normalize(torch.from_numpy(rows).to(device), dim=1)
        return Prepared((features,), labels, np.ones(count, dtype=np.int64), owners)
    lengths = np.arange(count, dtype=np.int64) + 3
    ids = torch.from_numpy(generator.integers(0, 5, size=(count, int(lengths.max())))).to(device)
    mask = torch.arange(ids.shape[1], device=device) < torch.from_numpy(lengths).to(device).unsqueeze(1)
    return Prepared((ids, mask), labels, lengths, owners)


def _trains(module: nn.Module) -> bool:
    """Return whether a module has trained parameters of its own."""
    return any(parameter.requires_grad for parameter in module.parameters(recurse=False))


def _couples_units(module: nn.Module) -> bool:
    """Return whether a layer's output for one unit depends on the others, or leaves a trace of them."""
    if isinstance(module, BATCH_NORMS):
        frozen = all(not parameter.requires_grad for parameter in module.parameters())
        return module.training or not frozen or module.running_mean is None
    return module.training and getattr(module, "running_mean", None) is not None


@contextmanager
def _perturbed(model: nn.Module) -> Iterator[None]:
    """Move the trained parameters to a general point for a while."""
    start = export_vector(model)
    generator = np.random.default_rng(0)  # public: the point of comparison is no secret
    load_vector(model, (start + 0.05 * generator.standard_normal(start.size)).astype(np.float32))
    try:
        yield
    finally:
        load_vector(model, start)


def _check_loss_shape(model: nn.Module, batch: Prepared, loss: Loss) -> None:
    """Refuse a loss that is not one number a record."""
    shape = tuple(loss(model, batch).shape)
    if shape != (len(batch),):
        message = f"The loss of {len(batch)} records has shape {shape}; it must be one number a record, not a mean."
        raise ConfigError("loss-not-per-unit", message)


def _gradient_alone(model: nn.Module, unit: Prepared, loss: Loss) -> Tensor:
    """Return the ordinary gradient of a single unit, shape (num_parameters,)."""
    try:
        parts = torch.autograd.grad(loss(model, unit).sum(), trained_parameters(model))
    except RuntimeError as cause:
        raise ConfigError("parameter-unused", "A trainable parameter takes no part in the loss.") from cause
    return torch.cat([part.flatten() for part in parts])


def _check_engine(engine: Engine, model: nn.Module, batch: Prepared, loss: Loss, alone: list[Tensor]) -> None:
    """Hold an engine's sums against the gradients of single units.

    First each unit's loss by itself under a clip that it does not reach, which shows a gradient of another size or
    direction; then all together under half of their median norm, which shows a wrong norm and rows that are taken for
    another unit's.
    """
    for name, module in model.named_modules():
        if _trains(module) and not engine.knows(module):
            kind = type(module).__name__
            message = f"Trainable layer {name} is a {kind}, for which the {engine.name} engine has no rule."
            raise ConfigError("unknown-layer", message)
    norms = [float(torch.linalg.vector_norm(gradient)) for gradient in alone]
    with engine.attach(model) as clipped_sum:
        for index, norm in enumerate(norms):
            clip = Clip(max(2 * norm, TOLERANCE))
            _compare(_sum(clipped_sum, batch, _only(loss, index), clip), _clipped(alone[index], clip), clip)
        clip = Clip(max(float(np.median(norms)) / 2, TOLERANCE))
        expected = torch.stack([_clipped(gradient, clip) for gradient in alone]).sum(0)
        _compare(_sum(clipped_sum, batch, loss, clip), expected, clip)


def _sum(clipped_sum: ClippedSum, batch: Prepared, loss: Loss, clip: Clip) -> Tensor:
    """Return an engine's clipped sum, shape (num_parameters,), float64."""
    try:
        steps = clipped_sum(batch, loss, clip)
    except (RuntimeError, ValueError, IndexError) as cause:
        raise ConfigError("parameter-unused", "A trainable parameter has no gradient for each unit.") from cause
    return steps.double() * (clip.max_grad_norm * 2.0**-SUM_BITS)


def _only(loss: Loss, index: int) -> Loss:
    """Return the loss with every unit's but one set to zero; the whole batch still takes part in the pass."""

    def loss_of_one(model: nn.Module, batch: Prepared) -> Tensor:
        losses = loss(model, batch)
        owners = np.arange(len(batch)) if batch.owners is None else batch.owners
        return losses * torch.from_numpy(owners == index).to(losses)

    return loss_of_one


def _clipped(gradient: Tensor, clip: Clip) -> Tensor:
    """Return a single unit's clipped gradient, float64."""
    wide = gradient.double()
    return wide * clip.factors(wide.square().sum()) * (clip.max_grad_norm * 2.0**-SUM_BITS)


def _compare(together: Tensor, alone: Tensor, clip: Clip) -> None:
    """Refuse when a unit's gradient depends on its batch."""
    if not torch.linalg.vector_norm(together - alone) <= TOLERANCE * clip.max_grad_norm:
        message = "A unit's gradient differs between a batch and the unit alone; the model or its loss couples units."
        raise ConfigError("units-coupled", message)
