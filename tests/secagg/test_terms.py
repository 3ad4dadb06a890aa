"""Thresholds that the promise rests on, and a context that nothing in a round can escape."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fedaipc.errors import EncodingError, SecAggError
from fedaipc.secagg.keys import ExchangeKey, SigningKey
from fedaipc.secagg.roster import Bundle, Roster
from fedaipc.secagg.terms import (
    PLAIN,
    Terms,
    Thresholds,
    capped,
    colluding_in,
    thresholds,
)
from tests.support.secagg import usual

ADMISSION = SigningKey(bytes(range(32)))
PCS = [SigningKey(bytes([number]) * 32) for number in range(1, 8)]
NOW = 1_800_000_000.0


def bundle(key: SigningKey, number: int, **changes: Any) -> Bundle:
    fields = {
        "federation": "reviews", "run": "run-1", "epoch": 1, "not_after": int(NOW) + 10,
        "identity": key.public, "size_class": 64,
        "share_key": ExchangeKey(bytes([100 + number]) * 32).public,
    }  # fmt: skip
    return Bundle(**{**fields, **changes}).signed_by(key)


BUNDLES = sorted((bundle(k, n) for n, k in enumerate(PCS)), key=lambda b: b.identity)
ROSTER = Roster.sign(
    ADMISSION, federation="reviews", version=3, beacon=bytes(32), members=[k.public for k in PCS]
)
GROUP = ROSTER.groups(5, 7)[0]
TERMS = Terms(
    federation="reviews", roster_hash=ROSTER.hash, run="run-1", number=5, job_hash=bytes(32),
    vector_hash=b"\1" * 32, size=770, bits=32, bound=2.0, cohort=7, thresholds=usual(7),
    bundles=tuple(BUNDLES), weights=(64,) * 7,
)  # fmt: skip


@pytest.mark.parametrize("count", [3, 4, 5, 7, 10, 20, 50, 99, 100])
def test_the_usual_thresholds_keep_every_bound(count: int) -> None:
    """M1, M2."""
    found = usual(count)
    found.check()
    assert found.count == count
    assert found.least >= 0.7 * count
    assert found.colluding == max(1, count // 10)


@given(st.integers(1, 60), st.data())
def test_so_many_colluding_in_a_drawn_group_that_more_are_less_likely_than_the_risk(
    members: int, data: st.DataObject
) -> None:
    """M1, by scipy's tail."""
    group = data.draw(st.integers(1, members))
    colluding = data.draw(st.integers(1, members))
    draws = data.draw(st.sampled_from([1, 10, 10_000]))
    found = colluding_in(group, members, colluding, draws)
    law = stats.hypergeom(members, colluding, group)
    assert law.sf(found) * draws <= 2.0**-40
    assert found == 1 or law.sf(found - 1) * draws > 2.0**-40 * (1 - 1e-6)
    assert found <= max(1, min(group, colluding))


def test_all_colluding_pcs_are_in_a_group_of_everybody() -> None:
    assert colluding_in(20, 20, 2, 10_000) == 2
    assert (
        colluding_in(100, 1000, 100, 10_000) == 38
    )  # a drawn group of 100 has 10 of them on average


def test_who_is_left_out_shrinks_no_bound() -> None:
    """M2, M11: else a coordinator could ask one honest PC among eleven that are its own."""
    whole = thresholds(100, group=100, members=100, colluding=10, least=0.7, draws=1)
    fewer = thresholds(70, group=100, members=100, colluding=10, least=0.7, draws=1)
    assert (fewer.colluding, fewer.least) == (whole.colluding, whole.least)
    for count in (11, 69):
        with pytest.raises(SecAggError, match="cannot be reached"):
            thresholds(count, group=100, members=100, colluding=10, least=0.7, draws=1)


@given(st.integers(1, 40), st.integers(0, 40), st.integers(0, 41), st.integers(0, 41))
def test_thresholds_are_taken_only_where_no_two_sets_and_no_single_pc_are_possible(
    count: int, colluding: int, shares: int, least: int
) -> None:
    """M1, M2: by counting, and not by the formula."""
    two_sets = any(
        # `both` members sign both sets, the colluding ones; the honest are divided.
        (count - both) // 2 + both >= shares and both <= colluding
        for both in range(min(colluding, count) + 1)
    )
    sound = (
        count >= 3 and colluding >= 1 and shares <= count and not two_sets
        and least - colluding >= 2 and 3 <= least <= count
    )  # fmt: skip
    try:
        Thresholds(count, colluding, shares, least).check()
    except SecAggError:
        # The formula may refuse a case that counting allows (an odd remainder), never the reverse.
        assert not sound or 2 * shares <= count + colluding
    else:
        assert sound


@pytest.mark.parametrize("count", [0, 1, 2])
def test_fewer_than_three_pcs_are_refused(count: int) -> None:
    """M2."""
    with pytest.raises(SecAggError, match="does not hide a single PC"):
        usual(count)


def check(terms: Terms, now: float = NOW) -> None:
    terms.check(ROSTER, GROUP, now)


def test_good_terms_are_accepted() -> None:
    check(TERMS)
    assert Terms.decode(TERMS.encode()) == TERMS


