"""Masks that cancel in the sum alone, and shares that open every mask that is left."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from scipy import stats

from fedaipc.errors import EncodingError, SecAggError
from fedaipc.secagg import tree
from fedaipc.secagg.masks import add_masks
from fedaipc.secagg.shares import combine
from fedaipc.secagg.terms import Terms, check_value
from fedaipc.secagg.uploads import HEADER_BYTES, Keys, Upload, mask_and_share, open_shares, pair_key
from tests.support.secagg import HEAD, blob_of, federation

SEVEN, KEYS = federation(7)


def words(terms: Terms, number: int) -> np.ndarray:
    rng = np.random.default_rng(number)
    return rng.integers(0, 2**terms.bits, terms.size).astype(terms.encoding.dtype)


def uploads(terms: Terms, keys: dict[bytes, Keys]) -> dict[bytes, Upload]:
    return {
        who: mask_and_share(terms, keys[who], words(terms, n), HEAD)
        for n, who in enumerate(terms.participants)
    }


def rebuilt(
    terms: Terms,
    keys: dict[bytes, Keys],
    found: dict[bytes, Upload],
    members: list[int],
    uploader: bytes,
) -> list:
    """All keys of an uploader, from the shares of so many members."""
    opened = {}
    for number in members:
        upload = found[uploader]
        member = terms.participants[number]
        opened[number] = open_shares(
            terms, keys[member], upload.header, upload.leaves[number], blob_of(upload, number)
        )
    count = len(next(iter(opened.values())))
    return [combine({n: shares[place] for n, shares in opened.items()}) for place in range(count)]


@pytest.mark.parametrize("bits", [32, 24, 16])
def test_for_every_set_of_survivors_the_sum_is_the_plain_sum(bits: int) -> None:
    """Exactness, bit for bit; and the keys that are rebuilt are those that were shared."""
    terms, keys = federation(7, bits=bits)
    found, people = uploads(terms, keys), terms.participants
    members = list(range(terms.thresholds.shares))
    shared = {who: rebuilt(terms, keys, found, members, who) for who in people}
    for who in people:
        checks = tuple(check_value(terms.context, key) for key in shared[who])
        assert checks == found[who].checks
    for size in range(terms.thresholds.least, 8):
        for survivors in itertools.combinations(people, size):
            total = np.zeros(terms.size, terms.encoding.dtype)
            for who in survivors:
                total += terms.encoding.unpack(found[who].vector, terms.size)
            for who in survivors:
                others = terms.neighbours(who)
                gone = [
                    (other, shared[who][1 + place])
                    for place, other in enumerate(others)
                    if other not in survivors
                ]
                add_masks(
                    total,
                    [key for other, key in gone if who > other],
                    [shared[who][0], *(key for other, key in gone if who < other)],
                )
            plain = sum(words(terms, people.index(who)).astype(np.int64) for who in survivors)
            mask = 2**bits - 1
            assert np.array_equal(total.astype(np.int64) & mask, plain & mask)


def test_both_ends_of_a_pair_have_one_key_and_nobody_else_has_it() -> None:
    """M13, M16."""
    a, b, c = SEVEN.participants[:3]
    key = pair_key(SEVEN, KEYS[a], b)
    assert key == pair_key(SEVEN, KEYS[b], a)
    assert key != pair_key(SEVEN, KEYS[a], c)
    later = dataclasses.replace(SEVEN, number=2)
    assert key != pair_key(later, KEYS[a], b)


def test_fewer_members_than_the_threshold_open_nothing() -> None:
    found = uploads(SEVEN, KEYS)
    who = SEVEN.participants[0]
    few = range(SEVEN.thresholds.shares - 1)
    try:
        keys = rebuilt(SEVEN, KEYS, found, list(few), who)
    except SecAggError:
        return  # a field element that no 32 bytes can be
    assert not {check_value(SEVEN.context, key) for key in keys} & set(found[who].checks)


def test_one_vector_sealed_twice_has_two_masks() -> None:
    """M15."""
    who = SEVEN.participants[0]
    first, second = (mask_and_share(SEVEN, KEYS[who], words(SEVEN, 1), HEAD) for _ in range(2))
    assert bytes(first.vector) != bytes(second.vector)
    assert first.checks[0] != second.checks[0]
    assert first.checks[1:] == second.checks[1:]


@pytest.mark.parametrize("value", [0, 2**32 - 1])
def test_an_uploaded_vector_looks_uniform_whatever_it_hides(value: int) -> None:
    terms, keys = federation(3, size=100_000)
    vector = np.full(terms.size, value, dtype="<u4")
    upload = mask_and_share(terms, keys[terms.participants[1]], vector, HEAD)
    counts = np.bincount(np.frombuffer(upload.vector, np.uint8), minlength=256)
    assert stats.chisquare(counts).pvalue > 1e-6


def test_an_upload_comes_back_from_its_frame_and_is_checked() -> None:
    """M17, M29."""
    upload = mask_and_share(SEVEN, KEYS[SEVEN.participants[2]], words(SEVEN, 1), HEAD)
    content = upload.encode()
    again = Upload.decode(content)
    again.check(SEVEN)
    assert again.encode() == content
    assert len(upload.header.encode()) == HEADER_BYTES


def test_every_changed_bit_of_an_upload_is_found() -> None:
    """M17."""
    upload = mask_and_share(SEVEN, KEYS[SEVEN.participants[2]], words(SEVEN, 1), HEAD)
    content = bytearray(upload.encode())
    for place in range(len(content)):
        content[place] ^= 0x10
        with pytest.raises((SecAggError, EncodingError)):
            Upload.decode(bytes(content)).check(SEVEN)
        content[place] ^= 0x10


def test_sizes_do_not_depend_on_what_is_sealed() -> None:
    """M16."""
    zeros = np.zeros(SEVEN.size, "<u4")
    sizes = {
        len(mask_and_share(SEVEN, KEYS[who], vector.copy(), HEAD).encode())
        for who in SEVEN.participants
        for vector in (zeros, words(SEVEN, 9))
    }
    assert len(sizes) == 1


def test_an_upload_for_another_round_is_refused() -> None:
    """M13, M17."""
    upload = mask_and_share(SEVEN, KEYS[SEVEN.participants[0]], words(SEVEN, 1), HEAD)
    for other in (dataclasses.replace(SEVEN, number=2), federation(6)[0]):
        with pytest.raises(SecAggError, match="another round"):
            upload.check(other)


def test_a_blob_opens_for_its_member_and_its_dealer_alone() -> None:
    """M19."""
    uploader, other = SEVEN.participants[:2]
    upload, strange = (
        mask_and_share(SEVEN, KEYS[who], words(SEVEN, 1), HEAD) for who in (uploader, other)
    )
    member = SEVEN.participants[3]
    shares = open_shares(SEVEN, KEYS[member], upload.header, upload.leaves[3], blob_of(upload, 3))
    assert len(shares) == 7
    tree.check(upload.header.leaves_root, upload.leaves[3], 3, 7, tree.Tree(upload.leaves).path(3))
    for keys, header, leaf, blob in (
        (KEYS[SEVEN.participants[4]], upload.header, upload.leaves[3], blob_of(upload, 3)),
        (KEYS[member], strange.header, upload.leaves[3], blob_of(upload, 3)),
        (KEYS[member], upload.header, upload.leaves[4], blob_of(upload, 3)),
        (KEYS[member], upload.header, upload.leaves[3], blob_of(upload, 4)),
        (KEYS[member], upload.header, strange.leaves[3], blob_of(strange, 3)),
    ):
        with pytest.raises(SecAggError):
            open_shares(SEVEN, keys, header, leaf, blob)
