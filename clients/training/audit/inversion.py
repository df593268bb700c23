"""A demonstration: what a gradient shows of one record, and what a noised sum shows (privacy 7).

A linear layer's weight gradient is its input times a number, and that number is the bias gradient: whoever sees the
gradient of a single record divides one by the other and holds the record's features. All records here are made up.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from clients.training.clipping import Clip, summed_gradient, trained_parameters
from clients.training.engines import HEAD
from clients.training.noise import RandomSource
from clients.training.train import noised_mean
from shared.codec import Record
from shared.plan import ModelSpec
from shared.privacy.plan import PrivacyParams
from shared.tasks.features import BUCKETS, HASHED_WORDS_SHA256, hashed_words
from shared.tasks.text import Prepared, build, per_unit_loss

RECOVERED = 0.95
"""From this cosine on the features count as recovered."""

RECORDS = 24
STEPS = 20

WORDS = (
    "a bridge near our street is closed since this morning and two families with children wait for water food "
    "blankets medicine help please nobody came the road under the river smells of gas we saw smoke fire rain wind"
)

_MODEL = ModelSpec(architecture="hashed-words", base_weights_sha256=HASHED_WORDS_SHA256)


class Inversion(Record, frozen=True, kw_only=True):
    """Cosine between a record's features and what an observer recovers of them.

    Attributes:
        unprotected: from the gradient of the record alone.
        protected: the best of ``steps`` noised sums over ``records`` records, the record among them.
    """

    unprotected: float
    protected: float
    records: int
    steps: int

    @property
    def informative(self) -> bool:
        """Whether the attack works at all, without which its failure would say nothing."""
        return self.unprotected >= RECOVERED

    @property
    def holds(self) -> bool:
        """Whether the attack fails against what a department releases."""
        return self.protected < RECOVERED


def demonstrate_inversion(privacy: PrivacyParams, *, source: RandomSource) -> Inversion:
    """Try to recover one made-up record, from its own gradient and from noised sums.

    Args:
        privacy: the plan's clip and noise multiplier.
        source: randomness of the noise.
    """
    clip = Clip(privacy.max_grad_norm, privacy.clipping)
    records, model = _records(), build(_MODEL, None, torch.device("cpu"))
    features = records.inputs[0][0].numpy()
    protected = []
    with HEAD.attach(model) as clipped_sum:
        total = summed_gradient(
            clipped_sum, records, size=BUCKETS + 1, clip=clip, physical_batch_size=RECORDS, loss=per_unit_loss
        )
    for _ in range(STEPS):
        released = noised_mean(total, source.fork_step(), privacy, RECORDS)
        protected.append(_similarity(released, features))
    return Inversion(
        unprotected=_similarity(_gradient(model, records.take(np.array([0]))), features),
        protected=max(protected),
        records=RECORDS,
        steps=STEPS,
    )


def _gradient(model: nn.Module, record: Prepared) -> NDArray[np.float32]:
    """Return the plain gradient of one record, weights first, then the bias."""
    parts = torch.autograd.grad(per_unit_loss(model, record).sum(), trained_parameters(model))
    flat: NDArray[np.float32] = torch.cat([part.flatten() for part in parts]).numpy()
    return flat


def _similarity(gradient: NDArray[np.float32], features: NDArray[np.float32]) -> float:
    """Divide the weights' gradient by the bias' and compare the quotient with the features; a length cancels."""
    wide = gradient.astype(np.float64)
    guess = wide[:-1] / wide[-1] if wide[-1] != 0 else np.zeros(BUCKETS)
    length = float(np.linalg.norm(guess) * np.linalg.norm(features))
    return float(guess @ features) / length if length > 0 else 0.0


def _records() -> Prepared:
    """Return made-up messages as units; the first one is attacked."""
    generator = np.random.default_rng(4)  # public: nobody wrote these messages
    texts = [" ".join(generator.choice(WORDS.split(), size=12)) for _ in range(RECORDS)]
    labels = torch.from_numpy((np.arange(RECORDS) % 2).astype(np.float32))
    return Prepared((torch.from_numpy(hashed_words(texts)),), labels, np.ones(RECORDS, dtype=np.int64))
