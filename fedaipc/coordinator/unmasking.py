"""A group's members agree on a set of uploads and release the shares that it needs.

SPEC.md, sections 5.3 and 5.4, as the coordinator drives them.
"""

from __future__ import annotations

import logging
from collections import Counter
from typing import TYPE_CHECKING

from fedaipc.errors import BadShares, EncodingError, SecAggError
from fedaipc.protocol.messages import AGREE, UNMASK, MemberRequest, decode_answer
from fedaipc.secagg.committee import Agreement, Release, Unmask, read_answer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from flwr.app import RecordDict

    from fedaipc.coordinator.upload_store import UploadStore
    from fedaipc.secagg.aggregator import Aggregator

    Ask = Callable[[str, Iterable[tuple[bytes, RecordDict]]], Iterator[tuple[bytes, RecordDict]]]

_log = logging.getLogger(__name__)


class Unmasking:
    """The unmasking of one group.

    `blamed` are PCs that were proved wrong: by what they signed, or by more PCs than may collude;
    `disputes` pairs of which one is wrong; `silent` members gave no useful answer when asked.
    """

    def __init__(
        self, aggregator: Aggregator, store: UploadStore, ask: Ask, name: Callable[[bytes], str]
    ) -> None:
        self.blamed: set[bytes] = set()
        self.silent: set[bytes] = set()
        self.disputes: set[tuple[bytes, bytes]] = set()
        self._aggregator = aggregator
        self._group = aggregator.group
        self._bounds = aggregator.group.terms.thresholds
        self._store = store
        self._ask = ask
        self._name = name

    def run(self, members: Sequence[bytes]) -> None:
        """Remove the group's masks from the sum; asks `members` in this order.

        Raises SecAggError where that cannot be done: then nothing is removed, and the group's
        uploads are still in the sum.
        """
        aggregator = self._aggregator
        agreements = self._agree(members)
        aggregator.recall(self._store.shares(sharer) for sharer in self._group.members)
        signers = [agreement.member for agreement in agreements]
        self._unmask(signers, [m for m in members if m not in signers], agreements)
        try:
            aggregator.unmask()
        except BadShares as error:
            self.blamed |= set(error.pcs)
            raise

    def _agree(self, members: Sequence[bytes]) -> list[Agreement]:
        """As many agreements as the threshold asks for (M20 to M22)."""
        free = list(members)  # those that have signed nothing
        while True:
            found, complaints = self._propose(free)
            bad = self._proved(complaints)
            if len(found) >= self._bounds.shares:
                return found
            signed = {agreement.member for agreement in found}
            free = [member for member in free if member not in signed]
            if not bad or len(free) < self._bounds.shares:
                raise SecAggError(
                    f"{len(found)} members agreed on one set of updates; it takes "
                    f"{self._bounds.shares}"
                )
            for uploader in bad:
                self._aggregator.leave_out(uploader, self._store.upload(uploader).vector)

    def _propose(self, members: Sequence[bytes]) -> tuple[list[Agreement], Counter[bytes]]:
        """Agreements on the present set, and how many complain of an uploader."""
        complaints: Counter[bytes] = Counter()
        proposal = self._aggregator.proposal()  # raises where too few uploads came
        frame, expected = proposal.encode(), proposal.hash(self._group)
        found: list[Agreement] = []

        def read(member: bytes, answer: bytes) -> None:
            said = read_answer(answer)
            said.check(self._group)
            if said.member != member:
                raise SecAggError("a member answers in another's name")
            if not isinstance(said, Agreement):
                if said.uploader in proposal.uploaders:
                    self._accuse(member, said.uploader, "its ledger went back: an older copy was "
                                 "restored, or some of it is missing")  # fmt: skip
                    complaints[said.uploader] += 1
            elif said.set_hash != expected:
                raise SecAggError("a member agrees to another set")
            else:
                found.append(said)

        def missing() -> int:
            return self._bounds.shares - len(found)

        self._hear(AGREE, members, lambda _: frame, read, missing, due=members)
        return found, complaints

    def _unmask(
        self, signers: Sequence[bytes], others: Sequence[bytes], agreements: Sequence[Agreement]
    ) -> None:
        """Ask those that signed for their shares, and `others` where they do not suffice."""
        aggregator, proposal = self._aggregator, self._aggregator.proposal()
        without: Counter[bytes] = Counter()  # by sharer, how many could not release a share

        def read(member: bytes, frame: bytes) -> None:
            release = Release.decode(frame)
            if release.member != member:
                raise SecAggError("a member answers in another's name")
            for sharer in aggregator.take(release):
                self._accuse(member, sharer, "its encrypted shares cannot be read")
                without[sharer] += 1

        def request(member: bytes) -> bytes:
            return Unmask(proposal, tuple(agreements), aggregator.blobs(member)).encode()

        members = [*signers, *others]
        self._hear(UNMASK, members, request, read, lambda: aggregator.missing, due=signers)
        self._proved(without)

    def _accuse(self, member: bytes, sharer: bytes, what: str) -> None:
        _log.warning("%s says of %s: %s", self._name(member), self._name(sharer), what)
        self.disputes.add((member, sharer))

    def _proved(self, complaints: Counter[bytes]) -> set[bytes]:
        """Those of whom more PCs complain than may collude."""
        bad = {pc for pc, count in complaints.items() if count > self._bounds.colluding}
        self.blamed |= bad
        return bad

    def _hear(
        self,
        stage: str,
        members: Sequence[bytes],
        request: Callable[[bytes], bytes],
        read: Callable[[bytes, bytes], None],
        missing: Callable[[], int],
        due: Sequence[bytes],
    ) -> None:
        """Have answers `read` until none is `missing`; ask no more members at a time than that.

        Members in `due` whose answer is of no use count as silent.
        """
        waiting = list(members)
        while waiting and (count := missing()) > 0:
            wave, waiting = waiting[:count], waiting[count:]
            for member, records in self._ask(stage, self._requests(wave, request)):
                try:
                    read(member, decode_answer(records))
                except (SecAggError, EncodingError) as error:
                    # No ban: an answer is not signed as a whole. Others answer in its place.
                    _log.warning("%s: %s", self._name(member), error)
                    if member not in due:
                        self.silent.discard(member)
                    continue
                self.silent.discard(member)

    def _requests(
        self, members: Sequence[bytes], request: Callable[[bytes], bytes]
    ) -> Iterator[tuple[bytes, RecordDict]]:
        terms = self._group.terms
        for member in members:
            frame = request(member)
            self.silent.add(member)
            yield member, MemberRequest(terms.run, terms.number, frame).encode()
