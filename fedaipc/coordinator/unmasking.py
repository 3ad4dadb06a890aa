"""A group's members agree on a set of uploads and release the shares that it needs.

SPEC.md, sections 5.2 and 5.3, as the coordinator drives them.
"""

from __future__ import annotations

import logging
from collections import Counter
from typing import TYPE_CHECKING, TypeVar

from fedaipc.coordinator.disputes import to_leave_out
from fedaipc.errors import BadUploader, EncodingError, SecAggError
from fedaipc.protocol.messages import AGREE, UNMASK, MemberRequest, decode_answer
from fedaipc.secagg.committee import Agreement, Release, Unmask, read_answer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from flwr.app import RecordDict

    from fedaipc.coordinator.upload_store import UploadStore
    from fedaipc.secagg.aggregator import Aggregator
    from fedaipc.secagg.committee import Proposal

    Ask = Callable[[str, Iterable[tuple[bytes, RecordDict]]], Iterator[tuple[bytes, RecordDict]]]

_T = TypeVar("_T")
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
        self._terms = aggregator.terms
        self._store = store
        self._ask = ask
        self._name = name

    def run(self, members: Sequence[bytes]) -> None:
        """Remove the group's masks from the sum; asks `members` in this order.

        Raises SecAggError where that cannot be done: then nothing is removed, and the group's
        uploads are still in the sum.
        """
        aggregator, count = self._aggregator, len(self._terms.participants)
        aggregator.recall(self._store.lists(uploader, count) for uploader in aggregator.uploaders)
        pairs = aggregator.disagreeing()
        self.disputes |= set(pairs)
        self._leave_out(to_leave_out(pairs))
        counts = Counter(uploader for pair in pairs for uploader in pair)
        self.blamed |= {d for d, n in counts.items() if n > self._terms.thresholds.colluding}
        agreements = self._agree(members)
        signers = [agreement.member for agreement in agreements]
        self._unmask(signers, [m for m in members if m not in signers], agreements)
        try:
            aggregator.unmask()
        except BadUploader as error:
            self.blamed.add(error.uploader)
            raise

    def _agree(self, members: Sequence[bytes]) -> list[Agreement]:
        """As many agreements as the threshold asks for (M19 to M22)."""
        bounds = self._terms.thresholds
        free = list(members)  # those that have signed nothing
        while True:
            found, complaints = self._propose(free)
            bad = {uploader for uploader, count in complaints.items() if count > bounds.colluding}
            self.blamed |= bad
            if len(found) >= bounds.shares:
                return found
            signed = {agreement.member for agreement in found}
            free = [member for member in free if member not in signed]
            if not bad or len(free) < bounds.shares:
                raise SecAggError(
                    f"{len(found)} members agreed on one set of updates; it takes {bounds.shares}"
                )
            self._leave_out(bad)

    def _propose(self, members: Sequence[bytes]) -> tuple[list[Agreement], Counter[bytes]]:
        """Agreements on the present set, and how many complain of an uploader."""
        complaints: Counter[bytes] = Counter()
        expected = self._aggregator.set_hash

        def read(member: bytes, frame: bytes) -> Agreement | None:
            said = read_answer(frame)
            said.check(self._terms)
            if said.member != member:
                raise SecAggError("a member answers in another's name")
            if not isinstance(said, Agreement):
                if said.uploader in self._aggregator.uploaders:
                    _log.warning(
                        "%s says of %s: %s",
                        self._name(member), self._name(said.uploader), said.reason.text,
                    )  # fmt: skip
                    complaints[said.uploader] += 1
                    self.disputes.add((member, said.uploader))
                return None
            if said.set_hash != expected:
                raise SecAggError("a member agrees to another set")
            return said

        def request(member: bytes) -> bytes:
            return self._proposal(member).encode()

        found = list(self._answers(AGREE, members, request, read, due=members))
        return found, complaints

    def _unmask(
        self, signers: Sequence[bytes], others: Sequence[bytes], agreements: Sequence[Agreement]
    ) -> None:
        """Ask those that signed for their shares, and `others` where they do not suffice."""

        def read(member: bytes, frame: bytes) -> bool:
            release = Release.decode(frame)
            if release.member != member:
                raise SecAggError("a member answers in another's name")
            self._aggregator.take(release)
            return True

        def request(member: bytes) -> bytes:
            return Unmask(self._proposal(member), tuple(agreements)).encode()

        # A member that got a bad blob cannot release all; one that signed has checked every blob.
        for _ in self._answers(UNMASK, [*signers, *others], request, read, due=signers):
            pass

    def _answers(
        self,
        stage: str,
        members: Sequence[bytes],
        request: Callable[[bytes], bytes],
        read: Callable[[bytes, bytes], _T | None],
        due: Sequence[bytes],
    ) -> Iterator[_T]:
        """Good answers, as many as the threshold asks for; asks no more members at a time than are
        missing.

        Members in `due` whose answer is of no use count as silent.
        """
        waiting, missing = list(members), self._terms.thresholds.shares
        while waiting and missing > 0:
            wave, waiting = waiting[:missing], waiting[missing:]
            for member, records in self._ask(stage, self._requests(wave, request)):
                try:
                    answer = read(member, decode_answer(records))
                except (SecAggError, EncodingError) as error:
                    # No ban: an answer is not signed as a whole. Others answer in its place.
                    _log.warning("%s: %s", self._name(member), error)
                    if member not in due:
                        self.silent.discard(member)
                    continue
                self.silent.discard(member)
                if answer is not None:
                    missing -= 1
                    yield answer

    def _requests(
        self, members: Sequence[bytes], request: Callable[[bytes], bytes]
    ) -> Iterator[tuple[bytes, RecordDict]]:
        for member in members:
            frame = request(member)  # raises where too few uploads came: then nobody was asked
            self.silent.add(member)
            yield member, MemberRequest(self._terms.run, self._terms.number, frame).encode()

    def _proposal(self, member: bytes) -> Proposal:
        place, count = self._terms.place(member), len(self._terms.participants)
        uploaders = self._aggregator.uploaders
        blobs = {uploader: self._store.blob(uploader, place, count) for uploader in uploaders}
        return self._aggregator.proposal(member, blobs)

    def _leave_out(self, uploaders: set[bytes]) -> None:
        for uploader in uploaders:
            self._aggregator.leave_out(uploader, self._store.upload(uploader).vector)
