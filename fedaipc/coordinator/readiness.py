"""Who takes part in an attempt: each PC is asked, and gives out shares of its secrets with its yes.

SPEC.md, sections 4 and 5.1, as the coordinator drives them. Nobody is charged here.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fedaipc.errors import EncodingError, SecAggError
from fedaipc.protocol.messages import READY, Readiness, RoundRequest
from fedaipc.secagg.keys import canonical
from fedaipc.secagg.round_keys import Group, KeyShares

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from flwr.app import RecordDict

    from fedaipc.coordinator.membership import Membership
    from fedaipc.coordinator.participation import Participation
    from fedaipc.coordinator.upload_store import UploadStore
    from fedaipc.protocol.job import SignedJob
    from fedaipc.secagg.round_keys import RoundKey
    from fedaipc.secagg.terms import Terms

    Ask = Callable[
        [str, Iterable[tuple[bytes, RecordDict]], float], Iterator[tuple[bytes, RecordDict]]
    ]

_SPARE = (
    5  # one PC in so many may fall silent after it said yes, and a sum is unmasked all the same
)
_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Gathered:
    """`groups` of PCs that take part; by identity, who was `asked`, `declined`, and is `there`."""

    groups: list[Group] = field(default_factory=list)
    asked: set[bytes] = field(default_factory=set)
    declined: set[bytes] = field(default_factory=set)
    there: set[bytes] = field(default_factory=set)


class Gathering:
    """The question in one attempt. What PCs share out is kept in `store`."""

    def __init__(
        self,
        signed: SignedJob,
        membership: Membership,
        participation: Participation,
        store: UploadStore,
        ask: Ask,
    ) -> None:
        self._signed, self._membership, self._store = signed, membership, store
        self._participation, self._ask = participation, ask
        # What each PC said last: the context of the terms that it agrees to, and its round key.
        self._said: dict[bytes, tuple[bytes, RoundKey | None]] = {}
        self._owners: dict[bytes, bytes] = {}  # of round keys

    def run(
        self,
        form: Callable[[], list[Terms]],
        enough: int,
        patience: Callable[[set[bytes]], float],
        attempt: int,
        number: int,
    ) -> Gathered:
        """Ask the PCs of the groups that `form` gives, until `enough` of them take part.

        A group of which too few do is formed again without the others, and with the thresholds of
        their number. `patience` says how many seconds PCs have to answer. Raises as `form`.
        """
        found = Gathered()
        while True:
            offered = form()
            terms_of = {pc: terms for terms in offered for pc in terms.participants}
            missing = {pc for pc, terms in terms_of.items() if not self._agrees(pc, terms)}
            found.asked |= missing
            self._question(offered, missing, patience(missing), attempt, number, found)
            found.groups = [group for terms in offered if (group := self._taking_part(terms))]
            found.there = {
                pc
                for group in found.groups
                for pc in group.terms.participants
                if self._agrees(pc, group.terms)
            }
            # While they answered, keys may have come so near to their end that all would refuse.
            late = self._membership.late() & terms_of.keys()
            if len(found.there) >= max(1, enough) and not late:
                return found

    def _question(
        self,
        offered: list[Terms],
        pcs: set[bytes],
        patience: float,
        attempt: int,
        number: int,
        found: Gathered,
    ) -> None:
        started, silent = time.monotonic(), set(pcs)
        for pc in pcs:  # it may keep new secrets, whether or not its answer comes in time
            self._said.pop(pc, None)
        terms_of = {pc: terms for terms in offered for pc in terms.participants}
        for pc, reply in self._ask(READY, self._offers(offered, number, pcs), patience):
            try:
                answer = Readiness.decode(reply)
                key = self._shared(pc, answer, terms_of[pc])
            except (EncodingError, SecAggError) as error:
                _log.warning("%s: %s", self._participation.name(pc), error)
                continue
            silent.discard(pc)
            if self._participation.hear(pc, answer, attempt):
                self._said[pc] = terms_of[pc].context, key
            else:
                found.declined.add(pc)
        waited = time.monotonic() - started
        self._participation.miss(silent, waited if waited >= patience else 0.0)

    def _offers(
        self, groups: list[Terms], number: int, pcs: set[bytes]
    ) -> Iterator[tuple[bytes, RecordDict]]:
        signed = self._signed
        for terms in groups:
            about = RoundRequest(signed.text, signed.signature, number, terms.encode()).encode()
            yield from ((pc, about) for pc in terms.participants if pc in pcs)

    def _shared(self, pc: bytes, answer: Readiness, terms: Terms) -> RoundKey | None:
        """The round key in a PC's answer, if it takes part and updates are masked.

        What it shares out with it is kept. Raises SecAggError or EncodingError where that is wrong.
        """
        if not terms.sealed or answer.refusal is not None:
            return None
        key_shares = KeyShares.decode(answer.shares)
        if key_shares.card.identity != pc:
            raise SecAggError("a PC answers in another's name")
        key_shares.verify(terms)
        if self._owners.setdefault(canonical(key_shares.card.public), pc) != pc:
            raise SecAggError("two PCs have one round key")
        self._store.keep_shares(pc, answer.shares)
        return key_shares.card

    def _agrees(self, pc: bytes, terms: Terms) -> bool:
        return pc in self._said and self._said[pc][0] == terms.context

    def _taking_part(self, terms: Terms) -> Group | None:
        """Those of a group that take part; None where a sum of them could hardly be unmasked."""
        if not terms.sealed:
            return Group(terms, ())
        keys = [self._said[pc][1] for pc in terms.participants if self._agrees(pc, terms)]
        group, bounds = Group(terms, tuple(key for key in keys if key)), terms.thresholds
        count = len(group.round_keys)
        # Thresholds follow the number of those that were asked. Where all of them are there, asking
        # again gives no better ones.
        spare = count // _SPARE if count < bounds.count else 0
        return group if count >= max(bounds.least, bounds.shares + spare) else None
