import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.tasks.metrics import average_precision

Rows = list[tuple[bool, int]]


def by_definition(rows: Rows) -> float:
    """Sum (R_k - R_(k-1)) P_k over the distinct thresholds, each from its own counts."""
    positives = sum(label for label, _ in rows)
    total, recall_before = 0.0, 0.0
    for threshold in sorted({score for _, score in rows}, reverse=True):
        called = [label for label, score in rows if score >= threshold]
        recall = sum(called) / positives
        total += (recall - recall_before) * sum(called) / len(called)
        recall_before = recall
    return total


@given(st.lists(st.tuples(st.booleans(), st.integers(-5, 5)), min_size=1).filter(lambda rows: any(r[0] for r in rows)))
def test_average_precision_equals_its_definition_with_ties(rows: Rows) -> None:
    labels = np.array([label for label, _ in rows], dtype=np.float32)
    scores = np.array([score for _, score in rows], dtype=np.float64)
    assert average_precision(labels, scores) == pytest.approx(by_definition(rows), abs=1e-12)


def test_a_published_example_is_reproduced() -> None:
    # scikit-learn's documentation: average_precision_score([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8]) is 0.83.
    labels = np.array([0, 0, 1, 1], dtype=np.float32)
    assert average_precision(labels, np.array([0.1, 0.4, 0.35, 0.8])) == pytest.approx(0.8333333, abs=1e-6)


def test_constant_scores_give_the_share_of_positives() -> None:
    labels = np.array([1, 0, 0, 1, 0], dtype=np.float32)
    assert average_precision(labels, np.zeros(5)) == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("labels", "scores"),
    [([0, 0], [1, 2]), ([], []), ([1, 0], [1]), ([1, 2], [1, 2]), ([1, 0], [1, float("nan")])],
)
def test_misuse_is_refused(labels: list[float], scores: list[float]) -> None:
    with pytest.raises(ValueError):
        average_precision(np.array(labels, dtype=np.float32), np.array(scores, dtype=np.float64))
