"""Accuracy, macro-F1 and the per-class table, from predicted and true label numbers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from fedaipc.results import ClassScore, Score

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


def scores(
    predicted: NDArray[np.integer],
    truth: NDArray[np.integer],
    labels: Sequence[str],
    mean_loss: float,
) -> tuple[Score, list[ClassScore]]:
    """Score `predicted` against `truth`: integer arrays of shape (n,), values in 0..len(labels)-1.

    A quotient with denominator zero counts as 0, and macro-F1 is the plain mean over *all* of
    `labels`, also those that occur in neither array: what scikit-learn's `f1_score` returns with
    `labels=range(len(labels)), average="macro", zero_division=0`.

    Raises ValueError: shapes differ, no examples, a value outside the label list.
    """
    predicted, truth = np.asarray(predicted), np.asarray(truth)
    if predicted.shape != truth.shape or truth.ndim != 1 or truth.size == 0:
        raise ValueError("predicted and truth must be two non-empty vectors of one length")
    count = len(labels)
    # Multiply only after this check: a stray value would land in another class's cell.
    for values in (predicted, truth):
        if values.min() < 0 or values.max() >= count:
            raise ValueError(f"label numbers must lie within 0 to {count - 1}")
    cells = truth.astype(np.int64) * count + predicted.astype(np.int64)
    confusion = np.bincount(cells, minlength=count * count).reshape(count, count)
    hits = np.diagonal(confusion)
    support, guessed = confusion.sum(axis=1), confusion.sum(axis=0)
    classes = [
        ClassScore(
            label=label,
            precision=_quotient(hits[k], guessed[k]),
            recall=_quotient(hits[k], support[k]),
            f1=_quotient(2 * hits[k], support[k] + guessed[k]),
            support=int(support[k]),
        )
        for k, label in enumerate(labels)
    ]
    total = Score(
        accuracy=_quotient(hits.sum(), truth.size),
        macro_f1=math.fsum(one.f1 for one in classes) / count,
        loss=float(mean_loss) if math.isfinite(mean_loss) else None,
        examples=int(truth.size),
    )
    return total, classes


def standard_error(accuracy: float, n: int) -> float:
    """Standard error of an accuracy measured on `n` independent texts: sqrt(a (1 - a) / n).

    It speaks of the draw of the test texts only, not of seeds. Raises ValueError: n below 1 or
    an accuracy outside 0..1.
    """
    if n < 1 or not 0 <= accuracy <= 1:
        raise ValueError("needs at least one text and an accuracy within 0 to 1")
    return math.sqrt(accuracy * (1 - accuracy) / n)


def _quotient(part: int | np.integer, whole: int | np.integer) -> float:
    return int(part) / int(whole) if whole else 0.0
