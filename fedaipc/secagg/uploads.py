"""What a PC uploads in a round: its masked vector, and shares of the keys of its masks.

SPEC.md, section 5.1. The upload is one frame; its header is what the PC signs and what all agree
on later. Sizes follow from the number of PCs and the dimension alone (M16).
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fedaipc.errors import SecAggError
from fedaipc.secagg import tree
from fedaipc.secagg.keys import (
    KEY_BYTES,
    SEAL_OVERHEAD,
    SIGNATURE_BYTES,
    ExchangeKey,
    SigningKey,
    derive,
    seal,
    verify,
)
from fedaipc.secagg.masks import add_masks
from fedaipc.secagg.roster import MAX_IN_A_GROUP
from fedaipc.secagg.shares import SHARE_BYTES, is_share, split_all
from fedaipc.secagg.terms import check_value, commitments
from fedaipc.secagg.wire import Reader, Writer, parsed

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy.typing as npt

    from fedaipc.secagg.roster import Bundle
    from fedaipc.secagg.terms import Terms

UPLOAD = 5
CHECK_BYTES = 16
HEAD_BYTES = 8 + 32
HEADER_BYTES = 5 * 32 + HEAD_BYTES
LEAF_BYTES = 80
_HASH_BYTES = 32
_HEADER_LABEL, _PAIR_LABEL, _SHARES_LABEL = b"fedaipc header", b"fedaipc pair", b"fedaipc shares"


@dataclass(frozen=True, slots=True)
class Keys:
    """A PC's secret keys of an epoch.

    `opened` keeps the shares of each blob that a member opened when it agreed until it releases,
    joined:
    as small objects they would take three times the memory.
    """

    identity: SigningKey
    mask: ExchangeKey
    share: ExchangeKey
    opened: dict[bytes, bytes] = field(default_factory=dict, repr=False, compare=False)

    def check(self, bundles: Iterable[Bundle]) -> None:
        """Raise SecAggError where one holds a key with which nobody can share a secret."""
        for bundle in bundles:
            self.mask.agree(bundle.mask_key)
            self.share.agree(bundle.share_key)


@dataclass(frozen=True, slots=True)
class LedgerHead:
    """Head of a PC's ledger at its upload: its number of lines, and the last one's hash (M31)."""

    count: int
    digest: bytes

    def encode(self) -> bytes:
        return self.count.to_bytes(8, "big") + self.digest

    @classmethod
    def decode(cls, content: bytes) -> LedgerHead:
        """A head from exactly 40 bytes."""
        if len(content) != HEAD_BYTES:
            raise SecAggError("a ledger's head has the wrong length")
        return cls(int.from_bytes(content[:8], "big"), content[8:])


@dataclass(frozen=True, slots=True)
class Header:
    """What a PC answers for with its signature; 200 bytes."""

    context: bytes
    uploader: bytes
    vector_hash: bytes
    checks_hash: bytes
    leaves_root: bytes
    head: LedgerHead

    def encode(self) -> bytes:
        parts = (self.context, self.uploader, self.vector_hash, self.checks_hash, self.leaves_root)
        return b"".join(parts) + self.head.encode()

    @classmethod
    def decode(cls, content: bytes) -> Header:
        """A header from exactly 200 bytes."""
        if len(content) != HEADER_BYTES:
            raise SecAggError("a header has the wrong length")
        context, uploader, vector, checks, root = (content[i : i + 32] for i in range(0, 160, 32))
        return cls(context, uploader, vector, checks, root, LedgerHead.decode(content[160:]))

    def signed_part(self) -> bytes:
        """What the signature covers: a label and every field."""
        return Writer().string(_HEADER_LABEL).fixed(self.encode(), HEADER_BYTES).done()


@dataclass(frozen=True, slots=True, repr=False)
class Upload:
    """`checks`: of the own key, then each neighbour's; `leaves`: one for each member.

    `blobs` holds one sealed message of equal length for each member, `vector` the packed words.
    """

    header: Header
    signature: bytes
    checks: tuple[bytes, ...]
    leaves: tuple[bytes, ...]
    blobs: bytes | memoryview
    vector: bytes | memoryview

    def encode(self) -> bytes:
        """The vector comes last, so that what stands before it can be read alone."""
        writer = Writer(UPLOAD).fixed(self.header.encode(), HEADER_BYTES)
        writer.fixed(self.signature, SIGNATURE_BYTES)
        writer.items(self.checks, CHECK_BYTES).items(self.leaves, LEAF_BYTES)
        return writer.string(self.blobs).string(self.vector).done()

    @staticmethod
    def blobs_start(count: int) -> int:
        """Where in a frame the blobs begin, among `count` PCs."""
        return 2 + HEADER_BYTES + SIGNATURE_BYTES + 3 * 4 + count * (CHECK_BYTES + LEAF_BYTES)

    @classmethod
    def decode(cls, content: bytes | memoryview) -> Upload:
        """Raises EncodingError or SecAggError. Blobs and vector are views of `content`."""

        def read(reader: Reader) -> Upload:
            return cls(
                header=Header.decode(reader.fixed(HEADER_BYTES)),
                signature=reader.fixed(SIGNATURE_BYTES),
                checks=tuple(reader.items(CHECK_BYTES, MAX_IN_A_GROUP)),
                leaves=tuple(reader.items(LEAF_BYTES, MAX_IN_A_GROUP)),
                blobs=reader.view(MAX_IN_A_GROUP * blob_bytes(MAX_IN_A_GROUP)),
                vector=reader.view(),
            )

        return parsed(content, UPLOAD, read)

    def check(self, terms: Terms) -> None:
        """Raise SecAggError unless it is a whole upload by its uploader for this round (M17)."""
        header, count = self.header, len(terms.participants)
        if header.context != terms.context:
            raise SecAggError("an upload is for another round")
        terms.place(header.uploader)
        verify(header.uploader, self.signature, header.signed_part(), "an upload")
        size = blob_bytes(count)
        if (
            len(self.vector) != terms.size * terms.encoding.width
            or len(self.checks) != count
            or len(self.leaves) != count
            or len(self.blobs) != count * size
        ):
            raise SecAggError("an upload has other sizes than the round asks for")
        if (
            hashlib.sha256(self.vector).digest() != header.vector_hash
            or list_hash(self.checks) != header.checks_hash
            or tree.root(self.leaves) != header.leaves_root
            or any(
                hashlib.sha256(self.blobs[place * size : (place + 1) * size]).digest()
                != leaf[:_HASH_BYTES]
                for place, leaf in enumerate(self.leaves)
            )
        ):
            raise SecAggError("an upload is not the one that its uploader signed")


def blob_bytes(count: int) -> int:
    """Length of one sealed message among `count` PCs: a share of each of the uploader's keys."""
    return count * SHARE_BYTES + SEAL_OVERHEAD


