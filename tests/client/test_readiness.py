"""A PC says whether it takes part before anybody is charged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from fedaipc.client.key_store import KeyStore
from fedaipc.privacy.ledger import LEDGER_FILE, Ledger
from fedaipc.protocol.job import SignedJob
from fedaipc.protocol.messages import EXHAUSTED, READY, REFUSED, UNABLE, Readiness, RoundRequest
from fedaipc.secagg.keys import SigningKey
from tests.support.clients import Federation, charges, gave, offer, owner, send


def test_a_pc_says_whether_it_takes_part_and_is_not_charged_for_it(
    five: Federation, member: Path, ask_member: Any, touched: list[str]
) -> None:
    before = (member / LEDGER_FILE).read_bytes()
    for charged in range(2):
        assert Readiness.decode(offer(five, member, charged + 1).content) == Readiness(
            None, charged
        )
        if not charged:
            assert touched == []
            assert (member / LEDGER_FILE).read_bytes() == before
            assert gave(ask_member())
    assert charges(member) == 1


@pytest.mark.parametrize(
    ("policy", "changes", "word"),
    [
        ({"max_epsilon": 0.01}, {}, REFUSED),
        ({}, {"layout_hash": "f" * 64}, REFUSED),
        ({}, {"delta": 1e-6}, REFUSED),
        ({}, {"noise_multiplier": 0.1, "max_attempts": 2}, EXHAUSTED),
    ],
    ids=["policy", "base", "delta", "budget"],
)
def test_a_pc_that_will_not_take_part_says_so_before_anybody_is_charged(
    five: Federation, member: Path, policy: Any, changes: Any, word: str
) -> None:
    path = member / LEDGER_FILE
    if word == EXHAUSTED:
        path.unlink()
        Ledger.create(
            path,
            KeyStore(member).identity,
            lifetime_epsilon=3.0,
            delta=five.job.privacy.delta,
            order=8.0,
        )
    before = path.read_bytes()
    owner(member, policy=policy)
    assert Readiness.decode(offer(five, member, **changes).content) == Readiness(word, 0)
    assert path.read_bytes() == before


def test_a_pc_whose_ledger_is_locked_is_able_again_later(
    five: Federation, member: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedaipc.privacy.ledger._LOCK_SECONDS", 0.0)
    with FileLock(f"{member / LEDGER_FILE}.lock"):
        assert Readiness.decode(offer(five, member).content) == Readiness(UNABLE, None)
    assert Readiness.decode(offer(five, member).content) == Readiness(None, 0)


@pytest.mark.parametrize("attempt", [1, 2])
def test_a_pc_does_not_say_yes_to_an_attempt_that_it_was_charged_for_or_a_newer_one(
    five: Federation, member: Path, ask_member: Any, attempt: int
) -> None:
    """A coordinator that was restored from a copy finds out before it charges the others."""
    assert gave(ask_member(attempt=2))
    assert Readiness.decode(offer(five, member, attempt).content) == Readiness(UNABLE, 1)


def test_a_pc_tells_a_stranger_nothing_of_its_ledger(five: Federation, member: Path) -> None:
    """How often a run charged it is for the run's own coordinator, whose job is signed."""
    signed = SignedJob.sign(SigningKey(), five.job)
    request = RoundRequest(signed.text, signed.signature, 1, five.terms(signed).encode())
    reply = send(member, READY, request.encode())
    assert Readiness.decode(reply.content) == Readiness(UNABLE, None)
