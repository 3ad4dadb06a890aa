"""What a PC uploads in a round: its masked vector, and shares of the keys of its masks.

SPEC.md, section 5.1. The upload is one frame; its header is what the PC signs and what all agree
on later. Sizes follow from the number of PCs and the dimension alone (M16).
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedaipc.errors import SealingError
from fedaipc.sealing import tree
from fedaipc.sealing.keys import (
    KEY_BYTES,
    SEAL_OVERHEAD,
    SIGNATURE_BYTES,
    ExchangeKey,
    SigningKey,
    derive,
    seal,
    verify,
)
from fedaipc.sealing.masks import add_masks
from fedaipc.sealing.shares import SHARE_BYTES, split
from fedaipc.sealing.terms import check_value, commitment
from fedaipc.sealing.wire import LONGEST, Reader, Writer, parsed

if TYPE_CHECKING:
    import numpy.typing as npt

    from fedaipc.sealing.terms import Terms

UPLOAD = 5
CHECK_BYTES = 16
HEADER_BYTES = 5 * 32
_HASH_BYTES = 32
_MOST_PCS = 10_000
_HEADER_LABEL, _PAIR_LABEL, _SHARES_LABEL = b"fedaipc header", b"fedaipc pair", b"fedaipc shares"


@dataclass(frozen=True, slots=True)
class Keys:
    """A PC's secret keys of an epoch."""

    identity: SigningKey
    mask: ExchangeKey
    share: ExchangeKey


@dataclass(frozen=True, slots=True)
class Header:
    """What a PC answers for with its signature; 160 bytes."""

    context: bytes
    dealer: bytes
    vector_hash: bytes
    checks_root: bytes
    leaves_root: bytes

    def encode(self) -> bytes:
        parts = (self.context, self.dealer, self.vector_hash, self.checks_root, self.leaves_root)
        return b"".join(parts)

    @classmethod
    def decode(cls, content: bytes) -> Header:
        """Of exactly 160 bytes."""
        if len(content) != HEADER_BYTES:
            raise SealingError("a header has the wrong length")
        return cls(*(content[start : start + 32] for start in range(0, HEADER_BYTES, 32)))

    def signed_part(self) -> bytes:
        """What the signature covers: a label and every field."""
        return Writer().string(_HEADER_LABEL).fixed(self.encode(), HEADER_BYTES).done()


@dataclass(frozen=True, slots=True, repr=False)
class Upload:
    """`checks`: of the own key, then each neighbour's; `leaves`, `blobs`: one for each member."""

    header: Header
    signature: bytes
    vector: bytes | memoryview
    checks: tuple[bytes, ...]
    leaves: tuple[bytes, ...]
    blobs: tuple[bytes, ...]

    def encode(self) -> bytes:
        writer = Writer(UPLOAD).fixed(self.header.encode(), HEADER_BYTES)
        writer.fixed(self.signature, SIGNATURE_BYTES).string(bytes(self.vector))
        writer.items(self.checks, CHECK_BYTES).items(self.leaves, 2 * _HASH_BYTES)
        writer.number(len(self.blobs), 4)
        for blob in self.blobs:
            writer.string(blob)
        return writer.done()

    @classmethod
    def decode(cls, content: bytes | memoryview) -> Upload:
        """Raises EncodingError or SealingError. The vector is a view of `content`."""

        def read(reader: Reader) -> Upload:
            return cls(
                header=Header.decode(reader.fixed(HEADER_BYTES)),
                signature=reader.fixed(SIGNATURE_BYTES),
                vector=reader.view(LONGEST),
                checks=tuple(reader.items(CHECK_BYTES, _MOST_PCS)),
                leaves=tuple(reader.items(2 * _HASH_BYTES, _MOST_PCS)),
                blobs=tuple(reader.string() for _ in range(reader.count(_MOST_PCS))),
            )

        return parsed(content, UPLOAD, read)

    def check(self, terms: Terms) -> None:
        """Raise SealingError unless it is a whole upload by its dealer for this round (M17)."""
        header = self.header
        if header.context != terms.context or header.dealer not in terms.participants:
            raise SealingError("an upload is for another round, or of a PC that takes no part")
        verify(header.dealer, self.signature, header.signed_part(), "an upload")
        neighbours, members = len(terms.neighbours(header.dealer)), len(terms.committee)
        blob_bytes = (1 + neighbours) * SHARE_BYTES + SEAL_OVERHEAD
        if (
            len(self.vector) != terms.size * terms.encoding.width
            or len(self.checks) != 1 + neighbours
            or len(self.leaves) != members
            or [len(blob) for blob in self.blobs] != [blob_bytes] * members
        ):
            raise SealingError("an upload has other sizes than the round asks for")
        if (
            hashlib.sha256(self.vector).digest() != header.vector_hash
            or tree.root(self.checks) != header.checks_root
            or tree.root(self.leaves) != header.leaves_root
            or any(
                hashlib.sha256(blob).digest() != leaf[:_HASH_BYTES]
                for blob, leaf in zip(self.blobs, self.leaves, strict=True)
            )
        ):
            raise SealingError("an upload is not the one that its dealer signed")


