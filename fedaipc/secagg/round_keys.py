"""Before a round: every PC shares out the two secrets of its masks (SPEC.md, section 5.1).

The *round key* is the X25519 key with which it will make a mask with each other PC. The *own mask*
is a key that no other PC has. Both are drawn for one attempt and deleted before the PC's update
leaves. If the PC drops out, the others rebuild its round key; if it does not, its own mask.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from fedaipc.errors import SecAggError
from fedaipc.secagg.keys import KEY_BYTES, SIGNATURE_BYTES, ExchangeKey, canonical, derive, verify
from fedaipc.secagg.roster import MAX_IN_A_GROUP
from fedaipc.secagg.shares import SHARE_BYTES, is_share, split_all
from fedaipc.secagg.terms import Terms
from fedaipc.secagg.wire import Reader, Writer, parsed

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fedaipc.secagg.keys import SigningKey
    from fedaipc.secagg.roster import Bundle

KEY_SHARES, ROUND_KEYS, GROUP = 4, 11, 12
CHECK_BYTES = 16
COMMITMENT_BYTES = 16
SHARES = 2  # of a blob: of the round key, and of the own mask
BLOB_BYTES = SHARES * SHARE_BYTES + 16  # and the tag of AES-GCM
_HASH_BYTES = 32
CARD_BYTES = 3 * 32 + SIGNATURE_BYTES
_CARD_LABEL, _SHARES_LABEL, _PAIR_LABEL = b"fedaipc round key", b"fedaipc shares", b"fedaipc pair"
_NONCE = bytes(12)  # of AES-GCM: each of its keys seals one message


@dataclass(frozen=True, slots=True)
class Keys:
    """A PC's secret keys: for life, and of an epoch."""

    identity: SigningKey
    share: ExchangeKey

    def check(self, bundles: Iterable[Bundle]) -> None:
        """Raise SecAggError where one holds a key with which nobody can share a secret."""
        for bundle in bundles:
            self.share.agree(bundle.share_key)


@dataclass(frozen=True, slots=True)
class RoundKey:
    """The public half of a PC's round key, under its signature; 160 bytes.

    `shares_hash` is of what the PC shares out.
    """

    identity: bytes
    public: bytes
    shares_hash: bytes
    signature: bytes = bytes(SIGNATURE_BYTES)

    def encode(self) -> bytes:
        return self.identity + self.public + self.shares_hash + self.signature

    @classmethod
    def decode(cls, content: bytes) -> RoundKey:
        """One from exactly 160 bytes."""
        if len(content) != CARD_BYTES:
            raise SecAggError("a round key has the wrong length")
        identity, public, shares_hash = (content[i : i + 32] for i in range(0, 96, 32))
        return cls(identity, public, shares_hash, content[96:])

    def signed_part(self, context: bytes) -> bytes:
        """What the signature covers: a label, the round's terms, and every field."""
        writer = Writer().string(_CARD_LABEL).fixed(context, _HASH_BYTES)
        return writer.fixed(self.encode()[:96], 96).done()

    def check(self, context: bytes) -> None:
        """Raise SecAggError unless its PC signed it for the terms with this context."""
        verify(self.identity, self.signature, self.signed_part(context), "a round key")


@dataclass(frozen=True, slots=True, repr=False)
class RoundSecrets:
    """What a PC keeps between its answer and its upload: its two secrets, and the signed round key.

    `context` is that of the terms they were drawn for.
    """

    context: bytes
    card: RoundKey
    exchange: ExchangeKey
    own_mask: bytes

    def encode(self) -> bytes:
        """256 bytes, for a file that only the PC's owner may read."""
        return self.context + self.card.encode() + self.exchange.secret() + self.own_mask

    @classmethod
    def decode(cls, content: bytes) -> RoundSecrets:
        """Raises SecAggError where they do not belong together."""
        if len(content) != 3 * 32 + CARD_BYTES:
            raise SecAggError("the secrets of a round have the wrong length")
        card, secret = content[32 : 32 + CARD_BYTES], content[-64:-32]
        found = cls(content[:32], RoundKey.decode(card), ExchangeKey(secret), content[-32:])
        if found.exchange.public != found.card.public:
            raise SecAggError("the secret key of a round is not that of its public half")
        return found


