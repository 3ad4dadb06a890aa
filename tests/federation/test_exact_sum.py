"""The sum of updates: exact, the same in any order, and closed to what would break it."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedaipc.errors import EncodingError
from fedaipc.federation.exact_sum import ExactSum

VALUES = st.floats(-1000, 1000, width=32)
UPDATES = st.lists(
    st.tuples(st.lists(VALUES, min_size=3, max_size=3), st.integers(1, 4096)),
    min_size=1,
    max_size=8,
)


def mean_of(updates: list[tuple[list[float], int]]) -> np.ndarray:
    total = ExactSum(len(updates[0][0]))
    for values, weight in updates:
        total.add(np.array(values, np.float32), weight)
    return total.mean()


@given(UPDATES, st.randoms(use_true_random=False))
def test_any_order_of_arrival_gives_the_same_bits(updates: list, random: object) -> None:
    shuffled = list(updates)
    random.shuffle(shuffled)
    assert mean_of(updates).tobytes() == mean_of(shuffled).tobytes()


@given(UPDATES)
def test_the_mean_is_the_weighted_one_to_two_to_the_minus_32(updates: list) -> None:
    weights = sum(weight for _, weight in updates)
    for column, value in enumerate(mean_of(updates)):
        exact = sum(Fraction(values[column]) * weight for values, weight in updates) / weights
        rounded = float(np.spacing(abs(value)))  # the result is float32 in the end
        assert abs(float(exact) - float(value)) <= 2.0**-32 + rounded


def test_long_vectors_are_summed_in_every_part() -> None:
    draw = np.random.default_rng(5)
    size = (1 << 16) * 2 + 7
    updates = [(draw.normal(size=size) * 1e-3).astype(np.float32) for _ in range(5)]
    total = ExactSum(size)
    for weight, update in enumerate(updates, start=1):
        total.add(update, weight)
    oracle = sum(w * u.astype(np.float64) for w, u in enumerate(updates, start=1)) / 15
    np.testing.assert_allclose(total.mean(), oracle, rtol=2**-23, atol=2.0**-32)


def test_floats_alone_would_depend_on_the_order() -> None:
    """What the exact sum is for: these three values differ by order when added as floats."""
    values = [np.float32(x) for x in (1000.0, 1e-4, -1000.0)]
    assert (values[0] + values[1]) + values[2] != (values[0] + values[2]) + values[1]
    means = {mean_of([([float(values[i])] * 3, 1) for i in p]).tobytes() for p in
             ((0, 1, 2), (0, 2, 1), (2, 1, 0))}  # fmt: skip
    assert len(means) == 1


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 2.0**30, -(2.0**30), 3e38])
@pytest.mark.parametrize("place", [0, 70_000])
def test_a_value_that_is_no_number_or_too_large_leaves_the_sum_alone(
    value: float, place: int
) -> None:
    total = ExactSum(70_001)
    update = np.full(70_001, 0.25, np.float32)
    total.add(update, 3)
    bad = update.copy()
    bad[place] = value
    with pytest.raises(EncodingError, match="not finite or too large"):
        total.add(bad, 1)
    np.testing.assert_array_equal(total.mean(), update)
    total.add(update, 1)
    np.testing.assert_array_equal(total.mean(), update)


def test_a_sum_that_would_overflow_refuses_the_last_update() -> None:
    total = ExactSum(1)
    large = np.array([2.0**28], np.float32)
    for _ in range(3):
        total.add(large, 1)
    with pytest.raises(EncodingError):
        total.add(large, 1)
    assert total.mean()[0] == large[0]


@pytest.mark.parametrize("shape", [(), (2,), (4,), (3, 1), (0,)])
def test_another_size_is_refused(shape: tuple[int, ...]) -> None:
    total = ExactSum(3)
    with pytest.raises(EncodingError, match="size"):
        total.add(np.zeros(shape, np.float32), 1)


def test_the_mean_of_nothing_is_refused() -> None:
    with pytest.raises(EncodingError, match="no update"):
        ExactSum(3).mean()


def test_the_update_itself_is_not_changed() -> None:
    update = np.array([0.1, 0.2], np.float32)
    ExactSum(2).add(update, 5)
    np.testing.assert_array_equal(update, np.array([0.1, 0.2], np.float32))
