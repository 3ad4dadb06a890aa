"""Masks that cancel in the sum alone."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from scipy import stats

from fedaipc.errors import EncodingError, SecAggError
from fedaipc.secagg.masks import add_masks
from fedaipc.secagg.round_keys import pair_key
from fedaipc.secagg.terms import Terms
from fedaipc.secagg.uploads import HEADER_BYTES, Upload
from tests.support.secagg import federation, shared_out

SEVEN = shared_out(*federation(7))
GROUP = SEVEN.group
PCS = GROUP.members


def words(terms: Terms, number: int) -> np.ndarray:
    rng = np.random.default_rng(number)
    return rng.integers(0, 2**terms.bits, terms.size).astype(terms.encoding.dtype)


@pytest.mark.parametrize("bits", [32, 24, 16])
def test_for_every_set_of_survivors_the_sum_is_the_plain_sum(bits: int) -> None:
    """Exactness, bit for bit."""
    found = shared_out(*federation(7, bits=bits))
    group, terms = found.group, found.group.terms
    vectors = {who: found.upload(who, words(terms, n)).vector for n, who in enumerate(PCS)}
    for size in range(terms.thresholds.least, 8):
        for survivors in itertools.combinations(PCS, size):
            total = np.zeros(terms.size, terms.encoding.dtype)
            for who in survivors:
                total += terms.encoding.unpack(vectors[who], terms.size)
            for who in survivors:
                exchange = found.secrets[who].exchange
                gone = [
                    (other, pair_key(group, exchange, who, other))
                    for other in PCS
                    if other not in survivors
                ]
                add_masks(
                    total,
                    [key for other, key in gone if who > other],
                    [found.secrets[who].own_mask, *(key for other, key in gone if who < other)],
                )
            plain = sum(words(terms, PCS.index(who)).astype(np.int64) for who in survivors)
            mask = 2**bits - 1
            assert np.array_equal(total.astype(np.int64) & mask, plain & mask)


def test_both_ends_of_a_pair_have_one_key_and_nobody_else_has_it() -> None:
    """M13, M16."""
    a, b, c = PCS[:3]
    first, second = (SEVEN.secrets[who].exchange for who in (a, b))
    key = pair_key(GROUP, first, a, b)
    assert key == pair_key(GROUP, second, b, a)
    assert key != pair_key(GROUP, first, a, c)
    assert key != pair_key(SEVEN.only(PCS[:6]).group, first, a, b)


def test_one_vector_masked_twice_has_two_masks() -> None:
    """M15: each attempt has secrets of its own, even for the same terms."""
    again = shared_out(GROUP.terms, SEVEN.keys)
    who = PCS[0]
    first, second = (found.upload(who, words(GROUP.terms, 1)) for found in (SEVEN, again))
    assert bytes(first.vector) != bytes(second.vector)


@pytest.mark.parametrize("value", [0, 2**32 - 1])
def test_an_uploaded_vector_looks_uniform_whatever_it_hides(value: int) -> None:
    found = shared_out(*federation(3, size=100_000))
    vector = np.full(found.group.terms.size, value, dtype="<u4")
    upload = found.upload(found.group.members[1], vector)
    counts = np.bincount(np.frombuffer(upload.vector, np.uint8), minlength=256)
    assert stats.chisquare(counts).pvalue > 1e-6


def test_an_upload_comes_back_from_its_frame_and_is_checked() -> None:
    """M17, M29."""
    upload = SEVEN.upload(PCS[2], words(GROUP.terms, 1))
    content = upload.encode()
    again = Upload.decode(content)
    again.check(GROUP)
    assert again.encode() == content
    assert len(upload.header.encode()) == HEADER_BYTES


def test_every_changed_bit_of_an_upload_is_found() -> None:
    """M17."""
    content = bytearray(SEVEN.upload(PCS[2], words(GROUP.terms, 1)).encode())
    for place in range(len(content)):
        content[place] ^= 0x10
        with pytest.raises((SecAggError, EncodingError)):
            Upload.decode(bytes(content)).check(GROUP)
        content[place] ^= 0x10


def test_sizes_do_not_depend_on_what_is_masked() -> None:
    """M16."""
    zeros = np.zeros(GROUP.terms.size, "<u4")
    sizes = {
        len(SEVEN.upload(who, vector.copy()).encode())
        for who in PCS
        for vector in (zeros, words(GROUP.terms, 9))
    }
    assert len(sizes) == 1


def test_an_upload_for_another_round_is_refused() -> None:
    """M13, M17."""
    upload = SEVEN.upload(PCS[0], words(GROUP.terms, 1))
    later = dataclasses.replace(GROUP, terms=dataclasses.replace(GROUP.terms, number=2))
    for other in (later, SEVEN.only(PCS[:6]).group, shared_out(GROUP.terms, SEVEN.keys).group):
        with pytest.raises(SecAggError, match="another round"):
            upload.check(other)