def twice(kind: str) -> tuple[Bundle, ...]:
    """Two bundles that share a key, each signed by its own PC."""
    keys = {key.public: key for key in PCS}
    other = dataclasses.replace(BUNDLES[1], **{kind: getattr(BUNDLES[0], kind)})
    return (BUNDLES[0], other.signed_by(keys[other.identity]), *BUNDLES[2:])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"bundles": twice("share_key")}, "one share key"),
        ({"bundles": (BUNDLES[0], *BUNDLES[:6])}, "one identity"),
        ({"bundles": tuple(BUNDLES[::-1])}, "out of order"),
        ({"bundles": tuple(BUNDLES[:6])}, "another number"),
        ({"weights": (64,) * 6}, "one weight"),
        ({"weights": (64,) * 6 + (0,)}, "one weight"),
        ({"federation": "other"}, "another list"),
        ({"roster_hash": bytes(32)}, "another list"),
        ({"run": "run-2"}, "another federation or run"),
        ({"thresholds": dataclasses.replace(TERMS.thresholds, shares=4)}, "agree on two sets"),
        ({"thresholds": dataclasses.replace(TERMS.thresholds, least=2)}, "not hide a single PC"),
        ({"bits": 31}, "31 bits"),
        ({"bound": 0.0}, "bound"),
    ],
)  # fmt: skip
def test_terms_that_break_a_rule_are_refused(changes: dict, said: str) -> None:
    """M1 to M4, M8, M9."""
    with pytest.raises(SecAggError, match=said):
        check(dataclasses.replace(TERMS, **changes))


def test_a_pc_that_the_draw_did_not_choose_is_refused() -> None:
    """M11."""
    with pytest.raises(SecAggError, match="did not choose"):
        TERMS.check(ROSTER, ROSTER.groups(5, 6)[0], NOW)


def test_expired_keys_are_refused() -> None:
    """M8."""
    with pytest.raises(SecAggError, match="expired"):
        check(TERMS, NOW + 11)


@pytest.mark.parametrize(
    "changes",
    [
        {"run": "run-2"}, {"number": 6}, {"job_hash": b"\2" * 32}, {"vector_hash": b"\2" * 32},
        {"size": 771}, {"bits": 24}, {"bound": 2.5}, {"weights": (64,) * 6 + (32,)},
        {"bundles": tuple(BUNDLES[:6])},
        {"roster_hash": bytes(32)}, {"federation": "other"}, {"cohort": 8},
        *({"thresholds": dataclasses.replace(TERMS.thresholds, **{name: 9})}
          for name in ("count", "colluding", "shares", "least")),
    ],
    ids=str,
)  # fmt: skip
def test_every_public_parameter_changes_the_context(changes: dict) -> None:
    """M13."""
    assert dataclasses.replace(TERMS, **changes).context != TERMS.context


def test_terms_come_back_from_their_frame_and_their_damage_is_refused_or_another_round() -> None:
    """M13, M29, M30."""
    content = TERMS.encode()
    for place in range(len(content)):
        changed = bytearray(content)
        changed[place] ^= 1
        try:
            found = Terms.decode(bytes(changed))
        except EncodingError:
            continue
        assert found.context != TERMS.context
        assert found.encode() == changed
    for end in range(len(content)):
        with pytest.raises(EncodingError):
            Terms.decode(content[:end])


# Weights


@given(data=st.data())
def test_no_pc_is_more_than_half_of_what_honest_pcs_put_into_a_sum(data: st.DataObject) -> None:
    """M32: whichever PCs are left out of the sum, and whichever of the others collude."""
    count = data.draw(st.integers(3, 9))
    colluding = data.draw(st.integers(1, count - 2))
    least = data.draw(st.integers(max(3, colluding + 2), count))
    bounds = Thresholds(count, colluding, count, least)
    classes = data.draw(
        st.lists(st.integers(5, 20).map(lambda n: 2**n), min_size=count, max_size=count)
    )
    weights = capped(classes, bounds)
    assert capped(weights, bounds) == weights
    assert all(1 <= weight <= size for weight, size in zip(weights, classes, strict=True))
    inside = list(data.draw(st.permutations(range(count))))
    inside = inside[: data.draw(st.integers(least, count))]
    honest = inside[: len(inside) - colluding]
    total = sum(weights[pc] for pc in honest)
    assert all(2 * weights[pc] <= total for pc in honest)


def test_a_sum_is_not_one_large_pcs_update() -> None:
    """M32: by size class, the sum of these three would have a cosine of .9998 to the first."""
    bounds = Thresholds(count=3, colluding=1, shares=3, least=3)
    weights = capped((65536, 32, 32), bounds)
    assert weights == (32, 32, 32)
    updates = np.random.default_rng(0).normal(size=(3, 5000))
    shown = np.average(updates, axis=0, weights=weights)
    cosine = shown @ updates[0] / np.linalg.norm(shown) / np.linalg.norm(updates[0])
    assert cosine < 0.65
    by_class = np.average(updates, axis=0, weights=(65536, 32, 32))
    assert by_class @ updates[0] / np.linalg.norm(by_class) / np.linalg.norm(updates[0]) > 0.999


def test_a_round_with_one_weight_above_all_others_is_refused() -> None:
    """M32."""
    with pytest.raises(SecAggError, match="more than half of a sum"):
        check(dataclasses.replace(TERMS, weights=(64,) * 6 + (4096,)))


def test_weights_of_updates_that_are_not_sealed_stay_as_they_are() -> None:
    assert capped((65536, 32, 32), PLAIN) == (65536, 32, 32)
