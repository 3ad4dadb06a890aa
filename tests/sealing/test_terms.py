"""Thresholds that the promise rests on, and a context that nothing in a round can escape."""

from __future__ import annotations

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedaipc.errors import SealingError
from fedaipc.sealing.keys import ExchangeKey, SigningKey
from fedaipc.sealing.roster import Bundle, Roster
from fedaipc.sealing.terms import Terms, Thresholds, check_value, commitment, usual_thresholds

ADMISSION = SigningKey(bytes(range(32)))
PCS = [SigningKey(bytes([number]) * 32) for number in range(1, 8)]
NOW = 1_800_000_000.0


def bundle(key: SigningKey, number: int, **changes: object) -> Bundle:
    fields = {
        "federation": "reviews", "run": "run-1", "epoch": 1, "not_after": int(NOW) + 10,
        "identity": key.public, "mask_key": ExchangeKey(bytes([number]) * 32).public,
        "share_key": ExchangeKey(bytes([100 + number]) * 32).public,
    }  # fmt: skip
    return Bundle(**{**fields, **changes}).signed_by(key)


BUNDLES = sorted((bundle(k, n) for n, k in enumerate(PCS)), key=lambda b: b.identity)
ROSTER = Roster.sign(
    ADMISSION, federation="reviews", version=3, beacon=bytes(32), members=[k.public for k in PCS]
)
TERMS = Terms(
    roster=ROSTER, run="run-1", number=5, job_hash=bytes(32), vector_hash=b"\1" * 32, size=770,
    bits=32, bound=2.0, thresholds=usual_thresholds(7), bundles=tuple(BUNDLES), weights=(64,) * 7,
)  # fmt: skip


@pytest.mark.parametrize("count", [3, 4, 5, 7, 10, 20, 50, 99, 100, 101, 150, 300, 1000])
def test_the_usual_thresholds_keep_every_bound(count: int) -> None:
    """M1, M2."""
    usual = usual_thresholds(count)
    usual.check()
    assert usual.count == count
    assert usual.least >= 0.7 * count
    assert usual.committee == count if count <= 100 else usual.committee < count


def test_a_drawn_committee_is_safe_by_the_exact_tail() -> None:
    """M1: of 1000 PCs 100 collude; that they get enough seats to agree twice is below 2^-40."""
    usual = usual_thresholds(1000)
    enough = 2 * usual.shares - usual.committee
    ways = [
        math.comb(100, k) * math.comb(900, usual.committee - k)
        for k in range(enough, min(100, usual.committee) + 1)
    ]
    assert sum(ways) / math.comb(1000, usual.committee) <= 2.0**-40
    assert usual.committee <= 400


@given(
    st.integers(1, 40), st.integers(0, 40), st.integers(1, 40), st.integers(0, 41),
    st.integers(0, 41),
)  # fmt: skip
def test_thresholds_are_taken_only_where_no_two_sets_and_no_single_pc_are_possible(
    count: int, colluding: int, committee: int, shares: int, least: int
) -> None:
    """M1, M2: by counting, and not by the formula."""
    two_sets = any(
        # `both` members sign both sets, the colluding ones; the honest are divided.
        (committee - both) // 2 + both >= shares and both <= colluding
        for both in range(min(colluding, committee) + 1)
    )
    honest_in_a_set = least - colluding
    sound = (
        count >= 3 and colluding >= 1 and shares <= committee and not two_sets
        and honest_in_a_set >= 2 and 3 <= least <= count
    )  # fmt: skip
    thresholds = Thresholds(count, colluding, committee, shares, least)
    try:
        thresholds.check()
    except SealingError:
        # The formula may refuse a case that counting allows (an odd remainder), never the reverse.
        assert not sound or 2 * shares <= committee + colluding
    else:
        assert sound


@pytest.mark.parametrize("count", [0, 1, 2])
def test_fewer_than_three_pcs_are_refused(count: int) -> None:
    """M2."""
    with pytest.raises(SealingError, match="at least 3"):
        usual_thresholds(count)


def test_good_terms_are_accepted() -> None:
    TERMS.check(7, NOW)
    assert TERMS.committee == TERMS.participants
    assert len(TERMS.neighbours(BUNDLES[0].identity)) == 6


def twice(kind: str) -> tuple[Bundle, ...]:
    """Two bundles that share a key, each signed by its own PC."""
    keys = {key.public: key for key in PCS}
    other = dataclasses.replace(BUNDLES[1], **{kind: getattr(BUNDLES[0], kind)})
    return (BUNDLES[0], other.signed_by(keys[other.identity]), *BUNDLES[2:])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"bundles": twice("mask_key")}, "one mask key"),
        ({"bundles": twice("share_key")}, "one share key"),
        ({"bundles": (BUNDLES[0], *BUNDLES[:6])}, "one identity"),
        ({"bundles": tuple(BUNDLES[::-1])}, "out of order"),
        ({"bundles": tuple(BUNDLES[:6])}, "another number"),
        ({"weights": (64,) * 6}, "another number"),
        ({"weights": (64,) * 6 + (0,)}, "weight"),
        ({"run": "run-2"}, "another federation or run"),
        ({"thresholds": dataclasses.replace(TERMS.thresholds, shares=4)}, "agree on two sets"),
        ({"thresholds": dataclasses.replace(TERMS.thresholds, least=2)}, "hides no single PC"),
        ({"bits": 31}, "31 bits"),
        ({"bound": 0.0}, "bound"),
    ],
)  # fmt: skip
def test_terms_that_break_a_rule_are_refused(changes: dict, said: str) -> None:
    """M1 to M4, M8, M9."""
    with pytest.raises(SealingError, match=said):
        dataclasses.replace(TERMS, **changes).check(7, NOW)


def test_a_pc_that_the_draw_did_not_choose_is_refused() -> None:
    """M11."""
    with pytest.raises(SealingError, match="did not choose"):
        TERMS.check(6, NOW)


def test_expired_keys_are_refused() -> None:
    """M8."""
    with pytest.raises(SealingError, match="expired"):
        TERMS.check(7, NOW + 11)


@pytest.mark.parametrize(
    "changes",
    [
        {"run": "run-2"}, {"number": 6}, {"job_hash": b"\2" * 32}, {"vector_hash": b"\2" * 32},
        {"size": 771}, {"bits": 24}, {"bound": 2.5}, {"weights": (64,) * 6 + (32,)},
        {"bundles": tuple(BUNDLES[:6])},
        {"roster": dataclasses.replace(ROSTER, version=4)},
        {"roster": dataclasses.replace(ROSTER, beacon=b"\1" * 32)},
        {"roster": dataclasses.replace(ROSTER, federation="other")},
        *({"thresholds": dataclasses.replace(TERMS.thresholds, **{name: 1})}
          for name in ("count", "committee", "shares", "least")),
        {"thresholds": dataclasses.replace(TERMS.thresholds, colluding=2)},
    ],
    ids=str,
)  # fmt: skip
def test_every_public_parameter_changes_the_context(changes: dict) -> None:
    """M13."""
    assert dataclasses.replace(TERMS, **changes).context != TERMS.context


def test_check_values_and_commitments_are_bound_to_their_round_and_people() -> None:
    """M13."""
    key, other = bytes(32), b"\1" * 32
    one, two = TERMS.context, dataclasses.replace(TERMS, number=6).context
    assert len({check_value(c, k) for c in (one, two) for k in (key, other)}) == 4
    values = {
        commitment(c, dealer, member, share)
        for c in (one, two)
        for dealer, member in ((key, other), (other, key))
        for share in (b"a" * 33, b"b" * 33)
    }
    assert len(values) == 8