def pair_key(terms: Terms, keys: Keys, other: bytes) -> bytes:
    """The 32 bytes that this PC and `other`, an identity, alone can compute."""
    shared = keys.mask.agree(terms.bundle(other).mask_key)
    low, high = sorted((keys.identity.public, other))
    return derive(shared, terms.context, _PAIR_LABEL + low + high)


def deal(terms: Terms, keys: Keys, words: npt.NDArray[Any]) -> Upload:
    """Mask `words`, the encoded update of shape (size,), in place, and deal shares of the keys.

    The caller has checked `terms` and made the round's record durable (M14). Every call draws a
    fresh own key (M15). Raises SealingError where another PC's key is none.
    """
    own = keys.identity.public
    neighbours = terms.neighbours(own)
    own_key = secrets.token_bytes(KEY_BYTES)
    pairs = [pair_key(terms, keys, other) for other in neighbours]
    signed = list(zip(neighbours, pairs, strict=True))
    add_masks(
        words,
        [own_key, *(key for other, key in signed if own < other)],
        [key for other, key in signed if own > other],
    )
    vector = terms.encoding.pack(words)
    threshold, members = terms.thresholds.shares, terms.committee
    dealt = [split(key, threshold, len(members)) for key in (own_key, *pairs)]
    blobs, leaves = [], []
    for number, member in enumerate(members):
        shares = [line[number] for line in dealt]
        key = terms.bundle(member).share_key
        blob = seal(b"".join(shares), key, blob_info(terms, own, member))
        blobs.append(blob)
        leaves.append(leaf(terms, own, member, blob, shares))
    checks = [check_value(terms.context, key) for key in (own_key, *pairs)]
    header = Header(
        context=terms.context,
        dealer=own,
        vector_hash=hashlib.sha256(vector).digest(),
        checks_root=tree.root(checks),
        leaves_root=tree.root(leaves),
    )
    return Upload(
        header=header,
        signature=keys.identity.sign(header.signed_part()),
        vector=vector,
        checks=tuple(checks),
        leaves=tuple(leaves),
        blobs=tuple(blobs),
    )


def open_shares(terms: Terms, keys: Keys, header: Header, entry: bytes, blob: bytes) -> list[bytes]:
    """The shares in a blob for this member: of the dealer's own key, then of each neighbour's.

    Raises SealingError where it does not open or is not what the dealer's leaf `entry` says (M19).
    """
    dealer, own = header.dealer, keys.identity.public
    opened = keys.share.open(blob, blob_info(terms, dealer, own))
    if len(opened) != (1 + len(terms.neighbours(dealer))) * SHARE_BYTES:
        raise SealingError("a blob has the wrong length")
    shares = [opened[i : i + SHARE_BYTES] for i in range(0, len(opened), SHARE_BYTES)]
    if leaf(terms, dealer, own, blob, shares) != entry:
        raise SealingError("a blob does not hold the shares that its dealer signed")
    return shares


def leaf(terms: Terms, dealer: bytes, member: bytes, blob: bytes, shares: list[bytes]) -> bytes:
    """64 bytes for one member: the hash of its blob, and of what is in it."""
    commitments = [commitment(terms.context, dealer, member, share) for share in shares]
    return hashlib.sha256(blob).digest() + tree.root(commitments)


def blob_info(terms: Terms, dealer: bytes, member: bytes) -> bytes:
    """What a blob is sealed for."""
    return _SHARES_LABEL + terms.context + dealer + member
