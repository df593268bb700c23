"""Metrics of a binary classifier, in numpy only."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def average_precision(labels: NDArray[np.float32], scores: NDArray[np.float64]) -> float:
    """Return average precision: the mean over recall steps of the precision at each distinct score.

    Units with equal scores enter together, so their order does not matter.

    Args:
        labels: shape (n,), 0 or 1, at least one 1.
        scores: shape (n,), finite, higher means more likely 1.

    Returns:
        A number in (0, 1].

    Raises:
        ValueError: for unequal shapes, other labels, no positive label, or scores that are not finite.
    """
    if labels.ndim != 1 or labels.shape != scores.shape:
        raise ValueError("`labels` and `scores` are vectors of one length")
    positive = labels == 1
    if not (positive | (labels == 0)).all() or not positive.any():
        raise ValueError("`labels` are 0 or 1, and at least one is 1")
    if not np.isfinite(scores).all():
        raise ValueError("`scores` are finite")
    order = np.argsort(-scores, kind="stable")
    group_ends = np.append(np.flatnonzero(np.diff(scores[order])), scores.size - 1)
    hits = np.cumsum(positive[order])[group_ends]
    precision = hits / (group_ends + 1)
    return float(np.sum(np.diff(hits, prepend=0) * precision) / hits[-1])
