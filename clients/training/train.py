"""Differentially private local training of one round (privacy 2 and 3).

One function serves a department, and the local-only and pooled baselines of a simulation: it knows numbers and
tensors, no network, no clock and no ledger.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from clients.training.clipping import GRID_BITS, Clip, ClippedSum, summed_gradient, trained_parameters
from clients.training.engines import Engine
from clients.training.noise import RandomSource, StepStream
from clients.training.preflight import choose_engine, synthetic_units
from clients.training.sampling import poisson_sample
from shared.errors import ConfigError, ProtocolError
from shared.identity import DepartmentId
from shared.parameters import Layout, Vector
from shared.plan import LocalOptimizer, ModelSpec, Plan
from shared.privacy.plan import PerformanceFlags, PrivacyParams
from shared.tasks.device import one_thread, resolve_device
from shared.tasks.text import Prepared, build, export_vector, load_vector, per_unit_loss, trained_layout

HEAD_BATCH = 8192
"""A head's records are short vectors: so many at least go through it at once."""


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """The public numbers of one department's training; nothing here comes from its rows.

    Attributes:
        privacy: sampling rate, steps, clip and noise multiplier of one round.
        denominator: sampling rate times the declared public size; the only divisor of a summed gradient.
        optimizer: what consumes the noised mean gradient.
        model: architecture and trained part.
        layout: the tensors that the plan pins.
    """

    privacy: PrivacyParams
    denominator: float
    optimizer: LocalOptimizer
    model: ModelSpec
    layout: Layout

    def __post_init__(self) -> None:
        if not self.denominator > 0:
            raise ValueError("`denominator` is above 0")


@dataclass(frozen=True, eq=False)
class DpUpdate:
    """What a department contributes: its parameters' change and the noisy steps behind it.

    Attributes:
        delta: shape (layout.size,), float32, read-only.
        steps: noisy steps that were executed.
        engine: what computed the clipped sums, ``bookkeeping`` or ``opacus``.
    """

    delta: Vector
    steps: int
    engine: str

    def __repr__(self) -> str:
        return f"DpUpdate({self.delta.size} coordinates, {self.steps} steps, {self.engine})"


def settings_of(plan: Plan, department: DepartmentId) -> TrainingSettings:
    """Return what a plan says about one department's training."""
    return TrainingSettings(
        privacy=plan.privacy,
        denominator=plan.denominator(department),
        optimizer=plan.local_optimizer,
        model=plan.model,
        layout=plan.layout,
    )


def train_round(
    *,
    settings: TrainingSettings,
    parameters: Vector,
    data: Prepared,
    weights_dir: Path | None,
    source: RandomSource,
    flags: PerformanceFlags,
    on_step: Callable[[int], None] | None = None,
) -> DpUpdate:
    """Run the noisy steps of one round from ``parameters`` and return the change of the iterate that the plan sends.

    The local optimiser starts anew each round. An empty batch still gets noise and a step.

    Args:
        settings: the plan's numbers.
        parameters: the model at the start of the round, shape (layout.size,).
        data: the department's units with labels, possibly none.
        weights_dir: folder of the base model; not needed for ``hashed-words``.
        source: :class:`clients.training.noise.OsRandomSource` outside tests.
        flags: device, micro-batch size and engine; they change speed only.
        on_step: gets 1, 2, ... before that step draws or touches a unit.

    Returns:
        A delta that depends on each unit only through ``settings.privacy.steps`` subsampled Gaussian sums.

    Raises:
        ValueError: for units without labels.
        SetupError: ``cuda-missing``, ``base-weights-missing``.
        ModelError: a base model or vector that does not fit, ``vector-not-finite`` also when training diverged.
        ProtocolError: ``layout-mismatch``.
        ConfigError: from the preflight on synthetic units, ``optimizer-momentum``.

    Guarantees:
        - Adding or removing one unit changes the sum of a step by at most the clip.
        - No divisor, step count or noise scale depends on how many units there are.

    Source: privacy 2 and 3; Abadi et al. 2016, Algorithm 1, with a public denominator.
    """
    if data.labels is None:
        raise ValueError("training needs labels")
    device = resolve_device(flags.device)
    model = build(settings.model, weights_dir, device)
    if trained_layout(model) != settings.layout:
        raise ProtocolError("layout-mismatch", "The plan's layout is not the one that its model spec gives here.")
    units = data.to(device)
    load_vector(model, parameters)
    with one_thread(when=settings.model.trainable == "head"):
        engine = _checked_engine(model, units, settings, weights_dir, flags)
        with engine.attach(model) as clipped_sum:
            final = _run_steps(model, clipped_sum, settings, units, source=source, flags=flags, on_step=on_step)
    settings.layout.check(final)
    delta = final - parameters
    delta.flags.writeable = False
    return DpUpdate(delta=delta, steps=settings.privacy.steps, engine=engine.name)