def pair_key(terms: Terms, keys: Keys, other: bytes) -> bytes:
    """The 32 bytes that this PC and `other`, an identity, alone can compute."""
    shared = keys.mask.agree(terms.bundle(other).mask_key)
    low, high = sorted((keys.identity.public, other))
    return derive(shared, terms.context, _PAIR_LABEL + low + high)


def mask_and_share(terms: Terms, keys: Keys, words: npt.NDArray[Any], head: LedgerHead) -> Upload:
    """Mask `words`, the encoded update of shape (size,), in place, and share out its keys.

    `head` is the ledger's after this round's charge. The caller has checked `terms` and made the
    round's record durable (M14). Every call draws a fresh own key (M15). Raises SecAggError where
    another PC's key is not valid.
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
    shared = (own_key, *pairs)
    lines = split_all(shared, terms.thresholds.shares, len(terms.bundles))
    blobs, leaves = [], []
    for bundle, shares in zip(terms.bundles, lines, strict=True):
        blob = seal(b"".join(shares), bundle.share_key, _blob_info(terms, own, bundle.identity))
        blobs.append(blob)
        leaves.append(_leaf(terms, own, bundle.identity, blob, shares))
    checks = [check_value(terms.context, key) for key in shared]
    header = Header(
        context=terms.context,
        uploader=own,
        vector_hash=hashlib.sha256(vector).digest(),
        checks_hash=list_hash(checks),
        leaves_root=tree.root(leaves),
        head=head,
    )
    return Upload(
        header=header,
        signature=keys.identity.sign(header.signed_part()),
        checks=tuple(checks),
        leaves=tuple(leaves),
        blobs=b"".join(blobs),
        vector=vector,
    )


def open_shares(terms: Terms, keys: Keys, header: Header, entry: bytes, blob: bytes) -> list[bytes]:
    """The shares in a blob for this member: of the uploader's own key, then of each neighbour's.

    Raises SecAggError where it cannot be decrypted or is not what the uploader's leaf `entry` says
    (M19).
    """
    uploader, own = header.uploader, keys.identity.public
    if len(blob) != blob_bytes(len(terms.participants)):
        raise SecAggError("a blob has the wrong length")
    content = keys.share.open(blob, _blob_info(terms, uploader, own))
    shares = shares_in(content)
    if _leaf(terms, uploader, own, blob, shares) != entry or not all(map(is_share, shares)):
        raise SecAggError("a blob does not hold the shares that its uploader signed")
    return shares


def shares_in(content: bytes) -> list[bytes]:
    """The shares of a blob that was opened."""
    return [content[i : i + SHARE_BYTES] for i in range(0, len(content), SHARE_BYTES)]


def _leaf(
    terms: Terms, uploader: bytes, member: bytes, blob: bytes, shares: Sequence[bytes]
) -> bytes:
    """80 bytes for one member: hash of its blob, commitment of the own key's share, pairs' hash.

    So that a share of the own key, which is asked for nearly always, stands alone.
    """
    own, *pairs = commitments(terms.context, uploader, member, shares)
    return hashlib.sha256(blob).digest() + own + list_hash(pairs)


def list_hash(values: Sequence[bytes]) -> bytes:
    """Hash of a list whose length and widths both sides know."""
    return hashlib.sha256(b"".join(values)).digest()


def _blob_info(terms: Terms, uploader: bytes, member: bytes) -> bytes:
    """What a blob is sealed for."""
    return _SHARES_LABEL + terms.context + uploader + member
