"""The coordinator's side of a round: sum, propose a set, unmask the sum (SPEC.md, section 5).

All groups of a round add to one vector. Of an upload only header and signature stay in memory. What
the PCs shared out is shown again (`recall`) when their group unmasks, a vector where it is left
out. The caller keeps both on the disk.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fedaipc.errors import BadShares, SecAggError
from fedaipc.secagg.committee import Proposal
from fedaipc.secagg.keys import ExchangeKey
from fedaipc.secagg.masks import add_masks
from fedaipc.secagg.round_keys import COMMITMENT_BYTES, check_value, commit, pair_key
from fedaipc.secagg.shares import combine

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy.typing as npt

    from fedaipc.secagg.committee import Release
    from fedaipc.secagg.round_keys import Group, KeyShares
    from fedaipc.secagg.uploads import Header, Upload


class Aggregator:
    """One group of a round. Every method raises SecAggError where the round's rules are broken."""

    def __init__(self, group: Group, total: npt.NDArray[Any]) -> None:
        """`total`: ring elements of shape (size,), changed in place; shared by all groups."""
        self.group = group
        self._total = total
        self._headers: dict[bytes, tuple[Header, bytes]] = {}
        self._key_shares: dict[bytes, KeyShares] = {}
        # By sharer, then by the holder's place: of its own mask or its round key.
        self._shares: dict[bytes, dict[int, bytes]] = {}

    @property
    def uploaders(self) -> tuple[bytes, ...]:
        """Whose uploads are in the sum, ascending."""
        return tuple(sorted(self._headers))

    @property
    def arrived(self) -> tuple[bytes, ...]:
        """The same PCs as their uploads came."""
        return tuple(self._headers)

    def accept(self, upload: Upload) -> None:
        """Add an upload; of two by one PC the first counts (M17)."""
        upload.check(self.group)
        uploader = upload.header.uploader
        if uploader in self._headers:
            raise SecAggError("a PC has sent two uploads in one round")
        self._total += self.group.terms.encoding.unpack(upload.vector, self.group.terms.size)
        self._headers[uploader] = upload.header, upload.signature

    def leave_out(self, uploader: bytes, vector: bytes | memoryview) -> None:
        """Take an upload out again, with the `vector` that was added."""
        del self._headers[uploader]
        self._total -= self.group.terms.encoding.unpack(vector, self.group.terms.size)

    def recall(self, key_shares: Iterable[KeyShares]) -> None:
        """What every PC that takes part shared out, for the methods below."""
        for one in key_shares:
            if self.group.card(one.card.identity) != one.card:
                raise SecAggError("what a PC shared out is not what belongs to its round key")
            self._key_shares[one.card.identity] = one

    def proposal(self) -> Proposal:
        """The set. Raises SecAggError where too few are left (M28)."""
        least = self.group.terms.thresholds.least
        if len(self._headers) < least:
            raise SecAggError(f"{len(self._headers)} updates; only sums of {least} are unmasked")
        return Proposal(tuple(self._headers[uploader] for uploader in self.uploaders))

    def blobs(self, member: bytes) -> tuple[bytes, ...]:
        """What all PCs that take part encrypted to `member`, ascending."""
        place = self.group.terms.place(member)
        return tuple(self._key_shares[sharer].blobs[place] for sharer in self.group.members)

    def take(self, release: Release) -> tuple[bytes, ...]:
        """Keep a member's shares; the sharers of which it gave none that fits (M26).

        Each of them gave it a bad one, or it keeps a good one back. Raises SecAggError where the
        release does not answer what was asked.
        """
        group, place = self.group, self.group.terms.place(release.member)
        if len(release.shares) != len(group.members):
            raise SecAggError("a member did not release what the set asks for")
        without = []
        for sharer, share in zip(group.members, release.shares, strict=True):
            value = commit(group.terms.context, sharer + release.member, share)
            pair = self._key_shares[sharer].commitments[place]
            inside = sharer in self._headers
            if value == pair[COMMITMENT_BYTES * inside : COMMITMENT_BYTES * (inside + 1)]:
                self._shares.setdefault(sharer, {})[place] = share
            else:
                without.append(sharer)
        return tuple(without)

    @property
    def missing(self) -> int:
        """How many shares are still missing of the sharer with the fewest."""
        fewest = min(len(self._shares.get(sharer, ())) for sharer in self.group.members)
        return max(0, self.group.terms.thresholds.shares - fewest)

    def unmask(self) -> None:
        """Remove all masks of this group from the total; once (M27, M28).

        Raises SecAggError where shares are missing, BadShares where PCs shared out other keys than
        they stated; then the total stays as it was.
        """
        keys = {sharer: self._rebuilt(sharer) for sharer in self._shares if self._enough(sharer)}
        bad = [sharer for sharer, key in sorted(keys.items()) if key is None]
        if bad:
            raise BadShares(bad)
        if self.missing:
            bounds = self.group.terms.thresholds
            raise SecAggError(
                f"{bounds.shares - self.missing} members released their shares; it takes "
                f"{bounds.shares}"
            )
        plus: list[bytes] = []
        minus: list[bytes] = []
        inside = self.uploaders
        for sharer, key in keys.items():
            if key is None:  # not here: it was named above
                continue
            if sharer in self._headers:
                minus.append(key)
                continue
            exchange = ExchangeKey(key)
            for uploader in inside:
                pair = pair_key(self.group, exchange, sharer, uploader)
                (plus if uploader > sharer else minus).append(pair)
        add_masks(self._total, plus, minus)

    def close(self) -> None:
        """Forget all that unmasking needed, except for whose uploads are in the sum."""
        self._key_shares.clear()
        self._shares.clear()

    def _enough(self, sharer: bytes) -> bool:
        return len(self._shares[sharer]) >= self.group.terms.thresholds.shares

    def _rebuilt(self, sharer: bytes) -> bytes | None:
        """Its own mask where its upload is in the sum, otherwise its round key. None if it does not
        match what it stated.
        """
        shares = self._shares[sharer]
        # The first members: then most keys have the same ones, whose weights are kept.
        places = sorted(shares)[: self.group.terms.thresholds.shares]
        try:
            key = combine({place: shares[place] for place in places})
        except SecAggError:  # it committed to values that are not shares
            return None
        if sharer in self._headers:
            stated = check_value(self.group.terms.context, key) == self._key_shares[sharer].check
        else:
            stated = ExchangeKey(key).public == self.group.card(sharer).public
        return key if stated else None
