"""The canary block: coordinates that only canaries touch, trained by the production code (privacy 7).

A canary is a unit whose gradient, once clipped, is C times a unit vector of its own. The block is trained by
:func:`clients.training.train.train_round`, the function that trains a department: sampler, clipper, noise, divisor
and optimiser are the real ones and nothing is re-implemented here. A head on hashed words has 256 weights, so the
block is trained in eight parts with 256 canaries each; every canary is in one part only, and what all parts
together do to it is what its own part does, so they count as one run.

No private row is in any part: nothing is charged.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from clients.training.noise import RandomSource, StepStream
from clients.training.shares import sum_of_shares
from clients.training.train import Trainer, TrainingSettings, train_round
from shared.plan import LocalOptimizer, ModelSpec
from shared.privacy.plan import PerformanceFlags, PrivacyParams, full_noise
from shared.tasks.classifiers import FEATURE_LENGTH
from shared.tasks.features import BUCKETS, HASHED_WORDS_SHA256
from shared.tasks.text import Prepared, initial_parameters, layout_of

PARTS = 8
CANARIES = PARTS * BUCKETS
"""2048: fewer could not refute a claim of 1 where the noise is a quarter of what it should be."""

MODEL = ModelSpec(architecture="hashed-words", base_weights_sha256=HASHED_WORDS_SHA256)

STRETCH = 1e4
"""A canary's feature has this length, or this many clips: its gradient is far above the clip, and almost all of it
lies in the weight that is its own."""


@dataclass(frozen=True, eq=False)
class CanaryRun:
    """What a run released about its canaries, beside the truth.

    Attributes:
        scores: shape (CANARIES,), float64: each coordinate's sum over all steps, in units of the clip, noise
            included. A canary that was in adds about one for each step that sampled it.
        members: shape (CANARIES,), whether the canary was in the data.
        privacy: what was run; ``steps`` are all of them.
    """

    scores: NDArray[np.float64]
    members: NDArray[np.bool_]
    privacy: PrivacyParams


def run_canaries(
    privacy: PrivacyParams, *, steps: int, source: RandomSource, membership: StepStream, flags: PerformanceFlags
) -> CanaryRun:
    """Train the block once with a plan's numbers.

    Args:
        privacy: sampling rate, clip and noise multiplier of the plan.
        steps: noisy steps of the whole plan, spare attempts included: all that is charged.
        source: as for :func:`clients.training.train.train_round`.
        membership: draws which canaries are in; never the stream of a training step.
        flags: as for :func:`clients.training.train.train_round`.

    Raises:
        CityFedError: as :func:`clients.training.train.train_round`.
    """
    whole = msgspec.structs.replace(full_noise(privacy), steps=steps)
    members = membership.coins(CANARIES, 0.5)
    sums = _share_part if privacy.mechanism == "shared-noise" else _train_part
    shares = privacy.noise_shares
    parts = [sums(whole, shares, part, source=source, flags=flags) for part in members.reshape(PARTS, BUCKETS)]
    return CanaryRun(scores=np.concatenate(parts), members=members, privacy=whole)


def _train_part(
    privacy: PrivacyParams,
    _shares: int,
    members: NDArray[np.bool_],
    *,
    source: RandomSource,
    flags: PerformanceFlags,
) -> NDArray[np.float64]:
    """Train one part and return its coordinates' sums in units of the clip, shape (BUCKETS,)."""
    settings = _settings(privacy)
    update = train_round(
        settings=settings,
        parameters=initial_parameters(MODEL, None),
        data=_canaries(members, privacy.max_grad_norm),
        weights_dir=None,
        source=source,
        flags=flags,
    )
    # Label 0 pushes a weight down, so the sum of the gradients is the update turned round.
    unit = settings.optimizer.learning_rate * privacy.max_grad_norm / settings.denominator
    weights = settings.layout.unflatten(update.delta)["head.weight"]
    return -weights.reshape(-1).astype(np.float64) / unit


def _share_part(
    privacy: PrivacyParams,
    shares: int,
    members: NDArray[np.bool_],
    *,
    source: RandomSource,
    flags: PerformanceFlags,
) -> NDArray[np.float64]:
    """As :func:`_train_part` with shared noise: of h honest departments one holds the canaries, the others nothing."""
    step = msgspec.structs.replace(privacy, mechanism="shared-noise", noise_shares=shares, steps=1)
    data = _canaries(members, privacy.max_grad_norm)
    trainer = Trainer.prepare(settings=_settings(step), data=data, weights_dir=None, flags=flags)
    nobody = data.take(np.array([], dtype=np.int64))
    holders = [(trainer, data), *[(trainer, nobody)] * (shares - 1)]
    start, total = initial_parameters(MODEL, None), np.zeros(trainer.settings.layout.size)
    for _ in range(privacy.steps):
        total += sum_of_shares(holders, parameters=start, source=source, bound=BUCKETS * privacy.max_grad_norm)
    weights = trainer.settings.layout.unflatten((total / privacy.max_grad_norm).astype(np.float32))["head.weight"]
    return weights.reshape(-1).astype(np.float64)


def _canaries(members: NDArray[np.bool_], max_grad_norm: float) -> Prepared:
    """Return the canaries that are in: one stretched coordinate each, label 0."""
    present = np.flatnonzero(members)
    features = np.zeros((present.size, BUCKETS), dtype=np.float32)
    features[np.arange(present.size), present] = _length(max_grad_norm)
    labels = torch.zeros(present.size, dtype=torch.float32)
    return Prepared((torch.from_numpy(features),), labels, np.ones(present.size, dtype=np.int64))


def _length(max_grad_norm: float) -> float:
    """Return the length of a canary's feature."""
    return STRETCH * max(max_grad_norm, 1.0)


def _settings(privacy: PrivacyParams) -> TrainingSettings:
    """Return settings under which the update is the sum of the noised gradients and nothing else.

    The step is so small that no logit leaves [-1, 1] (ten standard deviations of noise, a canary sampled in every
    step): the gradient of each canary stays far above the clip.
    """
    denominator = privacy.sample_rate * BUCKETS
    farthest = privacy.steps + 10 * privacy.noise_multiplier * privacy.steps**0.5
    moved = privacy.max_grad_norm / denominator * farthest
    learning_rate = 1 / (FEATURE_LENGTH * _length(privacy.max_grad_norm) * moved)
    return TrainingSettings(
        privacy=privacy,
        denominator=denominator,
        optimizer=LocalOptimizer(kind="sgd", learning_rate=min(learning_rate, 1.0)),
        model=MODEL,
        layout=layout_of(MODEL, None),
    )
