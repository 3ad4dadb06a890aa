"""What a PC uploads in a round: its masked vector, under its signature (SPEC.md, section 5.2).

The upload is one frame; its header is what the PC signs and what all agree on later. Its size
follows from the dimension alone (M16).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedaipc.errors import SecAggError
from fedaipc.secagg.keys import SIGNATURE_BYTES, verify
from fedaipc.secagg.masks import add_masks
from fedaipc.secagg.round_keys import pair_key
from fedaipc.secagg.wire import Reader, Writer, parsed

if TYPE_CHECKING:
    import numpy.typing as npt

    from fedaipc.secagg.round_keys import Group, Keys, RoundSecrets

UPLOAD = 5
HEAD_BYTES = 8 + 32
HEADER_BYTES = 3 * 32 + HEAD_BYTES
_HEADER_LABEL = b"fedaipc header"


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
    """What a PC answers for with its signature; 136 bytes."""

    context: bytes
    uploader: bytes
    vector_hash: bytes
    head: LedgerHead

    def encode(self) -> bytes:
        return self.context + self.uploader + self.vector_hash + self.head.encode()

    @classmethod
    def decode(cls, content: bytes) -> Header:
        """A header from exactly 136 bytes."""
        if len(content) != HEADER_BYTES:
            raise SecAggError("a header has the wrong length")
        context, uploader, vector = (content[i : i + 32] for i in range(0, 96, 32))
        return cls(context, uploader, vector, LedgerHead.decode(content[96:]))

    def signed_part(self) -> bytes:
        """What the signature covers: a label and every field."""
        return Writer().string(_HEADER_LABEL).fixed(self.encode(), HEADER_BYTES).done()


@dataclass(frozen=True, slots=True, repr=False)
class Upload:
    """`vector` holds the packed words."""

    header: Header
    signature: bytes
    vector: bytes | memoryview

    def encode(self) -> bytes:
        writer = Writer(UPLOAD).fixed(self.header.encode(), HEADER_BYTES)
        return writer.fixed(self.signature, SIGNATURE_BYTES).string(self.vector).done()

    @classmethod
    def decode(cls, content: bytes | memoryview) -> Upload:
        """Raises EncodingError or SecAggError. The vector is a view of `content`."""

        def read(reader: Reader) -> Upload:
            header = Header.decode(reader.fixed(HEADER_BYTES))
            return cls(header, reader.fixed(SIGNATURE_BYTES), reader.view())

        return parsed(content, UPLOAD, read)

    def check(self, group: Group) -> None:
        """Raise SecAggError unless it is a whole upload by its uploader for this round (M17)."""
        header, terms = self.header, group.terms
        if header.context != group.context:
            raise SecAggError("an upload is for another round")
        group.card(header.uploader)
        verify(header.uploader, self.signature, header.signed_part(), "an upload")
        if len(self.vector) != terms.size * terms.encoding.width:
            raise SecAggError("an upload has another size than the round asks for")
        if hashlib.sha256(self.vector).digest() != header.vector_hash:
            raise SecAggError("an upload is not the one that its uploader signed")


def mask_update(
    group: Group, keys: Keys, own: RoundSecrets, words: npt.NDArray[Any], head: LedgerHead
) -> Upload:
    """Mask `words`, the encoded update of shape (size,), in place, and sign them.

    `head` is the ledger's after this round's charge. The caller has checked the group, made the
    round's record durable (M14) and deleted the secrets from its disk (M15).
    """
    who = keys.identity.public
    pairs = {
        other: pair_key(group, own.exchange, who, other) for other in group.members if other != who
    }
    add_masks(
        words,
        [own.own_mask, *(key for other, key in pairs.items() if who < other)],
        [key for other, key in pairs.items() if who > other],
    )
    vector = group.terms.encoding.pack(words)
    header = Header(group.context, who, hashlib.sha256(vector).digest(), head)
    return Upload(header, keys.identity.sign(header.signed_part()), vector)
