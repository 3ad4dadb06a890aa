"""Sums in the ring: exact, never wrapped, and right on average."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedaipc.errors import SecAggError
from fedaipc.secagg.encoding import BITS, Encoding

KEY = bytes(range(32))


def key(number: int) -> bytes:
    return number.to_bytes(32, "big")


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("count", [1, 2, 3, 7, 10, 100, 1000])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_sum_at_the_very_bound_does_not_wrap(bits: int, count: int, sign: float) -> None:
    count = min(count, 2 ** (bits - 5))  # more are refused: see below
    encoding = Encoding(bits=bits, count=count, bound=3.0)
    update = np.full(5, sign * 1e9, dtype=np.float32)  # moved to the bound
    total = np.zeros(5, encoding.dtype)
    for number in range(count):
        total += encoding.encode(update, 1, key(number))
    decoded = encoding.decode(total)
    assert np.sign(decoded) == pytest.approx(sign)
    assert abs(decoded[0]) >= 3.0 * count * (1 - 1e-9)
    # All integers of one PC, times the count, fit with their sign.
    assert encoding.most * count < 2 ** (bits - 1)


@pytest.mark.parametrize("bits", BITS)
def test_no_smaller_and_no_larger_count_wraps_for_any_integers(bits: int) -> None:
    for count in (1, 2, 3, 5, 64, 127, 128, 1000):
        try:
            encoding = Encoding(bits=bits, count=count, bound=1.0)
        except SecAggError:
            continue
        assert count * encoding.most <= 2 ** (bits - 1) - 1 < count * (encoding.most + 1)


@given(
    st.lists(st.floats(-2, 2, width=32), min_size=1, max_size=30),
    st.sampled_from(BITS),
    st.integers(1, 4),
)
@settings(max_examples=60)
def test_one_value_is_off_by_less_than_a_step(values: list[float], bits: int, weight: int) -> None:
    encoding = Encoding(bits=bits, count=4, bound=8.0)
    update = np.array(values, dtype=np.float32)
    decoded = encoding.decode(encoding.encode(update, weight, KEY))
    assert np.abs(decoded - weight * update.astype(float)).max() < 1 / encoding.scale * (1 + 1e-9)


@pytest.mark.parametrize("bits", BITS)
def test_rounding_is_right_on_average(bits: int) -> None:
    encoding = Encoding(bits=bits, count=10, bound=1.0)
    step = 1 / encoding.scale
    update = np.full(200_000, 3.3 * step, dtype=np.float32)
    decoded = encoding.decode(encoding.encode(update, 1, KEY)) / step
    assert set(np.rint(decoded).astype(int)) == {3, 4}
    exact = float(update[0]) / step
    spread = np.sqrt((exact - 3) * (4 - exact) / len(update))
    assert decoded.mean() == pytest.approx(exact, abs=4.9 * spread)


@pytest.mark.parametrize("bits", BITS)
def test_the_ring_sum_is_the_integer_sum_in_any_order(bits: int) -> None:
    encoding = Encoding(bits=bits, count=7, bound=1.0)
    rng = np.random.default_rng(0)
    words = [encoding.encode(rng.normal(0, 0.5, 1000).astype("f4"), 1, key(n)) for n in range(7)]
    whole = sum(encoding.decode(w) * encoding.scale for w in words)
    total = np.zeros(1000, encoding.dtype)
    for word in reversed(words):
        total += word
    assert np.array_equal(np.rint(encoding.decode(total) * encoding.scale), np.rint(whole))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("size", [0, 1, 2, 1001])
def test_packed_words_take_their_bits_and_come_back(bits: int, size: int) -> None:
    encoding = Encoding(bits=bits, count=2, bound=1.0)
    words = np.random.default_rng(1).integers(0, 2**bits, size).astype(encoding.dtype)
    packed = encoding.pack(words)
    assert len(packed) == size * bits // 8
    assert np.array_equal(encoding.unpack(packed, size), words)
    with pytest.raises(SecAggError, match="bytes"):
        encoding.unpack(bytes(packed) + b"\0", size)


def test_24_bits_lose_nothing_but_what_is_above_them() -> None:
    """Masks are words of 32 bits; only their lower 24 leave, which is the ring of 24."""
    encoding = Encoding(bits=24, count=2, bound=1.0)
    values = encoding.encode(np.array([0.5, -0.5, 1.0, -1.0], "f4"), 1, KEY)
    mask = np.random.default_rng(2).integers(0, 2**32, 4).astype("<u4")
    sent = encoding.unpack(encoding.pack(values + mask), 4)
    assert np.array_equal(encoding.decode(sent - mask), encoding.decode(values))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(value: float) -> None:
    with pytest.raises(SecAggError, match="finite"):
        Encoding(bits=32, count=2, bound=1.0).encode(np.array([0, value], "f4"), 1, KEY)


@pytest.mark.parametrize(
    "wrong",
    [
        {"bits": 31}, {"bits": 16, "count": 4096}, {"count": 0}, {"bound": 0.0},
        {"bound": float("nan")}, {"bound": float("inf")}, {"count": 2**29},
    ],
)  # fmt: skip
def test_parameters_that_leave_no_room_are_refused(wrong: dict) -> None:
    with pytest.raises(SecAggError):
        Encoding(**{"bits": 32, "count": 2, "bound": 1.0, **wrong})
