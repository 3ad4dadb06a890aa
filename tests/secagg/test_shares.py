"""Every set of threshold size recovers a secret; a smaller one fits every secret alike."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedaipc.errors import SecAggError
from fedaipc.secagg import shares as module
from fedaipc.secagg.shares import PRIME, combine, split_all

SECRET = bytes(range(32))
TOKEN_BYTES = "fedaipc.secagg.shares.secrets.token_bytes"


def split(secret: bytes, threshold: int, count: int) -> list[bytes]:
    """The shares of one secret."""
    return [line[0] for line in split_all([secret], threshold, count)]


@pytest.mark.parametrize(("threshold", "count"), [(1, 1), (1, 3), (2, 3), (4, 7), (7, 7)])
def test_every_set_of_threshold_size_recovers_and_none_below(threshold: int, count: int) -> None:
    shares = split(SECRET, threshold, count)
    assert len(set(shares)) == (count if threshold > 1 else 1)
    for size in range(1, count + 1):
        for chosen in itertools.combinations(range(count), size):
            try:
                found = combine({number: shares[number] for number in chosen})
            except SecAggError:
                found = None  # a field element that no 32 bytes can be
            assert (found == SECRET) == (size >= threshold)


@given(st.binary(min_size=32, max_size=32), st.integers(1, 12), st.integers(0, 8), st.randoms())
@settings(max_examples=50)
def test_any_secret_comes_back(secret: bytes, threshold: int, more: int, random: Any) -> None:
    shares = split(secret, threshold, threshold + more)
    chosen = random.sample(range(len(shares)), threshold)
    assert combine({number: shares[number] for number in chosen}) == secret


@pytest.mark.parametrize("secret", [bytes(32), b"\xff" * 32])
def test_the_ends_of_the_range_are_secrets_too(secret: bytes) -> None:
    assert combine(dict(enumerate(split(secret, 3, 5)))) == secret


def test_fewer_shares_than_the_threshold_fit_every_secret_equally(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Over a small prime all polynomials are counted: two of three shares tell nothing at all."""
    prime = 5
    monkeypatch.setattr(module, "PRIME", prime)
    seen: dict[tuple[int, int], Counter[int]] = {}
    for secret in range(prime):
        for line in itertools.product(range(prime), repeat=2):
            draws = iter(value.to_bytes(48, "little") for value in line)
            monkeypatch.setattr(TOKEN_BYTES, lambda _, draws=draws: next(draws))
            shares = split(secret.to_bytes(32, "big"), 3, 3)
            one, two, _ = (int.from_bytes(share, "big") for share in shares)
            seen.setdefault((one, two), Counter())[secret] += 1
    assert len(seen) == prime**2
    for counts in seen.values():
        assert set(counts.values()) == {1}
        assert len(counts) == prime


@given(
    st.lists(st.binary(min_size=32, max_size=32), min_size=1, max_size=6),
    st.integers(1, 100),
    st.data(),
)
def test_many_keys_at_once_are_split_as_each_alone(
    keys: list[bytes], count: int, data: st.DataObject
) -> None:
    """By Horner's rule one by one; no lane runs over into the next."""
    threshold = data.draw(st.integers(1, count))
    draws = [data.draw(st.sampled_from([b"\xff", b"\0", b"\x5a"])) * 48 * len(keys)
             for _ in range(threshold - 1)]  # fmt: skip
    left = iter(draws)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TOKEN_BYTES, lambda _: next(left))
        found = split_all(keys, threshold, count)
    for place, key in enumerate(keys):
        line = [int.from_bytes(draw[:48], "little") for draw in draws]
        for x in (1, count):
            value = 0
            for coefficient in (*line, int.from_bytes(key, "big")):
                value = (value * x + coefficient) % PRIME
            assert found[x - 1][place] == value.to_bytes(33, "big")


def test_the_modulus_is_the_first_prime_above_all_keys() -> None:
    assert PRIME > 2**256
    for base in (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37):  # Fermat: no base is a witness
        assert pow(base, PRIME - 1, PRIME) == 1


@pytest.mark.parametrize("share", [b"", bytes(32), bytes(34), b"\xff" * 33])
def test_what_is_no_share_is_refused(share: bytes) -> None:
    shares = dict(enumerate(split(SECRET, 2, 3)))
    with pytest.raises(SecAggError, match="share 1"):
        combine({0: shares[0], 1: share})


def test_a_threshold_that_cannot_be_is_refused() -> None:
    for threshold, count in ((0, 3), (4, 3)):
        with pytest.raises(ValueError, match="threshold"):
            split(SECRET, threshold, count)
    with pytest.raises(ValueError, match="32 bytes"):
        split(SECRET[1:], 1, 1)
