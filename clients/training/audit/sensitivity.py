"""The sensitivity test: one unit more or less moves a noiseless step by at most the clip (privacy 7).

The step is the production one, on made-up units. Each of them is taken away once, under the plan's clip and under
clips around the lengths of the gradients: a loss that couples units hides where every gradient is cut short, and
shows where few are. How far a coupled loss moves a step depends on the units, so the move is also held against what
the unit contributes alone: where units do not influence one another, the two are equal.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from clients.training.clipping import (
    GRID_BITS,
    MOST_AT_ONCE,
    Clip,
    ClippedSum,
    Loss,
    summed_gradient,
    trained_parameters,
)
from clients.training.engines import CANDIDATES, HEAD, Engine
from shared.codec import Record
from shared.parameters import Layout
from shared.plan import ModelSpec
from shared.privacy.plan import PerformanceFlags, PrivacyParams
from shared.tasks.device import one_thread, resolve_device
from shared.tasks.text import Prepared, build, export_vector, layout_of, load_vector, per_unit_loss

UNITS = 8

SHORTEST_AND_LONGEST = (0, UNITS - 1)
"""Units that are taken away, each once, where encoder layers are trained and a step takes a second; of a head: all."""

COUPLING_TOLERANCE = 1e-3
"""Part of the clip by which float arithmetic may differ between a unit alone and in a batch."""

CLIP_SHARES = (0.5, 1.0, 4.0)
"""Clips that are tried besides the plan's, as multiples of the median gradient's length."""

TOLERANCE = 1e-4
"""Part of the clip by which float rounding may exceed it."""


SMALLEST_LENGTH = 1e-4
"""A gradient shorter than this is no measure for a clip."""


class Sensitivity(Record, frozen=True, kw_only=True):
    """What one unit did to a step with one engine, at worst, in units of the clip.

    Attributes:
        move: the largest move.
        coupling: the largest difference between a move and what the unit contributes alone.
        rounding: what rounding to the grid may add to ``coupling``.
    """

    engine: str
    move: float
    coupling: float
    rounding: float
    comparisons: int

    @property
    def bounded(self) -> bool:
        """Whether no unit moved the step by more than the clip."""
        return self.move <= 1 + TOLERANCE

    @property
    def uncoupled(self) -> bool:
        """Whether every unit moved the step by what it contributes alone."""
        return self.coupling <= COUPLING_TOLERANCE + self.rounding


def measure_sensitivity(
    spec: ModelSpec,
    privacy: PrivacyParams,
    *,
    weights_dir: Path | None,
    flags: PerformanceFlags,
    loss: Loss = per_unit_loss,
) -> Sensitivity:
    """Compare noiseless steps on made-up units with steps on all of them but one.

    Args:
        spec: the plan's model; its trained part is what is tested.
        privacy: the plan's clip and how gradients are brought within it.
        weights_dir: folder of the base model.
        flags: device, micro-batch size, and the engines that may train.
        loss: what training minimises; another one than production's is a test of this test.

    Returns:
        The result with the engine that trains: the first allowed one that knows every trained layer.

    Raises:
        CityFedError: as :func:`shared.tasks.text.build`.
        RuntimeError: when a trained parameter takes no part in the loss.
    """
    device = resolve_device(flags.device)
    model = build(spec, weights_dir, device)
    _leave_start(model)
    units = made_up_units(layout_of(spec, weights_dir), spec).to(device)
    taken = tuple(range(UNITS)) if spec.trainable == "head" else SHORTEST_AND_LONGEST
    allowed = CANDIDATES[flags.engine]
    if spec.trainable == "head" and loss is per_unit_loss:
        allowed = (HEAD,)
    engine = next(engine for engine in allowed if all(map(engine.knows, _trained_layers(model))))
    with one_thread(when=True):  # small batches: other threads would cost more than they bring
        lengths = [_length(model, units.take(np.array([unit])), loss) for unit in taken]
        typical = max(float(np.median(lengths)), SMALLEST_LENGTH)
        norms = [privacy.max_grad_norm, *(share * typical for share in CLIP_SHARES)]
        clips = [Clip(norm, privacy.clipping) for norm in norms]
        at_once = MOST_AT_ONCE if spec.trainable == "head" else flags.physical_batch_size
        return _measure(model, engine, units, taken=taken, clips=clips, at_once=at_once, loss=loss)


def made_up_units(layout: Layout, spec: ModelSpec) -> Prepared:
    """Return units that no data set holds: random features, or random tokens of different lengths."""
    generator = np.random.default_rng(2)  # public: made-up units are no secret
    labels = torch.from_numpy((np.arange(UNITS) % 3 == 0).astype(np.float32))
    if spec.trainable == "head":
        width = next(tensor.shape[-1] for tensor in layout.tensors if tensor.name == "head.weight")
        rows = np.abs(generator.standard_normal((UNITS, width))).astype(np.float32)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        return Prepared((torch.from_numpy(rows),), labels, np.ones(UNITS, dtype=np.int64))
    lengths = np.minimum(3 + 2 * np.arange(UNITS, dtype=np.int64), spec.max_tokens)
    ids = torch.from_numpy(generator.integers(0, 5, size=(UNITS, int(lengths.max()))))
    mask = torch.arange(ids.shape[1]) < torch.from_numpy(lengths).unsqueeze(1)
    return Prepared((ids, mask), labels, lengths)


def _measure(
    model: nn.Module,
    engine: Engine,
    units: Prepared,
    *,
    taken: tuple[int, ...],
    clips: list[Clip],
    at_once: int,
    loss: Loss,
) -> Sensitivity:
    """Take each unit away under each clip and keep the worst."""
    size = sum(parameter.numel() for parameter in trained_parameters(model))
    everything, step = np.arange(UNITS), 2.0**-GRID_BITS
    move = coupling = 0.0

    def summed(clipped_sum: ClippedSum, chosen: NDArray[np.int64], clip: Clip) -> NDArray[np.int64]:
        return summed_gradient(
            clipped_sum,
            units.take(chosen),
            size=size,
            clip=clip,
            physical_batch_size=at_once,
            loss=loss,
        )

    with engine.attach(model) as clipped_sum:
        for clip in clips:
            whole = summed(clipped_sum, everything, clip)
            for unit in taken:
                moved = whole - summed(clipped_sum, np.delete(everything, unit), clip)
                alone = summed(clipped_sum, everything[unit : unit + 1], clip)
                move = max(move, step * float(np.linalg.norm(moved.astype(np.float64))))
                coupling = max(coupling, step * float(np.linalg.norm((moved - alone).astype(np.float64))))
    return Sensitivity(
        engine=engine.name,
        move=move,
        coupling=coupling,
        rounding=step * math.sqrt(size),
        comparisons=len(clips) * len(taken),
    )


def _length(model: nn.Module, unit: Prepared, loss: Loss) -> float:
    """Return the length of one unit's gradient."""
    parts = torch.autograd.grad(loss(model, unit).sum(), trained_parameters(model))
    return float(torch.linalg.vector_norm(torch.cat([part.flatten() for part in parts])))


def _leave_start(model: nn.Module) -> None:
    """Move the parameters away from the start: at a head of zeros all encoder gradients vanish."""
    start = export_vector(model)
    shift = np.random.default_rng(3).standard_normal(start.size)
    load_vector(model, (start + 0.05 * shift).astype(np.float32))


def _trained_layers(model: nn.Module) -> list[nn.Module]:
    """Return the layers with trained parameters of their own."""
    return [
        layer
        for layer in model.modules()
        if any(parameter.requires_grad for parameter in layer.parameters(recurse=False))
    ]
