"""What a PC shares out before a round: who can read it, and what becomes of bad sharers."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from fedaipc.errors import EncodingError, SecAggError
from fedaipc.secagg.keys import ExchangeKey
from fedaipc.secagg.round_keys import (
    CARD_BYTES,
    Group,
    KeyShares,
    RoundKey,
    RoundSecrets,
    check_value,
    commit,
    open_shares,
    share_secrets,
)
from fedaipc.secagg.shares import combine
from tests.support.secagg import SharedOut, federation, resigned, shared_out

SEVEN = shared_out(*federation(7))
GROUP, KEYS = SEVEN.group, SEVEN.keys
PCS = GROUP.members
OWN = SEVEN.secrets[PCS[0]]


def shares(sharer: bytes, place: int) -> tuple[bytes, bytes]:
    return open_shares(GROUP, KEYS[PCS[place]], sharer, SEVEN.key_shares[sharer].blobs[place])


def test_as_many_shares_as_the_threshold_give_both_secrets_back() -> None:
    enough = GROUP.terms.thresholds.shares
    for sharer in PCS:
        opened = [shares(sharer, place) for place in range(enough)]
        round_key, own_mask = (combine({i: s[k] for i, s in enumerate(opened)}) for k in (0, 1))
        assert ExchangeKey(round_key).public == GROUP.card(sharer).public
        assert own_mask == SEVEN.secrets[sharer].own_mask
        check = check_value(GROUP.terms.context, own_mask)
        assert check == SEVEN.key_shares[sharer].check


def test_fewer_shares_than_the_threshold_give_nothing_back() -> None:
    few = range(GROUP.terms.thresholds.shares - 1)
    for secret in (0, 1):
        try:
            found = combine({place: shares(PCS[0], place)[secret] for place in few})
        except SecAggError:
            continue  # a field element that no 32 bytes can be
        assert found not in (OWN.exchange.secret(), OWN.own_mask)


def test_every_attempt_has_secrets_of_its_own() -> None:
    """M15: for the same terms too, so that nothing is encrypted twice under one key."""
    first, second = (share_secrets(GROUP.terms, KEYS[PCS[0]]) for _ in range(2))
    assert first[0].own_mask != second[0].own_mask
    assert first[0].exchange.public != second[0].exchange.public
    assert not set(first[1].blobs) & set(second[1].blobs)


def test_a_blob_opens_for_its_holder_and_from_its_sharer_alone() -> None:
    """M19: whatever else the coordinator puts in its place."""
    sharer, holder, other = PCS[0], PCS[3], PCS[4]
    blob = SEVEN.key_shares[sharer].blobs[3]
    assert len(open_shares(GROUP, KEYS[holder], sharer, blob)) == 2
    later = shared_out(dataclasses.replace(GROUP.terms, number=2), KEYS)
    again = shared_out(GROUP.terms, KEYS)
    for group, keys, named, shown in (
        (GROUP, KEYS[other], sharer, blob),
        (GROUP, KEYS[holder], other, blob),
        (GROUP, KEYS[holder], sharer, SEVEN.key_shares[sharer].blobs[4]),
        (GROUP, KEYS[holder], sharer, SEVEN.key_shares[other].blobs[3]),
        (later.group, KEYS[holder], sharer, blob),
        (again.group, KEYS[holder], sharer, blob),  # a key_shares that was replaced
        (GROUP, KEYS[holder], sharer, blob[:-1]),
        (GROUP, KEYS[holder], sharer, b""),
    ):
        with pytest.raises(SecAggError):
            open_shares(group, keys, named, shown)


def test_a_blob_of_what_are_no_shares_is_refused() -> None:
    """M19: the sharer encrypted it properly."""
    from fedaipc.secagg import round_keys

    sharer, holder = PCS[0], PCS[3]
    share_key = GROUP.terms.bundle(holder).share_key
    who = sharer + holder + GROUP.card(sharer).public
    cipher = round_keys._cipher(KEYS[sharer].share, share_key, GROUP.terms.context, who)
    for content in (b"\xff" * 66, bytes(33) + b"\xff" * 33, bytes(65), bytes(67)):
        with pytest.raises(SecAggError, match="cannot be shares"):
            open_shares(GROUP, KEYS[holder], sharer, cipher.encrypt(bytes(12), content, None))


def test_a_key_shares_comes_back_from_its_frame_and_every_changed_bit_of_it_is_found() -> None:
    """M16, M17, M29."""
    made = SEVEN.key_shares[PCS[2]]
    content = bytearray(made.encode())
    assert KeyShares.decode(bytes(content)) == made
    assert len({len(one.encode()) for one in SEVEN.key_shares.values()}) == 1
    for place in range(len(content)):
        content[place] ^= 0x10
        with pytest.raises((SecAggError, EncodingError)):
            KeyShares.decode(bytes(content)).verify(GROUP.terms)
        content[place] ^= 0x10


def test_a_key_shares_for_other_terms_is_refused() -> None:
    """M13, M17."""
    made = SEVEN.key_shares[PCS[0]]
    for other in (dataclasses.replace(GROUP.terms, number=2), federation(6)[0]):
        with pytest.raises(SecAggError):
            made.verify(other)


def test_a_sharer_cannot_give_out_another_number_of_shares_or_a_key_that_is_none() -> None:
    """M17: it signs what it gives out."""
    made = SEVEN.key_shares[PCS[0]]
    for changes in ({"blobs": made.blobs[:-1]}, {"commitments": made.commitments[:-1]}):
        with pytest.raises(SecAggError, match="another number"):
            resigned(SEVEN, PCS[0], **changes).key_shares[PCS[0]].verify(GROUP.terms)
    card = dataclasses.replace(made.card, public=bytes(32))
    signature = KEYS[PCS[0]].identity.sign(card.signed_part(GROUP.terms.context))
    low = dataclasses.replace(made, card=dataclasses.replace(card, signature=signature))
    with pytest.raises(SecAggError, match="not valid"):
        low.verify(GROUP.terms)


def signed(found: SharedOut, who: bytes, **changes: Any) -> RoundKey:
    """A round key that its PC signed, whatever stands in it."""
    card = dataclasses.replace(found.group.card(who), **changes)
    return dataclasses.replace(
        card, signature=found.keys[who].identity.sign(card.signed_part(found.group.terms.context))
    )


CARDS = GROUP.round_keys
LATER = shared_out(dataclasses.replace(GROUP.terms, number=2), KEYS).group
TWIN = dataclasses.replace(
    CARDS[1], public=CARDS[2].public[:-1] + bytes([CARDS[2].public[-1] ^ 0x80])
)


@pytest.mark.parametrize(
    ("cards", "said"),
    [
        (CARDS[:4], "cannot be unmasked"),
        (CARDS[1:], "takes no part"),
        (CARDS[::-1], "out of order"),
        ((CARDS[0], *CARDS), "has two"),
        ((signed(SEVEN, PCS[0], public=ExchangeKey().public), *CARDS[1:]), "that this PC made"),
        ((*CARDS[:6], dataclasses.replace(CARDS[6], public=CARDS[5].public)), "signature"),
        ((*CARDS[:6], signed(SEVEN, PCS[6], public=bytes(32))), "not valid"),
        ((CARDS[0], signed(SEVEN, PCS[1], public=CARDS[2].public), *CARDS[2:]), "one round key"),
        ((CARDS[0], signed(SEVEN, PCS[1], public=TWIN.public), *CARDS[2:]), "one round key"),
        (LATER.round_keys, "made for it"),
    ],
)  # fmt: skip
def test_round_keys_that_break_a_rule_are_refused(cards: tuple[RoundKey, ...], said: str) -> None:
    """M9, M11, M35."""
    with pytest.raises(SecAggError, match=said):
        Group(GROUP.terms, cards).check(OWN)


def test_good_round_keys_are_accepted_also_of_some_alone() -> None:
    GROUP.check(OWN)
    SEVEN.only(PCS[:5]).group.check(OWN)


def test_secrets_of_other_terms_are_refused() -> None:
    """M13, M35."""
    other = shared_out(dataclasses.replace(GROUP.terms, vector_hash=b"\1" * 32), KEYS)
    with pytest.raises(SecAggError, match="that this PC made"):
        GROUP.check(other.secrets[PCS[0]])


def test_every_round_key_changes_the_context() -> None:
    """M13: who takes part, with which key, and what it gave out."""
    contexts = {GROUP.context, SEVEN.only(PCS[1:]).group.context, GROUP.terms.context}
    for changes in ({"public": bytes(32)}, {"shares_hash": bytes(32)}, {"identity": bytes(32)},
                    {"signature": bytes(64)}):  # fmt: skip
        card = dataclasses.replace(CARDS[0], **changes)
        contexts.add(Group(GROUP.terms, (card, *CARDS[1:])).context)
    assert len(contexts) == 7


def test_check_values_and_commitments_are_bound_to_their_round_and_people() -> None:
    """M13."""
    one, two = GROUP.terms.context, dataclasses.replace(GROUP.terms, number=6).context
    keys = bytes(32), b"\1" * 32
    assert len({check_value(c, k) for c in (one, two) for k in keys}) == 4
    values = {
        commit(context, who, share)
        for context in (one, two)
        for who in (PCS[0] + PCS[1], PCS[1] + PCS[0])
        for share in (b"a" * 33, b"b" * 33)
    }
    assert len(values) == 8


def test_secrets_come_back_from_their_file_and_their_damage_is_refused() -> None:
    content = OWN.encode()
    again = RoundSecrets.decode(content)
    assert (again.context, again.card, again.own_mask) == (OWN.context, OWN.card, OWN.own_mask)
    assert again.exchange.secret() == OWN.exchange.secret()
    for end in (0, 1, len(content) - 1):
        with pytest.raises(SecAggError):
            RoundSecrets.decode(content[:end])
    other = ExchangeKey().secret()
    with pytest.raises(SecAggError, match="not that of its public half"):
        RoundSecrets.decode(content[:-64] + other + content[-32:])
    assert OWN.own_mask.hex() not in repr(OWN)


@pytest.mark.parametrize("kind", ["keys", "group"])
def test_a_group_comes_back_and_its_damage_is_refused_or_another_group(kind: str) -> None:
    """M29, M30."""
    content = GROUP.encode() if kind == "group" else GROUP.encode_keys()

    def read(frame: bytes) -> Group:
        return Group.decode(frame) if kind == "group" else Group.of(GROUP.terms, frame)

    assert read(content) == GROUP
    assert len(GROUP.encode_keys()) == 2 + 4 + 7 * CARD_BYTES
    for place in range(0, len(content), max(1, len(content) // 400)):
        with pytest.raises(EncodingError):
            read(content[:place])
        changed = content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]
        try:
            again = read(changed)
        except (EncodingError, SecAggError):
            continue
        assert again != GROUP
        assert again.context != GROUP.context
