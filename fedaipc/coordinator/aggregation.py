"""The sum of a round's updates, masked or plain: the coordinator's memory holds one vector.

`accept` adds uploads as they arrive, `finish` unmasks it. A group of PCs that cannot be unmasked
is taken out of the sum again and costs the others nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fedaipc.coordinator.unmasking import Unmasking
from fedaipc.errors import EncodingError, SecAggError
from fedaipc.secagg.aggregator import Aggregator
from fedaipc.secagg.uploads import Upload

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt

    from fedaipc.coordinator.unmasking import Ask
    from fedaipc.coordinator.upload_store import UploadStore
    from fedaipc.secagg.round_keys import Group


_CHUNK = 1 << 16  # values


class PlainSum:
    """Over groups of PCs that share one encoding; the coordinator can read each update.

    `blamed` are PCs that were proved wrong, `disputes` pairs of which one is; `silent` members
    gave no useful answer; `reasons` say why a group was not unmasked.
    """

    def __init__(self, groups: Sequence[Group]) -> None:
        self.blamed: set[bytes] = set()
        self.silent: set[bytes] = set()
        self.disputes: set[tuple[bytes, bytes]] = set()
        self.reasons: list[str] = []
        self._terms = {pc: one.terms for one in groups for pc in one.terms.participants}
        self._encoding, self._size = groups[0].terms.encoding, groups[0].terms.size
        self._total = np.zeros(self._size, self._encoding.dtype)
        self._inside: set[bytes] = set()

    @property
    def inside(self) -> set[bytes]:
        """Whose updates are in the sum."""
        return self._inside

    def accept(self, sender: bytes, frame: bytes) -> None:
        """Add an upload. Raises SecAggError or EncodingError where it is not a PC's first."""
        if sender in self._inside:
            raise SecAggError("a PC has sent two updates in one round")
        self._total += self._encoding.unpack(frame, self._size)
        self._inside.add(sender)

    def finish(self, ask: Ask) -> None:
        """Unmask the sum; `ask` sends requests to PCs by identity."""

    def mean(self) -> npt.NDArray[np.float32]:
        """Weighted mean, shape (size,). Raises EncodingError where nothing is in the sum."""
        weights = [self._terms[pc].weights[self._terms[pc].place(pc)] for pc in self.inside]
        if not weights:
            raise EncodingError("there is no update to average")
        mean = np.empty(self._size, np.float32)
        for start in range(0, self._size, _CHUNK):  # decoded values take twice the memory
            part = slice(start, start + _CHUNK)
            mean[part] = self._encoding.decode(self._total[part]) / sum(weights)
        return mean


class MaskedSum(PlainSum):
    """The coordinator can read the sum alone. Uploads lie in `store` until it is finished."""

    def __init__(
        self,
        groups: Sequence[Group],
        store: UploadStore,
        name: Callable[[bytes], str] = bytes.hex,
    ) -> None:
        """`name` is what the log calls a PC."""
        super().__init__(groups)
        self._name = name
        self._store = store
        self._aggregators = [Aggregator(group, self._total) for group in groups]
        self._aggregator = {pc: a for a in self._aggregators for pc in a.group.members}

    @property
    def inside(self) -> set[bytes]:
        return {pc for aggregator in self._aggregators for pc in aggregator.uploaders}

    def accept(self, sender: bytes, frame: bytes) -> None:
        """Raises OutputError too."""
        upload = Upload.decode(frame)
        if upload.header.uploader != sender:
            raise SecAggError("an upload names another PC than the one that sent it")
        self._aggregator[sender].accept(upload)
        self._store.keep(sender, frame)

    def finish(self, ask: Ask) -> None:
        for aggregator in self._aggregators:
            unmasking = Unmasking(aggregator, self._store, ask, self._name)
            # A PC that uploaded a moment ago is likely to be still online.
            first = aggregator.arrived
            rest = [pc for pc in aggregator.group.members if pc not in set(first)]
            try:
                unmasking.run([*first, *rest])
            except SecAggError as error:
                self.reasons.append(str(error))
                for uploader in aggregator.uploaders:
                    aggregator.leave_out(uploader, self._store.upload(uploader).vector)
            self.blamed |= unmasking.blamed
            self.silent |= unmasking.silent
            self.disputes |= unmasking.disputes
            aggregator.close()
        self._store.remove()
