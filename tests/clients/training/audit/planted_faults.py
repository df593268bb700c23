"""Planted faults: sources of randomness and losses that break one promise each."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from clients.training.noise import StepStream, UnsafeSeededSource
from shared.tasks.text import Prepared, per_unit_loss


class UnsafeDividedNoise:
    """A stream whose noise is too small by a factor."""

    def __init__(self, stream: StepStream, factor: int) -> None:
        self._stream, self._factor = stream, factor

    def coins(self, count: int, rate: float) -> NDArray[np.bool_]:
        return self._stream.coins(count, rate)

    def discrete_gaussian(self, size: int, stddev: float) -> NDArray[np.int64]:
        return self._stream.discrete_gaussian(size, stddev) // self._factor


class UnsafeEveryUnit:
    """A stream that samples every unit in every step."""

    def __init__(self, stream: StepStream) -> None:
        self._stream = stream

    def coins(self, count: int, rate: float) -> NDArray[np.bool_]:
        return self._stream.coins(count, max(rate, 1.0))

    def discrete_gaussian(self, size: int, stddev: float) -> NDArray[np.int64]:
        return self._stream.discrete_gaussian(size, stddev)


class UnsafeSmallNoiseSource(UnsafeSeededSource):
    """Divides the noise of every step by a factor."""

    def __init__(self, seed: int, factor: int) -> None:
        super().__init__(seed)
        self._factor = factor

    def fork_step(self) -> StepStream:
        return UnsafeDividedNoise(super().fork_step(), self._factor)


class UnsafeUnsampledSource(UnsafeSeededSource):
    """Takes every unit in every step."""

    def fork_step(self) -> StepStream:
        return UnsafeEveryUnit(super().fork_step())


def unsafe_membership(seed: int) -> StepStream:
    """A reproducible stream that draws which canaries are in."""
    return UnsafeSeededSource(1000 + seed).fork_step()


def _labels(batch: Prepared) -> Tensor:
    assert batch.labels is not None
    return batch.labels


def unsafe_over_positives(model: nn.Module, batch: Prepared) -> Tensor:
    """A mean over the positive units, times the batch: what masked losses do."""
    return per_unit_loss(model, batch) * len(batch) / _labels(batch).sum().clamp(min=1)


def unsafe_class_weighted(model: nn.Module, batch: Prepared) -> Tensor:
    """Weights fitted on the batch."""
    positives = _labels(batch).sum()
    weights = torch.where(
        _labels(batch) > 0, len(batch) / positives.clamp(min=1), len(batch) / (len(batch) - positives)
    )
    return per_unit_loss(model, batch) * weights / 2


def unsafe_centred(model: nn.Module, batch: Prepared) -> Tensor:
    """Logits minus the batch's mean."""
    logits = model(*batch.inputs)
    return nn.functional.binary_cross_entropy_with_logits(logits - logits.mean(), _labels(batch), reduction="none")


def unsafe_averaged(model: nn.Module, batch: Prepared) -> Tensor:
    """Divided by the number of units that were sampled."""
    return per_unit_loss(model, batch) / len(batch)