@dataclass(frozen=True, slots=True, repr=False)
class KeyShares:
    """A PC's answer before a round: its round key, and shares of its two secrets for everybody.

    In the order of the participants, `commitments` holds for each a value of its two shares, and
    `blobs` what is encrypted to it. `check` tells whether a rebuilt own mask is the right one.
    """

    card: RoundKey
    check: bytes
    commitments: tuple[bytes, ...]
    blobs: tuple[bytes, ...]

    def encode(self) -> bytes:
        writer = (
            Writer(KEY_SHARES).fixed(self.card.encode(), CARD_BYTES).fixed(self.check, CHECK_BYTES)
        )
        writer.items(self.commitments, SHARES * COMMITMENT_BYTES)
        return writer.items(self.blobs, BLOB_BYTES).done()

    @classmethod
    def decode(cls, content: bytes | memoryview) -> KeyShares:
        """Raises EncodingError or SecAggError."""

        def read(reader: Reader) -> KeyShares:
            return cls(
                card=RoundKey.decode(reader.fixed(CARD_BYTES)),
                check=reader.fixed(CHECK_BYTES),
                commitments=tuple(reader.items(SHARES * COMMITMENT_BYTES, MAX_IN_A_GROUP)),
                blobs=tuple(reader.items(BLOB_BYTES, MAX_IN_A_GROUP)),
            )

        return parsed(content, KEY_SHARES, read)

    def check_hash(self) -> None:
        """Raise SecAggError unless it is what the signed round key says."""
        if _shares_hash(self.check, self.commitments, self.blobs) != self.card.shares_hash:
            raise SecAggError("what a PC shared out is not what it signed")

    def verify(self, terms: Terms) -> None:
        """Raise SecAggError unless it is a whole answer by a participant for these terms (M17)."""
        terms.place(self.card.identity)
        count = len(terms.participants)
        if (len(self.commitments), len(self.blobs)) != (count, count):
            raise SecAggError("a PC shared its secrets out among another number of PCs")
        self.check_hash()
        self.card.check(terms.context)
        ExchangeKey().agree(self.card.public)  # otherwise only others notice


@dataclass(frozen=True)
class Group:
    """The PCs of one group that take part in a round: its terms, and their round keys, ascending.

    All participants of the terms hold shares; those that gave no round key have no further part.
    """

    terms: Terms
    round_keys: tuple[RoundKey, ...]

    def __hash__(self) -> int:  # the context covers all of it
        return hash(self.context)

    def check(self, own: RoundSecrets) -> None:
        """Raise SecAggError where the round breaks SPEC.md, section 5.2 (M11, M35).

        `own` are this PC's secrets.
        """
        if own.context != self.terms.context or self.card(own.card.identity) != own.card:
            raise SecAggError("the round does not name the round key that this PC made for it")
        _check_round_keys(self)
        for card in self.round_keys:
            own.exchange.agree(card.public)

    @cached_property
    def members(self) -> tuple[bytes, ...]:
        """Identities of those that take part, ascending."""
        return tuple(card.identity for card in self.round_keys)

    @cached_property
    def _cards(self) -> dict[bytes, RoundKey]:
        return {card.identity: card for card in self.round_keys}

    def card(self, identity: bytes) -> RoundKey:
        """Raises SecAggError where `identity` takes no part."""
        try:
            return self._cards[identity]
        except KeyError:
            raise SecAggError("a PC that takes no part in the round is named") from None

    @cached_property
    def context(self) -> bytes:
        """The 32 bytes that all is bound to that follows: those of the terms, and every key."""
        writer = Writer().string(b"fedaipc group").fixed(self.terms.context, _HASH_BYTES)
        cards = [card.encode() for card in self.round_keys]
        return hashlib.sha256(writer.items(cards, CARD_BYTES).done()).digest()

    def encode_keys(self) -> bytes:
        """The round keys as a frame; the terms are another."""
        cards = [card.encode() for card in self.round_keys]
        return Writer(ROUND_KEYS).items(cards, CARD_BYTES).done()

    @classmethod
    def of(cls, terms: Terms, keys: bytes | memoryview) -> Group:
        """The group of a frame of round keys. Raises EncodingError or SecAggError."""
        return _group_of(terms, bytes(keys))

    def encode(self) -> bytes:
        """Terms and round keys, as a PC keeps them on its disk."""
        return self._frame

    @cached_property
    def _frame(self) -> bytes:
        return Writer(GROUP).string(self.terms.encode()).string(self.encode_keys()).done()

    @classmethod
    def decode(cls, content: bytes | memoryview) -> Group:
        """Raises EncodingError or SecAggError."""
        return _group(bytes(content))


@lru_cache(maxsize=8)  # a group's PCs get the same; a call that raises is not kept
def _group_of(terms: Terms, content: bytes) -> Group:
    def read(reader: Reader) -> Group:
        return Group(terms, tuple(map(RoundKey.decode, reader.items(CARD_BYTES, MAX_IN_A_GROUP))))

    return parsed(content, ROUND_KEYS, read)


