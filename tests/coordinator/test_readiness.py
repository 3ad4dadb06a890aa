"""The question who takes part: what a PC said counts for the terms that it was asked about last."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from fedaipc.coordinator.readiness import Gathering
from fedaipc.protocol.messages import Readiness
from fedaipc.secagg.terms import PLAIN
from tests.support.jobs import signed, tiny_job
from tests.support.secagg import federation

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from flwr.app import RecordDict

FIRST = dataclasses.replace(federation(3)[0], thresholds=PLAIN)
SECOND = dataclasses.replace(FIRST, vector_hash=b"\1" * 32)
A, B, C = FIRST.participants


class Everybody:
    """Membership and participation in one, where nobody is left out."""

    def late(self) -> set[bytes]:
        return set()

    def hear(self, *_: Any) -> bool:
        return True

    def miss(self, *_: Any) -> None:
        pass


def test_a_pc_that_was_asked_since_about_other_terms_is_asked_again() -> None:
    """M15: it keeps the secrets of its last answer alone, even where that came too late."""
    asked: list[set[bytes]] = []
    answers = iter([{A, B}, {B, C}, {A, B, C}])

    def ask(
        _: str, requests: Iterable[tuple[bytes, RecordDict]], __: float
    ) -> Iterator[tuple[bytes, RecordDict]]:
        asked.append({pc for pc, _ in requests})
        for pc in sorted(asked[-1] & next(answers)):
            yield pc, Readiness(None, 0).encode()

    offers = iter([[FIRST], [SECOND], [FIRST]])
    everybody: Any = Everybody()
    store: Any = None
    gathering = Gathering(signed(tiny_job()), everybody, everybody, store, ask)
    found = gathering.run(lambda: next(offers), 3, lambda _: 1.0, 1, 1)
    assert asked == [{A, B, C}] * 3
    assert found.there == {A, B, C}
