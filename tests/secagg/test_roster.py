"""Who may take part is what the admission key signed, and every PC computes the same from it."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import pytest

from fedaipc.errors import EncodingError, SecAggError
from fedaipc.secagg.keys import ExchangeKey, SigningKey
from fedaipc.secagg.roster import Bundle, Roster

ADMISSION = SigningKey(bytes(range(32)))
PCS = [SigningKey(bytes([number]) * 32) for number in range(1, 8)]
NOW = 1_800_000_000.0


def roster(keys: list[SigningKey] = PCS, **changes: Any) -> Roster:
    named = {"federation": "reviews", "version": 3, "beacon": bytes(32)}
    return Roster.sign(ADMISSION, **{**named, "members": [k.public for k in keys], **changes})


def bundle(key: SigningKey = PCS[0], **changes: Any) -> Bundle:
    fields = {
        "federation": "reviews", "run": "run-1", "epoch": 1, "not_after": int(NOW) + 10,
        "identity": key.public, "size_class": 64,
        "share_key": ExchangeKey().public,
    }  # fmt: skip
    return Bundle(**{**fields, **changes}).signed_by(key)


def test_a_roster_comes_back_and_is_the_admission_keys_alone() -> None:
    """M5."""
    content = roster().encode()
    assert Roster.decode(content, ADMISSION.public) == roster()
    with pytest.raises(SecAggError, match="list of members"):
        Roster.decode(content, SigningKey().public)


def test_every_bit_of_a_roster_is_signed() -> None:
    """M5."""
    content = roster(PCS[:3]).encode()
    for place in range(len(content)):
        changed = bytearray(content)
        changed[place] ^= 1
        with pytest.raises((SecAggError, EncodingError)):
            Roster.decode(bytes(changed), ADMISSION.public)


@pytest.mark.parametrize("order", [(1, 0), (0, 0)])
def test_members_out_of_order_or_twice_are_refused_though_signed(order: tuple[int, int]) -> None:
    """M7."""
    good = roster(PCS[:2])
    wrong = dataclasses.replace(good, members=tuple(good.members[i] for i in order))
    signed = dataclasses.replace(wrong, signature=ADMISSION.sign(wrong.signed_part()))
    with pytest.raises(SecAggError, match="out of order or names a PC twice"):
        Roster.decode(signed.encode(), ADMISSION.public)


def test_a_bundle_comes_back_and_every_bit_of_it_is_signed() -> None:
    """M8."""
    good = bundle()
    good.check(roster(), "run-1", NOW)
    content = good.encode()
    assert Bundle.decode(content) == good
    for place in range(len(content)):
        changed = bytearray(content)
        changed[place] ^= 1
        try:
            found = Bundle.decode(bytes(changed))
        except EncodingError:
            continue
        with pytest.raises(SecAggError):
            found.check(roster(), "run-1", NOW)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"federation": "another"}, "another federation or run"),
        ({"run": "run-2"}, "another federation or run"),
        ({"not_after": int(NOW) - 1}, "expired"),
    ],
)
def test_a_bundle_for_elsewhere_or_of_the_past_is_refused(changes: dict, said: str) -> None:
    """M8."""
    with pytest.raises(SecAggError, match=said):
        bundle(**changes).check(roster(), "run-1", NOW)


def test_a_bundle_of_a_stranger_is_refused_though_it_is_signed() -> None:
    """M8."""
    with pytest.raises(SecAggError, match="not on the list"):
        bundle(SigningKey()).check(roster(), "run-1", NOW)


def identities(count: int) -> list[bytes]:
    return sorted(number.to_bytes(32, "big") for number in range(count))


def drawn(count: int, beacon: int = 0) -> Roster:
    return Roster(
        federation="f", version=1, beacon=beacon.to_bytes(32, "big"),
        members=tuple(identities(count)), signature=bytes(64),
    )  # fmt: skip


def test_the_groups_of_a_round_follow_from_beacon_and_round_alone() -> None:
    """M12."""
    one = drawn(50)
    assert one.groups(1, 10) == drawn(50).groups(1, 10)
    assert one.groups(1, 10) != one.groups(2, 10)
    assert one.groups(1, 10) != drawn(50, beacon=1).groups(1, 10)
    assert set(one.groups(1, 10)[0]) < set(one.groups(1, 20)[0])
    assert one.groups(1, 50) == (tuple(identities(50)),)


@pytest.mark.parametrize("count", [3, 99, 100, 101, 250, 1000])
def test_a_large_round_is_cut_into_groups_of_nearly_one_size(count: int) -> None:
    """M12."""
    groups = drawn(1000).groups(7, count)
    sizes = [len(group) for group in groups]
    assert sum(sizes) == count == len({member for group in groups for member in group})
    assert max(sizes) <= 100
    assert max(sizes) - min(sizes) <= 1
    assert len(groups) == -(-count // 100)
    assert all(list(group) == sorted(group) for group in groups)


def test_a_draw_favours_nobody() -> None:
    counts = Counter(m for number in range(2000) for m in drawn(20).groups(number, 5)[0])
    # 2000 * 5 / 20 = 500 each, deviation sqrt(2000 * 1/4 * 3/4) = 19.4; 4.9 of it.
    assert len(counts) == 20
    assert all(abs(count - 500) < 95 for count in counts.values())