@lru_cache(maxsize=8)
def _group(content: bytes) -> Group:
    return parsed(content, GROUP, lambda r: Group.of(Terms.decode(r.view()), r.view()))


@lru_cache(maxsize=8)
def _check_round_keys(group: Group) -> None:
    """The part of `Group.check` that is the same for all its PCs."""
    members, bounds = group.members, group.terms.thresholds
    if any(a >= b for a, b in pairwise(members)):
        raise SecAggError("the round keys are out of order, or a PC has two")
    if len(members) < max(bounds.least, bounds.shares):
        raise SecAggError(
            f"{len(members)} PCs take part: a sum of {bounds.least} cannot be unmasked"
        )
    for card in group.round_keys:
        group.terms.place(card.identity)
        card.check(group.terms.context)
    if len({canonical(card.public) for card in group.round_keys}) != len(members):
        raise SecAggError("two PCs of the round have one round key")


def share_secrets(terms: Terms, keys: Keys) -> tuple[RoundSecrets, KeyShares]:
    """Draw a PC's secrets for the attempt that `terms` describe, and share them out.

    Every call draws new ones (M15). The PC must keep the secrets from all others until it masks
    its update. Raises SecAggError where another PC's key is not valid.
    """
    own, context = keys.identity.public, terms.context
    exchange, own_mask = ExchangeKey(), secrets.token_bytes(KEY_BYTES)
    lines = split_all(
        (exchange.secret(), own_mask), terms.thresholds.shares, len(terms.participants)
    )
    blobs, commitments = [], []
    for bundle, shares in zip(terms.bundles, lines, strict=True):
        who = own + bundle.identity
        cipher = _cipher(keys.share, bundle.share_key, context, who + exchange.public)
        blobs.append(cipher.encrypt(_NONCE, b"".join(shares), None))
        commitments.append(b"".join(commit(context, who, share) for share in shares))
    check = check_value(context, own_mask)
    card = RoundKey(own, exchange.public, _shares_hash(check, commitments, blobs))
    signed = RoundKey(
        own, exchange.public, card.shares_hash, keys.identity.sign(card.signed_part(context))
    )
    made = KeyShares(signed, check, tuple(commitments), tuple(blobs))
    return RoundSecrets(context, signed, exchange, own_mask), made


def open_shares(group: Group, keys: Keys, sharer: bytes, blob: bytes) -> tuple[bytes, bytes]:
    """The shares that this PC has of the round key and the own mask of `sharer`.

    Raises SecAggError where the blob cannot be decrypted, or holds no shares (M19).
    """
    terms, card, own = group.terms, group.card(sharer), keys.identity.public
    other = terms.bundle(sharer).share_key
    cipher = _cipher(keys.share, other, terms.context, sharer + own + card.public)
    try:
        content = cipher.decrypt(_NONCE, blob, None)
    except InvalidTag:
        raise SecAggError("encrypted shares cannot be decrypted") from None
    first, second = content[:SHARE_BYTES], content[SHARE_BYTES:]
    if not (is_share(first) and is_share(second)):
        raise SecAggError("a PC gave out numbers that cannot be shares")
    return first, second


def pair_key(group: Group, exchange: ExchangeKey, one: bytes, other: bytes) -> bytes:
    """The 32 bytes of the mask that `one`, whose round key is `exchange`, has with `other`."""
    low, high = sorted((one, other))
    return derive(exchange.agree(group.card(other).public), group.context, _PAIR_LABEL + low + high)


def check_value(context: bytes, own_mask: bytes) -> bytes:
    """16 bytes that show whether a rebuilt own mask is the sharer's; both arguments have 32."""
    return hashlib.sha256(b"fedaipc check" + context + own_mask).digest()[:CHECK_BYTES]


def commit(context: bytes, who: bytes, share: bytes) -> bytes:
    """16 bytes that show whether a share of 33 is the one that was sent.

    `who` are sharer and holder, 64 bytes: every field has one length, so that no two inputs run
    together.
    """
    digest = hashlib.sha256(b"fedaipc share" + context + who + share).digest()
    return digest[:COMMITMENT_BYTES]


def _cipher(own: ExchangeKey, other: bytes, context: bytes, who: bytes) -> AESGCM:
    """AES-256-GCM under a key for one message: `who` are sharer, holder, and the round key.

    Both PCs derive it from their share keys, so that what opens came from the sharer.
    """
    return AESGCM(derive(own.agree(other), context, _SHARES_LABEL + who))


def _shares_hash(check: bytes, commitments: Iterable[bytes], blobs: Iterable[bytes]) -> bytes:
    """Of the lists that a PC shares out, whose lengths follow from the terms."""
    return hashlib.sha256(b"".join((check, *commitments, *blobs))).digest()
