"""Differentially private local training of one round (privacy 2 and 3).

One trainer serves a department, and the local-only and pooled baselines of a simulation: it knows numbers and
tensors, no network, no clock and no ledger.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from clients.training.clipping import GRID_BITS, MOST_AT_ONCE, Clip, ClippedSum, summed_gradient, trained_parameters
from clients.training.engines import Engine
from clients.training.extras import release_extras
from clients.training.noise import RandomSource, StepStream
from clients.training.preflight import checked_head, choose_engine, synthetic_units
from clients.training.sampling import poisson_sample
from shared.errors import ProtocolError
from shared.identity import DepartmentId
from shared.parameters import ExtraSpec, Layout, Vector
from shared.plan import LocalOptimizer, ModelSpec, Plan
from shared.privacy.plan import PerformanceFlags, PrivacyParams
from shared.tasks.device import one_thread, resolve_device
from shared.tasks.text import Prepared, build, export_vector, load_vector, per_unit_loss, trained_layout


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """The public numbers of one department's training; nothing here comes from its rows.

    Attributes:
        privacy: sampling rate, steps, clip and noise multiplier of one round.
        denominator: sampling rate times the declared public size; the only divisor of a summed gradient.
        optimizer: what consumes the noised mean gradient.
        model: architecture and trained part.
        layout: the tensors that the plan pins.
        extras: the extra coordinates that the plan declares.
    """

    privacy: PrivacyParams
    denominator: float
    optimizer: LocalOptimizer
    model: ModelSpec
    layout: Layout
    extras: tuple[ExtraSpec, ...] = ()

    def __post_init__(self) -> None:
        if not self.denominator > 0:
            raise ValueError("`denominator` is above 0")


@dataclass(frozen=True, eq=False)
class DpUpdate:
    """What a department contributes: its parameters' change and the noisy steps behind it.

    Attributes:
        delta: shape (layout.size,), float32, read-only.
        steps: noisy steps that were executed.
        engine: what computed the clipped sums, ``head``, ``bookkeeping`` or ``opacus``.
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
        layout=plan.layout.model_part(),
        extras=plan.layout.extras,
    )


