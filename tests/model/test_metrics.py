"""Scores against numbers worked out by hand and against a slow, obvious second way."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fedaipc.model.metrics import scores, standard_error


def test_by_hand() -> None:
    # Class a: 2 hits of 3 true, 3 guessed. Class b: 1 of 2 true, 2 guessed. Class c: 1 of 1, 1.
    truth = np.array([0, 0, 0, 1, 1, 2])
    predicted = np.array([0, 0, 1, 1, 0, 2])
    total, classes = scores(predicted, truth, ("a", "b", "c"), 0.5)
    assert [one.precision for one in classes] == pytest.approx([2 / 3, 1 / 2, 1])
    assert [one.recall for one in classes] == pytest.approx([2 / 3, 1 / 2, 1])
    assert [one.f1 for one in classes] == pytest.approx([2 / 3, 1 / 2, 1])
    assert [one.support for one in classes] == [3, 2, 1]
    assert [one.label for one in classes] == ["a", "b", "c"]
    assert total.accuracy == pytest.approx(4 / 6)
    assert total.macro_f1 == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)
    assert (total.loss, total.examples) == (0.5, 6)


def test_a_class_that_never_occurs_counts_as_zero() -> None:
    # scikit-learn 1.5: f1_score([0, 0], [0, 0], labels=[0, 1, 2], average="macro",
    # zero_division=0) is 1/3.
    total, classes = scores(np.array([0, 0]), np.array([0, 0]), ("a", "b", "c"), 0.0)
    assert total.macro_f1 == pytest.approx(1 / 3)
    assert classes[2].precision == classes[2].recall == classes[2].f1 == 0


def _slow(predicted: list[int], truth: list[int], count: int) -> list[tuple[float, float, float]]:
    rows = []
    pairs = list(zip(predicted, truth, strict=True))
    for k in range(count):
        hits = sum(p == k and t == k for p, t in pairs)
        guessed = sum(p == k for p, _ in pairs)
        true = sum(t == k for _, t in pairs)
        precision = hits / guessed if guessed else 0.0
        recall = hits / true if true else 0.0
        both = precision + recall
        rows.append((precision, recall, 2 * precision * recall / both if both else 0.0))
    return rows


@pytest.mark.parametrize("seed", range(20))
def test_against_brute_force(seed: int) -> None:
    random = np.random.default_rng(seed)
    count, n = int(random.integers(2, 9)), int(random.integers(1, 60))
    truth, predicted = random.integers(0, count, n), random.integers(0, count, n)
    labels = [f"label {k}" for k in range(count)]
    total, classes = scores(predicted.astype(np.int32), truth.astype(np.uint8), labels, 1.0)
    expected = _slow(predicted.tolist(), truth.tolist(), count)
    assert [(c.precision, c.recall, c.f1) for c in classes] == [
        pytest.approx(row) for row in expected
    ]
    assert total.macro_f1 == pytest.approx(sum(row[2] for row in expected) / count)
    assert total.accuracy == pytest.approx(np.mean(truth == predicted))
    assert sum(one.support for one in classes) == n


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_is_unknown(loss: float) -> None:
    total, _ = scores(np.array([0]), np.array([1]), ("a", "b"), loss)
    assert total.loss is None


@pytest.mark.parametrize(
    ("predicted", "truth"),
    [([], []), ([0, 1], [0]), ([[0]], [[0]]), ([2], [0]), ([0], [2]), ([-1], [0])],
)
def test_what_cannot_be_scored_is_refused(predicted: list[int], truth: list[int]) -> None:
    with pytest.raises(ValueError, match="must"):
        scores(np.array(predicted, dtype=int), np.array(truth, dtype=int), ("a", "b"), 0.0)


def test_standard_error() -> None:
    assert standard_error(0.77, 2000) == pytest.approx(0.00941, abs=5e-6)
    assert standard_error(1.0, 5) == 0
    assert standard_error(0.5, 1) == pytest.approx(math.sqrt(0.25))
    # It is the spread of the measured accuracy over many test sets.
    draws = np.random.default_rng(0).binomial(500, 0.8, 20_000) / 500
    assert standard_error(0.8, 500) == pytest.approx(draws.std(), rel=0.03)
    for accuracy, n in ((0.5, 0), (1.1, 10), (-0.1, 10)):
        with pytest.raises(ValueError, match="needs"):
            standard_error(accuracy, n)