_CHECKED: dict[tuple[object, ...], Engine] = {}
"""The engine of each kind of model that passed the preflight in this process."""


def _checked_engine(
    model: nn.Module, units: Prepared, settings: TrainingSettings, weights_dir: Path | None, flags: PerformanceFlags
) -> Engine:
    """Return the engine that the preflight chooses; it is asked once for a kind of model and process.

    What the preflight sees follows from the key: the model's code, its frozen weights, which parameters are trained and
    what its input looks like. The values of the trained parameters are of no account, for it moves them first.
    """
    kind = (type(model), settings.model, settings.layout, weights_dir, units.owners is None)
    key = (*kind, str(units.inputs[0].device), flags.engine)
    if key not in _CHECKED:
        _CHECKED[key] = choose_engine(model, synthetic_units(units), per_unit_loss, flags.engine)
    return _CHECKED[key]


def noised_mean(
    total: NDArray[np.int64], stream: StepStream, privacy: PrivacyParams, denominator: float
) -> NDArray[np.float32]:
    """Add discrete Gaussian noise to a clipped sum and divide by the public denominator.

    Args:
        total: shape (num_parameters,), int64, in steps of 2^-20 C.
        stream: the step's randomness.
        privacy: noise multiplier and clip.
        denominator: sampling rate times public size.

    Returns:
        The noised mean gradient, shape (num_parameters,), float32.
    """
    noise = stream.discrete_gaussian(total.size, privacy.noise_multiplier * 2.0**GRID_BITS)
    step = privacy.max_grad_norm * 2.0**-GRID_BITS
    return ((total + noise).astype(np.float64) * (step / denominator)).astype(np.float32)


def _run_steps(
    model: nn.Module,
    clipped_sum: ClippedSum,
    settings: TrainingSettings,
    units: Prepared,
    *,
    source: RandomSource,
    flags: PerformanceFlags,
    on_step: Callable[[int], None] | None,
) -> Vector:
    """Run all noisy steps on a model that already holds the round's parameters; return the iterate that is sent."""
    privacy = settings.privacy
    optimizer = _optimizer(settings.optimizer, model)
    at_once = max(flags.physical_batch_size, HEAD_BATCH if settings.model.trainable == "head" else 1)
    kept = 1 if settings.optimizer.iterate == "last" else privacy.steps - privacy.steps // 2
    total_of_kept = np.zeros(settings.layout.size)
    for number in range(1, privacy.steps + 1):
        if on_step is not None:
            on_step(number)
        stream = source.fork_step()
        batch = units.take(poisson_sample(stream, units.units, privacy.sample_rate))
        total = summed_gradient(
            clipped_sum,
            batch,
            size=settings.layout.size,
            clip=Clip(privacy.max_grad_norm, privacy.clipping),
            physical_batch_size=at_once,
            loss=per_unit_loss,
        )
        _set_gradient(model, noised_mean(total, stream, privacy, settings.denominator))
        optimizer.step()
        optimizer.zero_grad()
        if number > privacy.steps - kept:
            total_of_kept += export_vector(model)
    return (total_of_kept / kept).astype(np.float32)


def _optimizer(spec: LocalOptimizer, model: nn.Module) -> torch.optim.Optimizer:
    """Return the local optimiser over the trained parameters."""
    parameters = trained_parameters(model)
    if spec.kind == "adamw":
        if spec.momentum > 0:
            raise ConfigError("optimizer-momentum", '`momentum` belongs to "sgd"; with "adamw" it must be 0.')
        return torch.optim.AdamW(parameters, lr=spec.learning_rate, weight_decay=spec.weight_decay)
    return torch.optim.SGD(parameters, lr=spec.learning_rate, momentum=spec.momentum, weight_decay=spec.weight_decay)


def _set_gradient(model: nn.Module, gradient: NDArray[np.float32]) -> None:
    """Hand the noised mean gradient to the optimiser."""
    parameters = trained_parameters(model)
    sizes = [parameter.numel() for parameter in parameters]
    for parameter, part in zip(parameters, torch.split(torch.from_numpy(gradient), sizes), strict=True):
        parameter.grad = part.view_as(parameter).to(parameter.device)