@dataclass(frozen=True, eq=False)
class Trainer:
    """A model and the engine that the preflight chose for it: made once, trained on in every round of a run.

    Attributes:
        settings: the plan's numbers.
        flags: device, micro-batch size and engine.
        model: holds whatever the last round left; every round loads its own parameters.
        engine: what computes the clipped sums.
    """

    settings: TrainingSettings
    flags: PerformanceFlags
    model: nn.Module
    engine: Engine

    @classmethod
    def prepare(
        cls, *, settings: TrainingSettings, data: Prepared, weights_dir: Path | None, flags: PerformanceFlags
    ) -> Trainer:
        """Build the model and choose its engine on synthetic units.

        Args:
            settings: the plan's numbers.
            data: the department's units; only dtypes, trailing shapes and the presence of labels are looked at.
            weights_dir: folder of the base model; not needed for ``hashed-words``.
            flags: device, micro-batch size and engine.

        Raises:
            ValueError: for units without labels.
            SetupError: ``cuda-missing``, ``base-weights-missing``.
            ModelError: a base model that does not fit.
            ProtocolError: ``layout-mismatch``.
            ConfigError: from the preflight.
        """
        if data.labels is None:
            raise ValueError("training needs labels")
        device = resolve_device(flags.device)
        model = build(settings.model, weights_dir, device)
        if trained_layout(model) != settings.layout:
            raise ProtocolError("layout-mismatch", "The plan's layout is not the one that its model spec gives here.")
        with one_thread(when=settings.model.trainable == "head"):
            engine = _checked_engine(model, data.to(device), settings, weights_dir, flags)
        return cls(settings=settings, flags=flags, model=model, engine=engine)

    def train(
        self,
        parameters: Vector,
        data: Prepared,
        source: RandomSource,
        on_step: Callable[[int], None] | None = None,
    ) -> DpUpdate:
        """Run the noisy steps of one round from ``parameters``; return the change of the iterate that the plan sends.

        The local optimiser starts anew each round. An empty batch still gets noise and a step.

        Args:
            parameters: the model at the start of the round, shape (layout.size,).
            data: the department's units with labels, possibly none.
            source: :class:`clients.training.noise.OsRandomSource` outside tests.
            on_step: gets 1, 2, ... before that step draws or touches a unit.

        Returns:
            A delta that depends on each unit only through ``settings.privacy.steps`` subsampled Gaussian sums.

        Raises:
            ModelError: a vector that does not fit, ``vector-not-finite`` also when training diverged.

        Guarantees:
            - Adding or removing one unit changes the sum of a step by at most the clip, whatever ``parameters`` are,
              where units go through the model one by one: heads always, encoder layers with ``physical_batch_size`` 1.
            - No divisor, step count or noise scale depends on how many units there are.

        Source: privacy 2 and 3; Abadi et al. 2016, Algorithm 1, with a public denominator.
        """
        settings, steps = self.settings, self.settings.privacy.steps
        kept = 1 if settings.optimizer.iterate == "last" else steps - steps // 2
        total_of_kept = np.zeros(settings.layout.size)
        with self._attached(parameters) as clipped_sum:
            optimizer = _optimizer(settings.optimizer, self.model)
            for number in range(1, steps + 1):
                if on_step is not None:
                    on_step(number)
                stream = source.fork_step()
                total = self._sum(clipped_sum, data, stream)
                _set_gradient(self.model, noised_mean(total, stream, settings.privacy, settings.denominator))
                optimizer.step()
                optimizer.zero_grad()
                if number > steps - kept:
                    total_of_kept += export_vector(self.model)
        final = (total_of_kept / kept).astype(np.float32)
        settings.layout.check(final)
        delta = final - parameters
        delta.flags.writeable = False
        return DpUpdate(delta=delta, steps=steps, engine=self.engine.name)

    def clipped_sum(self, parameters: Vector, data: Prepared, stream: StepStream) -> NDArray[np.int64]:
        """Return the clipped sum of the gradients at ``parameters`` over one Poisson batch, without noise.

        Args:
            parameters: the model at the start of the round, shape (layout.size,).
            data: the department's units with labels, possibly none.
            stream: the step's randomness; the noise is drawn from it as well.

        Returns:
            Shape (layout.size,), int64, in steps of 2^-20 C; never leaves as it is.

        Raises:
            ModelError: a vector that does not fit.

        Guarantees:
            Adding or removing one unit changes the sum by at most the clip; as for :meth:`train`.
        """
        with self._attached(parameters) as clipped_sum:
            return self._sum(clipped_sum, data, stream)

    def extras(self, parameters: Vector, data: Prepared, source: RandomSource) -> Vector:
        """Return the plan's extra coordinates of a round, noised; about the model at its start.

        Args:
            parameters: the model at the start of the round, shape (layout.size,).
            data: the department's units with labels, possibly none.
            source: as for :meth:`train`.

        Returns:
            Shape (len(settings.extras),), float32; see :func:`clients.training.extras.release_extras`.
        """
        if not self.settings.extras:
            return np.zeros(0, dtype=np.float32)
        load_vector(self.model, parameters)
        units = data.to(next(self.model.parameters()).device)
        with one_thread(when=self.settings.model.trainable == "head"):
            return release_extras(self.model, units, self.settings.extras, source=source)

    @property
    def _at_once(self) -> int:
        """Most records in one pass."""
        # A head's records are short vectors, each by itself however many go through it at once.
        return MOST_AT_ONCE if self.settings.model.trainable == "head" else self.flags.physical_batch_size

    @contextmanager
    def _attached(self, parameters: Vector) -> Iterator[ClippedSum]:
        """Load the round's parameters and attach the engine."""
        load_vector(self.model, parameters)
        with one_thread(when=self.settings.model.trainable == "head"), self.engine.attach(self.model) as clipped_sum:
            yield clipped_sum

    def _sum(self, clipped_sum: ClippedSum, data: Prepared, stream: StepStream) -> NDArray[np.int64]:
        """Draw one Poisson batch and sum its clipped gradients."""
        privacy = self.settings.privacy
        batch = data.take(poisson_sample(stream, data.units, privacy.sample_rate))
        return summed_gradient(
            clipped_sum,
            batch.to(next(self.model.parameters()).device),
            size=self.settings.layout.size,
            clip=Clip(privacy.max_grad_norm, privacy.clipping),
            physical_batch_size=self._at_once,
            loss=per_unit_loss,
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
    """Prepare a trainer and run one round with it; arguments and errors are those of both."""
    trainer = Trainer.prepare(settings=settings, data=data, weights_dir=weights_dir, flags=flags)
    return trainer.train(parameters, data, source, on_step)


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
        synthetic = synthetic_units(units)
        if settings.model.trainable == "head":
            _CHECKED[key] = checked_head(model, synthetic)
        else:
            _CHECKED[key] = choose_engine(model, synthetic, per_unit_loss, flags.engine)
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


def _optimizer(spec: LocalOptimizer, model: nn.Module) -> torch.optim.Optimizer:
    """Return the local optimiser over the trained parameters."""
    parameters = trained_parameters(model)
    if spec.kind == "adamw":
        return torch.optim.AdamW(parameters, lr=spec.learning_rate, weight_decay=spec.weight_decay)
    return torch.optim.SGD(parameters, lr=spec.learning_rate, momentum=spec.momentum, weight_decay=spec.weight_decay)


def _set_gradient(model: nn.Module, gradient: NDArray[np.float32]) -> None:
    """Hand the noised mean gradient to the optimiser."""
    parameters = trained_parameters(model)
    sizes = [parameter.numel() for parameter in parameters]
    for parameter, part in zip(parameters, torch.split(torch.from_numpy(gradient), sizes), strict=True):
        parameter.grad = part.view_as(parameter).to(parameter.device)
